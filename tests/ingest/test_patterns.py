"""What paths tell, by RE2 and by Arrow."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import Recipe
from ingest.patterns import describe_files, folder_labels, offsets, read_times
from ingest.sources import FOUND, found
from shards.errors import UserError

PATTERN = r"(?P<sensor>S\d)/(?P<scene>(?P<acquisition>T\d+_(?P<time>\d{8}))_(?P<version>v\d+))_(?P<band>B\d)?\.tif$"


def described(path, pattern=PATTERN, **columns):
    return describe_files(found(path=[path], **columns), pattern).to_pylist()[0]


def test_groups_become_columns():
    row = described("é/S2/T33_20180131_v2_B4.tif")
    assert row["scene_text"] == "T33_20180131_v2"
    assert row["scene_path"] == "é/S2/T33_20180131_v2"
    assert (row["band"], row["sensor"], row["version"], row["acquisition"]) == ("B4", "S2", "v2", "T33_20180131")
    assert row["time"] == datetime(2018, 1, 31, tzinfo=UTC)
    assert row["reason"] is None


def test_a_file_without_a_band_is_a_scene_of_its_own():
    row = described("S2/T33_20180131_v2_.tif")
    assert (row["scene_text"], row["band"], row["reason"]) == (None, None, None)
    assert (row["sensor"], row["version"], row["acquisition"]) == ("S2", "v2", "T33_20180131")


def test_what_does_not_match_is_rejected_unless_it_has_a_reason():
    assert described("x.txt")["reason"] == "pattern_mismatch"
    assert described("x.txt", reason=["not_allowed"])["reason"] == "not_allowed"
    refused = described("S2/T33_20180131_v2_B4.tif", reason=["not_allowed"])
    assert refused["scene_text"] is None
    assert refused["sensor"] is None


def test_a_list_knows_better_than_the_path():
    row = described("S2/T33_20180131_v2_B4.tif", sensor=["mine"], time=[datetime(2000, 1, 1, tzinfo=UTC)])
    assert row["sensor"] == "mine"
    assert row["time"].year == 2000


def test_patterns_without_groups_or_bands():
    assert described("a.tif", "tif$")["reason"] is None
    assert described("a.png", "tif$")["reason"] == "pattern_mismatch"
    row = described("S2_a.tif", r"(?P<scene>(?P<sensor>S\d))_")
    assert row["sensor"] == "S2"
    assert row["scene_text"] is None
    assert described("a.tif", "")["reason"] is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(?P<band>B\d)", "called scene"),
        (r"(?P<sensor>a)(b)", r"write \(\?:…\)"),
        (r"(?=a)", "RE2"),
    ],
)
def test_impossible_patterns(pattern, expected):
    with pytest.raises(UserError, match=expected):
        described("a", pattern)


@settings(deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)))
def test_times_are_read_as_written(time):
    time = time.replace(microsecond=0, tzinfo=UTC)
    written = [f"{time:%Y%m%dT%H%M%S}", f"{time:%Y-%m-%d %H:%M:%S}", f"{time:%Y%m%d%H%M%S}"]
    assert read_times(pa.array(written)).to_pylist() == [time] * 3
    assert read_times(pa.array([f"{time:%Y%m%d}"]))[0].as_py().date() == time.date()


def test_what_is_no_time_is_none():
    assert (
        read_times(
            pa.array(["20180230", "20181301", "2018", "", None, "20180101T250000", "20180101T101060"])
        ).null_count
        == 7
    )


def test_labels_from_folders():
    paths = ["forest/a.tif", "x/sea/b.tif", "top.tif", "city.zip/c.tif", "city.zip/park/d.tif"]
    table = folder_labels(found(path=paths))
    assert table["label"].to_pylist() == ["forest", "sea", None, "city", "park"]
    assert folder_labels(found(path=["a/b"], label=["mine"]))["label"].to_pylist() == ["mine"]


def test_offsets_are_for_scenes_alone_whose_path_matches():
    files = [None, None, [{"path": "x_N0400_/b.jp2"}], [{"path": "x_N0301_/b.jp2"}], None]
    table = found(
        path=["x_N0400_", "x_N0301_", "s", "s", "x_N0301_"],
        files=pa.array(files, FOUND.field("files").type),
        offset=[None, None, None, None, -5.0],
    )
    assert offsets(table, Recipe())["offset"].to_pylist() == [None, None, None, None, -5.0]
    shifted = offsets(table, Recipe(offset=-1000, offset_pattern="_N0[4-9]"))
    assert shifted["offset"].to_pylist() == [None, 0.0, None, 0.0, -5.0]
