"""Command line of ingest: scenes in, a dataset out; `sample` makes scenes to try it with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ingest.config import IngestConfig, RebuildConfig
from shards import cli

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ingest.outcome import Outcome
    from ingest.run import IncompleteError

_DESCRIPTION = """Turn a folder or bucket of GeoTIFF, COG, JP2, PNG and JPEG scenes into a dataset of WebDataset shards.
The same scenes and options give the same bytes, whatever the number of workers. Exit code 0: every scene is used or
left out for its content; 1: some were left out for what may pass (a file that cannot be read, too little memory), or
not all is done: the same command again goes on; 2: wrong use.
`python -m ingest --rebuild URL [--version N] --out URL` builds a dataset again from its own record and compares.
`python -m ingest sample --out FOLDER` makes sample scenes and labelled chips to try everything with."""
_REBUILD = """Build a dataset again from its own record, and compare: exit 0 if the digests are equal, 1 with a list of
what differs if not."""

_SHOWN_FAILURES = 20


def main(argv: list[str]) -> int:
    """Run ingest; see `exit_with` for the exit codes."""
    if argv[:1] == ["sample"]:
        return _sample(argv[1:])
    if any(item == "--rebuild" or item.startswith("--rebuild=") for item in argv):
        return _rebuild(argv)
    config = cli.parse_config("ingest", _DESCRIPTION, IngestConfig, argv)
    from ingest.pack import NotDeterministicError
    from ingest.run import IncompleteError, ingest

    try:
        outcome = ingest(config)
    except IncompleteError as error:
        return _incomplete(error)
    except NotDeterministicError as error:
        return _stopped(error)
    _report(outcome, config.out)
    if outcome.left_out.passing_line:
        print(f"ingest: {outcome.left_out.passing_line}", file=sys.stderr)
        return 1
    return 0


def _incomplete(error: IncompleteError) -> int:
    for line in error.lines[:_SHOWN_FAILURES]:
        print(f"failed: {line}", file=sys.stderr)
    if len(error.lines) > _SHOWN_FAILURES:
        print(f"failed: {len(error.lines) - _SHOWN_FAILURES} more, see ingest.jsonl", file=sys.stderr)
    return _stopped(error)


def _stopped(error: Exception) -> int:
    print(f"ingest: {error}", file=sys.stderr)
    return 1


def _rebuild(argv: list[str]) -> int:
    config = cli.parse_config("ingest", _REBUILD, RebuildConfig, argv)
    from ingest.pack import NotDeterministicError
    from ingest.rebuild import rebuild
    from ingest.run import IncompleteError

    try:
        result = rebuild(config)
    except IncompleteError as error:
        return _incomplete(error)
    except NotDeterministicError as error:
        return _stopped(error)
    for line in result.lines:
        print(line)
    print(f"{config.rebuild} version {result.original.version}  digest {result.original.digest}")
    print(f"{config.out} version {result.rebuilt.version}  digest {result.rebuilt.digest}")
    print("equal: the rebuilt dataset has the same content" if result.equal else "NOT equal, see above")
    return 0 if result.equal else 1


def _sample(argv: list[str]) -> int:
    parser = cli.make_parser("ingest sample", "Make sample scenes and labelled chips; the same seed, the same bytes.")
    parser.add_argument("--out", type=str, required=True, help="folder to write scenes/ and chips/ into")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other land")
    options = cli.parse(parser, argv)
    from ingest.sample import write_sample

    summary = write_sample(options.out, options.seed)
    print(f"{summary.scenes}: {summary.num_scenes} scenes, {summary.num_unusable} unusable files on purpose")
    print(f"{summary.chips}: {summary.num_chips} labelled chips of {len(summary.classes)} classes")
    print(f"next: make ingest SCENES={summary.scenes} OUT=<folder or URL>")
    return 0


def _told(operation: Mapping[str, Any]) -> str:
    return f"{operation['op']} {operation.get('where', operation.get('distance', ''))}"


def _report(outcome: Outcome, out: str) -> None:
    """Print what came out; `out` is the dataset's URL as the user wrote it."""
    from rich.console import Console
    from rich.table import Table

    from ingest.reasons import REMEDIES

    version = outcome.version
    used = version.num_scenes - version.num_rejected
    state = "made" if outcome.created else "is already there, made from the same inputs:"
    if outcome.rejected or outcome.dropped:
        table = Table("left out", "count", "reason", "what it means", title="Left out", title_justify="left")
        for what, counts in [("scenes", outcome.rejected), ("tiles", outcome.dropped)]:
            for code, count in counts.most_common():
                table.add_row(what, str(count), code, REMEDIES[code])
        Console().print(table)
    bands = ", ".join(f"{band.name} {band.mean:.1f} ± {band.std:.1f}" for band in version.bands)
    # Not by rich: a path may hold what it takes for markup.
    print(
        f"{out} version {version.version} {state} {version.num_samples} tiles of {version.tile_px}² "
        f"{version.dtype} from {used} of {version.num_scenes} files, {version.num_shards} shards, "
        f"{version.num_bytes / 1e6:.1f} MB"
    )
    print(f"bands (mean ± std): {bands}")
    if outcome.gone:
        told = "their tiles stay, but for those that others have, too (leave them out: shards select)"
        print(f"{outcome.gone} scenes are no longer where they were; {told}")
    if outcome.selection:
        number, steps = outcome.selection.version, ", ".join(map(_told, outcome.selection.record["operations"]))
        later = f"version {version.version} does not repeat it" if outcome.created else "it is the newest"
        print(f"version {number} is a selection ({steps}): {later}")
    print(f"digest: {version.digest}")
    print(f"card: {out.rstrip('/')}/card.html   log: {out.rstrip('/')}/ingest.jsonl")
    print(f"next: make pretrain DATA={out} RUN=<folder or URL>")


if __name__ == "__main__":
    cli.exit_with("ingest", main)
