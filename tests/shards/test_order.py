"""The order: every sample once per epoch, whatever the cut into ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import locate, rank_positions

DIGEST = "0" * 64


@given(st.integers(1, 500), st.integers(0, 5), st.integers(0, 2**32))
def test_every_epoch_holds_every_sample_once(num_samples, epoch, seed):
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    epochs, indices = locate(positions, num_samples, seed, DIGEST)
    assert (epochs == epoch).all()
    assert sorted(indices.tolist()) == list(range(num_samples))


@given(st.integers(1, 50), st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 6))
def test_ranks_share_a_batch_and_batches_follow_each_other(num_samples, start, world, share):
    batch = world * share
    cuts = [rank_positions(step, batch, rank, world, start) for step in range(3) for rank in range(world)]
    assert np.concatenate(cuts).tolist() == list(range(start, start + 3 * batch))
    together = locate(np.concatenate(cuts), num_samples, 1, DIGEST)[1]
    apart = np.concatenate([locate(cut, num_samples, 1, DIGEST)[1] for cut in cuts])
    assert together.tolist() == apart.tolist()


def test_seed_epoch_and_data_change_the_order():
    first = locate(np.arange(1000), 1000, 0, DIGEST)[1]
    for other in [
        locate(np.arange(1000), 1000, 1, DIGEST),
        locate(np.arange(1000, 2000), 1000, 0, DIGEST),
        locate(np.arange(1000), 1000, 0, "1" * 64),
    ]:
        assert (first != other[1]).mean() > 0.9


def test_ranks_must_divide_the_batch():
    with pytest.raises(ValueError, match="global batch 10 is not divisible by 4 ranks"):
        rank_positions(0, 10, 0, 4)
