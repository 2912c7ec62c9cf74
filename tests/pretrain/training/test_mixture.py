"""A run of several datasets: its weights may change from start to start, and stay where none are given."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config import Config, MixConfig
from pretrain.pages.display import open_subject
from pretrain.pages.show import ShowConfig
from pretrain.runs.checkpoint import read_checkpoint
from pretrain.runs.publish import ExportConfig, publish
from pretrain.runs.record import last_weights
from pretrain.training.loop import train
from pretrain.training.trainer import Trainer
from shards.cli import parse_config


@pytest.fixture
def mixed(tiny, tmp_path, write_dataset):
    """Of 24 and 6 samples."""
    other = write_dataset(str(tmp_path / "other"), num_samples=6, seed=3)
    return replace(tiny, mix=(MixConfig(data=other),))


def weighted(config, *weights):
    mix = (replace(config.mix[0], weight=weights[1]),)
    return replace(config, weight=weights[0], mix=mix)


def mixture(outcome):
    return read_checkpoint(outcome.checkpoint_url).stream["mixture"]


def test_a_mixture_trains_and_its_weights_may_change(mixed):
    first = train(replace(mixed, max_steps=3))
    assert mixture(first)["weights"] == [4, 1]
    assert last_weights(mixed.run) is None
    last = train(weighted(mixed, 1, 1))
    assert mixture(last) == {"weights": [1, 1], "start": 30, "taken": [24, 6]}
    # What the network is used to does not change with the weights.
    means = [json.loads(Path(outcome.export_url, "model.json").read_text())["mean"] for outcome in (first, last)]
    assert means[0] == means[1]


def test_a_run_keeps_its_weights_where_none_are_given(mixed, monkeypatch):
    def crash(*arguments):
        raise ConnectionError("the node is gone")

    config = weighted(mixed, 1.0, 3.0)
    # Not undone as a whole: the number of threads is patched, too.
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", crash)
        with pytest.raises(ConnectionError):
            train(config)
    for max_steps in (2, 4):  # without a checkpoint, and from one
        assert mixture(train(replace(mixed, max_steps=max_steps))) == {"weights": [1, 3], "start": 0, "taken": [0, 0]}
    written = parse_config("pretrain", "", Config, ["--config", f"{mixed.run}/config.yaml"])
    assert written == replace(config, max_steps=4)
    assert open_subject(ShowConfig(**{**vars(mixed), "out": "page.html"})).sources.weights == (1, 3)


def test_a_card_tells_what_an_export_has_seen_whatever_the_weights_are_by_now(mixed, tmp_path):
    train(replace(weighted(mixed, 3, 1), max_steps=2))
    train(replace(weighted(mixed, 1, 0), max_steps=4))
    cards = []
    for step in (2, 4):
        publish(ExportConfig(run=mixed.run, out=str(tmp_path / str(step)), step=step))
        cards.append((tmp_path / str(step) / "README.md").read_text())
    first, last = cards
    # Of 20 samples 5, of 40 as many.
    assert " | 1 | 0.75 |" in first
    assert " | 1 | 0.25 |" in first
    assert " | 1 | 0.875 |" in last
    assert " | 1 | 0.125 |" in last
    assert "--weight 3 " in first
    assert "weights of the datasets were changed" not in first
    assert "--weight 1 " in last
    assert "those of the command hold from sample 20 on" in last
