"""Made tasks of masks and changes: a stand-in for a backbone whose patches carry the mean colour."""

import numpy as np

from eval.protocols.dense import DenseSample, DenseTask

CELL_PX, SIDE_PX = 8, 48
CLASSES = ("field", "forest", "water")
_COLOURS = np.array([[200, 180, 60], [30, 120, 40], [20, 40, 160]])


def block_mask(draw):
    """Classes in blocks of 16 pixels, [48, 48]."""
    return np.kron(draw.integers(0, len(CLASSES), (3, 3)), np.ones((16, 16))).astype(np.uint8)


def image_of(mask, draw):
    """Colour each class and add noise, uint8 [48, 48, 3]."""
    return np.clip(_COLOURS[mask] + draw.normal(0, 12, (*mask.shape, 3)), 0, 255).astype(np.uint8)


def mean_colours(image):
    """Return the mean colour of each cell, float32 [6, 6, 3]."""
    return image.reshape(6, CELL_PX, 6, CELL_PX, 3).mean(axis=(1, 3)).astype(np.float32)


def sample_of(features, mask):
    """Put features and mask together."""
    return DenseSample(features=features, cell_px=(CELL_PX, CELL_PX), manner="whole", mask=mask)


def blocks_task(seed=0, shuffled=False, num=(16, 6, 10)):
    """Make a task of coloured blocks; shuffled: masks of other images than the features'."""
    draw = np.random.default_rng(seed)
    masks = [block_mask(draw) for _ in range(sum(num))]
    images = [image_of(mask, draw) for mask in masks]
    if shuffled:
        masks = [block_mask(draw) for _ in masks]
    samples = [sample_of((mean_colours(image),), mask) for image, mask in zip(images, masks, strict=True)]
    return _task(samples, [(image,) for image in images], num, CLASSES)


def pairs_task(seed=0, shuffled=False, num=(16, 6, 10)):
    """Make a task of pairs in which about a third of the blocks, field or forest, become water."""
    draw = np.random.default_rng(seed)
    samples, images = [], []
    for _ in range(sum(num)):
        before = block_mask(draw) % 2
        changed = np.kron(draw.random((3, 3)) < 0.35, np.ones((16, 16))).astype(np.uint8)
        after = np.where(changed == 1, 2, before)
        pair = image_of(before, draw), image_of(after, draw)
        truth = np.kron(draw.random((3, 3)) < 0.35, np.ones((16, 16))).astype(np.uint8) if shuffled else changed
        samples.append(sample_of(tuple(mean_colours(image) for image in pair), truth))
        images.append(pair)
    return _task(samples, images, num, ("unchanged", "changed"))


def _task(samples, images, num, classes):
    train, validation, test = np.split(np.arange(sum(num)), np.cumsum(num)[:-1])
    return DenseTask(
        train=[samples[i] for i in train], validation=[samples[i] for i in validation],
        test=[samples[i] for i in test], classes=classes, show=lambda index: images[test[index]],
    )  # fmt: skip
