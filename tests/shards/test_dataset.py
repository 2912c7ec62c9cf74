"""Datasets open, read back, and are readable by everybody else's tools."""

import errno
import json
import os
import pickle
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import storage
from shards.commit import encode_table
from shards.dataset import CorruptSampleError, open_dataset, parse_sample
from shards.errors import UserError
from shards.images import decode_image
from shards.schema import SAMPLES, TableFile, Version, sha256_hex
from shards.tables import iter_table, read_table, read_version
from shards.tar import header


@pytest.fixture
def dataset_url(tmp_path, write_dataset):
    return write_dataset(str(tmp_path / "data"))


def test_reads_every_sample_by_index(dataset_url):
    dataset = open_dataset(dataset_url)
    keys = read_table(dataset_url, dataset.version, "samples", ["key"])["key"].to_pylist()
    assert dataset.num_samples == 24
    for index, key in enumerate(keys):
        sample = dataset.read(index)
        assert sample.key == key
        assert json.loads(sample.metadata)["key"] == key
        assert decode_image(sample.ext, sample.image).shape == (32, 32, 3)


def test_a_file_stays_open_while_it_is_read(dataset_url, monkeypatch):
    dataset, pread = open_dataset(dataset_url), os.pread
    before = dataset.read(3)

    def slow(descriptor, size, offset):
        dataset._files.opened.cache_clear()  # as another thread's reads of other shards would have it
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    assert dataset.read(3) == before


def test_survives_pickling_with_open_files(dataset_url):
    dataset = open_dataset(dataset_url)
    before = dataset.read(3)
    assert pickle.loads(pickle.dumps(dataset)).read(3) == before


def test_a_flipped_byte_is_noticed_and_named(dataset_url):
    dataset = open_dataset(dataset_url)
    row = read_table(dataset_url, dataset.version, "samples").slice(5, 1).to_pylist()[0]
    path = Path(dataset_url, "shards", f"{row['shard']}.tar")
    data = bytearray(path.read_bytes())
    data[row["member_offset"] + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptSampleError, match=f"sample 5 .*{row['shard']}"):
        dataset.read(5)
    dataset.read(4)


def tar_bytes(*names):
    return b"".join(header(name, len(name)) + name.encode().ljust(512, b"\0") for name in names)


def test_a_sample_has_the_members_of_all_its_series():
    pieces = [tar_bytes("a/b.json", "a/b.jpg", "a/b.cls"), tar_bytes("a/b.npy")]
    sample = parse_sample(pieces, ("rgb", "nir"), {"rgb.jpg"})
    assert (sample.key, sample.ext, sample.image, sample.metadata) == ("a/b", "jpg", b"a/b.jpg", b"a/b.json")
    assert list(sample.members) == ["rgb.json", "rgb.jpg", "rgb.cls", "nir.npy"]
    assert sample.members["nir.npy"] == b"a/b.npy"
    assert parse_sample([tar_bytes("c.jpg")], ("",), {"jpg"}).metadata == b""


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"no member is an image \(jpg, png\)"):
        parse_sample([tar_bytes("a.json", "a.webp")], ("",), {"png", "jpg"})
    broken = parse_sample([tar_bytes("a.jpg") + b"x" * 512], ("",), {"jpg"})
    with pytest.raises(ValueError, match="no tar header at byte 1024"):
        _ = broken.members


def test_index_outside_is_refused(dataset_url):
    with pytest.raises(IndexError, match=r"sample 24 outside \[0, 24\)"):
        open_dataset(dataset_url).read(24)


def test_moving_a_dataset_changes_nothing(dataset_url, tmp_path):
    before = open_dataset(dataset_url)
    Path(dataset_url).rename(tmp_path / "elsewhere")
    after = open_dataset(str(tmp_path / "elsewhere"))
    assert after.digest == before.digest
    assert after.read(0) is not None


def test_no_dataset_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no dataset .*python -m ingest"):
        open_dataset(str(tmp_path))
    with pytest.raises(UserError, match="holds no dataset"):
        open_dataset(str(tmp_path / "missing"))


def test_a_damaged_table_is_a_clear_error(dataset_url):
    version = read_version(dataset_url)
    path = Path(dataset_url, version.tables["samples"][0].url)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        open_dataset(dataset_url)


def test_a_table_comes_file_by_file(dataset_url):
    version = read_version(dataset_url)
    whole = read_table(dataset_url, version, "samples").to_pylist()
    twice = replace(version, tables={"samples": version.tables["samples"] * 2})
    parts = list(iter_table(dataset_url, twice, "samples"))
    assert [part.to_pylist() for part in parts] == [whole, whole]
    assert parts[0].schema.equals(SAMPLES)
    assert next(iter_table(dataset_url, version, "samples", ["size", "key"])).column_names == ["size", "key"]


def test_columns_of_an_older_dataset_are_null(dataset_url):
    version = read_version(dataset_url)
    old = read_table(dataset_url, version, "samples").drop_columns(["entropy", "band_sums"])
    data = encode_table(old)
    Path(dataset_url, "tables/old.parquet").write_bytes(data)
    file = TableFile(url="tables/old.parquet", sha256=sha256_hex(data), num_rows=old.num_rows)
    older = replace(version, tables={"samples": (file,)})
    table = next(iter_table(dataset_url, older, "samples", ["entropy", "key", "band_sums"]))
    assert table.column_names == ["entropy", "key", "band_sums"]
    assert table["entropy"].null_count == table["band_sums"].null_count == table.num_rows == 24
    assert table["band_sums"].type == SAMPLES.field("band_sums").type


def test_an_unknown_version_or_format_is_a_clear_error(dataset_url):
    with pytest.raises(UserError, match=r"has no version 7, only \[1\]"):
        read_version(dataset_url, 7)
    path = Path(dataset_url, "versions/00000001.json")
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":99'))
    with pytest.raises(UserError, match="update this package"):
        read_version(dataset_url)


@pytest.mark.parametrize("change", [lambda v: v.pop("bands"), lambda v: v.update(extra=1), lambda v: v.update(bands=3)])
def test_a_damaged_version_file_is_a_clear_error(dataset_url, change):
    path = Path(dataset_url, "versions/00000001.json")
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="damaged version file"):
        read_version(dataset_url)


def test_strange_files_among_versions_do_not_count(dataset_url):
    Path(dataset_url, "versions/2.json").write_text("{}")
    Path(dataset_url, "versions/notes.txt").write_text("x")
    assert read_version(dataset_url).version == 1


def test_version_file_round_trip(dataset_url):
    version = read_version(dataset_url)
    assert Version.from_json(version.to_json()) == version


def test_webdataset_reads_our_shards(dataset_url):
    wds = pytest.importorskip("webdataset")
    dataset = open_dataset(dataset_url)
    shards = sorted(str(path) for path in Path(dataset_url, "shards").iterdir())
    found = {item["__key__"]: item for item in wds.WebDataset(shards, shardshuffle=False).decode("rgb8")}
    assert len(found) == dataset.num_samples
    for index in range(dataset.num_samples):
        sample = dataset.read(index)
        assert np.array_equal(found[sample.key]["png"], decode_image(sample.ext, sample.image))
        assert found[sample.key]["json"]["key"] == sample.key


def test_webdataset_reads_multi_band_shards(tmp_path, write_dataset):
    wds = pytest.importorskip("webdataset")
    url = write_dataset(str(tmp_path / "ms"), bands=("a", "b", "c", "d"), dtype="uint16", encoding="npy", num_shards=1)
    (shard,) = Path(url, "shards").iterdir()
    item = next(iter(wds.WebDataset(str(shard), shardshuffle=False).decode()))
    assert item["npy"].shape == (32, 32, 4)
    assert item["npy"].dtype == np.uint16


def test_hugging_face_datasets_reads_our_shards(dataset_url, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = sorted(str(path) for path in Path(dataset_url, "shards").iterdir())
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 24
    assert {row["__key__"] for row in loaded} == {open_dataset(dataset_url).read(i).key for i in range(24)}
    assert loaded[0]["png"].size == (32, 32)


def test_gnu_tar_and_tarfile_list_our_shards(dataset_url):
    for shard in Path(dataset_url, "shards").iterdir():
        listed = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        with tarfile.open(shard) as archive:
            assert listed.stdout.split() == archive.getnames()


def test_threads_together_look_once_at_a_shard(dataset_url, monkeypatch):
    dataset, looks = open_dataset(dataset_url), []
    dataset.shards = [replace(shard, local=False) for shard in dataset.shards]
    stat = storage.stat

    def slow(url):
        looks.append(url)
        time.sleep(0.05)
        return stat(url)

    monkeypatch.setattr(storage, "stat", slow)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(dataset.require_unchanged, [0, 1] * 3))
    assert sorted(looks) == sorted(shard.url for shard in dataset.shards[:2])


def test_reads_from_a_bucket(dataset_url, object_store):
    url = storage.join(object_store, "copied")
    for info in storage.list_files(dataset_url):
        storage.put_file(Path(dataset_url, info.path), storage.join(url, info.path))
    dataset = open_dataset(url)
    assert {dataset.read(index).key for index in range(24)} == {f"sample-{number:06d}" for number in range(24)}


def test_a_shard_that_may_not_be_read_is_the_users_to_mend(dataset_url, monkeypatch):
    def refuse(url):
        raise PermissionError(errno.EACCES, "Permission denied", url)

    monkeypatch.setattr("shards.dataset._open", refuse)
    with pytest.raises(UserError, match=r"no permission for .*\.tar: check its mode"):
        open_dataset(dataset_url).read(0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_named(dataset_url, monkeypatch, number):
    dataset = open_dataset(dataset_url)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pread", fail)
    told = rf"sample 3 cannot be read from .*\.tar: {os.strerror(number)}; check the disk or its mount"
    with pytest.raises(storage.StorageError, match=told) as caught:
        dataset.read(3)
    assert caught.value.kind == "disk"
