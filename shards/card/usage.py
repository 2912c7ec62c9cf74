"""What to type to check, rebuild, train on and read a dataset, with its own address filled in."""

import shlex
from collections.abc import Mapping, Sequence

from shards import storage
from shards.card.survey import Survey
from shards.schema import Version


def commands(url: str, version: Version, survey: Survey) -> Mapping[str, str]:
    """Return shell commands, and a few lines of Python, by what they are for."""
    place, rebuilt = shlex.quote(url), shlex.quote(url.rstrip("/") + "-rebuilt")
    return {
        "Check every byte": f"python -m shards verify {place} --version {version.version}",
        "Build it again and compare": _rebuilding(place, rebuilt, version),
        # Make would expand a dollar sign of its own.
        "Train on it": f"make pretrain DATA={place.replace('$', '$$')} RUN=run",
        "Read it with webdataset": "\n".join(_reading(url, version, survey)),
    }


def _rebuilding(place: str, rebuilt: str, version: Version) -> str:
    if version.record.get("command") != "index":
        return f"python -m ingest --rebuild {place} --version {version.version} --out {rebuilt}"
    sources = " ".join(map(shlex.quote, version.record["sources"]))
    compare = f"python -m shards diff {place} {rebuilt} --version_a {version.version}"
    return f"python -m shards index {sources} --out {rebuilt} && {compare}"


def _reading(url: str, version: Version, survey: Survey) -> Sequence[str]:
    """Return a few lines of Python that need nothing of ours."""
    shards, samples = ([storage.join(url, file.url) for file in version.tables[name]] for name in ("shards", "samples"))
    first = [value for value, _ in survey.rankings["member"].top[:1]]
    decode = '"rgb8"' if first and first[0] != "npy" else ""
    root = url.rstrip("/") + "/"
    stream = f"webdataset.WebDataset(urls, shardshuffle=False).decode({decode})"
    lines = ["import pyarrow.parquet as pq, webdataset", f"urls = {_urls(root, _one(shards))}"]
    if survey.num_shard_samples > version.num_samples:
        # The shards hold tiles that this version leaves out.
        lines.append(f'keys = set(pq.read_table({_one(samples)}, columns=["key"])["key"].to_pylist())')
        stream += '.select(lambda sample: sample["__key__"] in keys)'
    return [*lines, f"tiles = {stream}"]


def _urls(root: str, tables: str) -> str:
    column = f'pq.read_table({tables})["url"].to_pylist()'
    if "://" not in root:
        return f'[u if "://" in u or u[0] == "/" else {root!r} + u for u in {column}]'
    cat = f'"pipe:aws s3 cp " + (u if "://" in u else {root!r} + u) + " -"' if root.startswith("s3://") else ""
    return f"[{cat or f'{root!r} + u'} for u in {column}]"


def _one(urls: Sequence[str]) -> str:
    return repr(urls[0] if len(urls) == 1 else list(urls))
