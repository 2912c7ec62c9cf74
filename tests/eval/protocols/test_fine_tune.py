import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from eval.protocols import fine_tune
from eval.protocols.fine_tune import FINE_TUNE, FineTuneTask, Schedule, rate_share
from eval.protocols.linear import linear_predict

SIDE_PX, NUM_IMAGES = 16, 600


def _stripes(num, seed):
    """Return noisy images [num, 3, 16, 16] whose class is the direction of their stripes: no mean colour tells it."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, num)
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    along = np.stack([x, y, (x + y) / math.sqrt(2)])[labels]
    waves = np.sin(2 * math.pi * along / 6 + draw.uniform(0, 2 * math.pi, (num, 1, 1)))
    images = waves[:, None] + draw.normal(0, 0.8, (num, 3, SIDE_PX, SIDE_PX))
    return torch.from_numpy(images).float(), labels


def _network():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=SIDE_PX, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let nothing wait: a step of so small a network is too short to be shared among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task(one_thread: None) -> FineTuneTask:
    images, labels = _stripes(NUM_IMAGES, 1)
    train, validation, test = np.split(np.arange(NUM_IMAGES), [300, 400])
    parts = {"train": train, "validation": validation, "test": test}
    return FineTuneTask(
        network=_network().eval(),
        load=lambda places: images[torch.from_numpy(places)],
        schedule=Schedule(rates=(1e-5, 2e-3), num_epochs=8),
        **{name: (places, labels[places]) for name, places in parts.items()},
    )


def test_fine_tuning_beats_the_frozen_linear_probe_and_leaves_the_network_as_it_was(task):
    before = {name: values.clone() for name, values in task.network.state_dict().items()}
    with torch.no_grad():
        train, validation, test = (
            (task.network(task.load(places)).numpy(), labels)
            for places, labels in (task.train, task.validation, task.test)
        )
    probe = linear_predict(train, validation, test[0])
    outcome = FINE_TUNE.run(task)["fine_tune"]
    tuned = outcome.evidence.units.mean()
    assert tuned > 0.85
    assert tuned > (probe.predictions == task.test[1]).mean() + 0.1
    assert outcome.detail["rate"] == 2e-3
    assert outcome.detail["validation"] == pytest.approx(tuned, abs=0.1)
    np.testing.assert_array_equal(outcome.evidence.units, outcome.predictions == task.test[1])
    for name, values in task.network.state_dict().items():
        assert torch.equal(values, before[name]), name
    assert not task.network.training


def test_the_same_seed_gives_the_same_network_whatever_was_drawn_before(task):
    short = replace(task, schedule=Schedule(rates=(1e-3,), num_epochs=2))
    tuned = []
    for other in (3, 4):
        torch.manual_seed(other)
        tuned.append(fine_tune._fit(short, short.train, 3, 1e-3).state_dict())
        assert torch.initial_seed() == other
    for name, values in tuned[0].items():
        assert torch.equal(values, tuned[1][name]), name
    another = fine_tune._fit(replace(short, seed=1), short.train, 3, 1e-3).state_dict()
    assert any(not torch.equal(values, another[name]) for name, values in tuned[0].items())


def test_without_a_validation_part_the_middle_rate_is_taken(task):
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    short = replace(task, validation=nothing, schedule=Schedule(rates=(1e-5, 1e-4, 1e-3), num_epochs=1))
    outcome = FINE_TUNE.run(short)["fine_tune"]
    assert (outcome.detail["rate"], outcome.detail["validation"]) == (1e-4, None)


def test_shuffled_labels_are_not_learnt(task):
    draw = np.random.default_rng(0)
    shuffled = {name: (places, draw.permutation(labels)) for name, (places, labels) in
                (("train", task.train), ("validation", task.validation), ("test", task.test))}  # fmt: skip
    short = replace(task, **shuffled, schedule=Schedule(rates=(1e-3,), num_epochs=2))
    value = FINE_TUNE.run(short)["fine_tune"].evidence.units.mean()
    assert abs(value - 1 / 3) < 4.4 * math.sqrt(2 / 9 / len(task.test[1]))


def test_the_rate_warms_up_and_ends_near_zero():
    shares = [rate_share(step, 200) for step in range(200)]
    assert shares[19] == shares[20] == 1
    assert all(0 < share <= 1 for share in shares)
    assert shares[:20] == sorted(shares[:20])
    assert shares[20:] == sorted(shares[20:], reverse=True)
    assert shares[-1] < 1e-3
    assert rate_share(0, 1) == 1
