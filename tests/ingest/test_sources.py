"""What `scenes` may name, and where its paths lie."""

import errno

import pytest

from ingest.reasons import SceneRejectedError
from ingest.sources import FOUND, batched, found, kind_of, rejecting, scenes_root, text
from shards.errors import UserError


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


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        ("/x.zip", ValueError("no zip file"), "bad_archive"),
        ("s3://b/x.zip", ValueError("no zip file"), "bad_archive"),
        ("/x", FileNotFoundError("x"), "missing"),
        ("s3://b/x", FileNotFoundError("x"), "missing"),
        ("/x", OSError(errno.ELOOP, "loop"), "missing"),
        ("/x", OSError(errno.ENAMETOOLONG, "long"), "missing"),
        ("/x", PermissionError("no"), "unreadable"),
    ],
)
def test_what_rules_a_file_out(url, error, code):
    with pytest.raises(SceneRejectedError) as caught, rejecting(url):
        raise error
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://b/x", PermissionError("ExpiredToken")),
        ("/x", OSError(errno.EIO, "Input/output error")),
        ("x://b/x", UserError("an unknown scheme")),
    ],
)
def test_what_is_not_the_files_fault_passes(url, error):
    with pytest.raises(type(error), match=str(error).rpartition("] ")[2]), rejecting(url):
        raise error
