"""Make the tables for WebDataset tars that others wrote; the tars stay where and as they are.

Every byte of every tar is read once, several tars at a time; what was learnt of a tar is kept until the version is
committed, so that the same command goes on where it was stopped. Then the scans are read twice: to check that they
make one dataset, and to write its tables. Faults are told together, and nothing is committed if there is one.

What a foreign dataset does not tell is null: place, time, scene, figures of each tile. The bands' mean and deviation
come from at most 256 images.

Memory: per worker 40 MiB and the samples of one tar (150 bytes each); 12 bytes per sample and series; one file of the
samples table (2 million rows, about 2 GB). Time: see `shards.indexing.scan`; then some 10 s per million samples.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from shards import storage
from shards.commit import commit_version, write_table
from shards.curation.derive import tables_digest
from shards.errors import UserError
from shards.indexing.faults import Faults
from shards.indexing.key_places import lookup, with_shard
from shards.indexing.measure import Figures, measure
from shards.indexing.scan_check import Checked, Choice, Series, check
from shards.indexing.scan_rows import sample_rows
from shards.indexing.scan_store import KeptScan, ScanStore, read_scan
from shards.indexing.sources import Source, read_sources, split_name
from shards.progress import Progress
from shards.schema import SHARDS, Version
from shards.tables import list_versions

_ROWS_AT_ONCE = 2**18
_MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What came of a run."""

    version: Version
    num_resumed: int
    """Tars that an earlier run had read."""
    num_passed_over: int
    """Members of the tars that belong to no sample."""
    passed_over: str
    """The first of them, with its tar, as a text for people; or empty."""


def index(
    arguments: Sequence[str],
    out: str,
    *,
    image: str | None = None,
    label: str | None = None,
    bands: Sequence[str] | None = None,
    num_workers: int = 4,
) -> Indexed:
    """Write version 1 of a dataset whose shards are tars that exist.

    Args:
        arguments: URLs of tars, folders and patterns, or NAME=URL, see `shards.indexing.sources`.
        out: the dataset, without a version yet.
        image: extension of the image member; by default the only one that can be decoded.
        label: extension of the member that holds the label; by default cls, if every sample has it.
        bands: their names, in the order of the images' channels.
        num_workers: tars that are read at a time.

    Raises:
        UserError: there is a dataset, or the tars cannot be one: see `Faults.refuse`.
        StorageError: a store kept failing.
    """
    _require_usable(out, bands, num_workers)
    sources = read_sources(arguments)
    if len(sources) == 1:
        sources = {"": sources.popitem()[1]}
    choice = Choice.of(list(sources), image, label)
    storage.require_writable(out)
    store, faults = ScanStore(out), Faults()
    series, num_resumed = _scan_all(store, sources, choice, num_workers, faults)
    checked = check(series, choice, faults, complete=not faults.count)
    figures = measure(checked.to_measure, bands, faults) if checked.to_measure else None
    faults.refuse("faults, nothing is committed: mend them and run the same command again")
    assert figures is not None, "no figures and no fault"
    version = _write(out, series, choice, checked, figures, _record(arguments, choice, checked))
    commit_version(out, version)
    scans = [scan for each in series for scan in each.scans]
    store.remove(scans)
    return Indexed(
        version=version,
        num_resumed=num_resumed,
        num_passed_over=sum(scan.num_passed_over for scan in scans),
        passed_over=next(_first_passed_over(series), ""),
    )


def _first_passed_over(series: Sequence[Series]) -> Iterator[str]:
    for each in series:
        for source, scan in zip(each.sources, each.scans, strict=True):
            if scan.passed_over:
                yield f"{scan.passed_over!r} in {source.url}"


def _require_usable(out: str, bands: Sequence[str] | None, num_workers: int) -> None:
    if num_workers < 1:
        raise UserError(f"--workers is {num_workers}: give 1 or more")
    if bands is not None and (len(set(bands)) < len(bands) or "" in bands):
        raise UserError(f"--bands {','.join(bands)}: give each band a name of its own")
    with storage.user_errors(out):
        numbers = list_versions(out)
    if numbers:
        raise UserError(f"{out} holds a dataset already (version {numbers[-1]}): choose another --out")


class _Bytes:
    """Counts the bytes that several threads read and shows them."""

    def __init__(self, progress: Progress, done: int) -> None:
        self._progress, self._done, self._lock = progress, done, threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress.update(self._done // _MB)


def _scan_all(
    store: ScanStore, sources: Mapping[str, Sequence[Source]], choice: Choice, num_workers: int, faults: Faults
) -> tuple[list[Series], int]:
    """Return the series with the tars that can be used, and how many of these were read before."""
    wanted = [(name, source) for name, mine in sources.items() for source in mine]
    gets = (partial(store.get, source, choice.labels[name]) for name, source in wanted)
    kept = list(storage.in_order(num_workers, gets))
    done = sum(source.size for (_, source), scan in zip(wanted, kept, strict=True) if scan)
    total = sum(source.size for _, source in wanted)
    usable: dict[str, list[tuple[Source, KeptScan]]] = {name: [] for name in sources}
    with Progress("index", total // _MB, "MB", done // _MB) as progress:
        on_bytes = _Bytes(progress, done)
        calls = (
            partial(_scan, store, source, choice.labels[name], scan, on_bytes)
            for (name, source), scan in zip(wanted, kept, strict=True)
        )
        for (name, source), scan in zip(wanted, storage.in_order(num_workers, calls), strict=True):
            if isinstance(scan, Faults):
                faults.add_many([f"{source.url}: {text}" for text in scan.told], scan.count)
            else:
                usable[name].append((source, scan))
    series = [
        Series(name=name, sources=[source for source, _ in mine], scans=[scan for _, scan in mine])
        for name, mine in usable.items()
    ]
    return series, sum(scan is not None for scan in kept)


def _scan(store: ScanStore, source: Source, label: str, kept: KeptScan | None, on_bytes: _Bytes) -> KeptScan | Faults:
    if kept is not None:
        return kept
    try:
        return store.make(source, label, on_bytes)
    except UserError as error:
        faults = Faults()
        faults.add(str(error))
        return faults


def joined(series: Sequence[Series]) -> Iterator[dict[str, pa.Table]]:
    """Yield the samples of all series side by side, in the order of the first, some 262,144 at a time."""
    first, others = series[0], series[1:]
    waiting: list[pa.Table] = []
    for number, scan in enumerate(first.scans):
        waiting.append(with_shard(read_scan(scan), scan))
        if number == len(first.scans) - 1 or sum(table.num_rows for table in waiting) >= _ROWS_AT_ONCE:
            table = pa.concat_tables(waiting).combine_chunks()
            waiting = []
            for start in range(0, table.num_rows, _ROWS_AT_ONCE):
                part = table.slice(start, _ROWS_AT_ONCE).combine_chunks()
                found = {each.name: lookup(part["key"], each.places, each.scans) for each in others}
                yield {first.name: part, **found}


def _write(
    out: str, series: Sequence[Series], choice: Choice, checked: Checked, figures: Figures, record: Mapping[str, Any]
) -> Version:
    rows = (sample_rows(parts, choice.images, checked.label_series) for parts in joined(series))
    shards = _shards(out, series)
    tables = {"samples": write_table(out, "samples", rows), "shards": write_table(out, "shards", [shards])}
    tables |= {name: write_table(out, name, []) for name in ("scenes", "rejects")}
    version = Version(
        version=1,
        digest="",
        bands=figures.bands,
        dtype=figures.dtype,
        tile_px=figures.tile_px,
        num_samples=sum(file.num_rows for file in tables["samples"]),
        num_shards=shards.num_rows,
        num_scenes=0,
        num_rejected=0,
        num_bytes=sum(source.size for each in series for source in each.sources),
        tables=tables,
        series=tuple(each.name for each in series) if len(series) > 1 else (),
        record=record,
    )
    return replace(version, digest=tables_digest(out, version))


def _shards(out: str, series: Sequence[Series]) -> pa.Table:
    """Return the shards table: URLs below the dataset are relative to it."""
    root = f"{_place(out)}/"
    rows = [
        {
            "shard": scan.sha256,
            "url": source.url.removeprefix(root),
            "size": source.size,
            "num_samples": scan.num_samples,
            "etag": None if storage.is_local(source.url) else source.etag,
        }
        for each in series
        for source, scan in zip(each.sources, each.scans, strict=True)
    ]
    return pa.Table.from_pylist(rows, SHARDS)


def _record(arguments: Sequence[str], choice: Choice, checked: Checked) -> dict[str, Any]:
    """Return what a version says of how it was made."""
    sources = []
    for argument in arguments:
        name, url = split_name(argument)
        sources.append(f"{name}={_place(url)}" if name else _place(url))
    label = choice.labels[choice.label_series] if checked.label_series is not None else None
    return {
        "command": "index",
        "sources": sources,
        "series": list(choice.labels),
        "label": label,
        "label_series": checked.label_series,
    }


def _place(url: str) -> str:
    """Return a URL that means the same from everywhere."""
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")
