import pickle

import numpy as np
import pytest
import torch

from pretrain.data import BatchMaker, choose_bands, make_colour, stream_batches
from shards.dataset import open_dataset
from shards.errors import UserError


def make_maker(config):
    dataset = open_dataset(config.data)
    return BatchMaker(dataset, config, choose_bands(dataset, config))


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


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        pairs = list(zip(tensors(batch), tensors(other), strict=True))
        assert len(pairs) == 2 * 10
        assert all(torch.equal(a, b) for a, b in pairs)


def test_shapes_are_view_major_and_uint8(tiny):
    batch = make_maker(tiny)[np.arange(10)]
    assert batch.global_views.crops_NCHW.shape == (20, 3, 32, 32)
    assert batch.local_views.crops_NCHW.shape == (20, 3, 24, 24)
    assert batch.global_views.crops_NCHW.dtype == torch.uint8
    assert batch.global_views.student_indices_NP.shape == (20, 3)
    assert batch.global_views.teacher_indices_NP.shape == (20, 10)


def test_workers_do_not_change_the_batches(variant):
    def collect(workers):
        config = variant(loader__workers=workers)
        return list(stream_batches(make_maker(config), config, samples_consumed=0, num_steps=4))

    assert_same(collect(0), collect(2))


def test_a_resumed_stream_goes_on_where_it_was(tiny):
    maker = make_maker(tiny)
    whole = list(stream_batches(maker, tiny, samples_consumed=0, num_steps=5))
    rest = list(stream_batches(maker, tiny, samples_consumed=30, num_steps=2))
    assert_same(whole[3:], rest)


def test_a_sample_is_the_same_in_any_batch(tiny):
    maker = make_maker(tiny)
    together, alone = maker[np.arange(10)], maker[np.array([7])]
    for views, one in (
        (together.global_views, alone.global_views),
        (together.local_views, alone.local_views),
    ):
        assert torch.equal(views.crops_NCHW[[7, 17]], one.crops_NCHW)
        assert torch.equal(views.teacher_indices_NP[[7, 17]], one.teacher_indices_NP)
        assert torch.equal(views.student_colours.amount_N4[[7, 17]], one.student_colours.amount_N4)


def test_ranks_cut_the_same_global_batch(tiny):
    maker = make_maker(tiny)
    (whole,) = stream_batches(maker, tiny, samples_consumed=0, num_steps=1)
    halves = [
        next(iter(stream_batches(maker, tiny, samples_consumed=0, num_steps=1, rank=rank, world=2))) for rank in (0, 1)
    ]
    crops = [half.global_views.crops_NCHW.unflatten(0, (2, 5)) for half in halves]
    assert torch.equal(torch.cat(crops, 1).flatten(0, 1), whole.global_views.crops_NCHW)


def test_makers_travel_to_workers(tiny):
    maker = make_maker(tiny)
    copy = pickle.loads(pickle.dumps(maker))
    assert_same([maker[np.arange(2)]], [copy[np.arange(2)]])


def test_bands_are_chosen_by_name(variant, tmp_path, write_dataset):
    bands = ("red", "green", "blue", "nir")
    url = write_dataset(str(tmp_path / "four"), bands=bands, dtype="uint16", encoding="npy")
    config = variant(data=url, bands=("nir", "red"))
    dataset = open_dataset(url)
    assert choose_bands(dataset, config) == (3, 0)
    colour = make_colour(dataset, config, (3, 0))
    assert (len(colour.mean), colour.rgb, colour.value_range) == (2, (), 65535.0)
    batch = make_maker(config)[np.arange(4)]
    assert batch.global_views.crops_NCHW.shape == (8, 2, 32, 32)
    images = colour(batch.global_views.crops_NCHW, batch.global_views.student_colours)
    assert torch.isfinite(images).all()


def test_a_missing_band_is_named(variant):
    config = variant(bands=("red", "swir1"))
    with pytest.raises(UserError, match=r"swir1.*red, green, blue"):
        choose_bands(open_dataset(config.data), config)


def test_wrong_number_of_means_is_refused(variant):
    config = variant(colour=variant().colour.__class__(mean=(0.5,), std=(0.2,)))
    dataset = open_dataset(config.data)
    with pytest.raises(UserError, match="1 and 1 values for 3 bands"):
        make_colour(dataset, config, (0, 1, 2))
