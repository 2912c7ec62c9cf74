"""An expression chooses samples as SQL says, and can do nothing else."""

import datetime
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from shards.commit import write_table
from shards.curation.select import Selection, select
from shards.errors import UserError
from shards.schema import SAMPLES
from shards.tables import read_table, read_version, version_url
from shards.verify import verify
from tests.conftest import REPOSITORY


@pytest.fixture
def url(tmp_path, write_dataset):
    """A dataset whose samples differ in many columns."""
    url = write_dataset(str(tmp_path / "data"))
    version = read_version(url)
    rows = read_table(url, version, "samples").to_pylist()
    for row in rows:
        number = int(row["key"][-6:])
        time_ = datetime.datetime(2024, 1, 1 + number, 0, 30, tzinfo=datetime.UTC)
        row |= {"gsd_m": number / 10 if number else None, "time": time_, "sensor": f"class-{number % 3}"}
    files = write_table(url, "samples", [pa.Table.from_pylist(rows, SAMPLES)])
    Path(version_url(url, 1)).write_bytes(replace(version, tables={**version.tables, "samples": files}).to_json())
    return url


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("gsd_m < 0.35", [1, 2, 3]),
        ("gsd_m < 0.35 or gsd_m is null", [0, 1, 2, 3]),
        ("not gsd_m < 2.25", [23]),
        ("gsd_m < 0.65 and sensor = 'class-0' -- a comment", [3, 6]),
        ("sensor in ('class-1', 'class-2') and gsd_m > 2.15", [22, 23]),
        ("time >= '2024-01-23 00:30:00'", [22, 23]),
        ("year(time) = 2024 and day(time) = 5", [4]),
        ("scene in (select scene from scenes where path like '%-00001_.tif')", list(range(10, 20))),
        ("tile.gsd_m > (select 2 + count(*) / 120 from SCENES)", [23]),
        ("exists (select 1 from scenes where scenes.scene = tile.scene and path like '%7.tif')", [7, 17]),
        ("GSD_M > 2.15 AND \"Key\" <> 'sample-000022'", [23]),
        ("bit_count(dhash) >= 0 and band_sums[1] > 0 and gsd_m = 2.3", [23]),
    ],
)
def test_samples_for_which_the_expression_is_true(url, where, expected):
    _, version = select(url, where)
    kept = read_table(url, version, "samples")["key"].to_pylist()
    assert sorted(kept) == [f"sample-{number:06d}" for number in expected]
    assert version.record["operations"] == [{"op": "select", "where": where}]
    details = [row for row in read_table(url, version, "rejects").to_pylist() if row["x"] is not None]
    assert {(row["reason"], row["detail"]) for row in details} == {("not_selected", where)}


def test_a_selection_verifies_and_all_of_it_is_the_parent(url, tmp_path):
    out = str(tmp_path / "small")
    _, version = select(url, "gsd_m > 1 and height = 32", out)
    assert list(verify(out)) == []
    parent, same = select(out, "gsd_m > 1")
    assert same is parent
    _, older = select(url, "gsd_m > 2", number=1)
    assert older.num_samples < version.num_samples


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("gsd < 1", 'Referenced column "gsd" not found.*columns are key, shard, '),
        ("gsd_m <", "syntax error"),
        ("", "not true or false"),
        ("gsd_m", "it gives DOUBLE, not true or false"),
        ("null", "not true or false"),
        ("sum(gsd_m) > 1", "cannot contain aggregates"),
        ("row_number() over () > 1", "cannot contain window functions"),
        ("sensor::int > 1", "Could not convert string 'class-"),
        ("random() < 0.5", "random is not a function of the sample alone"),
        ("time < now()", "now is not a function of the sample alone"),
        ("time < current_timestamp", "current_timestamp is not a function of the sample alone"),
        ("age(time) > interval 1 day", "age is not a function"),
        ("scene in (select scene from scenes using sample 3)", "a random sample"),
        ("x in (select x from tile)", "subqueries can look at scenes only"),
        ("true) union select (true", "give one expression"),
        ("true), (true", "give one expression"),
        ("true; drop table scenes", "syntax error"),
        ("columns('x') = 0", "not for use here"),
        ("x in (select y from read_csv('{file}'))", "not for use here"),
        ("x in (select y from '{file}')", "Cannot access file|does not exist"),
        ("x in (select x from samples)", "Table with name samples does not exist"),
        ("x > ?", "Values were not provided"),
        ("false", "no sample of .* is left"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(url, tmp_path, where, told):
    Path(tmp_path, "numbers.csv").write_text("y\n0\n")
    samples = "a local variable is no table"
    with pytest.raises(UserError, match=told) as caught:
        select(url, where.format(file=tmp_path / "numbers.csv"))
    assert len(str(caught.value).splitlines()) == 1, samples
    assert read_version(url).version == 1


def test_only_the_named_columns_are_read(url):
    selection = Selection(url, read_version(url), "GSD_M < 1 and scene in (select scene from scenes where path > 'a')")
    assert selection.columns == ["key", "scene", "gsd_m"]


@pytest.mark.parametrize(
    "where",
    [
        "time < '2024-01-11' and hour(time) = 0",
        "time < timestamptz '2024-01-11 00:00:00+00'",
        "hour(time at time zone 'UTC') = 0 and day(time) <= 10",
    ],
)
def test_the_zone_of_the_machine_does_not_matter(url, where, tmp_path):
    """Each zone in a process of its own: DuckDB asks for it once."""
    code = "import sys; from shards.curation.select import select; select(*sys.argv[1:])"
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        out = str(tmp_path / zone.replace("/", " "))
        environment = {**os.environ, "TZ": zone}
        subprocess.run([sys.executable, "-c", code, url, where, out], env=environment, cwd=REPOSITORY, check=True)
        assert read_version(out).num_samples == 10, zone
