"""The three terms of PerA and the figures that show a collapse, as pure functions; computed in float32.

Shape legend: V views, B images, K prototypes, W width, N images × views, P patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_EPS = 1e-8


@dataclass(frozen=True)
class TeacherTargets:
    """Soft assignments of the teacher and how varied they are."""

    probabilities_VBK: Tensor
    entropy: Tensor
    """Mean entropy of an image's assignment, nats; near ln K the teacher says nothing."""
    diversity: Tensor
    """Entropy of the mean assignment, nats; near 0 all images look the same to the teacher."""


def teacher_targets(logits_VBK: Tensor, centre_K: Tensor, temperature: float) -> TeacherTargets:
    """Return softmax((teacher - centre) / temperature) over the prototypes."""
    log_p_VBK = functional.log_softmax((logits_VBK.float() - centre_K.float()) / temperature, dim=-1)
    p_VBK = log_p_VBK.exp()
    mean_K = p_VBK.flatten(0, 1).mean(0)
    return TeacherTargets(
        probabilities_VBK=p_VBK,
        entropy=-(p_VBK * log_p_VBK).sum(-1).mean(),
        diversity=torch.special.entr(mean_K).sum(),
    )


def cross_entropy_by_view(logits_VBK: Tensor, probabilities_VBK: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each view pair, mean over the images: float32 [V].

    As logsumexp(z) - <p, z> with z = student / temperature: the probabilities sum to one, so that no
    log-softmax of size K needs to be kept for the backward pass.
    """
    z_VBK = logits_VBK.float() / temperature
    return (torch.logsumexp(z_VBK, -1) - (probabilities_VBK * z_VBK).sum(-1)).mean(-1)


def koleo_loss(features_BW: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko spread loss of one view's features (Sablayrolles et al. 2019).

    -mean log(distance to the nearest neighbour) of L2-normalised vectors; needs two images at least.
    """
    assert len(features_BW) >= 2, "KoLeo needs a neighbour"
    x_BW = functional.normalize(features_BW.float(), eps=_EPS)
    with torch.no_grad():
        similarity_BB = x_BW @ x_BW.T
        nearest_B = similarity_BB.fill_diagonal_(-2.0).argmax(1)
    distance_B = functional.pairwise_distance(x_BW, x_BW[nearest_B], eps=_EPS)
    return -(distance_B + _EPS).log().mean()


def pixel_loss(predictions_NPD: Tensor, targets_NPD: Tensor) -> Tensor:
    """Return the squared error summed over a patch's D values, mean over all patches."""
    return (predictions_NPD.float() - targets_NPD.float()).square().sum(-1).mean()


def feature_spread(features_NW: Tensor) -> Tensor:
    """Return 1 where L2-normalised features fill the sphere evenly, 0 where all images have the same one."""
    x_NW = functional.normalize(features_NW.float(), dim=-1)
    return x_NW.std(0).mean() * math.sqrt(x_NW.shape[-1])
