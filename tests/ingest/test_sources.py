"""What `scenes` may name, and where its paths lie."""

import pytest

from ingest.sources import FOUND, batched, found, kind_of, scenes_root, text


@pytest.mark.parametrize(
    ("scenes", "kind", "root"),
    [
        ("s3://bucket/a", "folder", "s3://bucket/a"),
        ("s3://bucket/a/list.CSV", "csv", "s3://bucket/a"),
        ("https://host/catalog.json", "stac", "https://host"),
        ("items.geoparquet", "parquet", "."),
        ("/items.parquet", "parquet", "/"),
        ("a/b.zip", "zip", "a"),
    ],
)
def test_kind_and_root(scenes, kind, root):
    assert kind_of(scenes) == kind
    assert scenes_root(scenes) == root


def test_a_folder_is_a_folder_whatever_its_name(tmp_path):
    (tmp_path / "x.csv").mkdir()
    assert kind_of(str(tmp_path / "x.csv")) == "folder"


def test_found_fills_what_is_missing():
    table = found(path=["a", "b"], size=[1, None])
    assert table.schema == FOUND
    assert table["etag"].null_count == 2


def test_batched_and_text():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert text("a\udcff") == "a\\udcff"
