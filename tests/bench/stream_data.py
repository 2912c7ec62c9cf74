"""Images for the benchmarks of the stream, and the same ones in every candidate's own format."""

import functools
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from ingest.landcover import draw_land, draw_look, expose, to_uint8
from shards.commit import commit_version, write_table
from shards.images import encode_image
from shards.keyed import generator
from shards.schema import REJECTS, SAMPLES, SCENES, SHARDS, Band, Version, canonical_json, sha256_hex
from shards.tar import BLOCK, ShardWriter

_LAND_PX, _LANDS = 1024, 4
_SHARDS = 8


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one kind."""

    name: str
    side_px: int
    quality: int
    """Of JPEG, without subsampling of colours."""
    count: int
    turn: int = 1
    """How many times as many images are read in a turn as of the larger ones."""


IMAGE_SETS = (
    ImageSet(name="64² chips", side_px=64, quality=95, count=16384, turn=10),
    ImageSet(name="400² of 53 kB", side_px=400, quality=91, count=4096),
    ImageSet(name="512² at q95", side_px=512, quality=95, count=1536),
)


def draw_jpegs(images: ImageSet) -> list[bytes]:
    """Cut different tiles from a few synthetic lands; 3 ms per image of 400², 6 ms per one of 512²."""
    lands, jpegs = _lands(), []
    for number in range(images.count):
        rng = generator("bench tile", number)
        x, y = rng.integers(0, _LAND_PX - images.side_px, 2).tolist()
        tile = lands[number % _LANDS][y : y + images.side_px, x : x + images.side_px]
        jpegs.append(encode_image(np.ascontiguousarray(tile), "jpeg", images.quality)[1])
    return jpegs


@functools.cache
def _lands() -> list[np.ndarray]:
    lands = []
    for number in range(_LANDS):
        rng = generator("bench land", number)
        look = draw_look(1.0, south=number % 2 == 1, rng=rng)
        lands.append(to_uint8(expose(draw_land((_LAND_PX, _LAND_PX), look, rng), look, rng)[..., :3]))
    return lands


def write_ours(folder: Path, jpegs: Sequence[bytes], side_px: int, copies: int = 1) -> None:
    """Write a dataset as ingest does: shards of image and JSON, and their tables.

    Args:
        folder: of the dataset.
        jpegs: images.
        side_px: of each.
        copies: how often the dataset has each shard, under another name each time (one file with several links).
    """
    (folder / "shards").mkdir(parents=True)
    samples, shards = [], []
    for number in range(_SHARDS):
        path = folder / "shards" / f"{number:02d}-0.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file)
            rows = [_write_sample(writer, i, jpegs[i], side_px) for i in range(number, len(jpegs), _SHARDS)]
            writer.close()
        for copy in range(copies):
            url = f"shards/{number:02d}-{copy}.tar"
            if copy:
                (folder / url).hardlink_to(path)
            name = sha256_hex(f"{writer.sha256()} {copy}".encode())
            shards.append({"shard": name, "url": url, "size": writer.size, "num_samples": len(rows)})
            samples += [row | {"shard": name} for row in rows]
    tables = {
        "samples": [pa.Table.from_pylist(samples, SAMPLES)],
        "shards": [pa.Table.from_pylist(shards, SHARDS)],
    }
    commit(folder, tables, num_samples=len(samples), num_shards=len(shards), tile_px=side_px)


def _write_sample(writer: ShardWriter, number: int, jpeg: bytes, side_px: int) -> dict[str, object]:
    key = f"{hashlib.blake2b(str(number).encode(), digest_size=8).hexdigest()}_{number:08d}"
    metadata = {"key": key, "bands": ["red", "green", "blue"], "gsd_m": 1.0, "x": 0, "y": 0, "valid_share": 1.0}
    extent = writer.write(key, {"jpg": jpeg, "json": canonical_json(metadata)})
    return {
        "key": key,
        "offset": extent.offset,
        "size": extent.size,
        "crc32c": extent.crc32c,
        "member": "jpg",
        "member_offset": extent.offset + BLOCK,
        "member_size": len(jpeg),
        "width": side_px,
        "height": side_px,
    }


def commit(folder: Path, tables: dict[str, list[pa.Table]], *, num_samples: int, num_shards: int, tile_px: int) -> None:
    """Write tables (samples and shards; the others are empty) and the version that names them."""
    empty = {"scenes": [SCENES.empty_table()], "rejects": [REJECTS.empty_table()]}
    version = Version(
        version=1,
        digest=sha256_hex(f"{folder.name} {num_samples}".encode()),
        bands=tuple(Band(name=name, mean=100.0, std=50.0) for name in ("red", "green", "blue")),
        dtype="uint8",
        tile_px=tile_px,
        num_samples=num_samples,
        num_shards=num_shards,
        num_scenes=0,
        num_rejected=0,
        num_bytes=0,
        tables={name: write_table(str(folder), name, parts) for name, parts in (tables | empty).items()},
    )
    commit_version(str(folder), version)


def write_mosaicml(folder: Path, source: Path, encoding: str) -> None:
    """Write MosaicML's shards (64 MB each, its default) from a folder of images.

    Args:
        folder: to be made.
        source: the images.
        encoding: of the column: `jpeg`, which MosaicML decodes itself, or `bytes`; both hold the files as they are.
    """
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"image": encoding}) as writer:
        for path in sorted(source.iterdir()):
            if encoding == "bytes":
                writer.write({"image": path.read_bytes()})
            else:
                with Image.open(path) as image:
                    writer.write({"image": image})


def write_litdata(folder: Path, source: Path) -> None:
    """Write litData's chunks (64 MB each, as in its README) from a folder of images; in a process: it is chatty."""
    command = [sys.executable, "-m", "tests.bench.stream_data", str(folder), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"litData failed:\n{run.stderr}")


def _optimize(folder: str, source: str) -> None:
    import litdata

    files = sorted(map(str, Path(source).iterdir()))
    litdata.optimize(
        fn=read_file, inputs=files, output_dir=folder, chunk_bytes="64MB", num_workers=1, start_method="spawn"
    )


def read_file(path: str) -> dict[str, bytes]:
    """Return what litData is to store of a file."""
    return {"image": Path(path).read_bytes()}


if __name__ == "__main__":
    _optimize(*sys.argv[1:])
