"""One item, one scene: bands, offsets, versions and places by what the item says."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import Recipe
from ingest.places import Places
from ingest.stac_items import choose_assets, item_offset, scene_row

PLACES = Places(root="s3://bucket/cat", allow=("s3://archive",))
DOCUMENT = "s3://bucket/cat/items/a.json"
RGB = Recipe(source_bands=("red", "green", "blue"))


def asset(href, name=None, **fields):
    bands = [{"name": name, "common_name": name}] if name else []
    return {"href": href, "roles": ["data"], "eo:bands": bands, **fields}


def item(**changes):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2A_32TQM_0",
        "collection": "sentinel-2-l2a",
        "properties": {
            "datetime": "2022-08-04T10:16:28.123Z",
            "platform": "Sentinel-2A",
            "grid:code": "MGRS-32TQM",
            "s2:processing_baseline": "04.00",
            "updated": "2022-08-05T00:00:00Z",
        },
        "assets": {name: asset(f"../images/{name}.tif") for name in ("red", "green", "blue", "nir", "scl")},
        **changes,
    }


def row(recipe=RGB, **changes):
    return scene_row(item(**changes), DOCUMENT, PLACES, recipe)


def test_an_item_is_a_scene():
    found = row()
    assert found["path"] == "sentinel-2-l2a/S2A_32TQM_0"
    assert found["time"] == datetime(2022, 8, 4, 10, 16, 28, 123000, tzinfo=UTC)
    assert found["sensor"] == "Sentinel-2A"
    assert [(file["band"], file["path"]) for file in found["files"]] == [
        ("blue", "images/blue.tif"),
        ("green", "images/green.tif"),
        ("red", "images/red.tif"),
    ]
    assert found["acquisition"] == "sentinel-2a 32TQM 20220804T101628"
    assert found["version"] == "04.00 20220805T000000 S2A_32TQM_0"
    assert (found["size"], found.get("etag"), found["offset"], found.get("reason")) == (None, None, None, None)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("7", "7"), (7, "7"), (7.0, "7"), (0, "0"), (2.5, "2.5"), (True, "true"), (math.nan, None), ({"a": 1}, None)],
)
def test_a_label_that_is_a_number_is_written_as_in_a_list(label, expected):
    assert row(properties={**item()["properties"], "label": label})["label"] == expected


def test_sizes_count_and_checksums_are_no_etags():
    assets = {name: asset(f"{name}.tif", **{"file:size": 5, "file:checksum": "1220ab"}) for name in RGB.bands}
    found = row(assets=assets)
    assert found["size"] == 15
    assert found.get("etag") is None
    assert [file["etag"] for file in found["files"]] == [None] * 3
    del assets["red"]["file:size"]
    assert row(assets=assets)["size"] is None


@pytest.mark.parametrize("size", [True, -1, 2**70, "5", None])
def test_what_is_no_size_is_unknown(size):
    assert row(assets={name: asset(f"{name}.tif", **{"file:size": size}) for name in RGB.bands})["size"] is None


@pytest.mark.parametrize("recipe", [Recipe(), RGB, Recipe(source_bands=(1, 2, 3))])
def test_one_file_of_all_bands_is_a_scene(recipe):
    found = row(recipe, assets={"visual": {"href": "../x.tif", "roles": ["visual"]}})
    assert (found.get("reason"), [file["path"] for file in found["files"]]) == (None, ["x.tif"])


def test_the_cloud_band_is_a_file_too():
    recipe = Recipe(source_bands=("red", "green", "blue"), cloud_band="scl", cloud_values=(3,))
    assert [file["band"] for file in row(recipe)["files"]] == ["blue", "green", "red", "scl"]


@pytest.mark.parametrize(
    ("assets", "recipe", "expected"),
    [
        ({"B04": asset("x", "red"), "B03": asset("x", "green"), "B02": asset("x", "blue")}, Recipe(), None),
        ({"a": asset("x", "B04"), "b": asset("x", "B03")}, Recipe(bands=("r", "g"), source_bands=("B04", "B03")), None),
        ({"z": asset("x", "red"), "b": asset("x", "red")}, Recipe(bands=("red",)), {"red": "b"}),
        ({"red": asset("x"), "b": asset("x", "red")}, Recipe(bands=("red",)), {"red": "red"}),
        ({"image": asset("x")}, Recipe(), {"": "image"}),
        ({"image": asset("x")}, Recipe(source_bands=(1, 2, 3)), {"": "image"}),
        ({"a": asset("x"), "b": {"href": "x", "roles": ["visual"]}, "c": asset("x")}, Recipe(), {"": "b"}),
        ({"a": asset("x"), "c": asset("x")}, Recipe(), "no asset for red, green, blue; there are a, c"),
        ({"red": asset("x")}, RGB, {"": "red"}),
        ({"red": {"href": "x"}}, RGB, "no asset for green, blue; there are red"),
        (
            {
                "a": asset("x", "pan"),
                "b": {"href": "x", "roles": ["data"], "bands": [{"eo:common_name": name} for name in RGB.bands]},
            },
            Recipe(),
            {"": "b"},
        ),
    ],
)
def test_choose_assets(assets, recipe, expected):
    if expected is None:
        names = recipe.source_bands or recipe.bands
        expected = dict(zip(names, assets, strict=True))
    assert choose_assets(assets, recipe) == expected


def test_missing_bands_are_said():
    found = row(assets={"red": {"href": "x"}})
    assert found["reason"] == "bands_missing"
    assert "green, blue" in found["detail"]


def test_places():
    outside = {name: asset(f"s3://secret/{name}.tif") for name in RGB.bands}
    found = row(assets=outside)
    assert (found["reason"], found["detail"]) == ("not_allowed", "s3://secret/blue.tif")
    alternates = {
        name: {**asset, "alternate": {"s3": {"href": f"s3://archive/{name}.tif"}, "a": {"href": "ftp://x/y"}}}
        for name, asset in outside.items()
    }
    assert row(assets=alternates)["files"][0]["path"] == "s3://archive/blue.tif"
    assert row(assets={name: asset("../../x.tif") for name in RGB.bands})["reason"] == "not_allowed"
    assert row(assets={name: asset("/etc/passwd") for name in RGB.bands})["reason"] == "not_allowed"


@pytest.mark.parametrize(
    ("asset", "properties", "expected"),
    [
        ({}, {}, None),
        ({"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}, {}, -1000.0),
        ({"raster:bands": [{"scale": 0.0000275, "offset": -0.2}]}, {}, -7272.727273),
        ({"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}, {"earthsearch:boa_offset_applied": True}, 0.0),
        ({"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}, {"earthsearch:boa_offset_applied": False}, -1000.0),
        ({"raster:bands": [{"scale": 0.0001}]}, {}, None),
        ({"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}, {}]}, {}, "different"),
        ({"raster:scale": 0.0001, "raster:offset": -0.1, "bands": [{"name": "a"}, {}]}, {}, -1000.0),
        ({"raster:bands": [{"offset": 0}]}, {}, 0.0),
    ],
)
def test_item_offset(asset, properties, expected):
    if expected == "different":
        with pytest.raises(ValueError, match="different offsets"):
            item_offset(asset, properties)
    else:
        assert item_offset(asset, properties) == expected


def test_bands_with_different_offsets_are_no_scene():
    assets = {name: asset(f"{name}.tif") for name in RGB.bands}
    assets["red"]["raster:bands"] = [{"offset": 5}]
    found = row(assets=assets)
    assert (found["reason"], found["detail"]) == ("bands_missing", "its bands have different offsets: 5.0, None")


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"s2:mgrs_tile": "32TQM"}, "32TQM"),
        ({"grid:code": "MGRS-32TQM"}, "32TQM"),
        ({"mgrs:utm_zone": 3, "mgrs:latitude_band": "T", "mgrs:grid_square": "QM"}, "03TQM"),
        ({"landsat:wrs_path": "013", "landsat:wrs_row": "32"}, "WRS2-013032"),
        ({}, None),
    ],
)
def test_acquisitions(properties, expected):
    found = row(properties={"datetime": "2022-08-04T10:16:28Z", "platform": "x", **properties})
    assert found["acquisition"] == (expected and f"x {expected} 20220804T101628")


def test_an_item_without_an_instant_has_a_start():
    found = row(properties={"datetime": None, "start_datetime": "2022-08-04T10:16:28Z", "constellation": "x"})
    assert found["time"].year == 2022
    assert found["sensor"] == "x"
    assert found["acquisition"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": 3},
        {"assets": None},
        {"assets": {"red": {}, "green": {}, "blue": {}}},
        {"properties": {"datetime": "never"}},
        {"properties": 3},
        {"properties": {"platform": 3}},
        {"assets": {name: {"href": "x", "raster:bands": [{"offset": 1, "scale": 0}]} for name in RGB.bands}},
        {"assets": {name: {"href": "x", "raster:bands": [{"offset": float("nan")}]} for name in RGB.bands}},
    ],
)
def test_broken_items_are_rows_with_a_reason(changes):
    assert row(**changes)["reason"] == "corrupt"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "collection", "properties", "assets", "x"]), JSON) | JSON)
def test_any_json_is_a_row(content):
    found = scene_row(content, DOCUMENT, PLACES, RGB)
    assert isinstance(found["path"], str)
    found["path"].encode()
