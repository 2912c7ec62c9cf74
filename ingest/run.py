"""The driver: inventory, probe, plan, pack and commit, with Ray where work is many files.

All truth is in the output folder: a driver that dies is started again and goes on from the markers it finds.
"""

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.cluster import cluster, run_tasks
from ingest.commit import commit
from ingest.config import IngestConfig, Recipe
from ingest.inventory import list_scenes
from ingest.pack import pack_group
from ingest.plan import plan_id, plan_units
from ingest.probe import probe_scenes
from ingest.reasons import REMEDIES
from ingest.toolchain import toolchain
from shards import storage
from shards.dataset import list_versions, read_table, read_version
from shards.errors import UserError
from shards.progress import Progress
from shards.schema import Version

_SCENES_PER_PROBE = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an ingest made."""

    url: str
    version: Version
    created: bool
    """False: the same inputs had been made into this version before."""
    rejected: Counter[str]
    """Scenes left out, by reason."""
    dropped: Counter[str]
    """Tiles left out, by reason."""


def ingest(config: IngestConfig) -> Outcome:
    """Turn the scenes into a dataset version, or find that it is there already.

    Raises:
        UserError: no scenes, no access, no tile that can be used, or an output with other content.
    """
    recipe = Recipe(**{field.name: getattr(config, field.name) for field in fields(Recipe)})
    _refuse_nested(config)
    inventory = list_scenes(config)
    storage.require_writable(config.out)
    with storage.user_errors(config.out):
        versions = list_versions(config.out)
    with cluster(config.address, config.workers):
        scenes = _probe(inventory, config, recipe)
        _require_usable(scenes, config)
        plan = plan_id(scenes, recipe, toolchain())
        if versions:
            return _existing(config, plan)
        units = plan_units(scenes, recipe)
        with storage.user_errors(config.out):
            write_units(config.out, plan, units, scenes)
        markers = _pack(config, recipe, plan, int(units["group"][-1].as_py()) + 1)
    version = commit(config.out, config.scenes, recipe, plan, scenes, markers)
    return _outcome(config.out, version, created=True)


def _refuse_nested(config: IngestConfig) -> None:
    out, scenes = _place(config.out), _place(config.scenes)
    if f"{out}/".startswith(f"{scenes}/"):
        raise UserError(f"--out {config.out} lies inside --scenes {config.scenes}: choose a folder outside of it")


def _place(url: str) -> str:
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")


def _probe(inventory: pa.Table, config: IngestConfig, recipe: Recipe) -> pa.Table:
    starts = range(0, inventory.num_rows, _SCENES_PER_PROBE)
    calls = [(config.scenes, inventory.slice(start, _SCENES_PER_PROBE), recipe) for start in starts]
    reasons: Counter[str] = Counter()
    probed = 0
    with Progress("probe", inventory.num_rows, "scenes") as progress:

        def show(_: int, rows: pa.Table) -> None:
            nonlocal probed
            probed += rows.num_rows
            reasons.update(reason for reason in rows["reason"].to_pylist() if reason)
            progress.update(probed, f"{reasons.total()} rejected")

        return pa.concat_tables(run_tasks(_probe_chunk, calls, show))


def _probe_chunk(root: str, inventory: pa.Table, recipe: Recipe) -> pa.Table:
    return probe_scenes(root, inventory.to_pylist(), recipe)


def _require_usable(scenes: pa.Table, config: IngestConfig) -> None:
    if scenes["reason"].null_count == 0:
        reasons = Counter(scenes["reason"].to_pylist()).most_common(4)
        told = "; ".join(f"{count} {code} ({REMEDIES[code]})" for code, count in reasons)
        raise UserError(f"none of the {scenes.num_rows} files in {config.scenes} can be used: {told}")


def _existing(config: IngestConfig, plan: str) -> Outcome:
    version = read_version(config.out)
    if version.record["plan"] != plan:
        raise UserError(
            f"{config.out} already holds version {version.version} of a dataset made from other scenes, "
            "another recipe or other tools: choose another --out"
        )
    return _outcome(config.out, version, created=False)


def write_units(out: str, plan: str, units: pa.Table, scenes: pa.Table) -> None:
    """Write the plan: unit and scene columns in one row, one Parquet row group per group of the plan."""
    joined = scenes.take(units["index"])
    for name in ("group", "first_row", "end_row"):
        joined = joined.append_column(name, units[name])
    groups = units["group"].to_numpy()
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, joined.schema, compression="zstd") as writer:
        for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
            writer.write_table(joined.slice(start, end - start), row_group_size=max(1, end - start))
    storage.write_bytes(storage.join(out, "plans", plan, "units.parquet"), buffer.getvalue().to_pybytes())


def _pack(config: IngestConfig, recipe: Recipe, plan: str, num_groups: int) -> list[dict[str, Any]]:
    calls = [(config.out, plan, group, config.scenes, recipe) for group in range(num_groups)]
    tiles = num_bytes = 0
    with Progress("pack", num_groups, "groups") as progress:

        def show(done: int, marker: dict[str, Any]) -> None:
            nonlocal tiles, num_bytes
            tiles += marker["samples"]["num_rows"]
            num_bytes += sum(shard["size"] for shard in marker["shards"])
            progress.update(done, f"{tiles} tiles · {num_bytes / 1e6:.1f} MB in shards")

        return run_tasks(pack_group, calls, show)


def _outcome(url: str, version: Version, *, created: bool) -> Outcome:
    rejects = read_table(url, version, "rejects", ["x", "reason"])
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for x, reason in zip(rejects["x"].to_pylist(), rejects["reason"].to_pylist(), strict=True):
        (rejected if x is None else dropped)[reason] += 1
    return Outcome(url=url, version=version, created=created, rejected=rejected, dropped=dropped)
