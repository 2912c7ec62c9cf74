"""`python -m pretrain export`: a run's export as a folder for people, which can be pushed to a model hub as it is.

Holds the export's weights in memory once. The folder appears whole, by a rename, or not at all.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.runs.card import CONFIG_FILE, CURVES, CURVES_FILE, Facts, configuration, write_card
from pretrain.runs.exports import Export, list_exports, read_export
from pretrain.runs.record import FORMAT, FORMAT_VERSION, last_weights, read_config
from shards import cli, storage
from shards.errors import UserError
from shards.storage.scratch import disk_full_told, remove_left_scratch, scratch_folder

_KIND = "publish"
_DESCRIPTION = """Make a folder of a run's export that can be pushed to a model hub: weights, timm's configuration,
a card that says what they are and how they were made, the configuration to make them again."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Make a folder of a run's export."""

    run: str
    """Folder or URL of the run."""
    out: str
    """Folder to make, on a local disk; it must not exist, or be empty."""
    step: int | None = None
    """Optimiser steps of the export to take; by default the newest."""
    license: str | None = None
    """Of the weights, by the hub's name for it, such as apache-2.0 or cc-by-4.0; without, the card says that it is
    still to be chosen."""


def main(argv: list[str]) -> int:
    """Run the command; see `shards.cli.exit_with` for the exit codes."""
    config = cli.parse_config("pretrain export", _DESCRIPTION, ExportConfig, argv)
    try:
        step = publish(config)
    except UserError:
        raise
    except (storage.StorageError, OSError) as error:
        print(f"pretrain export: error: {error}", file=sys.stderr)
        return 1
    print(f"{config.out}: step {step} of {config.run}; how to load it stands in {config.out}/README.md")
    print(f"next: hf upload USER/NAME {config.out}")
    return 0


def publish(config: ExportConfig) -> int:
    """Make the folder and return the step of the export.

    Raises:
        UserError: there is no run or no such export, it is damaged, or the folder is not to be made there.
        StorageError: the run's store kept failing.
        OSError: the disk is full.
    """
    out = require_new(config.out)
    with storage.user_errors(config.run):
        record = read_record(config.run)
        export = read_export(choose(config.run, config.step))
        files = make_files(export, config, record)
    with storage.user_errors(config.out), disk_full_told(out.parent):
        write_folder(out, files)
    return int(export.description["step"])


def require_new(out: str) -> Path:
    """Return the path of a folder that is to be made.

    Raises:
        UserError: it holds something, or is not on a local disk.
    """
    if not storage.is_local(out):
        raise UserError(f"--out {out} is not on a local disk: make the folder there, then copy or push it")
    path = storage.local_path(out).absolute()
    with storage.user_errors(out):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--out {out} is not an empty folder: choose another, or remove it")
    storage.require_writable(out)
    return path


def read_record(run: str) -> dict[str, Any]:
    """Return the content of run.json.

    Raises:
        UserError: there is none, or of another format.
    """
    url = storage.join(run, "run.json")
    if not storage.exists(url):
        raise UserError(f"{run} holds no run: give the folder that `python -m pretrain --run` wrote")
    record: dict[str, Any] = json.loads(storage.read_bytes(url))
    found = (record.get("format"), record.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{run} holds a run of format {found[0]} {found[1]}, but this code reads {FORMAT} {FORMAT_VERSION}: use "
            "the version of this package that made it"
        )
    return record


def choose(run: str, step: int | None) -> str:
    """Return the folder of a run's export of a step, or of its newest.

    Raises:
        UserError: there is none.
    """
    exports = list_exports(run)
    if not exports:
        raise UserError(f"{run} has no export yet: the first one comes with its first checkpoint, train it further")
    if step is not None and step not in exports:
        steps = ", ".join(map(str, exports)) if len(exports) < 9 else f"{min(exports)} … {max(exports)}"
        raise UserError(f"{run} has no export of step {step}: it has those of {steps}")
    return exports[max(exports) if step is None else step]


def make_files(export: Export, config: ExportConfig, record: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of the folder by file name."""
    # Here: to import them takes seconds.
    from pretrain.pages.figures import read_columns
    from pretrain.runs.metrics import read_rows, stop_kinds
    from pretrain.runs.picture import draw_curves

    last_step = export.description["step"]
    rows = [row for row in read_rows(config.run) if row["step"] <= last_step and not stop_kinds(row)]
    curves = draw_curves(read_columns(rows), CURVES)
    started, weights = read_config(config.run), last_weights(config.run)
    if weights and "mixture" in export.description:
        # Those of the last start may be others.
        weights = export.description["mixture"]["weights"]
    facts = Facts(
        description=export.description,
        record=record,
        config=started,
        weights=weights,
        rows=rows,
        num_parameters=count_parameters(export.weights),
        has_curves=bool(curves),
        licence=config.license,
    )
    return {
        "model.safetensors": export.weights,
        "config.json": export.timm,
        "model.json": json.dumps(export.description, indent=2).encode() + b"\n",
        CONFIG_FILE: configuration(record, started).encode(),
        **({CURVES_FILE: curves} if curves else {}),
        "README.md": write_card(facts).encode(),
    }


def count_parameters(weights: bytes) -> int:
    """Return the number of values in a safetensors file, by its header alone."""
    size = int.from_bytes(weights[:8], "little")
    tensors = json.loads(weights[8 : 8 + size])
    return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__")


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with files, at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_left_scratch(_KIND, out.parent)
    with scratch_folder(_KIND, out.parent) as scratch:
        made = scratch / "made"
        for name, content in files.items():
            storage.write_bytes(str(made / name), content)
        # Onto an empty folder, too.
        made.rename(out)
