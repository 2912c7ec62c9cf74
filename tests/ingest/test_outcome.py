"""What an ingest says of itself: counts, names and the line of what may pass."""

from collections import Counter

import pyarrow as pa

from ingest.outcome import LeftOut, PackedSoFar, count_left_out, named
from shards.commit import write_table
from shards.schema import REJECTS
from shards.tables import read_version


def left_out(scenes=(), tiles=()):
    return LeftOut(
        scenes=Counter(), tiles=Counter(), passing_scenes=Counter(scenes), passing_tiles=Counter(tiles)
    )  # fmt: skip


def test_what_may_pass_is_one_line():
    assert left_out().passing_line == ""
    told = left_out(["missing", "missing", "unreadable"], ["decoder_crashed"]).passing_line
    assert told == (
        "3 scenes (2 missing, 1 unreadable) and 1 tiles (1 decoder_crashed) were left out for what may pass: "
        "run the same command again"
    )
    assert left_out(tiles=["decoder_slow"]).passing_line.startswith("1 tiles (1 decoder_slow) were left out")


def test_scenes_that_are_gone_are_not_looked_at_again(tmp_path, write_dataset):
    url = write_dataset(str(tmp_path / "data"))
    rows = [
        {"scene": "a", "reason": "missing"},
        {"scene": "gone", "reason": "missing"},
        {"scene": "b", "reason": "corrupt"},
        {"scene": "c", "x": 0, "y": 0, "reason": "decoder_memory"},
        {"scene": "c", "x": 8, "y": 0, "reason": "black"},
        {"scene": "gone", "x": 8, "y": 0, "reason": "decoder_memory"},
    ]
    version = read_version(url)
    version.tables["rejects"] = write_table(url, "rejects", [pa.Table.from_pylist(rows, REJECTS)])
    found = count_left_out(url, version, pa.chunked_array([["a", "b"], ["c"]]))
    assert found == LeftOut(
        scenes=Counter(missing=2, corrupt=1),
        tiles=Counter(decoder_memory=2, black=1),
        passing_scenes=Counter(missing=1),
        passing_tiles=Counter(decoder_memory=1),
    )


def test_some_scenes_are_named():
    assert named(["a"]) == "a"
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(list("abcde")) == "a, b, c and 2 more"


def test_groups_of_an_earlier_run_are_counted_but_not_read():
    marker = {
        "samples": {"num_rows": 7},
        "left_out": {"black": 2},
        "shards": [{"size": 500_000}],
        "source_bytes": 10**6,
    }
    packed = PackedSoFar()
    packed.add(marker, 2, resumed=True)
    assert packed.line(2.0) == "2 scenes, 7 tiles, 2 left out (2 black) · 0.5 MB in shards · read 0.0 MB/s"
    packed.add(marker, 1, resumed=False)
    assert packed.line(2.0) == "3 scenes, 14 tiles, 4 left out (4 black) · 1.0 MB in shards · read 0.5 MB/s"
