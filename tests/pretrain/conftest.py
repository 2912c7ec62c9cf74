"""A dataset and a configuration small enough to train in a second."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.config import (
    CheckpointConfig,
    Config,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    ScheduleConfig,
    ViewsConfig,
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # Tiny matrices gain nothing from threads, other tests may run beside these, and sums are the same everywhere.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    # What is measured for a figure of metrics costs more time than most runs here.
    monkeypatch.setattr("pretrain.training.loop.matmul_peak", lambda device, dtype: 1e11)


@pytest.fixture(scope="session")
def data_url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("data") / "dataset"))


@pytest.fixture
def tiny(tmp_path, data_url):
    return Config(
        data=data_url,
        run=str(tmp_path / "run"),
        device="cpu",
        log_every=1,
        model=ModelConfig(image_px=32, patch_px=8, width=32, depth=2, heads=2, drop_path=0.3),
        head=HeadConfig(hidden=32, bottleneck=16, prototypes=32),
        views=ViewsConfig(num_global=2, num_local=2, local_px=24),
        schedule=ScheduleConfig(length="6 steps", lr=1e-3),
        loader=LoaderConfig(batch=10),
        checkpoint=CheckpointConfig(every="2 steps", keep_last=2),
    )


@pytest.fixture
def variant(tiny):
    """A function that returns the tiny configuration with dotted keys replaced."""

    def make(**changes):
        # All at once: some are allowed together alone.
        sections, whole = {}, {}
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (sections.setdefault(section, {}) if section else whole)[name] = value
        parts = {section: replace(getattr(tiny, section), **names) for section, names in sections.items()}
        return replace(tiny, **whole, **parts)

    return make


@pytest.fixture(scope="session")
def by_number():
    """A function that takes slots and their batch and returns a digest of all tensors of each sample, by number."""

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "__dict__"):
            for item in vars(value).values():
                yield from tensors(item)

    def cut_up(slots, batch):
        digests = {slot.number: hashlib.sha256() for slot in slots}
        for tensor in tensors(batch):
            for slot, part in zip(slots, tensor.unflatten(0, (-1, len(slots))).unbind(1), strict=True):
                digests[slot.number].update(part.contiguous().numpy().tobytes())
        return {number: digest.hexdigest() for number, digest in digests.items()}

    return cut_up


@pytest.fixture(scope="session")
def wait_until_gone():
    """A function that returns when no process of a process group runs any more; who waits too long hangs the test."""

    def runs(stat, group):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(its_group) == group and state != "Z"

    def wait(group):
        while any(runs(stat, group) for stat in Path("/proc").glob("[0-9]*/stat")):
            time.sleep(0.05)

    return wait
