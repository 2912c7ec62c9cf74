"""A step's images as one array: the same pixels as one by one, each decoded to its place."""

import json
import re

import numpy as np
import pytest

from shards.dataset import open_dataset
from shards.errors import UserError
from shards.images import decode_image
from shards.streaming import stream as stream_module
from shards.streaming.state import StreamState, begin, open_stream
from tests.conftest import REPOSITORY

BATCH = 12


def open_one(url, **options):
    datasets = [open_dataset(url)]
    return open_stream(begin(datasets, seed=3, global_batch=BATCH), datasets, global_batch=BATCH, **options)


def one_by_one(url, step):
    """Return keys and images of a global batch."""
    read = open_one(url).read(step, lambda sample, _: (sample.key, decode_image(sample.ext, sample.image)))
    return zip(*read.items, strict=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("images") / "data"))


@pytest.mark.parametrize("encoding", ["png", "jpeg", "npy"])
@pytest.mark.parametrize("world", [1, 3])
def test_they_are_those_of_the_samples(tmp_path, write_dataset, encoding, world):
    url = write_dataset(str(tmp_path / "data"), encoding=encoding)
    for step in (0, 5):
        keys, images = one_by_one(url, step)
        ranks = [open_one(url, rank=rank, world=world).read_images(step) for rank in range(world)]
        assert all(len(found) == BATCH // world == len(read.slots) for found, read in ranks)
        assert tuple(sample.key for _, read in ranks for sample in read.items) == keys
        np.testing.assert_array_equal(np.concatenate([found for found, _ in ranks]), np.stack(images))


def test_memory_is_the_callers_if_it_gives_some(url):
    given = []

    def allocate(shape, dtype):
        given.append(np.empty(shape, dtype))
        return given[-1]

    stream = open_one(url)
    found = [stream.read_images(step, allocate)[0] for step in range(3)]
    assert all(image is mine for image, mine in zip(found, given, strict=True))
    assert given[0].shape == (BATCH, 32, 32, 3)


@pytest.mark.parametrize("bad", [0, 5, BATCH - 1])
def test_a_bad_one_gives_its_place_to_another(url, monkeypatch, bad):
    keys, images = map(list, one_by_one(url, 0))

    def fail_at_one(extension, data, *, out=None):
        pixels = decode_image(extension, data, out=out)
        if np.array_equal(pixels, images[bad]):
            pixels[:] = 0  # as a decoder that notices late
            raise ValueError("damaged")
        return pixels

    monkeypatch.setattr(stream_module, "decode_image", fail_at_one)
    found, read = open_one(url, on_bad="replace").read_images(0)
    taken = [sample.key for sample in read.items]
    assert [each.row for each in read.replaced] == [read.slots[bad].row]
    assert keys[bad] not in taken
    assert taken[:bad] + taken[bad + 1 :] == keys[:bad] + keys[bad + 1 :]
    for image, sample in zip(found, read.items, strict=True):
        np.testing.assert_array_equal(image, decode_image(sample.ext, sample.image))


@pytest.mark.parametrize("other", [{"tile_px": 40}, {"dtype": "uint16", "encoding": "npy"}])
def test_images_that_differ_in_form_are_refused_by_name(tmp_path, write_dataset, other):
    urls = [write_dataset(str(tmp_path / name), **kind) for name, kind in (("a", {}), ("b", other))]
    datasets = [open_dataset(url) for url in urls]
    state = begin(datasets, seed=0, global_batch=8)
    stream = open_stream(state, datasets, global_batch=8, on_bad="replace")
    with pytest.raises(UserError, match=r"key \S+ is an image of .*, the first of step 0 has .*: Stream\.read"):
        stream.read_images(0)


def test_the_readme_shows_how(url):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    code, in_workers = (block for block in blocks if "open_stream" in block or "deliver" in block)
    names = {"URL": url}
    exec(code.replace("state_at(stream, 10).to_json()", "state = state_at(stream, 10).to_json()"), names)
    assert names["images"].shape == (128, 32, 32, 3)
    assert json.loads(names["samples"].items[0].metadata)
    assert len(json.dumps(names["state"])) < 1024
    assert StreamState.from_json(names["state"]).consumed == 10 * 1024
    exec(in_workers, names)
    np.testing.assert_array_equal(names["delivery"].batch.pixels_BHWC, names["images"])
    assert names["delivery"].batch.keys == [sample.key for sample in names["samples"].items]
