"""Build a version again from its own record, and say whether the same came out.

The version's scenes table says which scenes it was made of, its record how; what lies at their places today is
built with the tools of today. So a difference is found whatever its cause: a source that changed, another GDAL.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.config import IngestConfig, RebuildConfig, Recipe, RunOptions, recipe_of
from ingest.reasons import INVENTORY_CODES
from ingest.run import ingest
from ingest.toolchain import toolchain
from shards.curation.dedup import dedup
from shards.curation.diff import diff
from shards.curation.select import select
from shards.errors import UserError
from shards.schema import INVENTORY, Version
from shards.tables import iter_table, list_versions, read_version


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A version, what came out of building it again, and how they differ."""

    original: Version
    rebuilt: Version
    lines: Sequence[str]

    @property
    def equal(self) -> bool:
        """Whether the contents are the same."""
        return self.original.digest == self.rebuilt.digest


def rebuild(config: RebuildConfig) -> Rebuilt:
    """Build a version again into another place and compare.

    Raises:
        UserError: the version has no record to build from, or `out` holds a dataset.
        IncompleteError: a scene cannot be reached.
    """
    url = config.rebuild
    version = read_version(url, config.version)
    if list_versions(config.out):
        raise UserError(f"{config.out} holds a dataset: a rebuild needs a place of its own, choose another --out")
    made = ingest(_config_of(url, version, config), recorded_inventory(url, version)).version
    for operation in version.record.get("operations", []):
        made = _apply(config.out, made, operation)
    lines = list(_tool_lines(version.record))
    if made.digest != version.digest:
        lines += list(diff(url, config.out, version.version, made.version).lines())
    return Rebuilt(original=version, rebuilt=made, lines=lines)


def _config_of(url: str, version: Version, config: RebuildConfig) -> IngestConfig:
    record = version.record
    options = {field.name: getattr(config, field.name) for field in fields(RunOptions)}
    options["allow"] = (*record.get("allow", ()), *config.allow)
    try:
        recipe = recipe_of(record["recipe"])
        return IngestConfig(
            **{field.name: getattr(recipe, field.name) for field in fields(Recipe)},
            **options,
            scenes=config.scenes or record["scenes"],
            out=config.out,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{url} version {version.version} has no record of how it was made: {error!r}") from error
    except ValueError as error:
        raise UserError(f"{url} version {version.version} cannot be built again: {error}") from error


def recorded_inventory(url: str, version: Version) -> pa.Table:
    """Return the inventory that a version was made from; sizes and ETags are left to be looked up again."""
    parts = []
    for table in iter_table(url, version, "scenes", INVENTORY.names):
        table = table.cast(INVENTORY)
        # What ruled a scene out before it was opened stays; what its content says is found out again.
        given = pc.or_(pc.is_in(table["reason"], value_set=pa.array(INVENTORY_CODES)), pc.is_null(table["size"]))
        for name in ("reason", "detail", "size", "etag", "files"):
            unknown = _not_looked_up(table["files"]) if name == "files" else pa.scalar(None, table[name].type)
            table = table.set_column(INVENTORY.get_field_index(name), name, pc.if_else(given, table[name], unknown))
        parts.append(table.cast(INVENTORY))
    return pa.concat_tables(parts).sort_by("scene")


def _not_looked_up(files: pa.ChunkedArray) -> pa.Array:
    """Return the files of scenes (the column of INVENTORY) without sizes and ETags."""
    inner = pc.list_flatten(files).combine_chunks()
    kept = {"path": inner.field("path"), "band": inner.field("band")}
    fields = list(files.type.value_type)
    values = [kept.get(field.name, pa.nulls(len(inner), field.type)) for field in fields]
    ends = np.cumsum(pc.fill_null(pc.list_value_length(files), 0).to_numpy())
    edges = pa.array(np.concatenate([[0], ends]), pa.int32())
    structs = pa.StructArray.from_arrays(values, fields=fields)
    return pa.ListArray.from_arrays(edges, structs, type=files.type, mask=files.is_null().combine_chunks())


def _apply(out: str, version: Version, operation: dict[str, Any]) -> Version:
    if operation["op"] == "select":
        return select(out, operation["where"], number=version.version)[1]
    if operation["op"] == "dedup":
        return dedup(out, operation["distance"], number=version.version)[1]
    raise UserError(f"the record holds an unknown operation {operation['op']!r}: made by another version of shards")


def _tool_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each tool whose version is another today."""
    recorded = {(name, was) for plan in record.get("plans", []) for name, was in plan["toolchain"].items()}
    for name, was in sorted(recorded):
        if was != toolchain().get(name):
            yield f"toolchain: {name} was {was}, is {toolchain().get(name)}"
