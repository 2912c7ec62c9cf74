import pickle
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.batches import batch as batch_module
from pretrain.batches.batch import BatchMaker, make_batch, patchify, visit_of
from pretrain.batches.colour import Colour
from pretrain.batches.loader import Delivery
from pretrain.batches.sources import make_colour, open_sources
from pretrain.batches.views import PLAIN
from pretrain.config import LoaderConfig, MixConfig
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
    assert batch.global_views.learnable_indices_NP.shape == (20, 3)
    assert batch.global_views.teacher_indices_NP.shape == (20, 10)
    assert batch.local_views.learnable_indices_NP.shape == (20, 0)


@given(st.integers(1, 3), st.sampled_from([1, 2, 6, 8, 14, 16]), st.sampled_from([torch.uint8, torch.float32]))
def test_patches_are_in_raster_order_and_their_values_in_band_row_column(num_bands, patch_px, dtype):
    images = torch.randint(0, 256, (2, num_bands, 2 * patch_px, 3 * patch_px), dtype=dtype)
    patches = patchify(images, patch_px)
    assert patches.shape == (2, 6, num_bands * patch_px**2)
    for place in range(6):
        y, x = place // 3 * patch_px, place % 3 * patch_px
        assert torch.equal(patches[:, place], images[:, :, y : y + patch_px, x : x + patch_px].flatten(1))


def test_each_side_is_given_its_own_patches_in_its_own_colours(tiny):
    batch = make(tiny)
    for views, num_predicted in ((batch.global_views, 3), (batch.local_views, 0)):
        patches = views.to_patches(torch.device("cpu"), make_colour(open_sources(tiny), tiny))
        assert patches.learnable_NPD.shape == (20, num_predicted, 3 * 8 * 8)
        for name in ("student", "learnable", "teacher"):
            indices = getattr(patches, f"{name}_indices_NP")
            assert torch.equal(indices, getattr(views, f"{name}_indices_NP"))
            assert getattr(patches, f"{name}_NPD").shape == (*indices.shape, 3 * 8 * 8)
    plain = replace(views, student_colours=no_colours(views.student_colours))
    identity = Colour(value_range=255.0, mean=(0.0,) * 3, std=(1 / 255,) * 3, rgb=(0, 1, 2))
    patches = plain.to_patches(torch.device("cpu"), identity)
    rows = torch.arange(20)[:, None]
    assert torch.equal(patches.student_NPD, patchify(views.crops_NCHW, 8)[rows, views.student_indices_NP].float())


def no_colours(draws):
    return replace(draws, kind_N=torch.full_like(draws.kind_N, PLAIN))


def test_targets_may_stay_as_they_are_in_the_image(variant):
    batches = [make(variant(colour__perturb_targets=perturbed)) for perturbed in (True, False)]
    identity = Colour(value_range=255.0, mean=(0.0,) * 3, std=(1 / 255,) * 3, rgb=(0, 1, 2))
    perturbed, clean = (batch.global_views.to_patches(torch.device("cpu"), identity) for batch in batches)
    views = batches[1].global_views
    pixels = patchify(views.crops_NCHW, 8)[torch.arange(20)[:, None], views.learnable_indices_NP].float()
    assert torch.equal(clean.learnable_NPD, pixels)
    assert (perturbed.learnable_NPD - pixels).abs().max() > 1
    # Nothing else differs.
    assert torch.equal(perturbed.teacher_NPD, clean.teacher_NPD)
    assert torch.equal(perturbed.student_NPD, clean.student_NPD)


def test_local_views_that_no_teacher_looks_at_are_not_coloured_for_it(variant):
    config = variant(loss__crossed=True)
    views = make(config).local_views
    assert views.teacher_indices_NP.shape == (20, 0)
    patches = views.to_patches(torch.device("cpu"), make_colour(open_sources(config), config))
    assert patches.teacher_NPD.shape == (20, 0, 3 * 8 * 8)
    assert patches.student_NPD.shape[1] > 0


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_are_runs_of_images_with_all_their_views(tiny, by_number, parts):
    maker = make_maker(tiny)
    slots, batch = maker.stream.slots(0), maker.make(0)[0]
    length, found = len(slots) // parts, {}
    for number, part in enumerate(batch.split(parts)):
        assert type(part) is type(batch)
        assert part.global_views.num_views == 2
        found |= by_number(slots[number * length : (number + 1) * length], part)
    assert found == by_number(slots, batch)


def test_parts_give_the_patches_of_the_whole(tiny):
    batch, colour = make(tiny), make_colour(open_sources(tiny), tiny)
    whole = batch.global_views.to_patches(torch.device("cpu"), colour)
    parts = [part.global_views.to_patches(torch.device("cpu"), colour) for part in batch.split(5)]
    for name, value in vars(whole).items():
        joined = torch.cat([getattr(part, name).unflatten(0, (2, 2)) for part in parts], 1).flatten(0, 1)
        assert torch.equal(joined, value), name


def test_without_local_views_there_are_none_in_the_parts(tiny):
    batch = make(replace(tiny, views=replace(tiny.views, num_local=0)))
    assert batch.local_views is None
    assert [part.local_views for part in batch.split(2)] == [None, None]


def test_what_is_sent_to_a_device_is_pinned(variant, monkeypatch):
    # Without an accelerator torch cannot pin: a copy stands for it.
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    for config in (variant(), variant(views__num_local=0)):
        batch = make(config)
        delivery = Delivery(batch=batch, replaced=[], counts=Counter(gets=3))
        pinned = delivery.pin_memory()
        assert pinned.counts == delivery.counts
        for views, copied in [
            (batch.global_views, pinned.batch.global_views),
            (batch.local_views, pinned.batch.local_views),
        ]:
            if views is None:
                assert copied is None
                continue
            for name, value in vars(views).items():
                if isinstance(value, torch.Tensor) and value.numel():
                    assert getattr(copied, name).data_ptr() != value.data_ptr(), name
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), tensors(pinned.batch), strict=True))


def test_unequal_parts_are_refused(tiny):
    with pytest.raises(AssertionError, match="10 images do not make 3 equal parts"):
        make(tiny).split(3)


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
    patches = views.to_patches(torch.device("cpu"), make_colour(open_sources(config), config))
    assert patches.student_NPD.shape == (20, 3, 2 * 8 * 8)
    assert torch.isfinite(patches.teacher_NPD).all()


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
        _, tile = maker._decode(sample, 0)
        visit = visit_of(tiny, slot, sample.key)
        alone = make_batch(tiny, [tile], [visit], 3).global_views.crops_NCHW
        assert torch.equal(alone, crops[place :: len(slots)])


@pytest.fixture
def mixed(tiny, tmp_path, write_dataset):
    """A mixture of datasets with three and with four bands, of which three are chosen."""
    four = write_dataset(str(tmp_path / "four"), bands=("nir", "blue", "green", "red"), encoding="npy")
    return replace(tiny, mix=(MixConfig(data=four),), bands=("red", "green", "blue"))


def spoil(monkeypatch, maker):
    """Have an image of the second dataset decode to the first one's number of bands; return its slot."""
    slot = next(slot for slot in maker.stream.slots(0) if slot.dataset == 1)
    bad = maker.stream.datasets[1].read(slot.row).image

    def decode(extension, data, **kwargs):
        pixels = decode_image(extension, data, **kwargs)
        return pixels[:, :, 1:] if data == bad else pixels

    monkeypatch.setattr(batch_module, "decode_image", decode)
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
