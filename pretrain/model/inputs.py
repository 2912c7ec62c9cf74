"""What the model is given of a step: the patches of all views of one size, sorted into their sets."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ViewPatches:
    """Patches of N = V · B views (view-major), float32, perturbed and normalised; indices int64, raster, ascending.

    Shape legend: P patches of a set (its own number for each), D = C · patch² values in the order band, row, column.
    """

    student_NPD: Tensor
    """What the student sees, in its own colours."""
    student_indices_NP: Tensor
    learnable_NPD: Tensor
    """What neither side sees and the student predicts, in the student's colours."""
    learnable_indices_NP: Tensor
    teacher_NPD: Tensor
    """What the teacher sees, in its own colours."""
    teacher_indices_NP: Tensor
