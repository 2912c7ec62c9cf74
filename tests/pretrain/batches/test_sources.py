from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.batches.sources import begin_stream, choose_bands, continued_stream, make_colour, open_sources, pool
from pretrain.config import ColourConfig, MixConfig
from shards.dataset import open_dataset
from shards.errors import UserError
from shards.streaming.footprint import opening_need
from shards.streaming.state import open_stream


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2**32 - 1)), min_size=1, max_size=4))
def test_a_mixture_has_the_figures_of_its_samples(parts):
    values = [np.random.default_rng(seed).normal(seed % 7, 1 + seed % 3, 50) for _, seed in parts]
    weights = [weight for weight, _ in parts]
    drawn = np.concatenate([np.tile(each, weight) for each, weight in zip(values, weights, strict=True)])
    mean, std = pool([each.mean() for each in values], [each.std() for each in values], weights)
    assert (mean, std) == pytest.approx((drawn.mean(), drawn.std()), rel=1e-9, abs=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 1000))
def test_one_dataset_keeps_its_figures_exactly(mean, std, weight):
    assert pool([mean], [std], [weight]) == (mean, pytest.approx(std, rel=1e-15, abs=1e-150))


def test_bands_are_chosen_by_name(variant, tmp_path, write_dataset):
    bands = ("red", "green", "blue", "nir")
    url = write_dataset(str(tmp_path / "four"), bands=bands, dtype="uint16", encoding="npy")
    sources = open_sources(variant(data=url, bands=("nir", "red")))
    assert (sources.bands, sources.places) == (("nir", "red"), ((3, 0),))
    colour = make_colour(sources, variant(data=url))
    assert (len(colour.mean), colour.rgb, colour.value_range) == (2, (), 65535.0)


def test_a_missing_band_is_named(tiny):
    with pytest.raises(UserError, match=r"swir1.*red, green, blue"):
        choose_bands(open_dataset(tiny.data), ("red", "swir1"))


def test_wrong_number_of_means_is_refused(variant):
    config = variant(colour=ColourConfig(mean=(0.5,), std=(0.2,)))
    with pytest.raises(UserError, match="1 and 1 values for 3 bands"):
        make_colour(open_sources(config), config)


def test_datasets_weigh_as_many_samples_as_they_have(tiny, tmp_path, write_dataset):
    other = write_dataset(str(tmp_path / "other"), num_samples=8, seed=1)
    config = replace(tiny, mix=(MixConfig(data=other),))
    sources = open_sources(config)
    assert (sources.weights, sources.num_samples) == (None, 32)
    assert sources.digest not in sources.digests
    means = [dataset.bands[0].mean / 255 for dataset in sources.datasets]
    assert make_colour(sources, config).mean[0] == pytest.approx((3 * means[0] + means[1]) / 4)


def test_given_weights_count(tiny, tmp_path, write_dataset):
    other = write_dataset(str(tmp_path / "other"), seed=1)
    config = replace(tiny, weight=0.5, mix=(MixConfig(data=other, weight=1.5),))
    sources = open_sources(config)
    assert sources.weights == (0.5, 1.5)
    means = [dataset.bands[0].mean / 255 for dataset in sources.datasets]
    assert make_colour(sources, config).mean[0] == pytest.approx((means[0] + 3 * means[1]) / 4)


def test_version_0_is_none_of_a_dataset(tiny):
    for recorded in ((), (1,)):
        with pytest.raises(UserError, match=r"has no version 0, only \[1\]"):
            open_sources(replace(tiny, version=0), recorded)


def test_bands_may_stand_in_another_order(tiny, tmp_path, write_dataset):
    other = write_dataset(str(tmp_path / "other"), bands=("blue", "green", "red"))
    sources = open_sources(replace(tiny, mix=(MixConfig(data=other),)))
    assert sources.places == ((0, 1, 2), (2, 1, 0))


@pytest.mark.parametrize("place", [{"LOCAL_WORLD_SIZE": "3"}, {"LOCAL_WORLD_SIZE": "1", "NODE_RANKS": "3"}])
def test_the_caches_of_a_machine_must_fit_together(tiny, tmp_path, monkeypatch, place):
    sources = open_sources(tiny)
    for dataset in sources.datasets:
        dataset.shards = [replace(shard, local=False) for shard in dataset.shards]
    config = replace(tiny, loader=replace(tiny.loader, batch=12, cache=str(tmp_path / "cache")))
    state = begin_stream(config, sources)
    stream = open_stream(state, sources.datasets, global_batch=12, world=4)
    need = opening_need(stream, node_ranks=3, queued_steps=0)
    assert need.rank_bytes < need.node_bytes
    usage = SimpleNamespace(free=need.node_bytes - 1)
    monkeypatch.setattr("shards.streaming.room.shutil", SimpleNamespace(disk_usage=lambda _: usage))
    with continued_stream(config, sources, state, rank=1, world=4) as alone:
        assert alone.cache is not None
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    told = r"the caches of 3 ranks need .* are free: free some, .* --loader\.cache"
    with pytest.raises(UserError, match=told), continued_stream(config, sources, state, rank=1, world=4):
        pass


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"bands": ("red", "green", "blue", "nir"), "encoding": "npy"},
            r"other has the bands red, .*nir, but .*choose",
        ),
        ({"dtype": "uint16", "encoding": "npy"}, "other holds uint16, but .* uint8"),
        ({"tile_px": 16}, "other has tiles of 16 px"),
    ],
)
def test_data_that_do_not_mix_are_refused_by_name(tiny, tmp_path, write_dataset, form, message):
    other = write_dataset(str(tmp_path / "other"), **form)
    with pytest.raises(UserError, match=message):
        open_sources(replace(tiny, mix=(MixConfig(data=other),)))


def test_a_cache_in_a_store_is_refused(tiny):
    sources = open_sources(tiny)
    for dataset in sources.datasets:
        dataset.shards = [replace(shard, local=False) for shard in dataset.shards]
    config = replace(tiny, loader=replace(tiny.loader, cache="s3://bucket/cache"))
    with (
        pytest.raises(UserError, match=r"^--loader\.cache is s3://bucket/cache: "),
        continued_stream(config, sources, begin_stream(config, sources)),
    ):
        pass
