"""From a batch to pictures: what each side is given, what it must predict, and what a model made of it.

Pictures are made from the very tensors that go into the model, with the normalisation undone.

Shape legend: N = views · images in view-major order, L patches of a view, P patches of a set, D = C · patch² values in
the order band, row, column, C bands.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pretrain.batches.batch import ViewBatch
from pretrain.batches.colour import Colour
from pretrain.batches.views import JITTER, PLAIN, ColourDraws
from pretrain.model.inputs import ViewPatches
from pretrain.pages.pictures import Bytes, Floats, Look, hatched, place_patches, set_map, with_holes

_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
_HUE = 3
_NUM_ANY_BAND = 2
"""Brightness and contrast alone are for bands that are no colours."""


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Paint the views of one size of a batch."""

    views: ViewBatch
    patches: ViewPatches
    """What the model is given of them."""
    colour: Colour
    predictions_NPD: Tensor | None = None
    """Of the learnable patches, normalised; None where there is no model, likewise the next."""
    components_NL3: Bytes | None = None
    """Features of all patches, as colours."""

    def pictures(self, row: int, look: Look) -> dict[str, Bytes]:
        """Return the pictures of a view by caption: uint8 [H, W, 3 or 4], the sets with a pixel for each patch.

        Args:
            row: of the N.
            look: of the sample's tile.
        """
        grid, given = self._grid, self._given(row)
        sets = {name: indices.numpy() for name, (_, indices) in given.items() if name != "predicted"}
        student, (_, awaited) = self._paint(look, given["student"]), self._place(given["learnable"])
        pictures = {
            "The view": look(self._crop(row)),
            "Who gets which patches": set_map(sets, grid),
            "Student": hatched(student, awaited),
            "Teacher": self._paint(look, given["teacher"]),
        }
        if awaited.any():
            pictures["To be predicted, beside what the student sees"] = self._paint(
                look, given["student"], given["learnable"]
            )
        if "predicted" in given:
            pictures["Predicted"] = self._paint(look, given["student"], given["predicted"])
        if self.components_NL3 is not None:
            pictures["The teacher's features of all patches"] = self.components_NL3[row].reshape(grid, grid, 3)
        return pictures

    def colours(self, row: int) -> tuple[str, str]:
        """Return what was done with the student's and the teacher's colours, in words."""
        has_rgb = bool(self.colour.rgb)
        return describe(self.views.student_colours, row, has_rgb), describe(self.views.teacher_colours, row, has_rgb)

    @property
    def _grid(self) -> int:
        return int(self.views.crops_NCHW.shape[-1]) // self.views.patch_px

    def _given(self, row: int) -> dict[str, tuple[Tensor, Tensor]]:
        patches = self.patches
        given = {
            "student": (patches.student_NPD[row], patches.student_indices_NP[row]),
            "learnable": (patches.learnable_NPD[row], patches.learnable_indices_NP[row]),
            "teacher": (patches.teacher_NPD[row], patches.teacher_indices_NP[row]),
        }
        if self.predictions_NPD is not None:
            given["predicted"] = (self.predictions_NPD[row], patches.learnable_indices_NP[row])
        return given

    def _crop(self, row: int) -> Floats:
        shares: Floats = (self.views.crops_NCHW[row].permute(1, 2, 0).float() / self.colour.value_range).numpy()
        return shares

    def _place(self, *given: tuple[Tensor, Tensor]) -> tuple[Floats, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
        """Return the values of some sets as shares of the value range [H, W, C], and where they are [H, W]."""
        patches_PD = np.concatenate([values.numpy() for values, _ in given])
        indices_P = np.concatenate([indices.numpy() for _, indices in given])
        mean, std = (np.array(values, np.float32) for values in (self.colour.mean, self.colour.std))
        placed_HWC, seen_HW = place_patches(patches_PD, indices_P, self._grid, len(mean))
        return placed_HWC * std + mean, seen_HW

    def _paint(self, look: Look, *given: tuple[Tensor, Tensor]) -> Bytes:
        shares_HWC, seen_HW = self._place(*given)
        return with_holes(look(shares_HWC), seen_HW)


def describe(draws: ColourDraws, row: int, has_rgb: bool) -> str:
    """Return in words what was drawn for the colours of a view.

    Args:
        draws: of all views.
        row: of the N.
        has_rgb: whether there are colours; other bands get brightness and contrast only.
    """
    kind = int(draws.kind_N[row])
    if kind == PLAIN:
        return "as they are"
    if kind != JITTER:
        return "grey" if has_rgb else "as they are"
    amounts = draws.amount_N4[row].tolist()
    operations = [int(number) for number in draws.order_N4[row]]
    made = [number for number in operations if has_rgb or number < _NUM_ANY_BAND]
    texts = [f"{name} × {amount:.2f}" for name, amount in zip(_OPERATIONS, amounts, strict=True)]
    texts[_HUE] = f"hue {360 * amounts[_HUE]:+.0f}°"
    return ", ".join(texts[number] for number in made)
