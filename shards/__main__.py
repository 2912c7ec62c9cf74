"""Command line of the format: `python -m shards COMMAND URL`, see `_COMMANDS`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shards import cli
from shards.errors import UserError
from shards.streaming import commands as stream_cli

if TYPE_CHECKING:
    from shards.schema import Version

_DESCRIPTION = "Look at a dataset, check it, compare it, curate it without rewriting a shard; plan and read its stream."
_COMMANDS = {
    "index": (
        "make the tables for WebDataset tars that others wrote, which stay as they are: read every byte once, check "
        "that they can be one dataset, write it to --out. A run that was stopped goes on by the same command"
    ),
    "ls": "one line per shard: URL, samples, bytes (for `cut -f1`, webdataset, tar)",
    "verify": "check every checksum, count and table; exit 1 and a line per fault if any",
    "digest": "print the 64 hex digits that name the content",
    "preview": "write a contact sheet (PNG) of its tiles to --out",
    "card": "write a page (HTML) that says what is in it, where, and how it was made",
    "select": "make a version of the samples for which --where is true; shards stay as they are",
    "dedup": "make a version without equal and nearly equal tiles; shards stay as they are",
    "diff": "say in what two versions differ, scene by scene; exit 0 if their digests are equal, else 1",
    "plan": stream_cli.PLAN,
    "stream": stream_cli.STREAM,
    "gc": (
        "remove files that no version of this dataset names: remains of crashed runs, and what ingest and index keep "
        "to resume from, all by the names that they give, and their unfinished uploads; other files stay. "
        "Versions of OTHER datasets that point to "
        "shards here (select --out, dedup --out) are not known: if a version here that has them is gone, they lose "
        "them. No run may be paused here for longer than --min_age_h"
    ),
}
_WHERE = (
    "SQL expression (DuckDB) over the columns of the samples table, such as `gsd_m < 1 and valid_share > 0.99`; null "
    "counts as not true; time is UTC. The table `scenes` is there for subqueries: scene in (select scene from scenes "
    "where path like 'harbour/%')"
)
# Equal to shards.curation.dedup.MAX_DISTANCE: its import would load numpy and pyarrow for a line of help.
_MAX_DISTANCE = 8
_DISTANCE = (
    f"bits of 64 in which the difference hashes (dhash) of near-duplicates may differ, 0 to {_MAX_DISTANCE}; of such "
    "tiles the one with the smallest key stays"
)
_OUT = (
    "write the version to this folder or bucket URL, pointing to the shards by absolute URLs; by default it becomes "
    "the next version of the dataset itself"
)
_SOURCES = (
    "a tar; a folder, for the *.tar in it by name; or a pattern such as 's3://bucket/train-{000000..000127}.tar' or "
    "'{a,b}.tar'. Several make one dataset, in the order given. For several modalities write NAME=URL: tars of one "
    "name are a series, samples of the series are joined by equal keys, members are called NAME.EXT; the series named "
    "first has the images and gives the order (for a path with a = in it write ./x=y)"
)
_IMAGE = (
    "extension of the image's member, that is all after the first dot of its name: jpg, rgb.png; jpg,png for either. "
    "By default the member called jpg, jpeg, png, webp, npy, tif or tiff"
)
_LABEL = "extension of the label's member, a short text; by default cls, if every sample has it"
_BANDS = "names of the bands, as red,green,blue,nir; by default grey, red,green,blue or band_1,band_2,…"


def main(argv: list[str]) -> int:
    """Run one command; see `exit_with` for the exit codes."""
    parser = cli.make_parser("shards", _DESCRIPTION)
    commands = parser.add_subcommands(dest="command", required=True)
    for name, text in _COMMANDS.items():
        sub = cli.make_parser(f"shards {name}", text)
        if name in _ADD:
            _ADD[name](sub)
        else:
            _add_options(sub, name)
        commands.add_subcommand(name, sub, help=text)
    options = cli.parse(parser, argv)
    return _RUN[options["command"]](options[options["command"]])


def _add_diff(parser: cli.Parser) -> None:
    for side, which in [("a", "first"), ("b", "second")]:
        parser.add_argument(f"url_{side}", type=str, help=f"the {which} dataset: a folder or bucket URL")
    for side, which in [("a", "first"), ("b", "second")]:
        parser.add_argument(
            f"--version_{side}", type=int | None, default=None, help=f"version of the {which}; the newest by default"
        )
    parser.add_argument("--limit", type=int, default=20, help="lines of each kind (scenes added, removed, changed…)")


def _add_index(parser: cli.Parser) -> None:
    parser.add_argument("urls", metavar="url", type=str, nargs="+", help=_SOURCES)
    parser.add_argument("--out", type=str, required=True, help="the dataset to make: a folder or bucket URL")
    parser.add_argument("--image", type=str | None, default=None, help=_IMAGE)
    parser.add_argument("--label", type=str | None, default=None, help=_LABEL)
    parser.add_argument("--bands", type=str | None, default=None, help=_BANDS)
    parser.add_argument("--workers", type=int, default=4, help="tars to read at a time; each takes 40 MiB of memory")


def _add_options(parser: cli.Parser, name: str) -> None:
    parser.add_argument("url", type=str, help="the dataset: a folder or bucket URL")
    if name != "gc":
        parser.add_argument("--version", type=int | None, default=None, help="its version; the newest by default")
    if name == "preview":
        parser.add_argument("--out", type=str, required=True, help="the PNG file to write")
        parser.add_argument("--num_tiles", type=int, default=48, help="tiles on the sheet")
    if name == "card":
        parser.add_argument("--out", type=str | None, default=None, help="the HTML file; card.html in the dataset")
    if name == "select":
        parser.add_argument("--where", type=str, required=True, help=_WHERE)
    if name == "dedup":
        parser.add_argument("--distance", type=int, required=True, help=_DISTANCE)
    if name in ("select", "dedup"):
        parser.add_argument("--out", type=str | None, default=None, help=_OUT)
    if name == "gc":
        parser.add_argument("--dry_run", action="store_true", help="only list what would be removed")
        parser.add_argument(
            "--min_age_h", type=float, default=24.0, help="leave files alone that changed within these hours"
        )


def _index(options: cli.Namespace) -> int:
    from shards.indexing.faults import RefusedError
    from shards.indexing.index import index

    bands = [name.strip() for name in options.bands.split(",")] if options.bands is not None else None
    try:
        made = index(
            options.urls,
            options.out,
            image=options.image,
            label=options.label,
            bands=bands,
            num_workers=options.workers,
        )
    except RefusedError as error:
        print(*error.faults, sep="\n")
        raise
    version, url = made.version, options.out
    notes = [f"{made.num_resumed} of them read by an earlier run"] if made.num_resumed else []
    first = f": {made.passed_over}" if made.num_passed_over == 1 else f", the first is {made.passed_over}"
    told = first if made.passed_over else ""
    notes += [f"{made.num_passed_over} members passed over{told}"] if made.num_passed_over else []
    told = f" ({', '.join(notes)})" if notes else ""
    print(
        f"{url} version {version.version}: {version.num_samples} samples in {version.num_shards} shards{told}, digest "
        f"{version.digest}; next: python -m shards plan {url} --global_batch 256"
    )
    return 0


def _ls(options: cli.Namespace) -> int:
    from shards.storage import join
    from shards.tables import read_table, read_version

    version = read_version(options.url, options.version)
    for row in read_table(options.url, version, "shards").to_pylist():
        print(join(options.url, row["url"]), row["num_samples"], row["size"], sep="\t")
    return 0


def _verify(options: cli.Namespace) -> int:
    from shards.tables import read_version
    from shards.verify import verify

    version = read_version(options.url, options.version)
    faults = 0
    for fault in verify(options.url, version.version):
        faults += 1
        print(fault)
    state = "all right" if not faults else f"{faults} faults"
    print(
        f"{options.url} version {version.version}: {version.num_samples} samples in {version.num_shards} shards, "
        f"{version.num_scenes} scenes ({version.num_rejected} rejected): {state}"
    )
    return 1 if faults else 0


def _digest(options: cli.Namespace) -> int:
    from shards.tables import read_version

    print(read_version(options.url, options.version).digest)
    return 0


def _preview(options: cli.Namespace) -> int:
    from shards.dataset import CorruptSampleError, open_dataset
    from shards.preview import contact_sheet
    from shards.storage import user_errors, write_bytes

    if options.num_tiles < 1:
        raise UserError(f"--num_tiles is {options.num_tiles}: give 1 or more")
    out = io.BytesIO()
    try:
        contact_sheet(open_dataset(options.url, options.version), options.num_tiles).save(out, "PNG")
    except CorruptSampleError as error:
        print(f"{error}; see `python -m shards verify {options.url}`")
        return 1
    with user_errors(options.out):
        write_bytes(options.out, out.getvalue())
    print(f"wrote {options.out}")
    return 0


def _card(options: cli.Namespace) -> int:
    from shards.card.page import write_card
    from shards.tables import read_version

    print(f"wrote {write_card(options.url, read_version(options.url, options.version), options.out)}")
    return 0


def _select(options: cli.Namespace) -> int:
    from shards.curation.select import select

    parent, version = select(options.url, options.where, options.out, options.version)
    return _tell_derived(options, parent, version)


def _dedup(options: cli.Namespace) -> int:
    from shards.curation.dedup import dedup

    parent, version, found = dedup(options.url, options.distance, options.out, options.version)
    print(f"{found.num_exact} duplicates, {found.pairs.num_rows - found.num_exact} near-duplicates")
    if found.num_unhashed:
        print(f"{found.num_unhashed} tiles have no dhash: compared by their bytes alone")
    return _tell_derived(options, parent, version)


def _tell_derived(options: cli.Namespace, parent: Version, version: Version) -> int:
    from shards import storage
    from shards.card.page import renew_card
    from shards.tables import read_version

    if version is parent:
        print(f"every sample of {options.url} version {parent.version} stays: nothing is written")
        return 0
    url = options.out or options.url
    if storage.exists(storage.join(url, "card.html")):
        renew_card(url, read_version(url))
    print(
        f"{url} version {version.version}: {version.num_samples} of {parent.num_samples} samples in "
        f"{version.num_shards} shards, digest {version.digest}; next: python -m shards verify {url}"
    )
    return 0


def _diff(options: cli.Namespace) -> int:
    from shards.curation.diff import diff

    if options.limit < 0:
        raise UserError(f"--limit is {options.limit}: give 0 or more")
    difference = diff(options.url_a, options.url_b, options.version_a, options.version_b)
    for line in difference.lines(options.limit):
        print(line)
    return 0 if difference.equal else 1


def _gc(options: cli.Namespace) -> int:
    from shards.curation.gc import find_orphans, find_uploads, remove_orphans, remove_uploads
    from shards.storage import user_errors

    if not options.min_age_h >= 0:
        raise UserError(f"--min_age_h is {options.min_age_h}: give 0 or more hours")
    with user_errors(options.url):
        orphans = find_orphans(options.url, min_age_h=options.min_age_h, now_s=time.time())
        for info in orphans if options.dry_run else remove_orphans(options.url, orphans):
            print(info.size, info.path, sep="\t")
        uploads = find_uploads(options.url, min_age_h=options.min_age_h, now_s=time.time())
        for upload in uploads if options.dry_run else remove_uploads(options.url, uploads):
            print("upload", upload.path, sep="\t")
    total = f"{len(orphans)} files, {sum(info.size for info in orphans)} bytes"
    total += f", {len(uploads)} unfinished uploads" if uploads else ""
    print(f"{total} would be removed" if options.dry_run else f"{total} removed")
    return 0


_ADD: dict[str, Callable[[cli.Parser], None]] = {
    "diff": _add_diff,
    "index": _add_index,
    "plan": stream_cli.add_plan_options,
    "stream": stream_cli.add_stream_options,
}
"""What adds the options of commands that take something else than one dataset."""

_RUN: dict[str, Callable[[cli.Namespace], int]] = {
    "index": _index,
    "ls": _ls,
    "verify": _verify,
    "digest": _digest,
    "preview": _preview,
    "card": _card,
    "select": _select,
    "dedup": _dedup,
    "diff": _diff,
    "gc": _gc,
    "plan": stream_cli.run_plan,
    "stream": stream_cli.run_stream,
}


if __name__ == "__main__":
    cli.exit_with("shards", main)
