"""Which exports a run has, and whether more will come: the words RUN, RUN@all and RUN@STEP.

A run's files are a contract: `exports/*/model.json`, `config.yaml` and `metrics.jsonl`. A listing and small files are
all this reads, and the weights of the newest export.
"""

import json
import re
from typing import Any

import yaml

from eval.models.exports import Export, describe_export, read_export
from eval.models.training import whole_lines
from shards import storage
from shards.errors import UserError

_WORD = re.compile(r"(?P<url>.+?)(?:@(?P<which>all|\d+))?")
_NOTHING = "give an export folder, a run, RUN@all, RUN@STEP, timm:NAME, official:FILE.pth or floor:NAME"


def split_word(word: str) -> tuple[str, str]:
    """Return (URL, "all", a step's digits or "") of a word for exports."""
    match = _WORD.fullmatch(word)
    assert match is not None
    return match["url"].rstrip("/") or "/", match["which"] or ""


def find_exports(word: str) -> tuple[list[Export], list[str]]:
    """Return the exports that a word means, by step, and a line for each that was passed over.

    An export folder or a run alone (its newest valid export) has its weights read and checked; those of RUN@all are
    read and checked when they are wanted.

    Raises:
        UserError: there is no such folder, or nothing valid in it.
    """
    url, which = split_word(word)
    if not storage.exists(url):
        raise UserError(f"model {url} does not exist: {_NOTHING}")
    if storage.exists(storage.join(url, "model.json")):
        if which:
            raise UserError(f"{url} is one export, not a run: give it without @{which}")
        return [read_export(url)], []
    folders = export_folders(url)
    if which == "all":
        return _all_valid(url, folders)
    if which:
        return [_of_step(url, folders, int(which))], []
    return _newest_valid(url, folders)


def _newest_valid(run: str, folders: dict[str, int]) -> tuple[list[Export], list[str]]:
    faults: list[str] = []
    for folder in reversed(folders):
        try:
            return [read_export(folder)], faults
        except UserError as error:
            faults.append(str(error))
    raise _no_export(run, faults)


def _all_valid(run: str, folders: dict[str, int]) -> tuple[list[Export], list[str]]:
    exports, faults = [], []
    for folder in folders:
        try:
            exports.append(describe_export(folder))
        except UserError as error:
            faults.append(str(error))
    if not exports:
        raise _no_export(run, faults)
    return exports, faults


def _of_step(run: str, folders: dict[str, int], step: int) -> Export:
    for folder, number in folders.items():
        if number == step:
            return read_export(folder)
    known = ", ".join(str(number) for number in folders.values()) or "none"
    raise UserError(f"{run} has no export of step {step}: it has {known}")


def _no_export(run: str, faults: list[str]) -> UserError:
    detail = f" ({'; '.join(faults)})" if faults else ""
    return UserError(
        f"{run} has no valid export, neither model.json nor exports/*/model.json{detail}: train it further, "
        "and start --watch after its first export"
    )


def export_folders(run: str) -> dict[str, int]:
    """Return the folders RUN/exports/* that have a model.json → the step in their names, the lowest first."""
    exports = storage.join(run, "exports")
    if not storage.exists(exports):
        return {}
    paths = [info.path for info in storage.list_files(exports)]
    names = [path.split("/")[0] for path in paths if re.fullmatch(r"[^/]+/model\.json", path)]
    steps = {name: int("".join(re.findall(r"\d+", name)[-1:]) or -1) for name in names}
    return {storage.join(exports, name): steps[name] for name in sorted(steps, key=lambda name: (steps[name], name))}


def is_complete(run: str) -> bool:
    """Return whether a run has reached the end of its schedule and exported its last step.

    Raises:
        UserError: its config.yaml or metrics.jsonl is damaged.
    """
    urls = [storage.join(run, name) for name in ("config.yaml", "metrics.jsonl")]
    if not all(storage.exists(url) for url in urls):
        return False
    try:
        config: dict[str, Any] = yaml.safe_load(storage.read_bytes(urls[0]))
        lines = whole_lines(storage.read_bytes(urls[1]))
        last: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
        reached = last is not None and last["step"] >= num_steps(config, last)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} cannot be watched: its config.yaml or metrics.jsonl is damaged ({error})") from error
    newest = max(export_folders(run).values(), default=-1)
    return reached and last is not None and newest >= last["step"]


def num_steps(config: dict[str, Any], row: dict[str, Any]) -> int:
    """Return the steps of a run's whole schedule, from its config and any row of its metrics.

    Raises:
        KeyError, ValueError: the config or the row is none of ours.
    """
    number, unit = str(config["schedule"]["length"]).split()
    done = row[{"epoch": "epoch", "step": "step", "sample": "samples"}[unit.rstrip("s")]]
    steps: int = round(float(number) * row["step"] / done)
    limit = config.get("max_steps")
    return steps if limit is None else min(steps, int(limit))
