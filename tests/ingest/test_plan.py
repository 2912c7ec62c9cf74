"""The plan: every tile row of every usable scene once, balanced, and deaf to the order of its input."""

import statistics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import Recipe
from ingest.grid import tile_origins
from ingest.inventory import scene_id
from ingest.plan import encode_groups, estimated_tile_bytes, plan_id, plan_units
from shards.schema import SCENES

SIDES = st.lists(st.tuples(st.integers(64, 5000), st.integers(64, 5000), st.booleans()), min_size=1, max_size=30)


def scenes(sides, block=256, driver="GTiff"):
    rows = [
        {
            "scene": scene_id(f"{number}.tif"),
            "path": f"{number}.tif",
            "size": width * height * 3,
            "width": width,
            "height": height,
            "grid_width": width,
            "grid_height": height,
            "factor": 1,
            "driver": driver,
            "block_width": block or width,
            "block_height": block or 1,
            "reason": None if usable else "corrupt",
        }
        for number, (width, height, usable) in enumerate(sides)
    ]
    return pa.Table.from_pylist(rows, schema=SCENES)


@settings(max_examples=60, deadline=None)
@given(SIDES, st.integers(0, 3), st.sampled_from([16, 64, 100, 256, 4096]), st.sampled_from(["GTiff", "PNG"]))
def test_units_cover_every_tile_once(sides, seed, block, driver):
    if not any(usable for *_, usable in sides):
        return
    recipe = Recipe(tile_px=64, shard_mb=0.2, seed=seed)
    units = plan_units(scenes(sides, block, driver), recipe).to_pylist()
    for index, (width, height, usable) in enumerate(sides):
        tiles = sorted(
            (row, column)
            for unit in units
            if unit["index"] == index
            for row in range(unit["first_row"], unit["end_row"])
            for column in range(unit["first_column"], unit["end_column"])
        )
        rows, columns = (len(tile_origins(side, 64, 64, "shift")) for side in (height, width))
        assert tiles == ([(row, column) for row in range(rows) for column in range(columns)] if usable else [])
    groups = [unit["group"] for unit in units]
    assert groups == sorted(groups)
    assert set(groups) == set(range(max(groups) + 1))


@pytest.mark.parametrize(("block", "tile", "period"), [(512, 128, 4), (256, 64, 4), (512, 512, 1), (256, 96, 8)])
def test_units_begin_at_the_edges_of_blocks(block, tile, period):
    units = plan_units(scenes([(8192, 8192, True)], block), Recipe(tile_px=tile, shard_mb=16.0)).to_pylist()
    assert len(units) > 4
    assert all(unit["first_row"] % period == 0 for unit in units)
    assert all(unit["first_column"] % period == 0 for unit in units)


def test_what_is_decoded_from_its_beginning_stays_whole():
    recipe = Recipe(tile_px=64, shard_mb=0.2)
    assert plan_units(scenes([(5000, 5000, True)], driver="PNG"), recipe).num_rows == 1
    assert plan_units(scenes([(5000, 5000, True)]), recipe).num_rows > 50


@pytest.mark.parametrize(("rows", "units"), [(5000, 1), (2047, 1), (100, 1), (256, 20), (64, 79), (50, 79)])
def test_a_scene_in_tall_strips_that_tiles_do_not_fit_stays_whole(rows, units):
    row = scenes([(5000, 5000, True)]).to_pylist()[0] | {"block_width": 5000, "block_height": rows}
    found = plan_units(pa.Table.from_pylist([row], schema=SCENES), Recipe(tile_px=64, shard_mb=0.2))
    assert found.num_rows == units


def test_groups_are_balanced_and_scenes_are_mixed():
    recipe = Recipe(tile_px=64, shard_mb=1.0)
    units = plan_units(scenes([(6400, 6400, True)] * 40), recipe).to_pylist()
    sizes: dict[int, int] = {}
    owners: dict[int, set[int]] = {}
    for unit in units:
        tiles = (unit["end_row"] - unit["first_row"]) * (unit["end_column"] - unit["first_column"])
        sizes[unit["group"]] = sizes.get(unit["group"], 0) + tiles
        owners.setdefault(unit["group"], set()).add(unit["index"])
    tiles_per_group = 8e6 / estimated_tile_bytes(recipe)
    assert all(0.8 < size / tiles_per_group < 1.2 for size in list(sizes.values())[:-1])
    assert min(len(names) for names in list(owners.values())[:-1]) >= 20


def test_a_small_dataset_has_work_for_many_cores():
    units = plan_units(scenes([(128, 128, True)] * 400), Recipe(tile_px=128))
    assert 12 <= max(units["group"].to_pylist()) + 1 <= 28


def test_order_of_scenes_does_not_matter():
    table = scenes([(640 + 64 * number, 640, True) for number in range(20)])
    reversed_table = table.take(list(reversed(range(20))))
    recipe = Recipe(tile_px=64, shard_mb=0.2)

    def named(source):
        rows = plan_units(source, recipe).to_pylist()
        names = source["path"].to_pylist()
        return [(row["group"], names[row["index"]], row["first_row"], row["first_column"]) for row in rows]

    assert named(table) == named(reversed_table)


def group_names(table, recipe=None, tools=None):
    recipe = recipe or Recipe(tile_px=64, shard_mb=0.2)
    units = plan_units(table, recipe)
    return [name for name, _ in encode_groups(units, table, recipe, tools or {"gdal": "1"})]


def test_group_names_tell_all_inputs():
    table = scenes([(640, 640, True)])
    before = group_names(table)
    assert group_names(table) == before
    assert plan_id(group_names(table)) == plan_id(before)
    for other in (
        group_names(table, Recipe(tile_px=64, shard_mb=0.2, seed=1)),
        group_names(table, tools={"gdal": "2"}),
        group_names(scenes([(641, 640, True)])),
        group_names(table.set_column(table.column_names.index("etag"), "etag", pa.array(["x"]))),
    ):
        assert not set(other) & set(before)


def test_a_group_holds_all_that_is_known_of_its_scenes():
    table = scenes([(640, 640, True), (700, 300, False), (300, 700, True)])
    recipe = Recipe(tile_px=64, shard_mb=0.2)
    units = plan_units(table, recipe)
    rows = [
        row
        for _, data in encode_groups(units, table, recipe, {})
        for row in pq.read_table(pa.BufferReader(data)).to_pylist()
    ]
    assert [row["path"] for row in rows] == [table["path"][index].as_py() for index in units["index"].to_pylist()]
    assert {row["width"] for row in rows} == {640, 300}


def test_a_changed_scene_leaves_most_groups_as_they_are():
    """So that a run that goes on after a change finds nearly all that it had packed."""
    sides = [(64 * (3 + number % 5), 64 * (2 + number % 7), True) for number in range(400)]
    recipe = Recipe(tile_px=64, shard_mb=0.2)
    before = set(group_names(scenes(sides), recipe))
    kept = []
    for victim in range(0, 400, 10):
        width, height, _ = sides[victim]
        after = group_names(scenes([*sides[:victim], (width, height, False), *sides[victim + 1 :]]), recipe)
        kept.append(len(before & set(after)) / len(before))
    assert statistics.median(kept) > 0.8
    assert min(kept) < 1
