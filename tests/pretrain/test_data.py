import pickle
import re
from dataclasses import replace

import pytest
import torch

from pretrain import data as data_module
from pretrain.config import LoaderConfig, MixConfig
from pretrain.data import BatchMaker
from pretrain.sources import make_colour, open_sources
from shards.dataset import CorruptSampleError
from shards.images import decode_image
from shards.streaming.order import OrderSettings
from shards.streaming.stream import Stream


def make_maker(config, *, on_bad="stop", **place):
    sources = open_sources(config)
    settings = OrderSettings(seed=config.seed, lanes=5, block_bytes=2**13, window=2)
    stream = Stream(sources.datasets, settings, global_batch=config.loader.batch, on_bad=on_bad, **place)
    return BatchMaker(stream, config, sources.places)


def make(config, step=0, **place):
    return make_maker(config, **place).make(step)[0]


def tensors(batch):
    found = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif hasattr(value, "__dict__"):
            for item in vars(value).values():
                walk(item)

    walk(batch)
    return found


def assert_same(batch, other):
    pairs = list(zip(tensors(batch), tensors(other), strict=True))
    assert len(pairs) == 2 * 10
    assert all(torch.equal(a, b) for a, b in pairs)


def test_shapes_are_view_major_and_uint8(tiny):
    batch = make(tiny)
    assert batch.global_views.crops_NCHW.shape == (20, 3, 32, 32)
    assert batch.local_views.crops_NCHW.shape == (20, 3, 24, 24)
    assert batch.global_views.crops_NCHW.dtype == torch.uint8
    assert batch.global_views.student_indices_NP.shape == (20, 3)
    assert batch.global_views.teacher_indices_NP.shape == (20, 10)


def test_a_sample_is_the_same_in_any_batch(tiny, by_number):
    whole, halves = make_maker(tiny), make_maker(replace(tiny, loader=LoaderConfig(batch=5)))
    expected = by_number(whole.stream.slots(1), whole.make(1)[0])
    found = [by_number(halves.stream.slots(step), halves.make(step)[0]) for step in (2, 3)]
    assert found[0] | found[1] == expected
    assert len(expected) == 10


def test_ranks_cut_the_same_global_batch(tiny, by_number):
    whole, halves = make_maker(tiny), [make_maker(tiny, rank=rank, world=2) for rank in (0, 1)]
    expected = by_number(whole.stream.slots(1), whole.make(1)[0])
    found = [by_number(half.stream.slots(1), half.make(1)[0]) for half in halves]
    assert found[0] | found[1] == expected
    assert sorted(expected) == list(range(10, 20))


def test_makers_travel_to_workers(tiny):
    maker = make_maker(tiny)
    copy = pickle.loads(pickle.dumps(maker))
    assert_same(maker.make(3)[0], copy.make(3)[0])


def test_bands_are_chosen_by_name(variant, tmp_path, write_dataset):
    bands = ("red", "green", "blue", "nir")
    url = write_dataset(str(tmp_path / "four"), bands=bands, dtype="uint16", encoding="npy")
    config = variant(data=url, bands=("nir", "red"))
    views = make(config).global_views
    assert (views.crops_NCHW.shape, views.crops_NCHW.dtype) == ((20, 2, 32, 32), torch.float32)
    images = make_colour(open_sources(config), config)(views.crops_NCHW, views.student_colours)
    assert torch.isfinite(images).all()


def test_each_dataset_of_a_mixture_has_its_own_places_of_bands(tiny, tmp_path, write_dataset):
    # Equal tiles, whose bands are named the other way round.
    other = write_dataset(str(tmp_path / "other"), bands=("blue", "green", "red"))
    turned = replace(tiny, data=other, bands=("red", "green", "blue"))
    mixed = make_maker(replace(tiny, mix=(MixConfig(data=other),)))
    slots = mixed.stream.slots(0)
    assert {slot.dataset for slot in slots} == {0, 1}
    crops = mixed.make(0)[0].global_views.crops_NCHW
    single = {0: make_maker(tiny), 1: make_maker(turned)}
    for place, slot in enumerate(slots):
        maker = single[slot.dataset]
        sample = maker.stream.datasets[0].read(slot.row)
        _, image = maker._decode(sample, 0)
        visit = mixed._visit(slot, sample.key)
        views = maker._views([image], [visit], ["global0"], 32)
        assert torch.equal(views.crops_NCHW[0], crops[place])


@pytest.fixture
def mixed(tiny, tmp_path, write_dataset):
    """A mixture of datasets with three and with four bands, of which three are chosen."""
    four = write_dataset(str(tmp_path / "four"), bands=("nir", "blue", "green", "red"), encoding="npy")
    return replace(tiny, mix=(MixConfig(data=four),), bands=("red", "green", "blue"))


def spoil(monkeypatch, maker):
    """Have an image of the second dataset decode to the first one's number of bands; return its slot."""
    slot = next(slot for slot in maker.stream.slots(0) if slot.dataset == 1)
    bad = maker.stream.datasets[1].read(slot.row).image

    def decode(extension, data):
        pixels = decode_image(extension, data)
        return pixels[:, :, 1:] if data == bad else pixels

    monkeypatch.setattr(data_module, "decode_image", decode)
    return slot


def test_an_image_unlike_its_dataset_stops_the_stream_by_name(mixed, monkeypatch):
    maker = make_maker(mixed)
    slot = spoil(monkeypatch, maker)
    name = re.escape(maker.stream.datasets[1].name(slot.row))
    told = rf"^{name}, key \S+: the image has 3 bands of uint8, unlike the dataset: 4 of uint8$"
    with pytest.raises(CorruptSampleError, match=told):
        maker.make(0)


def test_an_image_unlike_its_dataset_is_replaced_where_bad_ones_are(mixed, monkeypatch):
    maker = make_maker(mixed, on_bad="replace")
    slot = spoil(monkeypatch, maker)
    batch, replaced = maker.make(0)
    assert [(each.number, each.row) for each in replaced] == [(slot.number, slot.row)]
    assert "3 bands of uint8, unlike the dataset: 4 of uint8" in replaced[0].fault
    assert batch.global_views.crops_NCHW.shape == (20, 3, 32, 32)


def test_an_image_of_another_type_is_a_bad_sample(tiny, monkeypatch):
    maker = make_maker(tiny)
    monkeypatch.setattr(maker.stream.datasets[0], "dtype", "uint16")
    with pytest.raises(CorruptSampleError, match="3 bands of uint8, unlike the dataset: 3 of uint16"):
        maker.make(0)
