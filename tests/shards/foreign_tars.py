"""Tars as others write them, for the tests of `shards.indexing.index` and what it uses."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shards.images import encode_image
from shards.keyed import generator

Files = Sequence[tuple[str, bytes]]


def tar_bytes(files: Files, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return what Python's tarfile writes; a name that ends with "/" is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def image(number: int, encoding: str = "png", channels: int = 3, side: int = 16, dtype: str = "uint8") -> bytes:
    """Return an encoded image of noise."""
    top = 255 if dtype == "uint8" else 10000
    pixels = generator("image", number).integers(0, top, (side, side, channels)).astype(dtype)
    return encode_image(pixels, encoding)[1]


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """Return the members of a plain sample by extension."""
    return {"png": image(number), "cls": b"%d" % (number % 3), "json": b'{"number":%d}' % number}


def files_of(samples: Mapping[str, Mapping[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return named files of samples: {key: {extension: content}}."""
    return [
        (f"{key}.{extension}", content) for key, members in samples.items() for extension, content in members.items()
    ]


def write_series(folder: Path, name: str = "train", num_tars: int = 3, per_tar: int = 5) -> list[Path]:
    """Write tars of plain samples with the keys d/000000, d/000001 and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for tar in range(num_tars):
        numbers = range(tar * per_tar, (tar + 1) * per_tar)
        path = folder / f"{name}-{tar:06d}.tar"
        path.write_bytes(tar_bytes(files_of({f"d/{number:06d}": sample(number) for number in numbers})))
        paths.append(path)
    return paths


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> str:
    """Write a tar of samples, {key: {extension: content}}, and return its name."""
    path.write_bytes(tar_bytes(files_of(samples), tar_format))
    return str(path)
