"""Bytes out of storage: whole, by ranges, or onto the local disk; a cut body is never taken for a whole one.

Cost on an object store: `read_bytes` a HEAD and a GET (several ranged GETs above 32 MiB), `read_range` one GET,
`fetch` two HEADs and one GET per 8 MiB, of which up to 4 are in memory at a time. Faults: see `shards.storage.retry`.
"""

import contextlib
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.implementations.local import LocalFileSystem

from shards.storage.listing import FileInfo, stat
from shards.storage.retry import ShortBodyError, answer_code, retrying
from shards.storage.urls import filesystem, is_local, is_s3, local_path

FETCH_BYTES = 8 * 2**20
"""Size of one GET of `fetch`: a fault costs no more than this again."""
FETCHES_AT_ONCE = 4
WHOLE_BYTES = 32 * 2**20
"""Above this `read_bytes` reads by ranges, several at once."""
GAP_BYTES = 64 * 2**10
"""Ranges nearer than this share a GET: at 50 MB/s and 10 ms a request, half a megabyte would take as long."""
JOINED_BYTES = 16 * 2**20
"""Ranges are not joined beyond this, so that large ones are read in parallel."""
READS_AT_ONCE = 8

traffic: Counter[str] = Counter(gets=0, heads=0, bytes=0, bytes_used=0)
"""What this process has read from stores: requests, looks at whether a shard is still the same, bytes that came (of
every attempt), bytes of samples out of a cache; only ever grows."""
_counting = threading.Lock()

Result = TypeVar("Result")


class SourceChangedError(OSError):
    """A file was replaced, cut or removed while it was being read: what was read belongs to no version of it."""

    @classmethod
    def of(cls, url: str, detail: str) -> "SourceChangedError":
        """Make the error for a URL, `detail` saying what is not as it was."""
        return cls(f"{url} changed (or vanished) while it was being read: {detail}")


def count_traffic(**amounts: int) -> None:
    """Add to `traffic`; safe to call from several threads."""
    with _counting:
        traffic.update(amounts)


def exists(url: str) -> bool:
    """Say whether a file or folder is there (asks the store, not a cached listing).

    Raises:
        PermissionError: the store does not say.
        StorageError: the store kept failing.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return bool(fs.exists(path))
    fs.invalidate_cache()
    try:
        # Not by fs.exists: fsspec takes any fault for "not there".
        retrying(url, lambda: fs.info(path))
    except FileNotFoundError:
        return False
    return True


def read_bytes(url: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return Path(path).read_bytes()
    return retrying(url, lambda: _read_whole(fs, path, url))


def _read_whole(fs: Any, path: str, url: str) -> bytes:
    before = stat(url)
    if before.size > WHOLE_BYTES:
        ranges = [(start, min(FETCH_BYTES, before.size - start)) for start in range(0, before.size, FETCH_BYTES)]
        data = b"".join(read_ranges(url, ranges))
        if stat(url).etag != before.etag:
            raise ShortBodyError(f"{url} was replaced while it was being read")
    else:
        # One connection: for more s3fs would ask for the size once again.
        data = _get(fs, path, **{"max_concurrency": 1} if is_s3(fs) else {})
    if len(data) != before.size:
        raise ShortBodyError(f"{len(data)} of {before.size} bytes came")
    return data


def read_range(url: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`; fewer only where the file ends before.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    assert offset >= 0, offset
    assert size >= 0, size
    if is_local(url):
        with local_path(url).open("rb") as file:
            return _pread(file, offset, size)
    if not size:
        return b""
    fs, path = filesystem(url)
    return retrying(url, lambda: _read_range(fs, path, url, offset, size))


def _read_range(fs: Any, path: str, url: str, offset: int, size: int) -> bytes:
    try:
        data = _get(fs, path, start=offset, end=offset + size)
    except OSError as error:
        if answer_code(error) in ("InvalidRange", "416"):  # S3 refuses a range that begins at or after the end
            return b""
        raise
    if len(data) > size:  # some stores answer a range with the whole file
        data = data[offset : offset + size]
    if len(data) < size and len(data) < (there := min(size, max(0, stat(url).size - offset))):
        raise ShortBodyError(f"{len(data)} of {there} bytes from {offset} came")
    return data


def _get(fs: Any, path: str, **options: int) -> bytes:
    count_traffic(gets=1)
    data = bytes(fs.cat_file(path, **options))
    count_traffic(bytes=len(data))
    return data


def _pread(file: BinaryIO, offset: int, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := os.pread(file.fileno(), size, offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read many pieces of one file: several at once, near ones in one go.

    Args:
        url: the file.
        ranges: (offset, size) of each piece, in any order; they may overlap.

    Returns:
        The pieces in the order of `ranges`; short only where the file ends before.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store kept failing.
    """
    if is_local(url):
        with local_path(url).open("rb") as file:
            return [_pread(file, offset, size) for offset, size in ranges]
    joined = join_ranges(ranges)
    bodies = in_order(READS_AT_ONCE, [partial(read_range, url, *at) for at, _ in joined])
    pieces = [b""] * len(ranges)
    for ((start, _), members), body in zip(joined, bodies, strict=True):
        for member in members:
            offset, size = ranges[member]
            pieces[member] = body[offset - start : offset - start + size]
    return pieces


def join_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """Join ranges that lie nearer than `GAP_BYTES`, up to `JOINED_BYTES` together.

    Returns:
        Per joined range its (offset, size) and the indices of the ranges in it, by offset; empty ranges are in none.
    """
    joined: list[tuple[tuple[int, int], list[int]]] = []
    for index in sorted((index for index, (_, size) in enumerate(ranges) if size), key=lambda index: ranges[index]):
        offset, size = ranges[index]
        assert offset >= 0 < size, (offset, size)
        if joined:
            (start, length), members = joined[-1]
            end = max(start + length, offset + size)
            if offset < start + length or (offset - start - length < GAP_BYTES and end - start <= JOINED_BYTES):
                members.append(index)
                joined[-1] = ((start, end - start), members)
                continue
        joined.append(((offset, size), [index]))
    return joined


def in_order(at_once: int, calls: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Yield the calls' results in order, that many calls running or waiting to be taken at a time.

    Calls are taken from the iterable only when there is room for them, so memory is bounded.
    """
    remaining = iter(calls)
    first = list(islice(remaining, 2))
    if len(first) < 2:
        yield from (call() for call in first)
        return
    remaining = chain(first, remaining)
    with ThreadPoolExecutor(at_once) as pool:
        running = deque(pool.submit(call) for call in islice(remaining, at_once))
        try:
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(call) for call in islice(remaining, 1))
                yield result
        finally:
            for future in running:
                future.cancel()


def fetch(url: str, target: Path, *, size: int, etag: str) -> None:
    """Copy one file whole to the local disk, provided that it is and stays the one that a listing showed.

    Args:
        url: the file.
        target: local path, replaced; removed again if anything fails.
        size: bytes, as listed.
        etag: as listed (`FileInfo.etag`).

    Raises:
        SourceChangedError: size or ETag differ before or after the download, or the file is gone.
        StorageError: the store kept failing.
        OSError: the local disk is full, or not writable.
    """
    _require_same(url, size, etag)
    with removed_on_failure(target), target.open("wb") as file:
        try:
            written = _copy_local(url, file) if is_local(url) else _download(url, file, size)
        except FileNotFoundError as error:
            raise SourceChangedError.of(url, "it is not there any more") from error
        if written != size:
            raise SourceChangedError.of(url, f"{written} bytes instead of {size}")
    with removed_on_failure(target):
        _require_same(url, size, etag)


def _require_same(url: str, size: int, etag: str) -> None:
    try:
        found: FileInfo = stat(url)
    except FileNotFoundError as error:
        raise SourceChangedError.of(url, "it is not there any more") from error
    if found.size != size:
        raise SourceChangedError.of(url, f"{found.size} bytes instead of {size}")
    if found.etag != etag:
        raise SourceChangedError.of(url, f"its ETag is {found.etag} instead of {etag}")


def _copy_local(url: str, file: BinaryIO) -> int:
    with local_path(url).open("rb") as source:
        shutil.copyfileobj(source, file, 2**20)
    return file.tell()


def _download(url: str, file: BinaryIO, size: int) -> int:
    starts = range(0, size, FETCH_BYTES)
    calls = [partial(read_range, url, at, min(FETCH_BYTES, size - at)) for at in starts]
    for body in in_order(FETCHES_AT_ONCE, calls):
        file.write(body)
    return file.tell()


@contextlib.contextmanager
def removed_on_failure(target: Path) -> Iterator[None]:
    """Remove a file that is being made if the block fails."""
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise
