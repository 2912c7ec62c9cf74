"""The three terms of PerA and the figures that show a collapse, as pure functions; computed in float32 at least.

Shape legend: V views, B images, N = V · B rows, K prototypes, Z bottleneck, W width, X any, P patches, D values of a
patch.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_EPS = 1e-8
_CHUNK_SCORES = {"cpu": 2**21}
"""Scores that exist at a time, on a CPU as many as its caches hold."""
_CHUNK_SCORES_ELSEWHERE = 2**25
"""Elsewhere as many as keep an accelerator busy: 128 MiB in float32, of which six tensors are there at a time."""


class CrossEntropy(NamedTuple):
    """How far the student is from the teacher, and what the teacher says."""

    mean: Tensor
    """Scalar with a gradient: the mean over all rows."""
    rows_N: Tensor
    """The terms of the mean, without a gradient, likewise all below."""
    entropy: Tensor
    """Mean entropy of a row's assignment, nats; near ln K the teacher says nothing."""
    assignment_K: Tensor
    """Mean assignment; where all its weight is on few prototypes, all images look the same to the teacher."""


def prototype_cross_entropy(
    student_NZ: Tensor,
    student_KZ: Tensor,
    teacher_NZ: Tensor,
    teacher_KZ: Tensor,
    centre_K: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> CrossEntropy:
    """Return the cross-entropy of softmax((teacher - centre) / its temperature) and softmax(student / its own).

    Scores are made for a few rows at a time and their gradients at once, so that no N × K scores are ever kept: with
    131,072 prototypes they would be the largest tensors of a step by far.

    Args:
        student_NZ: normalised bottleneck features.
        student_KZ: prototypes.
        teacher_NZ: as the student's; gets no gradient, likewise the next.
        teacher_KZ: as the student's.
        centre_K: running mean of the teacher's scores.
        student_temperature: divides the student's scores.
        teacher_temperature: divides the teacher's.
    """
    factors = _as_autocast(student_NZ, student_KZ, teacher_NZ, teacher_KZ)
    with torch.autocast(student_NZ.device.type, enabled=False):
        terms = _PrototypeCrossEntropy.apply(*factors, centre_K, student_temperature, teacher_temperature)
    return CrossEntropy(*terms)


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast to what autocast would multiply in, once and not for each chunk."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


class _PrototypeCrossEntropy(torch.autograd.Function):
    """See `prototype_cross_entropy`; the backward pass scales what the forward pass has made."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NZ: Tensor,
        student_KZ: Tensor,
        teacher_NZ: Tensor,
        teacher_KZ: Tensor,
        centre_K: Tensor,
        student_temperature: float,
        teacher_temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_rows, exact = len(student_NZ), torch.promote_types(student_NZ.dtype, torch.float32)
        with_gradient = any(ctx.needs_input_grad[:2])
        gradient_NZ = torch.empty_like(student_NZ, dtype=exact) if with_gradient else None
        gradient_KZ: Tensor | None = None
        rows_N, entropy_N = student_NZ.new_empty(2, num_rows, dtype=exact)
        assignment_K = torch.zeros_like(centre_K, dtype=exact)
        for chunk in _chunks(num_rows, len(student_KZ), student_NZ.device):
            z_NK = (student_NZ[chunk] @ student_KZ.T).to(exact).div_(student_temperature)
            log_q_NK = functional.log_softmax(z_NK, dim=-1)
            log_p_NK = (teacher_NZ[chunk] @ teacher_KZ.T).to(exact).sub_(centre_K).div_(teacher_temperature)
            log_p_NK = functional.log_softmax(log_p_NK, dim=-1)
            p_NK = log_p_NK.exp()
            # Batched products of a row with a row: no N × K tensor for what is summed at once.
            rows_N[chunk] = -torch.linalg.vecdot(p_NK, log_q_NK)
            entropy_N[chunk] = -torch.linalg.vecdot(p_NK, log_p_NK)
            assignment_K += p_NK.sum(0)
            if gradient_NZ is not None:
                by_score_NK = log_q_NK.exp_().sub_(p_NK).div_(student_temperature * num_rows).to(student_NZ.dtype)
                gradient_NZ[chunk] = (by_score_NK @ student_KZ).to(exact)
                gradient_KZ = _add_product(gradient_KZ, by_score_NK.T, student_NZ[chunk], exact)
        ctx.save_for_backward(gradient_NZ, gradient_KZ)
        ctx.dtype = student_NZ.dtype
        outputs = rows_N.mean(), rows_N, entropy_N.mean(), assignment_K / num_rows
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_NZ, gradient_KZ = ctx.saved_tensors
        scale = gradients[0]
        # In place: what is kept for the prototypes is large, and a graph is gone through once.
        return gradient_NZ.mul_(scale).to(ctx.dtype), gradient_KZ.mul_(scale).to(ctx.dtype), *[None] * 5


def _chunks(num_rows: int, num_prototypes: int, device: torch.device) -> list[slice]:
    size = max(1, _CHUNK_SCORES.get(device.type, _CHUNK_SCORES_ELSEWHERE) // num_prototypes)
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def _add_product(sum_KZ: Tensor | None, left_KN: Tensor, right_NZ: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product, added in place to the sum where there is one: to fill it with zeros first costs as much."""
    if sum_KZ is None:
        return (left_KN @ right_NZ).to(dtype)
    if left_KN.dtype == dtype:
        return sum_KZ.addmm_(left_KN, right_NZ)
    return sum_KZ.add_(left_KN @ right_NZ)


def mean_scores(features_NZ: Tensor, prototypes_KZ: Tensor) -> Tensor:
    """Return the mean prototype scores [K] of features: scores are linear in them, so that none is needed."""
    # The centre moves little in a step: what autocast would round away comes again in the next.
    with torch.autocast(features_NZ.device.type, enabled=False):
        return _exact(prototypes_KZ) @ _exact(features_NZ).mean(0)


def koleo_loss(features_BX: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko spread loss of one view's features (Sablayrolles et al. 2019).

    -mean log(distance to the nearest neighbour) of L2-normalised vectors; needs two images at least.
    """
    assert len(features_BX) >= 2, "KoLeo needs a neighbour"
    x_BX = functional.normalize(_exact(features_BX), eps=_EPS)
    with torch.no_grad():
        similarity_BB = x_BX @ x_BX.T
        nearest_B = similarity_BB.fill_diagonal_(-2.0).argmax(1)
    # As an embedding: see pretrain.model.backbone.pick_positions.
    distance_B = functional.pairwise_distance(x_BX, functional.embedding(nearest_B, x_BX), eps=_EPS)
    return -(distance_B + _EPS).log().mean()


def koleo_and_gradient(features_VBX: Tensor) -> tuple[Tensor, Tensor]:
    """Return KoLeo summed over the views, and its gradient with respect to the features, both without a graph.

    A neighbour may be an image of another rank or micro-batch. So the term is computed from the features of the whole
    batch, and what comes of it for an image's features is sent back through the network where that image is.
    """
    with torch.enable_grad(), torch.autocast(features_VBX.device.type, enabled=False):
        leaf_VBX = features_VBX.detach().requires_grad_()
        loss = torch.stack([koleo_loss(view) for view in leaf_VBX]).sum()
        (gradient_VBX,) = torch.autograd.grad(loss, leaf_VBX)
    return loss.detach(), gradient_VBX


def pixel_loss(predictions_NPD: Tensor, targets_NPD: Tensor) -> Tensor:
    """Return the squared error summed over a patch's D values, mean over all patches; 0 where there are none."""
    if not targets_NPD.numel():
        return _exact(predictions_NPD).sum()
    return (_exact(predictions_NPD) - _exact(targets_NPD)).square().sum(-1).mean()


def feature_spread(features_NW: Tensor) -> Tensor:
    """Return 1 where L2-normalised features fill the sphere evenly, 0 where all images have the same one."""
    x_NW = functional.normalize(_exact(features_NW), dim=-1)
    return x_NW.std(0).mean() * math.sqrt(x_NW.shape[-1])


def feature_rank(features_NW: Tensor) -> Tensor:
    """Return the effective rank of features: between 1 and min(N, W).

    exp of the entropy of the singular values' shares (RankMe, Garrido et al. 2023).
    """
    # Of the smaller Gram matrix, which costs far less than the features' own decomposition.
    x_NW = features_NW.double()
    gram = x_NW @ x_NW.T if len(x_NW) < x_NW.shape[1] else x_NW.T @ x_NW
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    entropy: Tensor = torch.special.entr(singular / singular.sum().clamp_min(_EPS)).sum()
    return entropy.exp()


def diversity(assignment_K: Tensor) -> Tensor:
    """Return the entropy of a mean assignment, nats; near 0 all images look the same to the teacher."""
    entropy: Tensor = torch.special.entr(assignment_K).sum()
    return entropy


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
