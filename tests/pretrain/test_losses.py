import math

import pytest
import torch
from torch.nn import functional

from pretrain.losses import cross_entropy_by_view, feature_spread, koleo_loss, pixel_loss, teacher_targets


def test_cross_entropy_equals_the_plain_formula():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 17), torch.randn(3, 5, 17)
    p = teacher_targets(teacher, torch.randn(17), 0.05).probabilities_VBK
    plain = -(p * functional.log_softmax(student / 0.1, -1)).sum(-1).mean(-1)
    torch.testing.assert_close(cross_entropy_by_view(student, p, 0.1), plain)


def test_teacher_figures_at_their_extremes():
    flat = teacher_targets(torch.zeros(2, 4, 8), torch.zeros(8), 0.05)
    assert float(flat.entropy) == pytest.approx(math.log(8), rel=1e-5)
    # All images alike and certain: no entropy, no diversity. Each image its own prototype: full diversity.
    alike = teacher_targets(torch.eye(8)[:1].expand(2, 4, 8), torch.zeros(8), 0.01)
    assert float(alike.diversity) == pytest.approx(0, abs=1e-6)
    apart = teacher_targets(torch.eye(8).reshape(2, 4, 8), torch.zeros(8), 0.01)
    assert float(apart.entropy) == pytest.approx(0, abs=1e-6)
    assert float(apart.diversity) == pytest.approx(math.log(8), rel=1e-5)


def test_centre_is_subtracted_before_the_temperature():
    logits, centre = torch.randn(1, 2, 6), torch.randn(6)
    expected = functional.softmax((logits - centre) / 0.04, -1)
    torch.testing.assert_close(teacher_targets(logits, centre, 0.04).probabilities_VBK, expected)


def test_koleo_of_known_points():
    # On the unit circle at 0°, 90°, 180°: nearest neighbours are √2 apart, whatever the vectors' lengths.
    points = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    assert float(koleo_loss(points)) == pytest.approx(-math.log(math.sqrt(2)), rel=1e-5)


def test_koleo_pushes_neighbours_apart():
    points = torch.tensor([[1.0, 0.1], [1.0, -0.1]], requires_grad=True)
    koleo_loss(points).backward()
    assert points.grad[0, 1] < 0 < points.grad[1, 1]


def test_pixel_loss_sums_over_a_patch():
    predictions, targets = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    assert float(pixel_loss(predictions, targets)) == 4


def test_feature_spread_at_its_extremes():
    assert float(feature_spread(torch.ones(50, 16))) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert float(feature_spread(torch.randn(5000, 16))) == pytest.approx(1, abs=0.02)
