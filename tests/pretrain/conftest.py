"""A dataset and a configuration small enough to train in a second."""

from dataclasses import replace

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
def one_thread():
    # Tiny matrices gain nothing from threads, and other tests may run beside these.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        config = tiny
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            if section:
                config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
            else:
                config = replace(config, **{name: value})
        return config

    return make
