"""Which tar files a command means: files, folders and patterns, in one series or several.

A URL is a tar file, a folder (its *.tar by name), or a pattern such as `s3://b/train-{000000..000127}.tar` or
`{a,b}.tar`. `NAME=URL` puts it into the series of that name, one for each modality. Costs one request per file, or per
1,000 files of a folder.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from shards import storage
from shards.errors import UserError
from shards.indexing.faults import Faults

_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.*)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TAR = re.compile(r"\.tar$")
_PACKED = re.compile(r"\.(tgz|tar\.(gz|zst|bz2|xz))$")
_MAX_FILES = 1_000_000
_STATS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """One tar file as it was listed."""

    url: str
    """Absolute."""
    size: int
    """Bytes."""
    etag: str
    """See `storage.FileInfo`."""


def read_sources(arguments: Sequence[str]) -> dict[str, list[Source]]:
    """Find the files that arguments name, by series, in the order given; the only series may have the name "".

    Raises:
        UserError: a file or folder is missing or given twice, a pattern is empty or too long, or only some have names.
    """
    series: dict[str, list[Source]] = {}
    faults = Faults()
    for argument in arguments:
        name, url = split_name(argument)
        series.setdefault(name, []).extend(_find(url, faults))
    if "" in series and len(series) > 1:
        named = ", ".join(name for name in series if name)
        raise UserError(f"some files belong to a series ({named}) and some to none: give every URL a name, or none")
    seen: set[str] = set()
    for source in (source for sources in series.values() for source in sources):
        if source.url in seen:
            faults.add(f"{source.url} is given twice")
        seen.add(source.url)
    faults.refuse("files to index cannot be used")
    return series


def split_name(argument: str) -> tuple[str, str]:
    """Split `NAME=URL`; without a name (a word of letters, digits, _ and -) that is empty."""
    match = _NAMED.fullmatch(argument)
    return (match[1], match[2]) if match else ("", argument)


def expand(pattern: str) -> Iterator[str]:
    """Yield what a pattern stands for, in order: {a,b} both, {08..11} 08 to 11; other braces stay as they are."""
    for match in _BRACES.finditer(pattern):
        words = _words(match[1])
        if words is not None:
            head, tail = pattern[: match.start()], pattern[match.end() :]
            yield from (head + word + rest for word in words for rest in expand(tail))
            return
    yield pattern


def _words(text: str) -> Iterable[str] | None:
    match = _RANGE.fullmatch(text)
    if not match:
        return text.split(",") if "," in text else None
    first, last = int(match[1]), int(match[2])
    is_padded = any(word.startswith("0") and len(word) > 1 for word in match.groups())
    width = max(map(len, match.groups())) if is_padded else 0
    step = 1 if last >= first else -1
    return (f"{number:0{width}d}" for number in range(first, last + step, step))


def _find(url: str, faults: Faults) -> Iterator[Source]:
    """Yield the files of one URL; what is missing is told."""
    is_literal = storage.is_local(url) and storage.local_path(url).exists()
    urls = [url] if is_literal else list(islice(expand(url), _MAX_FILES + 1))
    if len(urls) > _MAX_FILES:
        raise UserError(f"{url} stands for more than {_MAX_FILES} files: split it, or write folders")
    stats = (partial(_stat, each) for each in urls)
    for each, found in zip(urls, storage.in_order(_STATS_AT_ONCE, stats), strict=True):
        try:
            yield from [found] if found else _list(each)
        except UserError as error:
            faults.add(str(error))


def _stat(url: str) -> Source | None:
    """Return a file; None where there is none, but perhaps a folder."""
    if storage.is_local(url):
        path = storage.local_path(url)
        if not path.is_file():
            return None
        # Not the file's own link: behind the names of a cache lie nameless files.
        url = str(path.parent.resolve() / path.name)
    try:
        with storage.user_errors(url):
            info = storage.stat(url)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return Source(url=url, size=info.size, etag=info.etag)


def _list(url: str) -> list[Source]:
    folder = str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")
    found = [info for info in storage.list_files(folder) if _TAR.search(info.path) or _PACKED.search(info.path)]
    # Packed ones too: they are refused by name, not passed over.
    here = [info for info in found if "/" not in info.path]
    if not here:
        below = f" ({len(found)} in folders below: give these)" if found else ""
        raise UserError(f"{url} has no *.tar in it{below}")
    return [Source(url=storage.child(folder, info.path), size=info.size, etag=info.etag) for info in here]
