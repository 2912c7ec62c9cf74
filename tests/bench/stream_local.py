"""The stream from a local disk against the bare loop and its peers; see `tests.bench.stream`."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from tests.bench import stream_peers as peers
from tests.bench.stream_data import IMAGE_SETS, ImageSet, draw_jpegs, write_litdata, write_mosaicml, write_ours
from tests.bench.stream_race import Entry, print_rates, race

_DECODED_TURNS, _DECODED_HEATS, _DECODED_BATCHES = 5, 5, {0: 4, 2: 8}
_RAW_TURNS = 11
_RAW_BATCHES = {"ours": 64, "bare loop": 256, "webdataset": 16, "MosaicML, our decoder": 8, "litData": 16}
_ASKED_DECODED = {"bare loop": 0.95, "webdataset": 1.1, "MosaicML Streaming": 1.4, "litData": 1.0}
_ASKED_RAW = {"webdataset": 5.0}
_CANDIDATES: Mapping[str, tuple[Callable[..., Any], str]] = {
    "ours": (peers.ours, "ours"),
    "bare loop": (peers.bare, "ours"),
    "webdataset": (peers.webdataset, "ours"),
    "MosaicML Streaming": (peers.mosaicml, "mosaicml-jpeg"),
    "MosaicML, our decoder": (peers.mosaicml_bytes, "mosaicml"),
    "litData": (peers.litdata, "litdata"),
}
"""Function, and the folder that it reads."""


def print_tables() -> None:
    """Measure and print, for each set of images."""
    if not all(map(find_spec, ("webdataset", "streaming", "litdata"))):
        raise SystemExit("the peers are not installed: make .venv/.ready-bench")
    for images in IMAGE_SETS:
        with _scratch() as folder:
            mean_kb = _write(folder, images)
            title = f"local, {images.name} ({images.count} images of {mean_kb:.0f} kB)"
            for workers, batches in _DECODED_BATCHES.items():
                entries, per_turn = _entries(folder, _CANDIDATES, peers.decode_jpeg, workers), batches * images.turn
                rates = race(entries, turns=_DECODED_TURNS, batches=per_turn, heats=_DECODED_HEATS)
                print_rates(f"{title}: decoded, {workers} workers", rates, ours="ours", asked=_ASKED_DECODED)
            rates = race(_entries(folder, _RAW_BATCHES, peers.as_it_is, 0), turns=_RAW_TURNS, batches=_RAW_BATCHES)
            print_rates(f"{title}: encoded, 0 workers", rates, ours="ours", asked=_ASKED_RAW)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder that the peers take for their temporary files too: they leave some."""
    with tempfile.TemporaryDirectory(prefix="pera-bench-") as name, mock.patch.dict(os.environ, {"TMPDIR": name}):
        yield Path(name)


def _write(folder: Path, images: ImageSet) -> float:
    """Write the images in all formats; return their mean size, kB."""
    jpegs = draw_jpegs(images)
    write_ours(folder / "ours", jpegs, images.side_px)
    files = folder / "files"
    files.mkdir()
    for number, jpeg in enumerate(jpegs):
        (files / f"{number:06d}.jpg").write_bytes(jpeg)
    write_litdata(folder / "litdata", files)
    write_mosaicml(folder / "mosaicml", files, "bytes")
    write_mosaicml(folder / "mosaicml-jpeg", files, "jpeg")
    os.sync()  # what is written back later must slow no candidate
    return sum(map(len, jpegs)) / len(jpegs) / 1000


def _entries(folder: Path, names: Iterable[str], decode: peers.Decode, workers: int) -> list[Entry]:
    return [
        Entry(
            name=name,
            batches=_CANDIDATES[name][0],
            arguments={"folder": str(folder / _CANDIDATES[name][1]), "decode": decode},
            workers=workers,
        )
        for name in names
    ]
