"""Folders, buckets and zip files become rows; what cannot be listed becomes one with a reason."""

import os
import zipfile

import pyarrow as pa
import pytest

from ingest.listing import _read_archive, read_folder
from shards import storage
from shards.errors import UserError


def listed(scenes):
    tables = list(read_folder(str(scenes)))
    return {row["path"]: row for row in pa.concat_tables(tables).to_pylist()} if tables else {}


def write_zip(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())


def test_zips_are_folders(tmp_path):
    write_zip(tmp_path / "a/B.ZIP", ["in/x.tif", "y.tif", ".hidden/z.tif"])
    (tmp_path / "top.tif").write_bytes(b"12")
    (tmp_path / ".hidden").write_bytes(b"")
    rows = listed(tmp_path)
    assert set(rows) == {"a/B.ZIP/in/x.tif", "a/B.ZIP/y.tif", "top.tif"}
    assert rows["top.tif"]["archive"] is None
    assert rows["top.tif"]["size"] == 2
    member = rows["a/B.ZIP/in/x.tif"]
    assert (member["archive"], member["size"]) == ("a/B.ZIP", 8)
    assert member["etag"] != rows["a/B.ZIP/y.tif"]["etag"]


def test_one_zip_is_a_folder_too(tmp_path):
    write_zip(tmp_path / "b.zip", ["x.tif"])
    (tmp_path / "other.tif").write_bytes(b"")
    assert set(listed(tmp_path / "b.zip")) == {"b.zip/x.tif"}
    with pytest.raises(UserError, match="does not exist"):
        listed(tmp_path / "c.zip")


def test_what_is_no_zip_is_one_row(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 but no more")
    write_zip(tmp_path / "empty.zip", [])
    (tmp_path / "gone.zip").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.zip").symlink_to(tmp_path / "loop.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    rows = listed(tmp_path)
    assert {path: row["reason"] for path, row in rows.items()} == {
        "bad.zip": "bad_archive",
        "empty.zip": "bad_archive",
        "gone.zip": "missing",
        "loop.zip": "missing",
        "pipe.zip": None,  # the probe says what it is; opening it would wait for ever
    }
    assert "\n" not in rows["bad.zip"]["detail"]
    assert str(tmp_path) not in rows["bad.zip"]["detail"]  # a dataset says the same wherever its scenes lie
    assert rows["empty.zip"]["detail"] == "holds no files"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_zip_without_permission(tmp_path):
    write_zip(tmp_path / "a.zip", ["x"])
    (tmp_path / "a.zip").chmod(0)
    assert listed(tmp_path)["a.zip"]["reason"] == "unreadable"


@pytest.mark.parametrize(("root", "is_local"), [("s3://bucket/x", False), ("/data", True)])
def test_only_a_local_refusal_is_an_archives_own(root, is_local, monkeypatch):
    def refuse(url):
        raise PermissionError("ExpiredToken")

    monkeypatch.setattr("shards.storage.list_zip", refuse)
    archive = storage.FileInfo(path="a.zip", size=9, etag="e")
    if is_local:
        assert _read_archive(root, archive)["reason"].to_pylist() == ["unreadable"]
        return
    with pytest.raises(PermissionError, match=r"s3://bucket/x/a.zip: ExpiredToken: check credentials and clock"):
        _read_archive(root, archive)


def test_a_name_that_is_not_unicode_is_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.tif"
    with open(path, "wb"):
        pass
    assert set(listed(tmp_path)) == {"\\udcff.tif"}


def test_a_bucket(object_store, tmp_path):
    root = storage.join(object_store, "listing")
    write_zip(tmp_path / "b.zip", ["in/x.tif"])
    storage.write_bytes(storage.join(root, "b.zip"), (tmp_path / "b.zip").read_bytes())
    storage.write_bytes(storage.join(root, "a/y.tif"), b"123")
    rows = listed(root)
    assert set(rows) == {"b.zip/in/x.tif", "a/y.tif"}
    assert rows["a/y.tif"]["size"] == 3
    assert all(row["etag"] for row in rows.values())
