"""The place that an ingest writes to: what may be there already, and the claim that keeps other recipes away."""

import json
from typing import Any

from ingest.config import IngestConfig, recipe_values
from shards import storage
from shards.curation.gc import is_ours
from shards.errors import UserError
from shards.schema import Version, canonical_json
from shards.tables import list_versions, read_version


def refuse_nested(config: IngestConfig) -> None:
    """Refuse an output among the scenes: the next run would take tiles for scenes.

    Raises:
        UserError: it is.
    """
    out, scenes = _place(config.out), _place(config.scenes)
    if f"{out}/".startswith(f"{scenes}/"):
        raise UserError(f"--out {config.out} lies inside --scenes {config.scenes}: choose a folder outside of it")


def _place(url: str) -> str:
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")


def require_conditional_writes(config: IngestConfig) -> None:
    """Refuse a store that would let two writers overwrite each other.

    Raises:
        UserError: it does, and the user has not said that there is one writer.
    """
    if not config.single_writer and not storage.creates_only(config.out):
        raise UserError(
            f"{config.out}: this store overwrites files that must be created only once (it ignores If-None-Match), "
            "so two writers could damage a dataset: see that nobody else writes there, and add --single_writer true"
        )


def find_versions(config: IngestConfig) -> tuple[int, Version | None]:
    """Return the newest version's number (0: none), and the newest one that an ingest made.

    Raises:
        UserError: it was made with another recipe, or of scenes at another place.
    """
    numbers = list_versions(config.out)
    if not numbers:
        return 0, None
    for number in reversed(numbers):
        version = read_version(config.out, number)
        if not version.record.get("operations"):
            break
    else:
        raise UserError(f"{config.out} holds selections of another dataset alone: choose another --out")
    _require_same_recipe(config, version.record.get("recipe", {}), f"version {version.version}")
    if _place(version.record["scenes"]) != _place(config.scenes):
        raise UserError(
            f"{config.out} was made from {version.record['scenes']}, not from {config.scenes}: "
            "choose another --out, or ingest one list that names the scenes of both"
        )
    return numbers[-1], version


def _require_same_recipe(config: IngestConfig, there: dict[str, Any], what: str) -> None:
    mine = recipe_values(config.recipe())
    other = sorted(name for name in mine.keys() | there.keys() if mine.get(name) != there.get(name))
    if other:
        told = ", ".join(f"{name} {there.get(name)!r} instead of {mine.get(name)!r}" for name in other[:3])
        raise UserError(
            f"{config.out} already holds {what} of a dataset with another recipe ({told}): "
            "choose another --out, or the same options"
        )


def claim(config: IngestConfig) -> bool:
    """Write the recipe down, so that no other one can begin here meanwhile; return whether it was not there before."""
    url = storage.join(config.out, "recipe.json")
    data = canonical_json(recipe_values(config.recipe()))
    if storage.create_bytes(url, data):
        return True
    _require_same_recipe(config, json.loads(storage.read_bytes(url)), f"the unfinished beginning ({url})")
    return False


def remove_traces(out: str, inventory: str | None) -> None:
    """Remove what an ingest that cannot become a dataset has left; nothing, if another run has begun here meanwhile.

    Args:
        out: the place.
        inventory: URL of the inventory that this run wrote, if it came so far.
    """
    begun = [info.path for info in _files(out, "inventories")]
    if list_versions(out) or any(storage.join(out, "inventories", path) != inventory for path in begun):
        return
    for name in ("groups", "probes", "inventories"):
        for info in _files(out, name):
            storage.remove(storage.join(out, name, info.path))
        storage.remove_empty_folder(storage.join(out, name))
    for name in ("recipe.json", "ingest.jsonl"):
        storage.remove(storage.join(out, name))
    storage.remove_empty_folder(out)


def _files(out: str, name: str) -> list[storage.FileInfo]:
    folder = storage.join(out, name)
    files = storage.list_files(folder) if storage.exists(folder) else []
    return [info for info in files if is_ours(f"{name}/{info.path}")]
