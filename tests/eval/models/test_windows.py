from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.models.floors import floor_model
from eval.models.model import Embedded, Model
from eval.models.windows import embed_large, plan_covering, resized, window_starts
from shards.errors import UserError


def _mean_colour(side_px=32, patch_px=8, patches=True):
    """A stand-in for a backbone: each patch carries its mean colour."""

    def embed(images):
        assert images.shape[1:3] == (side_px, side_px)
        cells = images.float().unflatten(1, (-1, patch_px)).unflatten(3, (-1, patch_px)).mean(dim=(2, 4))
        return Embedded(pooled={"pooled": cells.mean(dim=(1, 2))}, patches=cells if patches else None)

    return Model(
        name="mean colour", kind="timm", digest="0", description="", image_px=side_px, bands=None, dtype=None,
        standardise=False, patch_px=patch_px, embed=embed,
    )  # fmt: skip


@given(
    num_cells=st.integers(1, 60), side_cells=st.integers(1, 20), cell_px=st.integers(1, 16),
    overlap=st.floats(0, 0.95),
)  # fmt: skip
def test_windows_cover_a_length_on_the_grid_and_end_at_its_border(num_cells, side_cells, cell_px, overlap):
    length, side = max(num_cells, side_cells) * cell_px, side_cells * cell_px
    starts = window_starts(length, side, cell_px, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - side
    assert all(start % cell_px == 0 for start in starts)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(cell_px, (1 - overlap) * side)).all()
    if overlap == 0:
        assert len(starts) == -(-length // side)


@given(
    height=st.integers(1, 900), width=st.integers(1, 900), side_cells=st.integers(1, 20),
    cell_px=st.sampled_from([8, 14, 16]), overlap=st.sampled_from([0, 0.25, 0.5]),
)  # fmt: skip
def test_a_covering_shows_all_of_an_image_in_windows_of_the_model_s_size(height, width, side_cells, cell_px, overlap):
    side = side_cells * cell_px
    covering = plan_covering((height, width), side, cell_px, overlap)
    assert covering.window == (side, side)
    for starts, padded, scaled in zip((covering.tops, covering.lefts), covering.padded, covering.scaled, strict=True):
        assert starts[-1] + side == padded
        assert 0 <= padded - scaled < cell_px
    if covering.manner == "resized":
        assert max(height, width) <= 1.5 * min(side, min(height, width))
    else:
        # Native resolution, unless the image is narrower than a window: then it grows in shape.
        scale = max(1, side / min(height, width))
        assert np.abs(np.array(covering.scaled) - scale * np.array([height, width])).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("size", "manner"),
    [
        ((224, 224), "resized"), ((64, 64), "resized"), ((336, 336), "resized"), ((337, 337), "windowed"),
        ((200, 301), "windowed"), ((100, 400), "windowed"),
    ],
)  # fmt: skip
def test_when_an_image_is_resized_and_when_it_is_cut(size, manner):
    assert plan_covering(size, 224, 16, 0.25).manner == manner


def test_a_model_whose_grid_is_unknown_sees_resized_images_and_a_floor_whole_ones():
    assert plan_covering((2000, 500), 224, None, 0.25).manner == "resized"
    assert plan_covering((2000, 500), 225, 32, 0.25).manner == "resized"
    assert plan_covering((512, 300), None, 8, 0.25).manner == "whole"
    assert plan_covering((513, 300), None, 8, 0.25).window == (256, 256)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_overlapping_windows_give_each_cell_its_own_features(overlap):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (88, 64, 3)).astype(np.uint8))
    features = embed_large(_mean_colour(), [image], overlap=overlap, batch_size=3)[0]
    assert features.manner == "windowed"
    assert features.cell_px == (8, 8)
    expected = image.float().unflatten(0, (11, 8)).unflatten(2, (8, 8)).mean(dim=(1, 3))
    torch.testing.assert_close(features.values, expected)


def test_images_of_several_sizes_go_through_together():
    draw = np.random.default_rng(0)
    sizes = [(70, 90), (32, 32), (40, 33), (16, 90), (32, 32)]
    images = [torch.from_numpy(draw.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]
    together = embed_large(_mean_colour(), images, batch_size=5)
    assert [features.manner for features in together] == ["windowed", "resized", "resized", "windowed", "resized"]
    for image, features in zip(images, together, strict=True):
        alone = embed_large(_mean_colour(), [image], batch_size=1)[0]
        torch.testing.assert_close(features.values, alone.values)
        covered = np.array(features.values.shape[:2]) * features.cell_px
        assert (covered >= np.array(image.shape[:2]) - 1e-6).all()
        # The continued border is less than a cell, the enlarged image at most half a pixel out of shape.
        assert (covered < np.array(image.shape[:2]) + np.array(features.cell_px) + 0.5).all()
        torch.testing.assert_close(features.values.mean(), image.float().mean(), rtol=0.1, atol=0)


def test_a_large_image_under_a_floor_is_cut_where_nothing_shows():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (520, 40, 3)).astype(np.uint8))
    model = floor_model("image_stats")
    cut = embed_large(model, [image.repeat(1, 7, 1)])[0]
    assert cut.manner == "windowed"
    torch.testing.assert_close(cut.values, model.embed(image.repeat(1, 7, 1)[None]).patches[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(100, 100), (64, 75)])
def test_a_cell_that_the_border_cuts_leaves_the_others_their_size(size):
    features = embed_large(floor_model("image_stats"), [torch.zeros(*size, 3, dtype=torch.uint8)])[0]
    assert features.manner == "whole"
    assert features.cell_px == (8, 8)


def test_cells_of_a_resized_image_have_the_patch_s_size_where_the_grid_is_known():
    def convnet(patch_px):
        # Ceil(100 / 32) cells, as a convnet of stride 32 gives.
        embedded = Embedded(pooled={}, patches=torch.zeros(1, 4, 4, 2))
        return replace(_mean_colour(100, patch_px), embed=lambda images: embedded)

    image = torch.zeros(50, 75, 3, dtype=torch.uint8)
    assert embed_large(convnet(32), [image])[0].cell_px == (16, 24)
    assert embed_large(convnet(None), [image])[0].cell_px == (12.5, 18.75)
    # A grid without its outermost cells, as of convolutions without padding: the patch says nothing of it.
    assert embed_large(convnet(16), [image])[0].cell_px == (12.5, 18.75)


def test_a_model_without_a_grid_is_refused():
    with pytest.raises(UserError, match="mean colour has no features on a grid of patches"):
        embed_large(_mean_colour(patches=False), [torch.zeros(32, 32, 3, dtype=torch.uint8)])


def test_integers_stay_within_their_range_when_they_are_resized():
    image = torch.tensor([[[-32768]], [[32767]]], dtype=torch.int16).repeat(8, 16, 1)
    assert resized(image, (40, 24)).dtype == torch.int16
    assert resized(image, (40, 24)).shape == (40, 24, 1)
    assert resized(image, (16, 16)) is image
