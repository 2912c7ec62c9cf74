"""Each kind of damage of an indexed dataset is found and named."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from shards import storage
from shards.commit import write_table
from shards.curation.derive import tables_digest
from shards.curation.select import select
from shards.indexing.index import index
from shards.schema import TABLES
from shards.tables import read_table, read_version, version_url
from shards.verify import verify
from tests.shards.foreign_tars import files_of, sample, tar_bytes, write_series


@pytest.fixture
def tars(tmp_path):
    return write_series(tmp_path / "tars")


@pytest.fixture
def url(tmp_path, tars):
    """Two series, the second with other names of files and all samples in one tar."""
    out = str(tmp_path / "out")
    other = tmp_path / "txt.tar"
    other.write_bytes(tar_bytes(files_of({f"d/{number:06d}": {"txt": b"%d" % number} for number in range(15)})))
    index([f"rgb={tars[0].parent}", f"text={other}"], out)
    return out


def rewrite(url, name, change):
    """Replace a table by a changed one, checksum and digest right, so that only the deepest checks can notice."""
    version = read_version(url)
    rows = read_table(url, version, name).to_pylist()
    change(rows)
    files = write_table(url, name, [pa.Table.from_pylist(rows, TABLES[name])])
    changed = dataclasses.replace(version, tables={**version.tables, name: files})
    changed = dataclasses.replace(changed, digest=tables_digest(url, changed))
    Path(version_url(url, 1)).write_bytes(changed.to_json())


def test_a_whole_dataset_and_its_selections_have_no_fault(url, tmp_path):
    assert list(verify(url)) == []
    select(url, "label = '1'")
    select(url, "key > 'd/000011'", str(tmp_path / "small"))
    for each in (url, str(tmp_path / "small")):
        assert list(verify(each)) == []
        assert read_version(each).series == ("rgb", "text")
    # Of the first series' tars only the last is needed, and the one tar of the second.
    shards = read_table(str(tmp_path / "small"), read_version(str(tmp_path / "small")), "shards")
    assert [Path(place).name for place in shards["url"].to_pylist()] == ["train-000002.tar", "txt.tar"]


def test_a_flipped_byte(url, tars):
    data = bytearray(tars[1].read_bytes())
    row = read_table(url, read_version(url), "samples").to_pylist()[6]
    data[row["member_offset"] + 5] ^= 1
    tars[1].write_bytes(data)
    shard, of_sample = verify(url)
    assert shard == f"{tars[1]}: its sha256 is not the recorded one"
    assert of_sample.startswith(f"{tars[1]}: sample d/000006: ")
    assert of_sample.endswith("crc32c, member_sha256 in the table differ from the tar")


def test_a_damaged_header_a_cut_and_a_missing_tar(url, tars):
    data = tars[0].read_bytes()
    tars[0].write_bytes(b"x" + data[1:])
    assert any("damaged tar header at byte 0" in fault for fault in verify(url))
    tars[0].write_bytes(data[:4000])
    assert any(f"{tars[0]}: is cut" in fault for fault in verify(url))
    tars[0].unlink()
    faults = list(verify(url))
    assert faults[0] == f"{tars[0]} is missing"
    assert len(faults) == 1 + 5


def test_a_tar_of_other_samples(url, tars):
    tars[2].write_bytes(tar_bytes(files_of({"new": sample(1)})))
    faults = list(verify(url))
    assert faults[0] == f"{tars[2]}: its sha256 is not the recorded one"
    assert sum("or its image is not there" in fault for fault in faults) == 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[2].update(offset=512), "sample d/000002: offset in the table differ"),
        (lambda rows: rows[2].update(crc32c=1), "sample d/000002: crc32c in the table differ"),
        (lambda rows: rows[2].update(member_offset=7), "sample d/000002: member_offset in the table differ"),
        (lambda rows: rows[2].update(member_sha256=bytes(32)), "sample d/000002: member_sha256 in the table differ"),
        (lambda rows: rows[2].update(json_sha256=bytes(32)), "sample d/000002: json_sha256 in the table differ"),
        (lambda rows: rows[2].update(json_sha256=None), "sample d/000002: json_sha256 in the table differ"),
        (lambda rows: rows[2].update(label="x"), "sample d/000002: label in the table differ"),
        (lambda rows: rows[2].update(shard=rows[9]["shard"]), "sample d/000002: shard in the table differ"),
        (lambda rows: rows[2].update(member="rgb.cls"), "sample d/000002 or its image is not there"),
        (lambda rows: rows[2].update(key="other"), "sample other or its image is not there"),
        (lambda rows: rows[2]["parts"][0].update(size=512), "sample d/000002: size of text in the table differ"),
        (lambda rows: rows[2]["parts"][0].update(shard="x"), "samples lie in shard x, which is not in the table"),
        (lambda rows: rows[2].update(parts=None), "not every sample has 1 parts"),
        (lambda rows: rows.pop(), "samples: 14 found, the version says 15"),
    ],
)
def test_rows_that_are_not_what_the_tars_hold(url, change, expected):
    rewrite(url, "samples", change)
    assert any(expected in fault for fault in verify(url)), list(verify(url))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[1].update(num_samples=9), "5 samples in it, 9 in the shard's row"),
        (lambda rows: rows.append(rows[0] | {"shard": "x"}), "no sample lies in it"),
    ],
)
def test_rows_of_shards(url, change, expected):
    rewrite(url, "shards", change)
    assert any(expected in fault for fault in verify(url)), list(verify(url))


def test_in_a_bucket(object_store, tars, tmp_path):
    root = f"{object_store}/verify-{tmp_path.name}"
    for path in tars:
        storage.write_bytes(f"{root}/{path.name}", path.read_bytes())
    index([root], root)
    assert list(verify(root)) == []
    storage.write_bytes(f"{root}/{tars[0].name}", tars[1].read_bytes())
    assert f"{root}/{tars[0].name}: its sha256 is not the recorded one" in list(verify(root))
