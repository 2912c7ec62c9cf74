"""PerA: student and teacher see disjoint patches of the same crop and must agree on what it shows.

Shen et al., "A Contrastive Learning Foundation Model Based on Perfectly Aligned Sample Pairs for Remote Sensing
Images", arXiv 2505.19447. For each view the student gets a fifth of the patches, the exponential-moving-average teacher
three fifths, each side with its own colours; the rest is predicted from mask tokens. Per step the encoder sees about
a third of the tokens of a dense two-view method.

Shape legend: V views, B images, N = V · B in view-major order, L patches, P gathered patches, D values of a patch,
W width, Z bottleneck, K prototypes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config import Config
from pretrain.model.backbone import DropPath, SparseBackbone, pick_positions
from pretrain.model.heads import Head
from pretrain.model.inputs import ViewPatches
from pretrain.model.losses import CrossEntropy, mean_scores, pixel_loss, prototype_cross_entropy


class StudentOutput(NamedTuple):
    """What the student says of a step's views."""

    cls_features_NW: Tensor
    """Backbone features of the global views, after the final norm."""
    cls_NZ: Tensor
    """Normalised bottleneck features of all views, global ones first."""
    predictions_NPD: Tensor
    """Pixels of the learnable patches of global views; values in the order row, column, band."""


class PeraOutput(NamedTuple):
    """Losses of a batch or of a part of one, and what the step's end needs."""

    loss: Tensor
    """Scalar with a gradient: all terms but KoLeo, weighted."""
    spread_VBX: Tensor
    """What KoLeo is to spread, with a gradient; see `pretrain.model.losses.koleo_and_gradient`."""
    parts: dict[str, Tensor]
    """Float scalars without a gradient: the unweighted terms, means over the images."""
    teacher_mean_K: Tensor
    """Mean prototype scores of the teacher, for the centre."""
    assignment_K: Tensor
    """Mean assignment of the teacher."""
    student: StudentOutput
    teacher_NZ: Tensor
    """Normalised bottleneck features of the teacher."""

    def detached(self) -> "PeraOutput":
        """Return the same without a gradient, so that nothing is kept for it."""
        student = StudentOutput(*[tensor.detach() for tensor in self.student])
        return self._replace(loss=self.loss.detach(), spread_VBX=self.spread_VBX.detach(), student=student)


class Branch(nn.Module):
    """A backbone and its cls head: the student or the teacher."""

    def __init__(self, config: Config, num_bands: int) -> None:
        super().__init__()
        self.backbone = SparseBackbone(config.model, num_bands)
        head = config.head
        self.cls_head = Head(config.model.width, head.hidden, head.bottleneck, head.prototypes)

    def encode(self, patches_NPD: Tensor, indices_NP: Tensor, grid: int, drop_path: DropPath | None = None) -> Tensor:
        """Return the cls features [N, W] of [cls, gathered patches] through all blocks.

        Args:
            patches_NPD: values.
            indices_NP: their places.
            grid: patches per side of these views.
            drop_path: stochastic depth; None computes all.
        """
        backbone = self.backbone
        x_NTW = backbone.embed(patches_NPD, indices_NP, backbone.positions(grid))
        # Nobody asks for the patches' own features: the last block computes the cls token alone.
        x_N1W = backbone.run_blocks(x_NTW, range(backbone.depth), drop_path, num_asked=1)
        features_NW: Tensor = backbone.norm(x_N1W[:, 0])
        return features_NW


class PerA(nn.Module):
    """Student, teacher, heads, mask token and centre: everything that learns or is remembered."""

    centre: Tensor

    def __init__(self, config: Config, num_bands: int) -> None:
        super().__init__()
        self.config = config
        model, head = config.model, config.head
        self.student = Branch(config, num_bands)
        self.teacher = Branch(config, num_bands)
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.pixel_head = Head(model.width, head.hidden, head.bottleneck, num_bands * model.patch_px**2)
        self.register_buffer("centre", torch.zeros(head.prototypes))
        # What nothing is learnt through would only decay.
        self.student.cls_head.requires_grad_(bool(config.loss.cls))
        self.start_teacher()

    def start_teacher(self) -> None:
        """Make the teacher what the student is, heads included."""
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def forward(
        self,
        global_views: ViewPatches,
        local_views: ViewPatches | None,
        teacher_temperature: float,
        drop_path: DropPath | None = None,
    ) -> PeraOutput:
        """Return the losses of a batch or of a part of one.

        Args:
            global_views: of B images, view-major.
            local_views: of the same images; None where there are none.
            teacher_temperature: sharpens the teacher's assignments.
            drop_path: stochastic depth of the student; None computes all.
        """
        with torch.no_grad():
            # Before the student: what the teacher needs for a while is not on top of what the student keeps.
            teacher_NZ = self._run_teacher(global_views, local_views)
            teacher_KZ = self.teacher.cls_head.last_layer.weight()
            teacher_mean_K = mean_scores(teacher_NZ, teacher_KZ) if len(teacher_NZ) else self.centre
        student = self._run_student(global_views, local_views, drop_path)
        student_KZ = self.student.cls_head.last_layer.weight()
        cross_entropy = self._compare(student.cls_NZ, student_KZ, teacher_NZ, teacher_KZ, teacher_temperature)
        pixel = pixel_loss(student.predictions_NPD, _by_pixel(global_views.learnable_NPD, self.config.model.patch_px))
        return PeraOutput(
            loss=self.config.loss.cls * cross_entropy.mean + self.config.loss.pixel * pixel,
            spread_VBX=self._spread(student, student_KZ),
            parts=self._parts(cross_entropy, pixel),
            teacher_mean_K=teacher_mean_K,
            assignment_K=cross_entropy.assignment_K,
            student=student,
            teacher_NZ=teacher_NZ,
        )

    def paired(self, student_NZ: Tensor, teacher_NZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of both sides that are compared, pair-major, from those of all views."""
        if not self.config.loss.crossed:
            return student_NZ, teacher_NZ
        own, other = (list(views) for views in zip(*self.config.pairs, strict=True))
        student_VBZ = student_NZ.reshape(self.config.views.num_views, -1, student_NZ.shape[-1])
        teacher_VBZ = teacher_NZ.reshape(self.config.views.num_global, -1, teacher_NZ.shape[-1])
        return student_VBZ[own].flatten(0, 1), teacher_VBZ[other].flatten(0, 1)

    @torch.no_grad()
    def spread(self, global_views: ViewPatches, drop_path: DropPath | None = None) -> Tensor:
        """Return what `forward` would return as `spread_VBX`, without the rest and without a gradient."""
        features_NW = self.student.backbone.norm(self._run_joined(global_views, drop_path)[:, -1])
        if self.config.loss.koleo_on_head:
            return self._by_view(self.student.cls_head(features_NW))
        return self._by_view(features_NW)

    @torch.no_grad()
    def update_teacher(self, momentum: float, teacher_mean_K: Tensor) -> None:
        """Let the teacher follow the student, and the centre the teacher; once per optimiser step."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.centre.lerp_(teacher_mean_K.to(self.centre.dtype), 1 - self.config.loss.centre_momentum)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimiser moves, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _compare(
        self, student_NZ: Tensor, student_KZ: Tensor, teacher_NZ: Tensor, teacher_KZ: Tensor, temperature: float
    ) -> CrossEntropy:
        """Return the cross-entropy over all pairs of views; where there are none, zeros and an even assignment."""
        config = self.config
        if not config.pairs:
            zero = self.centre.new_zeros(())
            return CrossEntropy(zero, self.centre[:0], zero, torch.full_like(self.centre, 1 / len(self.centre)))
        student_NZ, teacher_NZ = self.paired(student_NZ, teacher_NZ)
        return prototype_cross_entropy(
            student_NZ,
            student_KZ,
            teacher_NZ,
            teacher_KZ,
            self.centre,
            student_temperature=config.loss.student_temperature,
            teacher_temperature=temperature,
        )

    def _spread(self, student: StudentOutput, student_KZ: Tensor) -> Tensor:
        features_NW = student.cls_features_NW
        if self.config.loss.koleo_on_head:
            return self._by_view(student.cls_NZ[: len(features_NW)] @ student_KZ.T)
        return self._by_view(features_NW)

    def _by_view(self, x_NX: Tensor) -> Tensor:
        return x_NX.reshape(self.config.views.num_global, -1, x_NX.shape[-1])

    def _parts(self, cross_entropy: CrossEntropy, pixel: Tensor) -> dict[str, Tensor]:
        pairs, rows_N = self.config.pairs, cross_entropy.rows_N
        num_pairs = max(1, len(pairs))
        images = len(rows_N) // num_pairs
        # Both are shares of one mean over all pairs.
        global_N, local_N = rows_N.tensor_split([images * sum(own < self.config.views.num_global for own, _ in pairs)])
        return {
            "global_cls": global_N.sum() / max(1, len(rows_N)),
            "local_cls": local_N.sum() / max(1, len(rows_N)),
            "pixel": pixel.detach(),
            "teacher_entropy": cross_entropy.entropy,
        }

    def _run_joined(self, global_views: ViewPatches, drop_path: DropPath | None) -> Tensor:
        """Return the tokens [learnable, cls] after all blocks, before the norm."""
        backbone = self.student.backbone
        seen, joining = global_views.student_indices_NP, global_views.learnable_indices_NP
        positions_LW = backbone.positions(backbone.grid)
        x_NTW = backbone.embed(global_views.student_NPD, seen, positions_LW)
        join = self.config.model.join_block
        x_NTW = backbone.run_blocks(x_NTW, range(join), drop_path)
        mask_tokens_NPW = self.mask_token + pick_positions(positions_LW, joining)
        # In front, so that what the last block is asked for comes first; attention does not care.
        x_NTW = torch.cat([mask_tokens_NPW.to(x_NTW.dtype), x_NTW], dim=1)
        return backbone.run_blocks(x_NTW, range(join, backbone.depth), drop_path, num_asked=joining.shape[1] + 1)

    def _run_student(
        self, global_views: ViewPatches, local_views: ViewPatches | None, drop_path: DropPath | None
    ) -> StudentOutput:
        x_NTW = self.student.backbone.norm(self._run_joined(global_views, drop_path))
        cls = [x_NTW[:, -1]]
        if local_views is not None:
            local_indices_NP = local_views.student_indices_NP
            cls.append(self.student.encode(local_views.student_NPD, local_indices_NP, self._local_grid, drop_path))
        return StudentOutput(
            cls_features_NW=x_NTW[:, -1],
            cls_NZ=self.student.cls_head.bottleneck(torch.cat(cls)[: None if self.config.pairs else 0]),
            predictions_NPD=self.pixel_head(x_NTW[:, :-1]),
        )

    def _run_teacher(self, global_views: ViewPatches, local_views: ViewPatches | None) -> Tensor:
        given = {"global": (global_views, self.teacher.backbone.grid), "local": (local_views, self._local_grid)}
        cls = [global_views.teacher_NPD.new_empty(0, self.config.model.width)]
        for size in self.config.teacher_sizes:
            views, grid = given[size]
            assert views is not None, f"{size} views are missing"
            cls.append(self.teacher.encode(views.teacher_NPD, views.teacher_indices_NP, grid))
        return self.teacher.cls_head.bottleneck(torch.cat(cls))

    @property
    def _local_grid(self) -> int:
        return self.config.views.local_px // self.config.model.patch_px


def _by_pixel(patches_NPD: Tensor, patch_px: int) -> Tensor:
    """Return the values of patches in the order row, column, band, from the order band, row, column."""
    num_bands = patches_NPD.shape[-1] // patch_px**2
    return patches_NPD.reshape(*patches_NPD.shape[:2], num_bands, patch_px**2).mT.flatten(-2)
