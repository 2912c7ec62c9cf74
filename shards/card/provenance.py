"""Where a version comes from, as HTML for its card: the record of how it was made, and the files of its tables."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from shards.schema import Version


def record_html(record: Mapping[str, Any]) -> str:
    """Return the sections of a version's record: where from, recipe, operations, plans; absent ones are left out."""
    plans = record.get("plans") or [{name: record[name] for name in ("plan", "toolchain") if name in record}]
    apart = {"recipe", "plans", "plan", "toolchain", "operations"}
    rows = {name: value for name, value in record.items() if name not in apart and value is not None}
    parts = [_values("How", rows), _values("Recipe", record.get("recipe") or {})]
    parts += [_values(f"Step {number}", step) for number, step in enumerate(record.get("operations") or [], 1)]
    for plan in plans:
        parts.append(_values(f"Plan {plan.get('plan', '')}", plan.get("toolchain") or {}))
    return "".join(parts)


def _values(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd><code>{escape(_plain(value))}</code></dd></div>"
        for name, value in sorted(values.items())
    )
    return f'<section><h3>{escape(title)}</h3><dl class="values">{rows}</dl></section>'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)


def table_rows(version: Version) -> str:
    """Return a table row for every table file of a version: table, rows, file, sha256."""
    return "".join(
        f'<tr><td>{escape(name)}</td><td class="num">{file.num_rows:,}</td><td><code>{escape(file.url)}</code></td>'
        f"<td><code>{escape(file.sha256)}</code></td></tr>"
        for name, table in sorted(version.tables.items())
        for file in table
    )
