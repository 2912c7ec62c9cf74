import itertools

import pytest
import torch

from pretrain.training import peak

CPU = torch.device("cpu")


def pretend(monkeypatch, rates):
    """Let products take as long as at these rates, FLOP/s; return the sides that were asked for."""
    sides, rates = [], itertools.cycle(rates)

    def product_seconds(_, __, side):
        sides.append(side)
        return 2 * side**3 / next(rates)

    monkeypatch.setattr(peak, "product_seconds", product_seconds)
    return sides


def test_best_product_counts(monkeypatch):
    sides = pretend(monkeypatch, [1e12, 2e12, 3e12])
    assert peak.matmul_peak(CPU, torch.float32) == pytest.approx(3e12)
    assert sides[-1] == 2048


def test_slow_machine_gets_smaller_matrices(monkeypatch):
    sides = pretend(monkeypatch, [2e10])
    assert peak.matmul_peak(CPU, torch.float32) == pytest.approx(2e10)
    assert sides[-1] == 1024


def test_type_that_a_cpu_cannot_multiply_in_gets_tiny_ones(monkeypatch):
    sides = pretend(monkeypatch, [1e7])
    assert peak.matmul_peak(CPU, torch.bfloat16) == pytest.approx(1e7)
    assert sides[-1] == 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_products_are_made(dtype):
    assert 1e6 < peak.matmul_peak(CPU, dtype) < 1e15
