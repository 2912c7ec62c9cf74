"""CSV and Parquet lists: what they may say, and how a wrong row is named."""

import math
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.lists import parse_time, read_list
from ingest.places import places_of
from ingest.sources import FOUND
from shards import storage
from shards.errors import UserError


def read(path, allow=()):
    rows = list(read_list(str(path), places_of(str(path), allow)))
    assert all(table.schema == FOUND for table in rows)
    return pa.concat_tables(rows).to_pylist() if rows else []


def read_csv(tmp_path, text, allow=()):
    (tmp_path / "list.csv").write_text(text)
    return read(tmp_path / "list.csv", allow)


def test_a_csv_with_all_columns(tmp_path):
    first, second = read_csv(
        tmp_path,
        "id,path,label,time,sensor,acquisition,version,offset,what\n"
        'A,sub/a.tif,"city, dense",2018-01-31T12:00:00+02:00,S2A,acq,001,-1000,x\n'
        "B,b.tif,,2018-01-31,,,,,y\n",
    )
    assert (first["id"], first["path"], first["label"]) == ("A", "sub/a.tif", "city, dense")
    assert first["time"] == datetime(2018, 1, 31, 10, tzinfo=UTC)
    assert (first["sensor"], first["acquisition"], first["version"], first["offset"]) == ("S2A", "acq", "001", -1000.0)
    assert (second["time"], second["label"], second["offset"]) == (datetime(2018, 1, 31, tzinfo=UTC), None, None)
    assert (first["row"], second["row"]) == (1, 2)
    assert first["files"] is None


def test_url_wins_over_path_and_numbers_stay_texts(tmp_path):
    (row,) = read_csv(tmp_path, "url,path,label\nx.tif,y.tif,007\n")
    assert (row["path"], row["label"]) == ("x.tif", "007")


def test_places_outside_are_kept_with_a_reason(tmp_path):
    text = f"url\n{tmp_path}/a.tif\n/etc/passwd\n../x.tif\ns3://archive/x.tif\n"
    rows = read_csv(tmp_path, text, ("s3://archive/",))
    assert [row["path"] for row in rows] == ["a.tif", "/etc/passwd", "../x.tif", "s3://archive/x.tif"]
    assert [row["reason"] for row in rows] == [None, "not_allowed", "not_allowed", None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\nx,y\n", "no column url or path: its columns are file, label"),
        ("path,time\na,2018-01-31\nb,yesterday\n", r"row 2: time 'yesterday' is no ISO date"),
        ("path,offset\na,1\nb,\nc,high\n", r"row 3: offset 'high' is no number"),
        ("path,offset\na,nan\n", r"row 1: offset nan is no finite number"),
        ("path,label\na,b\n,c\n", r"row 2: neither url nor path"),
        ("path,label\na,b,c\n", r"list.csv cannot be read from row 1"),
        ("path,path\na,b\n", "column path twice"),
        ("", "cannot be read"),
    ],
)
def test_wrong_lists(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected):
        read_csv(tmp_path, text)


def test_row_numbers_go_on_over_batches(tmp_path):
    lines = ["path,time", *(f"{'x' * 80}{number}.tif,2018-01-31" for number in range(30_000)), "y.tif,never"]
    with pytest.raises(UserError, match="row 30001: time 'never'"):
        read_csv(tmp_path, "\n".join(lines))


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none.csv")
    (tmp_path / "no.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"no\.parquet cannot be read"):
        read(tmp_path / "no.parquet")


def test_parquet_types_are_converted(tmp_path):
    moment = datetime(2018, 1, 31, 10, tzinfo=UTC)
    table = pa.table(
        {
            "path": pa.array(["a.tif", "b.tif"]).dictionary_encode(),
            "label": [3, None],
            "time": pa.array([moment, None], pa.timestamp("ns", "Europe/Berlin")),
            "offset": pa.array([-1000, None], pa.int32()),
            "nested": [[1], [2]],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    first, second = read(tmp_path / "list.parquet")
    assert (first["path"], first["label"], first["time"], first["offset"]) == ("a.tif", "3", moment, -1000.0)
    assert (second["label"], second["time"], second["offset"]) == (None, None, None)
    pq.write_table(pa.table({"path": ["a"], "time": [date(2018, 1, 31)]}), tmp_path / "days.parquet")
    assert read(tmp_path / "days.parquet")[0]["time"] == datetime(2018, 1, 31, tzinfo=UTC)


def test_what_is_not_a_number_is_no_label(tmp_path):
    """So whole numbers are written that have gaps: as floats with NaN."""
    columns = {"path": ["a.tif", "b.tif", "c.tif"], "label": pa.array([3.0, math.nan, None])}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert [row["label"] for row in read(tmp_path / "list.parquet")] == ["3", None, None]


def test_a_column_of_another_kind_is_named(tmp_path):
    pq.write_table(pa.table({"path": [["a"]]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=r"row 1: path \['a'\] is no text"):
        read(tmp_path / "list.parquet")


def test_a_list_in_a_bucket(object_store):
    url = storage.join(object_store, "lists/a.csv")
    storage.write_bytes(url, f"url\nx.tif\n{object_store}/lists/y.tif\n/etc/passwd\n{object_store}/z.tif\n".encode())
    rows = read(url)
    assert [row["path"] for row in rows] == ["x.tif", "y.tif", "/etc/passwd", f"{object_store}/z.tif"]
    assert [row["reason"] for row in rows] == [None, None, "not_allowed", "not_allowed"]


def test_parse_time():
    assert parse_time("2018-01-31T10:00:00.5Z") == datetime(2018, 1, 31, 10, 0, 0, 500000, tzinfo=UTC)
    assert parse_time(date(2018, 1, 31)) == datetime(2018, 1, 31, tzinfo=UTC)
    with pytest.raises(ValueError, match="out of range"):
        parse_time("0001-01-01T00:00:00+10:00")
