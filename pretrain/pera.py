"""PerA: student and teacher see disjoint patches of the same crop and must agree on what it shows.

Shen et al., "A Contrastive Learning Foundation Model Based on Perfectly Aligned Sample Pairs for Remote Sensing
Images", arXiv 2505.19447. For each view the student gets a fifth of the patches, the exponential-moving-average teacher
three fifths, each side with its own colours; the rest is predicted from mask tokens. Per step the encoder sees about
a third of the tokens of a dense two-view method.

Shape legend: V views, B images, N = V · B in view-major order, C channels, L patches, P gathered patches,
D = C · patch² values, W width, K prototypes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.backbone import DropPath, SparseBackbone, gather_patches, patchify, pick_positions
from pretrain.config import Config
from pretrain.heads import Head
from pretrain.losses import (
    TeacherTargets,
    cross_entropy_by_view,
    feature_spread,
    koleo_loss,
    pixel_loss,
    teacher_targets,
)
from pretrain.views import ViewTensors


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What the student says of a step's views."""

    cls_features_NW: Tensor
    """Backbone features of the global views, after the final norm."""
    cls_logits_VBK: Tensor
    """Prototype scores, global views first."""
    predictions_NPD: Tensor
    """Pixels of the learnable patches of global views; values in the order row, column, channel."""


@dataclass(frozen=True, kw_only=True)
class PeraOutput:
    """Losses of a step (float32 scalars) and what the step's end needs."""

    loss: Tensor
    """The total that is minimised."""
    parts: dict[str, Tensor]
    """Detached: the unweighted terms and the figures that show a collapse."""
    teacher_mean_K: Tensor
    """Mean prototype scores of the teacher, for the centre."""
    student: StudentOutput
    teacher_logits_VBK: Tensor


class Branch(nn.Module):
    """A backbone and its cls head: the student or the teacher."""

    def __init__(self, config: Config, num_bands: int) -> None:
        super().__init__()
        self.backbone = SparseBackbone(config.model, num_bands)
        head = config.head
        self.cls_head = Head(config.model.width, head.hidden, head.bottleneck, head.prototypes)


class PerA(nn.Module):
    """Student, teacher, heads, mask token and centre: everything that learns or is remembered."""

    centre: Tensor

    def __init__(self, config: Config, num_bands: int) -> None:
        super().__init__()
        self.config = config
        model, head = config.model, config.head
        self.student = Branch(config, num_bands)
        self.teacher = Branch(config, num_bands)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.pixel_head = Head(model.width, head.hidden, head.bottleneck, num_bands * model.patch_px**2)
        self.register_buffer("centre", torch.zeros(head.prototypes))

    def forward(
        self,
        global_views: ViewTensors,
        local_views: ViewTensors | None,
        teacher_temperature: float,
        drop_path: DropPath | None = None,
    ) -> PeraOutput:
        """Return the losses of one batch.

        Args:
            global_views: of B ≥ 2 images, view-major.
            local_views: of the same images; None where there are none.
            teacher_temperature: sharpens the teacher's assignments.
            drop_path: stochastic depth of the student; None computes all.
        """
        student, targets_NPD = self._run_student(global_views, local_views, drop_path)
        with torch.no_grad():
            teacher_VBK = self._run_teacher(global_views, local_views)
            targets = teacher_targets(teacher_VBK, self.centre, teacher_temperature)
        loss, parts = self._losses(student, targets_NPD, targets)
        return PeraOutput(
            loss=loss,
            parts=parts,
            teacher_mean_K=teacher_VBK.float().flatten(0, 1).mean(0),
            student=student,
            teacher_logits_VBK=teacher_VBK,
        )

    @torch.no_grad()
    def update_teacher(self, momentum: float, teacher_mean_K: Tensor) -> None:
        """Let the teacher follow the student, and the centre the teacher; once per optimiser step."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.centre.lerp_(teacher_mean_K.to(self.centre.dtype), 1 - self.config.loss.centre_momentum)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimiser moves, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _losses(
        self, student: StudentOutput, targets_NPD: Tensor, teacher: TeacherTargets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and, detached, its unweighted terms with the figures that show a collapse."""
        weights, num_global = self.config.loss, self.config.views.num_global
        cross_entropy_V = cross_entropy_by_view(
            student.cls_logits_VBK, teacher.probabilities_VBK, weights.student_temperature
        )
        # Both are shares of one mean over all pairs.
        global_cls, local_cls = (x.sum() / len(cross_entropy_V) for x in cross_entropy_V.tensor_split([num_global]))
        spread = student.cls_logits_VBK[:num_global]
        if not weights.koleo_on_head:
            spread = student.cls_features_NW.reshape(num_global, -1, self.config.model.width)
        koleo = torch.stack([koleo_loss(view) for view in spread]).sum()
        pixel = pixel_loss(student.predictions_NPD, targets_NPD)
        loss = global_cls + local_cls + weights.koleo * koleo + weights.pixel * pixel
        parts = {
            "loss": loss,
            "global_cls": global_cls,
            "local_cls": local_cls,
            "koleo": koleo,
            "pixel": pixel,
            # Kullback-Leibler: the part of the cross-entropy that the student can do something about.
            "divergence": global_cls + local_cls - teacher.entropy,
            "teacher_entropy": teacher.entropy,
            "teacher_diversity": teacher.diversity,
            "feature_spread": feature_spread(student.cls_features_NW.detach()),
        }
        return loss, {name: value.detach() for name, value in parts.items()}

    def _run_student(
        self, global_views: ViewTensors, local_views: ViewTensors | None, drop_path: DropPath | None
    ) -> tuple[StudentOutput, Tensor]:
        backbone = self.student.backbone
        patches_NLCpp = patchify(global_views.student_NCHW, self.config.model.patch_px)
        seen, joining = global_views.student_indices_NP, global_views.learnable_indices_NP
        positions_LW = backbone.positions(backbone.grid)
        x_NTW = backbone.embed(gather_patches(patches_NLCpp, seen).flatten(2), seen, positions_LW)
        half = backbone.depth // 2
        x_NTW = backbone.run_blocks(x_NTW, range(half), drop_path)
        mask_tokens_NPW = self.mask_token + pick_positions(positions_LW, joining)
        x_NTW = torch.cat([x_NTW, mask_tokens_NPW.to(x_NTW.dtype)], dim=1)
        x_NTW = backbone.norm(backbone.run_blocks(x_NTW, range(half, backbone.depth), drop_path))
        features_NW = x_NTW[:, 0]
        # The target is what the student's side of the crop looks like where neither side looked.
        targets_NPD = gather_patches(patches_NLCpp, joining).movedim(2, -1).flatten(2)
        cls = [features_NW]
        if local_views is not None:
            cls.append(self._encode(backbone, local_views.student_NCHW, local_views.student_indices_NP, drop_path))
        output = StudentOutput(
            cls_features_NW=features_NW,
            cls_logits_VBK=self._score(self.student, cls),
            predictions_NPD=self.pixel_head(x_NTW[:, 1 + seen.shape[1] :]),
        )
        return output, targets_NPD

    def _run_teacher(self, global_views: ViewTensors, local_views: ViewTensors | None) -> Tensor:
        backbone = self.teacher.backbone
        cls = [
            self._encode(backbone, views.teacher_NCHW, views.teacher_indices_NP)
            for views in (global_views, local_views)
            if views is not None
        ]
        return self._score(self.teacher, cls)

    def _encode(
        self,
        backbone: SparseBackbone,
        images_NCHW: Tensor,
        indices_NP: Tensor,
        drop_path: DropPath | None = None,
    ) -> Tensor:
        """Return the cls features [N, W] of [cls, gathered patches] through all blocks."""
        patch_px = self.config.model.patch_px
        patches_NPD = gather_patches(patchify(images_NCHW, patch_px), indices_NP).flatten(2)
        x_NTW = backbone.embed(patches_NPD, indices_NP, backbone.positions(images_NCHW.shape[-1] // patch_px))
        x_NTW = backbone.run_blocks(x_NTW, range(backbone.depth), drop_path)
        features_NW: Tensor = backbone.norm(x_NTW[:, 0])
        return features_NW

    def _score(self, branch: Branch, cls_features: list[Tensor]) -> Tensor:
        """Return prototype scores [V, B, K] of all views in one call of the head."""
        num_images = len(cls_features[0]) // self.config.views.num_global
        logits_NK: Tensor = branch.cls_head(torch.cat(cls_features))
        return logits_NK.reshape(-1, num_images, logits_NK.shape[-1])
