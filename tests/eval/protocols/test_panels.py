import numpy as np

from eval.data.kinds import IGNORE
from eval.protocols.panels import beside, legend, most_mixed, paint, shrink


def test_the_most_evenly_mixed_images_come_first_and_plain_ones_never():
    true = np.array([[10, 0], [9, 1], [5, 5], [0, 0], [3, 7]])
    counts = true[:, :, None] * np.array([0.5, 0.5])
    assert most_mixed((2 * counts).astype(np.int64)) == [2, 4, 1]


def test_classes_have_colours_of_their_own():
    mask = np.array([[0, 1, 8, 9, 30, IGNORE]], np.uint8)
    painted = paint(mask)
    assert painted.shape == (1, 6, 3)
    assert len(np.unique(painted[0], axis=0)) == 6
    assert painted[0, 5].tolist() == [128, 128, 128]
    assert legend(("land", "water")) == " (land black, water orange)"
    assert legend(tuple("abcdefghi")) == ""


def test_pictures_are_small_and_lie_side_by_side():
    large = np.zeros((600, 300, 3), np.uint8)
    assert shrink(large).shape == (200, 100, 3)
    assert shrink(large[:256, :256]).shape == (256, 256, 3)
    joined = beside([large[:10, :20], large[:10, :30]])
    assert joined.shape == (10, 54, 3)
    assert (joined[:, 20:24] == 255).all()
