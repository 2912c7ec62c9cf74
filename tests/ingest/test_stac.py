"""STAC documents of all kinds give the same scenes; what they link to is read only where that is allowed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.config import Recipe
from ingest.places import places_of
from ingest.sources import FOUND
from ingest.stac import is_geoparquet, read_geoparquet, read_stac
from shards import storage
from shards.errors import UserError

RGB = Recipe(source_bands=("red", "green", "blue"))


def item(name, href="./{}.tif", **changes):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": None,
        "properties": {"datetime": "2022-08-04T10:16:28Z", "platform": "p", "grid:code": "MGRS-32TQM"},
        "links": [],
        "assets": {
            band: {"href": href.format(band), "raster:bands": [{"scale": 0.0001, "offset": -0.1}]} for band in RGB.bands
        },
        **changes,
    }


def collection(*items, **changes):
    return {"type": "FeatureCollection", "features": list(items), **changes}


def catalogue(*links, **changes):
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "cat",
        "description": "d",
        "links": [{"rel": rel, "href": href} for rel, href in links],
        **changes,
    }


def write(folder, documents):
    for name, content in documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def read(url, recipe=RGB, allow=(), source=read_stac):
    tables = list(source(str(url), places_of(str(url), allow), recipe))
    assert all(table.schema == FOUND for table in tables)
    return pa.concat_tables(tables).to_pylist() if tables else []


def test_an_item_collection_and_a_single_item(tmp_path):
    write(tmp_path, {"all.json": collection(item("a"), item("b"), item("a"), 3), "one.json": item("a")})
    rows = read(tmp_path / "all.json")
    assert [(row["path"], row["row"], row["reason"]) for row in rows[:3]] == [
        ("c/a", 1, None),
        ("c/b", 2, None),
        ("c/a", 3, None),
    ]
    assert rows[3]["reason"] == "corrupt"
    assert rows[0]["files"][0] == {"path": "blue.tif", "size": None, "etag": None, "band": "blue"}
    assert rows[0]["offset"] == -1000.0
    (single,) = read(tmp_path / "one.json")
    assert single == rows[0]


def test_a_static_catalogue_is_walked(tmp_path):
    documents = {
        "catalog.json": catalogue(("root", "./catalog.json"), ("child", "./x/catalog.json"), ("item", "top.json")),
        "x/catalog.json": catalogue(
            ("parent", "../catalog.json"), ("child", "../catalog.json"), ("item", "./items/a.json"), ("item", "b.json")
        ),
        "x/items/a.json": item("a", "../../images/{}.tif"),
        "x/b.json": item("b"),
        "top.json": item("top"),
    }
    write(tmp_path, documents)
    rows = read(tmp_path / "catalog.json")
    assert [row["path"] for row in rows] == ["c/top", "c/a", "c/b"]
    assert rows[1]["files"][0]["path"] == "images/blue.tif"
    assert rows[2]["files"][0]["path"] == "x/blue.tif"


@pytest.mark.parametrize(
    "links", [[{"rel": "item", "title": "no href"}], ["x"], [{"rel": "child", "href": 5}], {"rel": "item"}]
)
def test_a_catalogue_with_broken_links_costs_no_other(tmp_path, links):
    good = catalogue(("child", "broken.json"), ("child", "page.json"), ("item", "a.json"))
    pages = {"broken.json": catalogue(links=links), "page.json": collection(item("b"), links=links)}
    write(tmp_path, {"catalog.json": good, "a.json": item("a"), **pages})
    rows = read(tmp_path / "catalog.json")
    assert [(row["path"], row["reason"]) for row in rows if not row["reason"]] == [("c/a", None)]
    assert [row["reason"] for row in rows if row["reason"]] == ["corrupt", "corrupt"]
    with pytest.raises(UserError, match=r"broken\.json is no STAC document: no STAC: "):
        read(tmp_path / "broken.json")


def test_links_that_lead_nowhere_or_outside_are_rows(tmp_path):
    links = [("item", "none.json"), ("item", "../secret.json"), ("item", "bad.json"), ("item", "http://127.0.0.1/x")]
    write(tmp_path / "in", {"c.json": catalogue(*links, ("child", "file:///etc/passwd")), "bad.json": '{"a": 1'})
    write(tmp_path, {"secret.json": item("secret")})
    rows = read(tmp_path / "in/c.json")
    assert [row["reason"] for row in rows] == ["missing", "not_allowed", "corrupt", "not_allowed", "not_allowed"]
    assert rows[1]["path"] == "../secret.json"
    assert rows[0]["detail"].startswith("linked by ")


def test_what_a_store_refuses_is_no_row(tmp_path, monkeypatch):
    def refuse(url):
        raise PermissionError("ExpiredToken")

    write(tmp_path, {"c.json": catalogue(("item", "a.json"), ("item", "s3://archive/b.json"))})
    assert [row["reason"] for row in read(tmp_path / "c.json")] == ["missing", "not_allowed"]
    open_bytes = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: open_bytes(url) if url.endswith("c.json") else refuse(url))
    assert read(tmp_path / "c.json")[0]["reason"] == "unreadable"
    with pytest.raises(PermissionError, match=r"s3://archive/b.json: ExpiredToken: check credentials and clock"):
        read(tmp_path / "c.json", allow=("s3://archive",))


def test_an_old_version_is_brought_up_to_date(tmp_path):
    old = item("a", stac_version="0.8.1", stac_extensions=["eo"])
    old["properties"] = {"datetime": "2018-01-01T00:00:00Z", "eo:platform": "p", "eo:bands": [{"common_name": "red"}]}
    old["assets"] = {"B4": {"href": "x.tif", "eo:bands": [0], "roles": ["data"]}}
    parent = catalogue(("item", "old.json"), stac_version="0.8.1")
    del parent["type"]
    write(tmp_path, {"old.json": old, "cat.json": parent})
    for name in ("old.json", "cat.json"):
        (row,) = read(tmp_path / name, Recipe(bands=("red",)))
        assert row["path"] == "c/a"
        assert row["files"][0]["path"] == "x.tif"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("no json", "is no STAC document"),
        ("[]", "is no STAC document"),
        ('{"type": "Topology"}', "is no STAC document"),
        ("{" * 100_000, "is no STAC document"),
        ('{"type": "FeatureCollection"}', "is no STAC document"),
        (collection(item("a"), links=[{"rel": "next", "href": "https://host/2"}]), "one page of several"),
    ],
)
def test_what_is_no_stac(tmp_path, content, expected):
    write(tmp_path, {"x.json": content})
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none.json")


def test_geoparquet_gives_what_json_gives(tmp_path):
    items = [item("a"), item("b", "s3://archive/{}.tif")]
    items[1]["assets"]["extra"] = {"href": "y.tif", "roles": ["metadata"]}
    write(tmp_path, {"all.json": collection(*items)})
    rows = [
        {name: value for name, value in one.items() if name not in ("properties", "links", "geometry")}
        | one["properties"]
        for one in items
    ]
    assert is_geoparquet(rows[0])
    assert not is_geoparquet(["id", "path"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    texts = [{**row, "assets": json.dumps(row["assets"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "texts.parquet")
    expected = read(tmp_path / "all.json", allow=("s3://archive",))
    assert [row["reason"] for row in expected] == [None, None]
    assert read(tmp_path / "all.parquet", allow=("s3://archive",), source=read_geoparquet) == expected
    assert read(tmp_path / "texts.parquet", allow=("s3://archive",), source=read_geoparquet) == expected


def test_a_row_of_geoparquet_that_is_no_item_is_a_row(tmp_path):
    table = pa.table({"id": ["a", "b"], "assets": ["{", json.dumps(item("b")["assets"])], "collection": ["c", "c"]})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = read(tmp_path / "x.parquet", source=read_geoparquet)
    assert [row["reason"] for row in rows] == ["corrupt", None]


def test_times_of_geoparquet_are_times(tmp_path):
    table = pa.table(
        {
            "id": ["a"],
            "assets": [{"red": {"href": "x"}}],
            "datetime": pa.array([1659608188000000], pa.timestamp("us", "UTC")),
            "platform": ["p"],
            "grid:code": ["MGRS-32TQM"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet", Recipe(bands=("red",)), source=read_geoparquet)
    assert found["acquisition"] == "p 32TQM 20220804T101628"
    assert found["path"] == "a"


def test_a_catalogue_in_a_bucket(object_store):
    root = storage.join(object_store, "stac")
    for name, content in {"c.json": catalogue(("item", "i/a.json")), "i/a.json": item("a")}.items():
        storage.write_bytes(storage.join(root, name), json.dumps(content).encode())
    (row,) = read(storage.join(root, "c.json"))
    assert row["files"][0]["path"] == "i/blue.tif"
