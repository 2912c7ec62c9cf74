"""Command line of ingest: scenes in, a dataset out; `sample` makes scenes to try it with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.config import IngestConfig
from shards import cli

if TYPE_CHECKING:
    from ingest.run import Outcome

_DESCRIPTION = """Turn a folder or bucket of GeoTIFF, COG, JP2, PNG and JPEG scenes into a dataset of WebDataset shards.
The same scenes and options give the same bytes, whatever the number of workers.
`python -m ingest sample --out FOLDER` makes sample scenes and labelled chips to try everything with."""


def main(argv: list[str]) -> int:
    """Run ingest; see `exit_with` for the exit codes."""
    if argv[:1] == ["sample"]:
        return _sample(argv[1:])
    config = cli.parse_config("ingest", _DESCRIPTION, IngestConfig, argv)
    from ingest.run import ingest

    _report(ingest(config))
    return 0


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


def _report(outcome: Outcome) -> None:
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
        f"{outcome.url} version {version.version} {state} {version.num_samples} tiles of {version.tile_px}² "
        f"{version.dtype} from {used} of {version.num_scenes} files, {version.num_shards} shards, "
        f"{version.num_bytes / 1e6:.1f} MB"
    )
    print(f"bands (mean ± std): {bands}")
    print(f"digest: {version.digest}")
    print(f"next: make pretrain DATA={outcome.url} RUN=<folder or URL>")


if __name__ == "__main__":
    cli.exit_with("ingest", main)
