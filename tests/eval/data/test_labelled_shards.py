import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.data.decode import UnreadableImageError
from eval.data.resolve import open_data
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.images import decode_image
from shards.schema import SAMPLES, Version
from shards.tables import read_table

LABELS = ["wood", "sea", None]


def _relabel(url: str, **columns: list[str | None]) -> None:
    """Rewrite columns of the samples table, and the version file that names it."""
    path = next(Path(url, "versions").glob("*.json"))
    version = Version.from_json(path.read_bytes())
    (file,) = version.tables["samples"]
    table = read_table(url, version, "samples").cast(SAMPLES)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    pq.write_table(table, Path(url) / file.url)
    sha256 = hashlib.sha256((Path(url) / file.url).read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes().replace(file.sha256.encode(), sha256.encode()))


@pytest.fixture
def labelled(tmp_path: Path, write_dataset) -> str:
    url = write_dataset(str(tmp_path / "dataset"), num_samples=24)
    _relabel(url, label=LABELS * 8)
    return url


def test_samples_without_a_label_are_left_out(labelled: str):
    data = open_data("d", labelled, 2)
    assert (data.kind, data.classes, data.given_parts, data.groups) == ("classes", ("sea", "wood"), None, None)
    assert (data.bands, data.dtype) == (("red", "green", "blue"), "uint8")
    table = read_table(labelled, open_dataset(labelled).version, "samples", ["key", "label"]).to_pylist()
    expected = sorted((row["key"], row["label"]) for row in table if row["label"])
    assert list(zip(data.ids, [data.classes[label] for label in data.labels], strict=True)) == expected


def test_images_are_those_of_their_keys(labelled: str):
    data, dataset = open_data("d", labelled, 2), open_dataset(labelled)
    images = {sample.key: sample for sample in map(dataset.read, range(24))}
    for index, key in enumerate(data.ids):
        expected = decode_image(images[key].ext, images[key].image)
        np.testing.assert_array_equal(data.read(index).images[0], expected)


def test_labels_are_in_the_digest(labelled: str):
    before = open_data("d", labelled, 2).digest
    _relabel(labelled, label=["wood", "sea", "sea"] * 8)
    assert open_data("d", labelled, 2).digest != before


def test_the_split_of_ingest_is_given_and_borders_are_left_out(labelled: str):
    _relabel(labelled, split=["train"] * 12 + ["val"] * 3 + ["border"] * 3 + ["test"] * 6)
    data = open_data("d", labelled, 2)
    assert (len(data.ids), data.num_unlisted) == (14, 2)
    assert np.bincount(data.given_parts).tolist() == [8, 2, 4]
    assert {TRAIN, VALIDATION, TEST} == set(data.given_parts.tolist())


@pytest.mark.parametrize("column", ["cell", "scene"])
def test_groups_are_cells_or_scenes(labelled: str, column):
    _relabel(labelled, **{column: [f"r{number // 6}c1" for number in range(24)]})
    assert set(open_data("d", labelled, 2).groups) == {"r0c1", "r1c1", "r2c1", "r3c1"}
    _relabel(labelled, **{column: [f"r{number // 12}c1" for number in range(24)]})
    assert open_data("d", labelled, 2).groups is None, "two places are too few for three parts"


def test_a_damaged_sample_is_unreadable(labelled: str):
    data = open_data("d", labelled, 2)
    for path in Path(labelled, "shards").iterdir():
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        path.write_bytes(content)
    damaged = [0, 16]  # rows: the first of each shard, but for the second shard's, which has no label
    keys = read_table(labelled, open_dataset(labelled).version, "samples", ["key"])["key"].to_pylist()
    for row in damaged:
        with pytest.raises(UnreadableImageError, match="checksum"):
            data.read(data.ids.index(keys[row]))
    for index in {*range(len(data.ids))} - {data.ids.index(keys[row]) for row in damaged}:
        assert data.read(index).images[0].shape == (32, 32, 3)


@pytest.mark.parametrize("labels", [[None] * 24, ["sea"] * 24])
def test_a_dataset_without_two_classes_is_named(labelled: str, labels):
    _relabel(labelled, label=labels)
    with pytest.raises(UserError, match=r"needs labels of two or more classes, found .*label_from: folder"):
        open_data("d", labelled, 2)
