"""Differences of two versions are told by scene, with the reason; equal content is equal."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from shards.commit import write_table
from shards.curation.diff import diff
from shards.curation.select import select
from shards.digest import content_digest
from shards.schema import SAMPLES, SCENES
from shards.tables import read_table, read_version, version_url


@pytest.fixture
def url(tmp_path, write_dataset):
    return write_dataset(str(tmp_path / "data"))


def changed(url, scenes=None, samples=None, **values):
    """Write the newest version again with other rows, as the next version."""
    version = read_version(url)
    scene_rows = read_table(url, version, "scenes").to_pylist()
    sample_rows = read_table(url, version, "samples").to_pylist()
    (scenes or (lambda rows: None))(scene_rows)
    (samples or (lambda rows: None))(sample_rows)
    tables = {
        "scenes": pa.Table.from_pylist(scene_rows, SCENES),
        "samples": pa.Table.from_pylist(sample_rows, SAMPLES),
    }
    files = {name: write_table(url, name, [table]) for name, table in tables.items()}
    digest = content_digest([band.name for band in version.bands], "uint8", [tables["samples"]], [tables["scenes"]])
    number = version.version + 1
    after = dataclasses.replace(version, version=number, digest=digest, tables={**version.tables, **files}, **values)
    Path(version_url(url, number)).write_bytes(after.to_json())


def test_equal_content_is_equal_wherever_it_lies(url, tmp_path, write_dataset):
    again = write_dataset(str(tmp_path / "again"))
    difference = diff(url, again)
    assert difference.equal
    assert list(difference.lines()) == [f"equal: digest {read_version(url).digest}; same record"]


def test_scenes_added_removed_changed_and_why(url):
    def scenes(rows):
        rows[0] |= {"scene": "other", "path": "new.tif"}
        rows[1] |= {"state": "rejected", "reason": "corrupt", "num_tiles": 0}
        rows[2] |= {"etag": "other", "size": 7}
        rows.sort(key=lambda row: row["scene"], reverse=True)

    def samples(rows):
        rows[0] |= {"scene": "other", "key": "new"}
        del rows[1]
        rows[2] |= {"json_sha256": bytes(32)}
        rows.reverse()

    names = [row["path"] for row in read_table(url, read_version(url), "scenes").to_pylist()]
    changed(url, scenes, samples)
    difference = diff(url, url, 1, 2)
    assert not difference.equal
    assert list(difference.lines()) == [
        "added scene new.tif (1 tiles)",
        f"removed scene {names[0]} (1 tiles)",
        *sorted(
            [
                f"changed scene {names[1]}: used → rejected for corrupt; tiles 1 removed",
                f"changed scene {names[2]}: source changed (size None → 7); source changed (etag None → other)",
                f"changed scene {names[3]}: tiles 1 with other bytes",
            ]
        ),
        "different: scenes 1 added, 1 removed, 3 changed; tiles 1 added, 2 removed, 1 with other bytes; same record",
    ]


def test_the_other_way_round_is_the_mirror_image(url):
    select(url, "key > 'sample-000004'")
    there, back = diff(url, url, 1, 2), diff(url, url, 2, 1)
    assert (there.num_tiles_added, there.num_tiles_removed) == (0, 5)
    assert (back.num_tiles_added, back.num_tiles_removed) == (5, 0)
    assert there.changed.num_rows == back.changed.num_rows == 5


def test_long_lists_are_cut(url):
    select(url, "key > 'sample-000004'")
    lines = list(diff(url, url, 1, 2).lines(limit=2))
    assert len([line for line in lines if line.startswith("changed scene")]) == 2
    assert "… and 3 more changed scenes" in lines
    assert sum(line.startswith("changed") for line in diff(url, url, 1, 2).lines(limit=5)) == 5


def test_the_record_is_compared_option_by_option(url):
    plans = [{"plan": "p", "toolchain": {"gdal": "3.9"}}, {"plan": "q", "toolchain": {"gdal": "3.10"}}]
    changed(url, record={"recipe": {"tile_px": 512, "warp": {"crs": "utm"}}, "toolchain": {"gdal": "3.9"}})
    changed(url, record={"recipe": {"tile_px": 256, "warp": {"crs": "utm"}}, "plans": plans}, dtype="uint16")
    difference = diff(url, url, 2, 3)
    assert difference.record == (
        "tiles: dtype is uint8 in the first, uint16 in the second",
        "recipe: tile_px is 512 in the first, 256 in the second",
        "toolchain: gdal is 3.9 in the first, ['3.9', '3.10'] in the second",
    )
    assert difference.equal
    assert "… and 2 more differences of the record" in list(difference.lines(limit=1))
