"""One row per scene, the same whatever the order of the source, with what is left out and why."""

import json
import random
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest
from ingest.config import IngestConfig, Recipe
from ingest.inventory import build_inventory, identify, scene_id, settle_inventory, supersede, version_keys
from ingest.patterns import describe_files
from ingest.sources import found
from shards.errors import UserError
from shards.schema import INVENTORY

CONFIGS = Path(ingest.__file__).parent / "configs"


def build(scenes, preset=None, **options):
    options |= yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text()) if preset else {}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    table = build_inventory(IngestConfig(scenes=str(scenes), out="out", **values))
    assert table.schema == INVENTORY
    table.validate(full=True)
    ids = table["scene"].to_pylist()
    assert ids == sorted(set(ids))
    return {row["path"]: row for row in table.to_pylist()}


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_a_folder(tmp_path):
    touch(tmp_path, "forest/a.tif", "b.tif")
    rows = build(tmp_path, label_from="folder")
    row = rows["forest/a.tif"]
    assert row["scene"] == scene_id("forest/a.tif")
    assert (row["size"], row["label"], row["reason"], row["files"]) == (12, "forest", None, None)
    assert rows["b.tif"]["label"] is None


def test_a_move_changes_nothing(tmp_path):
    touch(tmp_path / "x", "forest/a.tif", "b.tif")
    before = build(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "y")
    assert build(tmp_path / "y") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("folder", None), ("a.csv", "path\n"), ("a.json", json.dumps({"type": "FeatureCollection", "features": []}))],
)
def test_nothing_found(tmp_path, name, content):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="no scenes found"):
        build(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        build(tmp_path / "none" / name)


def test_what_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.parquet is no Parquet file"):
        build(tmp_path / "x.parquet")


def test_a_path_listed_twice(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nx.tif,first\ny.tif,\nx.tif,second\n./x.tif,third\nx.tif#3,real\n")
    rows = build(tmp_path / "a.csv")
    assert {path: row["reason"] for path, row in rows.items()} == {
        "x.tif": None,
        "y.tif": None,
        "x.tif#3": None,
        "x.tif#3#3": "listed_twice",
        "x.tif#4": "listed_twice",
    }
    assert rows["x.tif"]["label"] == "first"
    assert rows["x.tif#3"]["label"] == "real"


def test_ids_of_a_list(tmp_path):
    (tmp_path / "a.csv").write_text("path,id\nx.tif,one\ny.tif,two\nz.tif,one\n")
    rows = build(tmp_path / "a.csv")
    assert rows["x.tif"]["scene"] == scene_id("one")
    assert rows["y.tif"]["scene"] == scene_id("two")
    assert rows["z.tif#3"]["reason"] == "listed_twice"


def test_a_list_of_bands_is_grouped(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nS1_B1.tif,x\nS1_B2.tif,x\n/etc/S1_B3.tif,x\n")
    rows = build(tmp_path / "a.csv", file_pattern=r"(?P<scene>S\d)_(?P<band>B\d)")
    assert [file["path"] for file in rows["S1"]["files"]] == ["S1_B1.tif", "S1_B2.tif"]
    assert rows["S1"]["label"] == "x"
    assert rows["/etc/S1_B3.tif"]["reason"] == "not_allowed"


def test_stac_of_all_kinds(tmp_path):
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "a", "collection": "c", "links": [], "geometry": None}
    item |= {
        "properties": {"label": "sea"},
        "assets": {name: {"href": f"{name}.tif"} for name in ("red", "green", "blue")},
    }
    (tmp_path / "x.json").write_text(json.dumps(item))
    column = {"id": ["a"], "collection": ["c"], "assets": [item["assets"]], "label": ["sea"]}
    pq.write_table(pa.table(column), tmp_path / "x.parquet")
    rows = build(tmp_path / "x.json", label_from="folder", file_pattern="nothing")
    assert (rows["c/a"]["label"], rows["c/a"]["reason"]) == ("sea", None)
    assert rows == build(tmp_path / "x.parquet")


@settings(deadline=None)
@given(st.permutations([("v1", "a"), ("v2", "b"), ("v10", "c"), ("v10", "d"), (None, "e")]))
def test_the_highest_version_stays(order):
    versions, paths = zip(*order, strict=True)
    table = found(path=paths, version=versions, acquisition=["A"] * 5)
    rows = {row["path"]: (row["reason"], row["detail"]) for row in supersede(table.combine_chunks()).to_pylist()}
    old = ("superseded", "by c")
    assert rows == {"a": old, "b": old, "c": (None, None), "d": old, "e": old}


def test_what_is_left_out_supersedes_nothing():
    table = found(
        path=["old", "new", "alone", "other"],
        version=["1", "2", "1", "1"],
        acquisition=["A", "A", None, "B"],
        reason=[None, "bands_missing", None, None],
    )
    assert supersede(table)["reason"].to_pylist() == [None, "bands_missing", None, None]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 99)), min_size=2, max_size=2))
def test_numbers_in_versions_count_by_value(pair):
    keys = version_keys(pa.array([f"N{baseline}_x{part}" for baseline, part in pair])).to_pylist()
    assert (keys[0] < keys[1]) == (pair[0] < pair[1])


def test_ids_stay_unique_without_rows():
    table = found(path=["a", "a", "a", "a#2"], etag=["z", "x", "y", "w"])
    scenes, ids = identify(table)
    rows = dict(zip(scenes["path"].to_pylist(), scenes["etag"].to_pylist(), strict=True))
    assert rows == {"a": "x", "a#2": "w", "a#2#2": "y", "a#3": "z"}
    assert len(np.unique(ids)) == 4


NAME = st.tuples(
    st.sampled_from(["", "x/", "y/", "z.zip/"]),
    st.integers(1, 2),
    st.integers(1, 12),
    st.sampled_from(["_B1.tif", "_B2.tif", "_B3.tif", ".txt"]),
)
PATTERN = r"(?P<scene>(?P<acquisition>S\d)_(?P<version>v\d+))_(?P<band>B\d)\.tif$"


@settings(deadline=None)
@given(st.sets(NAME, min_size=1, max_size=40), st.integers())
def test_the_order_of_files_does_not_matter(names, seed):
    recipe = Recipe(
        file_pattern=PATTERN,
        bands=("b1", "b2"),
        source_bands=("B1", "B2"),
        offset_pattern="v1",
        label_from="folder",
    )
    rows = [
        (f"{folder}S{number}_v{version}{end}", "z.zip" if "zip" in folder else None)
        for folder, number, version, end in names
    ]

    def settle(rows):
        paths, archives = zip(*rows, strict=True)
        half = len(rows) // 2
        files = found(path=paths, archive=archives, etag=paths, size=[1] * len(paths))
        described = [describe_files(files.slice(*part), PATTERN) for part in [(0, half), (half, len(rows))]]
        return settle_inventory(described, recipe)

    table = settle(sorted(rows, key=str))
    assert settle(random.Random(seed).sample(rows, len(rows))).equals(table)
    used = [row["acquisition"] for row in table.to_pylist() if row["reason"] is None]
    assert len(used) == len(set(used))
    assert set(Counter(table["scene"].to_pylist()).values()) == {1}


SAFE = "S2A_MSIL2A_20220804T100611_{}_R022_T32TQM_{}.SAFE/GRANULE/L2A_T32TQM_A037170_20220804T101559/"


def test_sentinel2_as_esa_delivers_it(tmp_path):
    bands = [f"R10m/T32TQM_20220804T100611_{band}_10m.jp2" for band in ("B02", "B03", "B04", "TCI")]
    bands += [f"R20m/T32TQM_20220804T100611_{band}_20m.jp2" for band in ("B02", "SCL", "B8A")]
    old = SAFE.format("N0301", "20220804T162018")
    touch(tmp_path, *(f"{old}IMG_DATA/{band}" for band in bands), f"{old}QI_DATA/MSK_CLDPRB_20m.jp2")
    touch(tmp_path / "in", *(f"{SAFE.format('N0510', '20230101T000000')}IMG_DATA/{band}" for band in bands))
    shutil.make_archive(str(tmp_path / "new"), "zip", tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    rows = build(tmp_path, "sentinel2_l2a_rgb")
    first, second = (row for row in rows.values() if row["files"])
    assert {first["path"], second["path"]} == {
        "S2A_MSIL2A_20220804T100611_N0301_R022_T32TQM_20220804T162018.SAFE",
        "new.zip/S2A_MSIL2A_20220804T100611_N0510_R022_T32TQM_20230101T000000.SAFE",
    }
    new, old_row = (first, second) if first["archive"] else (second, first)
    assert [file["band"] for file in new["files"]] == ["B02_10m", "B03_10m", "B04_10m", "SCL_20m"]
    assert (new["archive"], new["offset"], new["reason"], new["sensor"]) == ("new.zip", None, None, "S2A")
    assert new["time"].isoformat() == "2022-08-04T10:06:11+00:00"
    assert (old_row["offset"], old_row["reason"], old_row["detail"]) == (0.0, "superseded", f"by {new['path']}")
    assert [row["reason"] for row in rows.values() if not row["files"]] == ["pattern_mismatch"]
    lacking = build(tmp_path, "sentinel2_l2a_ms")
    assert lacking[new["path"]]["reason"] == "bands_missing"
    assert lacking[new["path"]]["detail"] == "no file for B05_20m, B06_20m, B07_20m, B08_10m, B11_20m, B12_20m"


@pytest.mark.parametrize("preset", ["landsat_c2_sr_rgb", "landsat_c2_sr_ms"])
def test_landsat_surface_reflectance(tmp_path, preset):
    product = "LC08_L2SP_013032_20180131_{}_02_T1"
    for processed in ("20200902", "20230101"):
        name = product.format(processed)
        touch(tmp_path / name, *(f"{name}_SR_B{band}.TIF" for band in range(1, 8)), f"{name}_QA_PIXEL.TIF")
    rows = build(tmp_path, preset)
    new = rows[f"{product.format('20230101')}/{product.format('20230101')}"]
    old = rows[f"{product.format('20200902')}/{product.format('20200902')}"]
    assert (new["reason"], old["reason"]) == (None, "superseded")
    assert new["files"][0]["band"] == "QA_PIXEL"
    assert len(new["files"]) == (4 if preset.endswith("rgb") else 8)
    assert (new["sensor"], new["time"].year, new["offset"]) == ("LC08", 2018, None)


def test_sentinel2_from_stac(tmp_path):
    def item(number, applied):
        assets = {
            name: {"href": f"s3://cogs/{number}/{name}.tif", "raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
            for name in ("red", "green", "blue", "scl", "nir")
        }
        properties = {"datetime": "2022-08-04T10:16:28Z", "platform": "sentinel-2a", "grid:code": "MGRS-32TQM"}
        properties |= {"earthsearch:boa_offset_applied": applied, "s2:processing_baseline": f"0{number}.00"}
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"i{number}",
            "properties": properties,
            "assets": assets,
        }

    (tmp_path / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": [item(5, False), item(4, True)]})
    )
    rows = build(tmp_path / "items.json", "sentinel2_stac_rgb", allow=["s3://cogs/"])
    assert [file["band"] for file in rows["i5"]["files"]] == ["blue", "green", "red", "scl"]
    assert (rows["i5"]["offset"], rows["i5"]["reason"]) == (-1000.0, None)
    assert (rows["i4"]["offset"], rows["i4"]["reason"], rows["i4"]["detail"]) == (0.0, "superseded", "by i5")
    assert {row["reason"] for row in build(tmp_path / "items.json", "sentinel2_stac_rgb").values()} == {"not_allowed"}


def test_real_landsat_folders(real_images):
    folder = real_images / "scenes" / "gdalcubes_L8NY18"
    rows = build(folder, "landsat_l1_rgb")
    assert len(rows) == 19
    assert all(row["reason"] is None for row in rows.values())
    row = rows["LC08_L1TP_013032_20180131_20180207_01_T1"]
    assert [file["band"] for file in row["files"]] == ["B2", "B3", "B4"]
    assert all((folder / file["path"]).stat().st_size == file["size"] for file in row["files"])
    assert row["time"].date().isoformat() == "2018-01-31"


def test_every_real_file_has_a_row(real_images):
    folder = real_images / "scenes"
    rows = build(folder)
    assert set(rows) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".zip") and "/." not in f"/{path.relative_to(folder).as_posix()}"
    } | {path for path, row in rows.items() if row["archive"]}


def test_a_zip_of_chips_has_labels(tmp_path):
    with zipfile.ZipFile(tmp_path / "EuroSAT.zip", "w") as archive:
        for name in ("2750/Forest/1.jpg", "2750/River/1.jpg"):
            archive.writestr(name, b"x")
    rows = build(tmp_path, "chips")
    assert [row["label"] for row in sorted(rows.values(), key=lambda row: row["path"])] == ["Forest", "River"]
