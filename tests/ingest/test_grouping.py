"""Files of one scene become one row, in whatever order they come."""

import random
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import Recipe
from ingest.grouping import group_files, needed_bands
from ingest.patterns import describe_files
from ingest.sources import FOUND, found

PATTERN = r"(?P<scene>S\d+)_(?P<band>B\w+)\.tif$"


def grouped(paths, archives=None, sizes=None, etags=None, **recipe):
    recipe = Recipe(file_pattern=PATTERN, **recipe)
    files = found(
        path=paths, archive=archives, size=sizes or [1] * len(paths), etag=etags or [f"e{path}" for path in paths]
    )
    table = group_files(describe_files(files, recipe.file_pattern), recipe)
    assert table.schema == FOUND
    table.validate(full=True)
    return sorted(table.to_pylist(), key=lambda row: (row["path"], row["archive"] or ""))


def test_files_with_equal_text_are_one_scene_sorted_by_band():
    row, junk = grouped(["x/S1_B3.tif", "x/S1_B1.tif", "x/junk.txt", "x/S1_B2.tif"], sizes=[5, 6, 7, 8])
    assert row["path"] == "x/S1"
    assert [(file["band"], file["path"]) for file in row["files"]] == [
        ("B1", "x/S1_B1.tif"),
        ("B2", "x/S1_B2.tif"),
        ("B3", "x/S1_B3.tif"),
    ]
    assert row["size"] == 19
    assert re.fullmatch("[0-9a-f]{64}", row["etag"])
    assert (junk["path"], junk["reason"], junk["files"]) == ("x/junk.txt", "pattern_mismatch", None)


def test_the_etag_changes_with_each_files_and_is_null_if_one_is():
    first = grouped(["S1_B1.tif", "S1_B2.tif"])[0]["etag"]
    assert grouped(["S1_B1.tif", "S1_B2.tif"], etags=["eS1_B1.tif", "other"])[0]["etag"] != first
    (row,) = grouped(["S1_B1.tif", "S1_B2.tif"], etags=["a", None], sizes=[None, 3])
    assert row["etag"] is None
    assert row["size"] is None


def test_a_folder_per_band_is_one_scene():
    (row,) = grouped(["B1/S1_B1.tif", "B2/S1_B2.tif"])
    assert row["path"] == "B1/S1"
    assert len(row["files"]) == 2


def test_a_copy_in_another_folder_is_another_scene():
    first, second = grouped(["a/S1_B1.tif", "a/S1_B2.tif", "b/S1_B1.tif", "b/S1_B2.tif"])
    assert (first["path"], second["path"]) == ("a/S1", "b/S1")
    assert [file["path"] for file in second["files"]] == ["b/S1_B1.tif", "b/S1_B2.tif"]


def test_a_file_without_a_band_hides_no_other():
    recipe = Recipe(file_pattern=r"(?P<scene>[a-z]+)(?:_(?P<band>B\d))?\.tif$")
    files = found(path=["x.tif", "x_B2.tif", "x_B1.tif"], etag=["a", "b", "c"])
    first, second = group_files(describe_files(files, recipe.file_pattern), recipe).to_pylist()
    assert (first["path"], first["files"]) == ("x.tif", None)
    assert (second["path"], [file["path"] for file in second["files"]]) == ("x", ["x_B1.tif", "x_B2.tif"])


def test_archives_are_scenes_of_their_own():
    rows = grouped(["a.zip/S1_B1.tif", "b.zip/S1_B2.tif", "S1_B3.tif"], ["a.zip", "b.zip", None])
    assert [(row["path"], row["archive"]) for row in rows] == [
        ("S1", None),
        ("a.zip/S1", "a.zip"),
        ("b.zip/S1", "b.zip"),
    ]


def test_a_band_twice_in_one_scene():
    recipe = Recipe(file_pattern=r"(?P<scene>S\d)/R\d+m/(?P<band>B\d)\.tif$")
    files = found(path=["S1/R20m/B4.tif", "S1/R10m/B4.tif", "S1/R10m/B3.tif"], etag=["a", "b", "c"])
    scene, again = group_files(describe_files(files, recipe.file_pattern), recipe).to_pylist()
    assert [file["path"] for file in scene["files"]] == ["S1/R10m/B3.tif", "S1/R10m/B4.tif"]
    assert (again["path"], again["reason"]) == ("S1/R20m/B4.tif", "listed_twice")
    assert again["detail"] == "band B4 of S1 is there already"
    assert again["files"] is None


def test_unnamed_bands_are_left_out_and_missing_ones_said():
    paths = ["S1_B1.tif", "S1_B2.tif", "S1_BX.tif", "S2_B1.tif", "S3_BX.tif"]
    first, second, third = grouped(paths, bands=("a", "b"), source_bands=("B2", "B1"))
    assert [file["band"] for file in first["files"]] == ["B1", "B2"]
    assert first["reason"] is None
    assert (second["reason"], second["detail"]) == ("bands_missing", "no file for B2")
    assert (third["reason"], third["detail"]) == ("bands_missing", "no file for B2, B1")


def test_needed_bands():
    assert needed_bands(Recipe()) == ()
    assert needed_bands(Recipe(source_bands=(3, 2, 1))) == ()
    clouds = Recipe(source_bands=("B4", "B3", "B2"), cloud_band="SCL", cloud_values=(3,))
    assert needed_bands(clouds) == ("B4", "B3", "B2", "SCL")


FILE = st.tuples(st.sampled_from(["", "a/", "b/"]), st.integers(0, 3), st.sampled_from(["B1", "B2", "BX", "?"]))


@settings(deadline=None)
@given(st.sets(FILE), st.integers(), st.booleans())
def test_each_file_is_accounted_for_once_in_any_order(files, seed, is_named):
    paths = [f"{folder}S{number}_{band}.tif" for folder, number, band in sorted(files)]
    named = {"bands": ("a", "b"), "source_bands": ("B1", "B2")} if is_named else {}
    rows = grouped(paths, **named)
    shuffled = random.Random(seed).sample(paths, len(paths))
    assert grouped(shuffled, **named) == rows
    held = [file["path"] for row in rows for file in row["files"] or [row]]
    assert len(held) == len(set(held))
    lost = set(paths) - set(held)
    assert all("_BX" in path for path in lost) if is_named else not lost


def test_nothing_to_group():
    assert grouped([]) == []
    assert [row["path"] for row in grouped(["a.txt"])] == ["a.txt"]


@pytest.mark.parametrize("chunks", [1, 3])
def test_chunks_do_not_matter(chunks):
    recipe = Recipe(file_pattern=PATTERN)
    described = describe_files(found(path=["S1_B1.tif", "S1_B2.tif", "S2_B1.tif"]), PATTERN)
    table = pa.concat_tables([described.slice(at, 4 - chunks) for at in range(0, 3, 4 - chunks)])
    assert group_files(table, recipe).num_rows == 2
