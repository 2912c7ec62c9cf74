"""Tars to index, and a place for the dataset."""

import pytest

from tests.shards.foreign_tars import write_series


@pytest.fixture
def tars(tmp_path):
    return write_series(tmp_path / "tars")


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")
