"""Choose samples by an SQL expression over their columns: `gsd_m < 1 and valid_share > 0.99`.

DuckDB evaluates it in memory, on one thread, without access to files, network or its own settings. Beside the
columns of a sample there is the table `scenes` for subqueries. Only the columns that the expression names are
read; the table `scenes` is held in memory (those columns) if it is named. About 0.1 µs per sample for a comparison.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.curation.derive import derive
from shards.errors import UserError
from shards.schema import SAMPLES, SCENES, Version
from shards.tables import iter_table, read_version

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": "1",
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    # Else a name in the expression could mean a variable of this program.
    "python_enable_replacements": "false",
    "temp_directory": "",
}
# What depends on the moment or the machine and is not marked so in duckdb_functions(), or is a keyword.
_UNSTABLE = {"age", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_user", "session_user"}
_TILE = "tile"
_COLUMNS = f"columns are {', '.join(SAMPLES.names)}"


def select(url: str, where: str, out: str | None = None, number: int | None = None) -> tuple[Version, Version]:
    """Derive a version with the samples for which an expression is true; null counts as not true.

    Args:
        url: the dataset.
        where: the expression.
        out: the dataset to write to; None: the next version of the same.
        number: the version to select from; the newest by default.

    Returns:
        The version selected from and the new one; twice the same if every sample of the dataset itself fits: then
        nothing is written.

    Raises:
        UserError: the expression cannot be evaluated, or no sample fits.
    """
    parent = read_version(url, number)
    return parent, derive(url, parent, out, Selection(url, parent, where), {"op": "select", "where": where})


class Selection:
    """Evaluates an expression over tables of samples; a `shards.curation.derive.Decision`."""

    def __init__(self, url: str, version: Version, where: str) -> None:
        """Check the expression before anything is read; read the scenes if it names them.

        Raises:
            UserError: a syntax error, an unknown column, no boolean, an aggregate, or not a function of the row alone.
        """
        self._where = where
        self._database = duckdb.connect(":memory:", config=_SETTINGS)
        nodes = list(_nodes(self._parse()))
        names = {name.lower() for node in nodes for name in node.get("column_names", [])}
        self._refuse_unstable(nodes, names)
        scenes = SCENES.empty_table()
        if any(node.get("table_name", "").lower() == "scenes" for node in nodes):
            chosen = ["scene", *(name for name in SCENES.names if name in names - {"scene"})]
            scenes = pa.concat_tables(iter_table(url, version, "scenes", chosen))
        self._database.register("scenes", _plain_time(scenes))
        # Times with a zone meet ours, which are UTC, in this one: in the machine's they would choose others elsewhere.
        self._database.execute("SET TimeZone = 'UTC'").fetchall()
        self._database.execute("SET lock_configuration = true").fetchall()
        self._columns = ["key", *(name for name in SAMPLES.names if name in names - {"key"})]
        self._refuse_other_than_boolean()

    @property
    def columns(self) -> list[str]:
        """Columns of the samples table that the expression names, and the key."""
        return self._columns

    def keep(self, samples: pa.Table) -> NDArray[np.bool_]:
        """Return bool [N]: samples for which the expression is true.

        Raises:
            UserError: it fails on a value, such as a cast of text to a number.
        """
        # Row numbers, because a subquery may become a join, which promises no order.
        numbered = _plain_time(samples).append_column("row number", pa.array(np.arange(samples.num_rows)))
        kept = np.zeros(samples.num_rows, bool)
        query = f'SELECT "row number" AS place FROM {_TILE} WHERE (\n{self._where}\n)'
        kept[self._run(numbered, query)["place"]] = True
        return kept

    def reasons(self, left_out: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Return the code not_selected and the expression for each sample."""
        count = left_out.num_rows
        return pa.repeat("not_selected", count), pa.repeat(self._where, count)

    def _parse(self) -> dict[str, Any]:
        query = self._database.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{self._where}\n)"])
        ((text,),) = query.fetchall()
        tree: dict[str, Any] = json.loads(text)
        if tree["error"]:
            raise self._error(f"{tree['error_message']} ({_COLUMNS})")
        (statement, *more) = tree["statements"]
        node: dict[str, Any] = statement["node"]
        if more or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1 or node["modifiers"]:
            raise self._error("give one expression")
        return node

    def _refuse_unstable(self, nodes: list[dict[str, Any]], names: set[str]) -> None:
        found = self._database.execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' GROUP BY function_name "
            "HAVING NOT bool_or(stability = 'CONSISTENT')"
        ).fetchall()
        unstable = {name for (name,) in found} | _UNSTABLE
        called = {node.get("function_name", "").lower() for node in nodes}
        for name in sorted(unstable & (called | names)):
            raise self._error(f"{name} is not a function of the sample alone: its result would differ from run to run")
        for node in nodes:
            if node.get("type") == "TABLE_FUNCTION" or (node.get("type") == "STAR" and node.get("columns")):
                raise self._error("table functions and COLUMNS(…) are not for use here")
            if node.get("sample"):
                raise self._error("a random sample would differ from run to run")
            if node.get("type") == "BASE_TABLE" and node["table_name"].lower() == _TILE:
                raise self._error("subqueries can look at scenes only, not at other samples")

    def _refuse_other_than_boolean(self) -> None:
        empty = _plain_time(SAMPLES.empty_table())
        self._run(empty, f"SELECT 1 FROM {_TILE} WHERE (\n{self._where}\n)")
        kind = self._run(empty, f"DESCRIBE SELECT (\n{self._where}\n) FROM {_TILE}")["column_type"][0]
        if kind != "BOOLEAN":
            raise self._error(f"it gives {kind}, not true or false")

    def _run(self, samples: pa.Table, query: str) -> dict[str, Any]:
        self._database.register(_TILE, samples)
        try:
            result: dict[str, Any] = self._database.execute(query).fetchnumpy()
        except duckdb.Error as error:
            hint = f" ({_COLUMNS})" if isinstance(error, duckdb.BinderException) else ""
            raise self._error(f"{str(error).splitlines()[0]}{hint}") from error
        finally:
            self._database.unregister(_TILE)
        return result

    def _error(self, told: str) -> UserError:
        return UserError(f"cannot select where {self._where!r}: {' '.join(told.split())}")


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all nodes of a syntax tree."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _nodes(child)


def _plain_time(table: pa.Table) -> pa.Table:
    """Drop the zone of times, which are UTC: comparing them must not depend on the machine's zone."""
    place = table.schema.get_field_index("time")
    if place < 0:
        return table
    return table.set_column(place, "time", table["time"].cast(pa.timestamp("us")))
