"""From packed groups to a version: settle what became of each scene, write the tables, make it visible."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.config import Recipe
from ingest.pack import group_url
from ingest.plan import recipe_values
from ingest.reasons import REMEDIES
from ingest.toolchain import toolchain
from shards import storage
from shards.commit import commit_version, write_table
from shards.digest import content_digest
from shards.errors import UserError
from shards.schema import REJECTS, SCENES, SHARDS, Band, Version


def commit(out: str, root: str, recipe: Recipe, plan: str, scenes: pa.Table, markers: list[dict[str, Any]]) -> Version:
    """Write the tables and the version of a packed plan.

    Args:
        out: the dataset.
        root: the scenes' root, for the record.
        recipe: the plan's recipe.
        plan: id of the plan.
        scenes: all probed scenes.
        markers: of all groups, in order.

    Raises:
        UserError: no tile is left; then nothing of the plan stays.
    """
    samples = [_group_table(out, plan, marker, "samples") for marker in markers]
    tile_rejects = [_group_table(out, plan, marker, "rejects") for marker in markers]
    final, scene_rejects = settle_scenes(scenes, samples, tile_rejects)
    if not any(table.num_rows for table in samples):
        reasons = Counter(code for table in tile_rejects for code in table["reason"].to_pylist()).most_common(3)
        told = "; ".join(f"{count} tiles {code} ({REMEDIES[code]})" for code, count in reasons)
        storage.remove_folder(storage.join(out, "plans", plan))
        storage.remove_empty_folder(storage.join(out, "plans"))
        storage.remove_empty_folder(out)
        raise UserError(f"no tile of {root} is left: {told}")
    shards = pa.Table.from_pylist([shard for marker in markers for shard in marker["shards"]], schema=SHARDS)
    version = Version(
        version=1,
        digest=content_digest(recipe.bands, recipe.dtype, samples, [final]),
        bands=_band_figures(recipe, markers),
        dtype=recipe.dtype,
        tile_px=recipe.tile_px,
        num_samples=sum(table.num_rows for table in samples),
        num_shards=shards.num_rows,
        num_scenes=final.num_rows,
        num_rejected=final["state"].to_pylist().count("rejected"),
        num_bytes=pc.sum(shards["size"]).as_py(),
        tables={
            "samples": write_table(out, "samples", samples),
            "shards": write_table(out, "shards", [shards]),
            "scenes": write_table(out, "scenes", [final]),
            "rejects": write_table(out, "rejects", [scene_rejects, *tile_rejects]),
        },
        record={
            "scenes": root,
            "recipe": recipe_values(recipe),
            "plan": plan,
            "toolchain": toolchain(),
        },
    )
    commit_version(out, version)
    return version


def _group_table(out: str, plan: str, marker: dict[str, Any], name: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(group_url(out, plan, marker["group"], f"-{name}.parquet"))))


def settle_scenes(scenes: pa.Table, samples: list[pa.Table], tile_rejects: list[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """Give every scene its end state from what became of its tiles; return the scenes and their rejects."""
    tiles = Counter(name for table in samples for name in table["scene"].to_pylist())
    dropped = Counter(name for table in tile_rejects for name in table["scene"].to_pylist())
    reasons: dict[str, Counter[str]] = {}
    for table in tile_rejects:
        for name, code in zip(table["scene"].to_pylist(), table["reason"].to_pylist(), strict=True):
            reasons.setdefault(name, Counter())[code] += 1
    rows = []
    for scene in scenes.to_pylist():
        name = scene["scene"]
        row = scene | {"num_tiles": tiles[name], "num_dropped": dropped[name]}
        if row["reason"] is None and not tiles[name]:
            told = ", ".join(f"{count} {code}" for code, count in sorted(reasons[name].items()))
            row |= {"state": "rejected", "reason": "no_tiles_left", "detail": told}
        rows.append(row)
    final = pa.Table.from_pylist(rows, schema=SCENES)
    whole = final.filter(pc.equal(final["state"], "rejected"))
    nulls = pa.nulls(whole.num_rows, pa.int32())
    columns = [whole["scene"], whole["path"], nulls, nulls, whole["reason"], whole["detail"]]
    return final, pa.table(columns, schema=REJECTS)


def _band_figures(recipe: Recipe, markers: list[dict[str, Any]]) -> tuple[Band, ...]:
    filled = [marker for marker in markers if marker["num_valid"]]
    count = sum(marker["num_valid"] for marker in filled)
    bands = []
    for place, name in enumerate(recipe.bands):
        mean = sum(marker["sums"][place] for marker in filled) / count
        square = sum(marker["squares"][place] for marker in filled) / count
        bands.append(Band(name=name, mean=round(mean, 6), std=round(max(square - mean**2, 0.0) ** 0.5, 6)))
    return tuple(bands)
