"""Each kind of damage is found; a whole dataset has none."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from shards.commit import write_table
from shards.tables import read_table, read_version, version_url
from shards.verify import verify


@pytest.fixture
def url(tmp_path, write_dataset):
    return write_dataset(str(tmp_path / "data"))


def rewrite(url, name, change):
    """Replace a table by a changed one, with a right checksum, so that only the deeper checks can notice."""
    version = read_version(url)
    rows = read_table(url, version, name).to_pylist()
    change(rows)
    from shards.schema import TABLES

    files = write_table(url, name, [pa.Table.from_pylist(rows, TABLES[name])])
    changed = dataclasses.replace(version, tables={**version.tables, name: files})
    Path(version_url(url, 1)).write_bytes(changed.to_json())


def test_a_whole_dataset_has_no_fault(url):
    assert list(verify(url)) == []


def test_a_flipped_byte_in_a_shard(url):
    shard = sorted(Path(url, "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    faults = list(verify(url))
    assert len(faults) == 2
    assert all(shard.name in fault for fault in faults)
    assert "sha256" in faults[0]
    assert "do not match the checksum" in faults[1]


def test_a_missing_shard(url):
    shard = sorted(Path(url, "shards").iterdir())[0]
    shard.unlink()
    assert list(verify(url)) == [f"{shard} is missing"]


def test_a_damaged_table(url):
    path = Path(url, read_version(url).tables["scenes"][0].url)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (fault,) = verify(url)
    assert path.name in fault


@pytest.mark.parametrize(
    ("table", "change", "expected"),
    [
        ("samples", lambda rows: rows.pop(), "samples: 23 found, the version says 24"),
        ("samples", lambda rows: rows[0].update(key="sample-000001"), "different keys: 23 found"),
        ("samples", lambda rows: rows[2].update(key="other"), "digest of the tables"),
        ("samples", lambda rows: rows[2].update(offset=512), "begins before the one before ends"),
        ("samples", lambda rows: rows[0].update(scene="scene-000005"), "are not what the samples table lists"),
        ("samples", lambda rows: rows[2].update(member_offset=7), "does not lie where the table says"),
        ("samples", lambda rows: rows[2].update(label="wrong"), "label in the table differ from the sample's own JSON"),
        ("samples", lambda rows: rows[2].update(valid_share=0.5), "valid_share in the table differ"),
        ("samples", lambda rows: rows.append(rows.pop(0)), "do not stand together"),
        ("samples", lambda rows: rows[0].update(shard="x"), "1 samples lie in shard x, which is not in the shards"),
        ("samples", lambda rows: rows[0].update(band_sums=[1.0, 2.0, 3.0]), "band red: the mean of the samples is"),
        ("samples", lambda rows: rows[0].update(band_sums=[1.0]), "a tile's band figures are not 3"),
        ("shards", lambda rows: rows[0].update(num_samples=99), "99 in the shard's row"),
        ("shards", lambda rows: rows.append(rows[0] | {"shard": "x"}), "no sample lies in it"),
        ("scenes", lambda rows: rows.pop(), "scenes: 23 found, the version says 24"),
        ("scenes", lambda rows: rows[0].update(state="rejected"), "does not fit its tiles and rejects"),
        (
            "rejects",
            lambda rows: rows.append({"scene": "unknown", "path": "p", "reason": "corrupt"}),
            "scene unknown has",
        ),
        (
            "rejects",
            lambda rows: rows.append({"scene": "scene-000001", "path": "p", "x": 1, "y": 1, "reason": "corrupt"}),
            "dropped tiles are not what the rejects table lists",
        ),
    ],
)
def test_tables_that_contradict_each_other(url, table, change, expected):
    rewrite(url, table, change)
    assert any(expected in fault for fault in verify(url)), list(verify(url))
