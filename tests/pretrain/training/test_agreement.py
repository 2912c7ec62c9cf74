from dataclasses import replace

import pytest
import torch

from pretrain.batches.sources import open_sources
from pretrain.config import MixConfig
from pretrain.training.agreement import account, difference
from shards.curation.select import select
from tests.pretrain.forked import run_ranks

CPU = torch.device("cpu")


def told(config, goes_on=False, device=CPU):
    return account(config, open_sources(config), device, goes_on=goes_on)


def test_what_differs_is_found_by_key_and_rank(variant):
    ours = told(variant())
    assert difference([ours, ours]) is None
    for changes, key in [
        ({"schedule__lr": 2e-3}, "schedule.lr"),
        ({"accumulate": 2}, "accumulate"),
        ({"log_every": 7}, "log_every"),
        ({"max_steps": 3}, "max_steps"),
        ({"checkpoint__every": "3 steps"}, "checkpoint.every"),
        ({"init_from": "elsewhere"}, "init_from"),
    ]:
        assert difference([ours, ours, told(variant(**changes))]) == (key, 2)
    assert difference([ours, told(variant(), goes_on=True)]) == ("run", 1)
    assert difference([ours, told(variant(), device=torch.device("cuda"))]) == ("device", 1)


def test_what_a_machine_has_may_differ(variant, tmp_path, write_dataset):
    copied = write_dataset(str(tmp_path / "copied"))
    other = variant(
        data=copied,
        run="/mnt/run",
        version=1,
        device="auto",
        loader__workers=3,
        loader__cache="/cache",
        loader__cache_gb=2.0,
        checkpoint__deadline_s=99.0,
    )
    assert difference([told(variant()), told(other)]) is None


def test_data_and_their_weights_are_compared(variant, tmp_path, write_dataset):
    data = write_dataset(str(tmp_path / "data"))
    one, two = (variant(data=data, weight=1, mix=(MixConfig(data=data, weight=weight),)) for weight in (1, 2))
    assert difference([told(one), told(two)]) == ("weight", 1)
    before = told(variant(data=data))
    select(data, "key > 'sample-000003'")
    assert difference([before, told(variant(data=data))]) == ("data", 1)


@pytest.mark.parametrize("changes", [{"schedule__lr": 2e-3}, pytest.param({"accumulate": 5}, marks=pytest.mark.long)])
def test_ranks_that_were_given_different_options_all_leave_and_one_tells(variant, changes):
    (codes,), errors = run_ranks([variant(), variant(**changes)])
    assert codes == [2, 2], errors
    (line,) = [line for line in errors.splitlines() if line.startswith("pretrain: error: ")]
    key = next(iter(changes)).replace("__", ".")
    assert line.startswith(f"pretrain: error: {key}: rank 1 has {next(iter(changes.values()))}, rank 0 ")


def test_a_run_that_not_all_ranks_see_is_refused_when_it_goes_on(tiny, tmp_path):
    config = replace(tiny, max_steps=2)
    unseen = replace(config, run=str(tmp_path / "elsewhere"))
    codes, errors = run_ranks([config, unseen], [config, unseen])
    assert codes == [[0, 0], [2, 2]], errors
    assert f"pretrain: error: {tiny.run}: rank 0 finds the run there, rank 1 does not: all ranks must reach" in errors
    assert "Traceback" not in errors
