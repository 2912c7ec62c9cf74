import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pretrain.model import losses
from pretrain.model.losses import (
    diversity,
    feature_rank,
    feature_spread,
    koleo_and_gradient,
    koleo_loss,
    pixel_loss,
    prototype_cross_entropy,
)

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


def plain_cross_entropy(student_NZ, student_KZ, teacher_NZ, teacher_KZ, centre_K):
    """Return p and the terms of the plain formula."""
    p_NK = functional.softmax((teacher_NZ @ teacher_KZ.T - centre_K) / 0.05, -1)
    log_q_NK = functional.log_softmax(student_NZ @ student_KZ.T / 0.1, -1)
    return p_NK, -(p_NK * log_q_NK).sum(-1)


def draw(rows=11, prototypes=17, bottleneck=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, bottleneck), (prototypes, bottleneck), (rows, bottleneck), (prototypes, bottleneck))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for shape in shapes], torch.randn(
        prototypes, generator=generator, dtype=torch.float64
    ) / 10


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 20), prototypes=st.integers(2, 40), scores=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_cross_entropy_and_its_gradients_equal_the_plain_formula_whatever_the_chunks(rows, prototypes, scores, seed):
    inputs, centre = draw(rows, prototypes, seed=seed)
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    p_NK, rows_N = plain_cross_entropy(*inputs, centre)
    expected = torch.autograd.grad(3 * rows_N.mean(), inputs[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses._CHUNK_SCORES, "cpu", scores)
        ours = prototype_cross_entropy(*inputs, centre, **TEMPERATURES)
    torch.testing.assert_close(ours.rows_N, rows_N.detach())
    torch.testing.assert_close(ours.mean, rows_N.mean())
    torch.testing.assert_close(ours.assignment_K, p_NK.detach().mean(0))
    torch.testing.assert_close(ours.entropy, torch.special.entr(p_NK.detach()).sum(-1).mean())
    for gradient, right in zip(torch.autograd.grad(3 * ours.mean, inputs[:2]), expected, strict=True):
        torch.testing.assert_close(gradient, right)


def test_cross_entropy_in_bfloat16_is_close_and_its_gradients_have_the_types_of_what_they_are_of():
    inputs, centre = draw(rows=32, prototypes=64, bottleneck=16)
    inputs = [functional.normalize(tensor.float(), dim=-1) for tensor in inputs]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:2]]
    exact = prototype_cross_entropy(*inputs, centre.float(), **TEMPERATURES)
    with torch.autocast("cpu", torch.bfloat16):
        ours = prototype_cross_entropy(*leaves, *inputs[2:], centre.float(), **TEMPERATURES)
    ours.mean.backward()
    assert ours.mean.dtype == torch.float32
    torch.testing.assert_close(ours.mean, exact.mean, rtol=0.02, atol=0)
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32] * 2


def test_teacher_figures_at_their_extremes():
    eye, zero = torch.eye(8), torch.zeros(8)
    arguments = {"student_temperature": 0.1, "teacher_temperature": 0.01}
    flat = prototype_cross_entropy(eye, eye, torch.zeros(8, 8), eye, zero, **arguments)
    assert float(flat.entropy) == pytest.approx(math.log(8), rel=1e-5)
    # All images alike and certain: no entropy, no diversity. Each image its own prototype: full diversity.
    alike = prototype_cross_entropy(eye, eye, eye[:1].expand(8, 8), eye, zero, **arguments)
    assert float(diversity(alike.assignment_K)) == pytest.approx(0, abs=1e-6)
    apart = prototype_cross_entropy(eye, eye, eye, eye, zero, **arguments)
    assert float(apart.entropy) == pytest.approx(0, abs=1e-6)
    assert float(diversity(apart.assignment_K)) == pytest.approx(math.log(8), rel=1e-5)


def test_equal_sides_diverge_by_nothing():
    (x_NZ, w_KZ, _, _), centre = draw()
    equal = {"student_temperature": 0.1, "teacher_temperature": 0.1}
    ours = prototype_cross_entropy(x_NZ, w_KZ, x_NZ, w_KZ, 0 * centre, **equal)
    torch.testing.assert_close(ours.mean, ours.entropy)


def test_koleo_of_known_points():
    # On the unit circle at 0°, 90°, 180°: nearest neighbours are √2 apart, whatever the vectors' lengths.
    points = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    assert float(koleo_loss(points)) == pytest.approx(-math.log(math.sqrt(2)), rel=1e-5)


def test_koleo_pushes_neighbours_apart():
    points = torch.tensor([[[1.0, 0.1], [1.0, -0.1]]])
    loss, gradient = koleo_and_gradient(points)
    assert gradient[0, 0, 1] < 0 < gradient[0, 1, 1]
    assert float(loss) == pytest.approx(float(koleo_loss(points[0])))


def test_koleo_of_two_views_is_the_sum_and_has_no_graph():
    points = torch.randn(2, 6, 4, requires_grad=True)
    loss, gradient = koleo_and_gradient(points)
    (expected,) = torch.autograd.grad(koleo_loss(points[0]) + koleo_loss(points[1]), points)
    torch.testing.assert_close(gradient, expected)
    assert not loss.requires_grad
    assert not gradient.requires_grad


def test_pixel_loss_sums_over_a_patch():
    predictions, targets = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    assert float(pixel_loss(predictions, targets)) == 4


def test_feature_spread_at_its_extremes():
    assert float(feature_spread(torch.ones(50, 16))) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert float(feature_spread(torch.randn(5000, 16))) == pytest.approx(1, abs=0.02)


def test_feature_rank_counts_directions():
    assert float(feature_rank(torch.ones(50, 16))) == pytest.approx(1, abs=1e-3)
    assert float(feature_rank(torch.eye(16)[:4].repeat(5, 1))) == pytest.approx(4, rel=1e-5)
    assert float(feature_rank(torch.zeros(4, 8))) == pytest.approx(1)
