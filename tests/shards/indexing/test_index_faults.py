"""What cannot become a dataset is refused by name; what was killed, damaged or changed meanwhile is made good."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shards import storage
from shards.curation.gc import find_orphans, remove_orphans
from shards.errors import UserError
from shards.indexing import scan_store
from shards.indexing.index import index
from shards.indexing.scan_store import ScanStore
from shards.indexing.sources import read_sources
from shards.tables import list_versions
from shards.verify import verify
from tests.conftest import REPOSITORY
from tests.shards.foreign_tars import files_of, image, npy, sample, tar_bytes, write_series, write_tar
from tests.shards.indexed import check_dataset, rows_of

REFUSED = [
    (
        {"a": {"txt": b"1"}},
        {},
        "1 of 1 samples have no image; say which by --image EXT (such as 'a' with the members t",
    ),
    ({"a": {"jpg": image(0), "png": image(1)}}, {}, "1 of 1 samples have several images; say which by --image EXT"),
    (
        {"a": {"jpg": image(0)}, "b": {"npy": npy(np.zeros((2, 2, 3), np.uint8))}},
        {},
        "images are of several kinds (1 j",
    ),
    ({"a": {"jpg": b"no image"}}, {}, "image 'jpg' of sample 'a': cannot decode .jpg image"),
    ({"a": {"npy": b"no array"}}, {}, "image 'npy' of sample 'a': "),
    ({"a": {"npy": npy(np.zeros((3, 8, 8), np.uint8))}}, {}, "(3, 8, 8) looks like [bands, height, width]"),
    ({"a": {"npy": npy(np.zeros((2, 3, 8, 8), np.uint8))}}, {}, "shape (2, 3, 8, 8) is not [height, width, bands]"),
    ({"a": {"npy": npy(np.zeros((8, 8, 3), np.float64))}}, {}, "type float64 is none of uint8, uint16, int16, float32"),
    ({"a": {"npy": npy(np.full((8, 8), np.nan, np.float32))}}, {}, "no pixel has finite values in all bands"),
    (
        {"a": {"png": image(0)}, "b": {"png": image(1, channels=1)}},
        {},
        "images differ in type or number of bands: uint8 with 3 (such as 'a'), uint8 with 1 (such as 'b')",
    ),
    ({"a": {"png": image(0)}}, {"bands": ["x"]}, "--bands names 1 bands (x): the images have 3"),
    (
        {"a": {"png": image(0), "cls": b"\xff"}},
        {},
        "1 members cls are no label, such as that of 'a': it is not",
    ),
    ({"a": {"png": image(0)}}, {"label": "txt"}, "1 of 1 samples have no label txt, such as 'a'"),
    ({"a": {"png": image(0)}}, {"image": "jpg"}, "1 of 1 samples have no image"),
    ({"a": {"png": image(0)}}, {"num_workers": 0}, "--workers is 0: give 1 or more"),
]


@pytest.mark.parametrize(("samples", "options", "expected"), REFUSED, ids=[text[:40] for _, _, text in REFUSED])
def test_refusals(tmp_path, out, samples, options, expected):
    path = write_tar(tmp_path / "x.tar", samples)
    with pytest.raises(UserError) as error:
        index([path], out, **options)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert list_versions(out) == []
    assert not Path(out, "tables").exists()


def test_keys_that_come_again_in_another_tar(tmp_path, out):
    first = write_tar(tmp_path / "a.tar", {key: {"png": image(0)} for key in "abc"})
    second = write_tar(tmp_path / "b.tar", {key: {"png": image(0)} for key in "cda"})
    with pytest.raises(UserError, match="2 faults") as error:
        index([first, second], out)
    assert sorted(error.value.faults) == [f"key {key!r} is in {first} and again in {second}" for key in "ac"]
    copy = tmp_path / "c.tar"
    copy.write_bytes(Path(first).read_bytes())
    with pytest.raises(UserError, match="3 faults"):
        index([first, str(copy)], out)


def test_keys_that_a_series_lacks(tmp_path, out):
    rgb = write_tar(tmp_path / "a.tar", {key: {"png": image(0)} for key in "abcdefg"})
    nir = write_tar(tmp_path / "b.tar", {key: {"npy": b""} for key in "abcx"})
    with pytest.raises(UserError, match="2 faults") as error:
        index([f"rgb={rgb}", f"nir={nir}"], out)
    lacks, has = error.value.faults
    assert "series 'nir' lacks 4 keys that 'rgb' has: " in lacks
    assert lacks.count("'") == 4 + 2 * 3
    assert "series 'rgb' lacks 1 keys that 'nir' has: 'x'; give tars with equal keys" in has


def test_faults_of_many_tars_are_told_together(tars, tmp_path, out):
    tars[0].write_bytes(tars[0].read_bytes()[:3000])
    tars[1].write_bytes(b"\x1f\x8b" + bytes(2000))
    no_image = write_tar(tmp_path / "d.tar", {"x": {"txt": b""}})
    with pytest.raises(UserError, match="3 faults, nothing is committed: mend them and run the same command") as error:
        index([*map(str, tars), no_image], out)
    assert [fault.partition(": ")[0] for fault in error.value.faults] == [str(tars[0]), str(tars[1]), no_image]
    assert list_versions(out) == []


def test_a_dataset_that_is_there_is_left_alone(tars, out):
    index([str(tars[0])], out)
    with pytest.raises(UserError, match=r"holds a dataset already \(version 1\): choose another --out"):
        index([str(tars[1])], out)


def count_scans(monkeypatch):
    scanned = []
    real = scan_store.scan_tar
    monkeypatch.setattr(scan_store, "scan_tar", lambda *arguments: scanned.append(1) or real(*arguments))
    return scanned


def test_what_was_read_is_not_read_again(tars, out, tmp_path, monkeypatch):
    whole = tars[1].read_bytes()
    tars[1].write_bytes(whole[:-3000])
    scanned = count_scans(monkeypatch)
    for expected in (3, 1):
        with pytest.raises(UserError, match="is cut"):
            index(list(map(str, tars)), out)
        assert len(scanned) == expected
        scanned.clear()
    tars[1].write_bytes(whole)
    # A tar that was written anew is read anew.
    tars[2].write_bytes(tar_bytes(files_of({"new": sample(7)})))
    made = index(list(map(str, tars)), out)
    assert (len(scanned), made.num_resumed, made.version.num_samples) == (2, 1, 11)
    assert list(verify(out)) == []
    index(list(map(str, tars)), str(tmp_path / "fresh"))
    assert rows_of(out) == rows_of(str(tmp_path / "fresh"))


def test_other_options_read_labels_anew(tars, out, monkeypatch):
    with pytest.raises(UserError, match="have no image"):
        index([str(tars[0])], out, image="jpg")
    scanned = count_scans(monkeypatch)
    assert index([str(tars[0])], out, label="json").num_resumed == 0
    assert len(scanned) == 1
    assert rows_of(out)[3]["label"] == '{"number":3}'


def test_a_damaged_scan_is_no_scan(tars, out):
    with pytest.raises(UserError):
        index([str(tars[0])], out, image="jpg")
    (table,) = Path(out, "index").glob("*.parquet")
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(OSError, match="is damaged: remove it and run again"):
        index([str(tars[0])], out)


def test_a_tar_that_changes_meanwhile(tars, out):
    (source,) = read_sources([str(tars[0])])[""]

    def touch(count):
        os.utime(tars[0], ns=(1, 1))

    faults = ScanStore(out).make(source, "", touch)
    assert faults.told == ["changed while it was being read: run again when nobody writes it"]
    assert not Path(out, "index").exists()


def start(out, folder, *options):
    command = [sys.executable, "-m", "shards", "index", str(folder), "--out", out, "--workers", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY)


def test_killed_at_any_moment_it_goes_on(tmp_path, out):
    folder = write_series(tmp_path / "tars", num_tars=16, per_tar=20)[0].parent
    for num_kept in (1, 8):
        process = start(out, folder)
        while process.poll() is None and len(list(Path(out).glob("index/*.json"))) < num_kept:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list_versions(out) == []
    process = start(out, folder)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert " of them read by an earlier run" in told
    assert list(verify(out)) == []
    fresh = str(tmp_path / "fresh")
    index([str(folder)], fresh)
    assert Path(out, "versions/00000001.json").read_bytes() == Path(fresh, "versions/00000001.json").read_bytes()
    # A kill in the midst of a write leaves its temporary file; nobody but gc can know that its writer is gone.
    assert all(left.suffix == ".tmp" for left in Path(out).glob("index/*"))
    orphans = find_orphans(out, min_age_h=0.0, now_s=time.time())
    assert all(orphan.path.startswith("index/") for orphan in remove_orphans(out, orphans))
    assert not Path(out, "index").exists()


def test_a_bucket_that_throttles(faulty_store, tmp_path, out):
    (path,) = write_series(tmp_path / "tars", num_tars=1)
    url = f"{faulty_store.url}/x.tar"
    storage.write_bytes(url, path.read_bytes())
    faulty_store.proxy.add("answer", method="GET", nth=(1, 2), status=503)
    index([url], out)
    check_dataset(out, {f"d/{number:06d}": sample(number) for number in range(5)})
