"""How OpenMP's threads wait: what is set, and that the environment's own word stays."""

import os
import subprocess
import sys

import pytest

from shards.openmp import spin_shortly

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def said(monkeypatch):
    """Return what the environment says afterwards, if it says this before."""

    def after(**environment):
        monkeypatch.setattr(os, "environ", environment)
        spin_shortly()
        return environment

    return after


def test_threads_spin_shortly(said):
    assert said() == {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def test_what_the_environment_says_stays(said):
    assert said(OMP_WAIT_POLICY="PASSIVE") == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert said(GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"


_SHOW = """
from shards.openmp import spin_shortly
spin_shortly()
import torch
torch.ones(1)
"""


def test_openmp_reads_it():
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment = clean | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", _SHOW], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP here than GNU's")
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in done.stderr
