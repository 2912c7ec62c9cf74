"""What a model makes of some views: pixels it predicts, features of all patches, how both sides choose prototypes.

On the CPU and in float32, beside whatever trains. Cost: a forward pass of both sides, and one of the teacher with all
patches of the global views.

Shape legend: V views, B images, N global views · images (view-major), L patches of a global view, P learnable ones,
D = C · patch² values, W width, K prototypes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.inputs import ViewPatches
from pretrain.model.losses import prototype_cross_entropy
from pretrain.model.pera import PerA, PeraOutput


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All on the CPU."""

    predictions_NPD: Tensor
    """Of the learnable patches, normalised; values in the order band, row, column."""
    features_NLW: Tensor
    """The teacher's, of all patches of the global views in their unperturbed colours."""
    pairs: "Pairs | None"
    """None where the loss compares none."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Each of the student's views with the first of those of the teacher's that it is compared with."""

    cross_entropy_VB: Tensor
    """Nats."""
    choice_VB: Tensor
    """int64: the prototype that the teacher finds nearest."""
    place_VB: Tensor
    """int64: where it stands among those that the student finds near; 1: first."""


@torch.no_grad()
def inspect(
    model: PerA,
    global_views: ViewPatches,
    local_views: ViewPatches | None,
    whole_NLD: Tensor,
    teacher_temperature: float,
) -> Findings:
    """Return what a model makes of the views of some images.

    Args:
        model: on the CPU.
        global_views: as training makes them.
        local_views: of the same images; None where there are none.
        whole_NLD: all patches of the global views, normalised, in their unperturbed colours.
        teacher_temperature: of the step that the model stands at.
    """
    output: PeraOutput = model(global_views, local_views, teacher_temperature)
    return Findings(
        predictions_NPD=_by_band(output.student.predictions_NPD, model.config.model.patch_px),
        features_NLW=patch_features(model, whole_NLD),
        pairs=_pairs(model, output, teacher_temperature) if model.config.pairs else None,
    )


def _pairs(model: PerA, output: PeraOutput, teacher_temperature: float) -> Pairs:
    student_KZ, teacher_KZ = (side.cls_head.last_layer.weight() for side in (model.student, model.teacher))
    student_NZ, teacher_NZ = model.paired(output.student.cls_NZ, output.teacher_NZ)
    cross_entropy = prototype_cross_entropy(
        student_NZ,
        student_KZ,
        teacher_NZ,
        teacher_KZ,
        model.centre,
        student_temperature=model.config.loss.student_temperature,
        teacher_temperature=teacher_temperature,
    )
    choice, place = _choices(student_NZ @ student_KZ.T, teacher_NZ @ teacher_KZ.T - model.centre)
    views = [own for own, _ in model.config.pairs]
    first = [views.index(view) for view in range(model.config.views.num_views)]

    def by_view(rows_N: Tensor) -> Tensor:
        return rows_N.reshape(len(views), -1)[first]

    return Pairs(cross_entropy_VB=by_view(cross_entropy.rows_N), choice_VB=by_view(choice), place_VB=by_view(place))


@torch.no_grad()
def patch_features(model: PerA, whole_NLD: Tensor) -> Tensor:
    """Return the teacher's features [N, L, W] of all patches of global views, after the final norm."""
    backbone = model.teacher.backbone
    indices_NL = torch.arange(whole_NLD.shape[1]).expand(len(whole_NLD), -1)
    x_NTW = backbone.embed(whole_NLD, indices_NL, backbone.positions(backbone.grid))
    features_NLW: Tensor = backbone.norm(backbone.run_blocks(x_NTW, range(backbone.depth)))[:, 1:]
    return features_NLW


def _choices(student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's first choice, and its place among the student's, counted from 1."""
    choice_N = teacher_NK.argmax(-1)
    chosen_N1 = student_NK.gather(-1, choice_N[:, None])
    return choice_N, 1 + (student_NK > chosen_N1).sum(-1)


def _by_band(patches_NPD: Tensor, patch_px: int) -> Tensor:
    """Return the values of patches in the order band, row, column, from the order row, column, band."""
    num_bands = patches_NPD.shape[-1] // patch_px**2
    return patches_NPD.reshape(*patches_NPD.shape[:2], patch_px**2, num_bands).mT.flatten(-2)
