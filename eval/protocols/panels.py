"""Pictures of dense predictions: the image, the truth and the prediction side by side. Pure."""

import numpy as np
from numpy.typing import NDArray

from eval.data.kinds import IGNORE
from eval.protocols.dense import DenseFit, DenseSamples, DenseTask, confusion
from eval.protocols.task import Picture
from eval.statistics import Evidence, value

# Okabe and Ito's colours, told apart by people of all kinds of colour vision.
_PALETTE = (
    ("black", (0, 0, 0)), ("orange", (230, 159, 0)), ("sky blue", (86, 180, 233)), ("green", (0, 158, 115)),
    ("yellow", (240, 228, 66)), ("blue", (0, 114, 178)), ("red", (213, 94, 0)), ("pink", (204, 121, 167)),
)  # fmt: skip
_IGNORED = (128, 128, 128)
_GAP_PX, _MOST_PX = 4, 256
_NUM_PICTURES = 4


def panels(task: DenseTask, test: DenseSamples, fit: DenseFit, metric: str) -> list[Picture]:
    """Return pictures of the test images with the most mixed truth, the same ones for every model.

    Args:
        task: shows the images and names the classes.
        test: the test part as the head takes it.
        fit: the head and its counts.
        metric: the figure of each image that the caption gives.
    """
    pictures = []
    for index in most_mixed(fit.counts)[:_NUM_PICTURES]:
        sample = test[index]
        predicted = fit.predict(sample)
        counts = confusion(sample.mask, predicted, len(task.classes))[None]
        figure = value(Evidence(metric=metric, units=counts))
        images = task.show(index)
        names = ["image"] if len(images) == 1 else ["before", "after"]
        caption = f"{', '.join(names)}, truth, prediction: {metric} {100 * figure:.0f} %{legend(task.classes)}"
        parts = [*images, paint(sample.mask), paint(np.where(sample.mask == IGNORE, IGNORE, predicted))]
        pictures.append(Picture(caption=caption, pixels=beside([shrink(part) for part in parts])))
    return pictures


def most_mixed(counts: NDArray[np.int64]) -> list[int]:
    """Return the images of counts [N, K, K] that have two true classes or more, the most evenly mixed first."""
    true = counts.sum(axis=2)
    other = true.sum(axis=1) - true.max(axis=1)
    share = other / np.maximum(1, true.sum(axis=1))
    return [int(index) for index in np.argsort(-share, kind="stable") if other[index]]


def legend(classes: tuple[str, ...]) -> str:
    """Say in words which colour is which class; nothing where there are more classes than colours with a name."""
    if len(classes) > len(_PALETTE):
        return ""
    named = zip(classes, _PALETTE, strict=False)
    return f" ({', '.join(f'{name} {colour}' for name, (colour, _) in named)})"


def paint(mask: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colour a mask [H, W] for the eye, [H, W, 3]; what is ignored is grey."""
    colours = np.empty((256, 3), np.uint8)
    for label in range(256):
        base = np.array(_PALETTE[label % len(_PALETTE)][1])
        # Beyond the palette the same colours come again, each time half as bright and mixed with white.
        turn = label // len(_PALETTE)
        colours[label] = base / 2**turn + 255 * (1 - 1 / 2**turn)
    colours[IGNORE] = _IGNORED
    painted: NDArray[np.uint8] = colours[mask]
    return painted


def shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave out rows and columns of a picture [H, W, 3] until no side is above 256 pixels."""
    step = -(-max(picture.shape[:2]) // _MOST_PX)
    return picture[::step, ::step]


def beside(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Lay pictures [H, W, 3] of one height side by side on white."""
    gap = np.full((parts[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    spaced = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(spaced, axis=1)
