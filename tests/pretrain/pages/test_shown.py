"""What the page shows is what training gets: the same crops, patches and colours."""

import numpy as np
import pytest
import torch

from pretrain.batches.batch import BatchMaker
from pretrain.batches.sources import begin_stream, continued_stream, make_colour, open_sources
from pretrain.batches.views import cut, group_bands
from pretrain.pages.shown import Subject, first_stream, read_samples, read_tiles, whole_patches


@pytest.fixture
def subject(tiny):
    sources = open_sources(tiny)
    return Subject(config=tiny, sources=sources, colour=make_colour(sources, tiny))


def training_batch(subject, step):
    """The keys of a step's samples in training, and its batch."""
    config, sources = subject.config, subject.sources
    with continued_stream(config, sources, begin_stream(config, sources)) as stream:
        keys = [key for key, _ in stream.read(step, lambda sample, dataset: (sample.key, 0)).items]
        return keys, BatchMaker(stream, config, sources.places).make(step)[0]


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("num_samples", [1, 3, 5, 10])
def test_samples_are_those_that_training_gets(subject, step, num_samples):
    keys, batch = training_batch(subject, step)
    shown = read_samples(subject, num_samples, step)
    assert [sample.key for sample in shown] == keys[:num_samples]
    for image, sample in enumerate(shown):
        assert [(view.size, view.number) for view in sample.views] == [
            (size, number) for size in ("global", "local") for number in (0, 1)
        ]
        for view in sample.views:
            crops = (batch.global_views if view.size == "global" else batch.local_views).crops_NCHW
            crop = crops[view.number * len(keys) + image].permute(1, 2, 0).numpy()
            assert np.array_equal(view.pictures["The view"], crop)


def test_rectangles_lie_where_the_views_were_cut(subject):
    keys, batch = training_batch(subject, 0)
    tiles = read_tiles(subject, first_stream(subject, len(keys)), 0)
    assert [tile.key for tile in tiles] == keys
    for image, tile in enumerate(tiles):
        for size, number, crop in tile.crops:
            crops = (batch.global_views if size == "global" else batch.local_views).crops_NCHW
            expected = crops[number * len(keys) + image]
            view = torch.empty_like(expected)
            cut(group_bands(tile.pixels_HWC), crop, view)
            assert torch.equal(view, expected)


def test_each_side_is_painted_with_its_patches_alone(subject):
    _, batch = training_batch(subject, 0)
    views = batch.global_views
    patches = views.to_patches(torch.device("cpu"), subject.colour)
    sample = read_samples(subject, 1, 0)[0]
    student, teacher = (sample.views[1].pictures[name] for name in ("Student", "Teacher"))
    row = 10  # global 1 of the first of 10 images
    for picture, values, indices in (
        (student, patches.student_NPD[row], patches.student_indices_NP[row]),
        (teacher, patches.teacher_NPD[row], patches.teacher_indices_NP[row]),
    ):
        opaque = picture[::8, ::8, 3].ravel() == 255
        assert np.flatnonzero(opaque).tolist() == indices.tolist()
        place = int(indices[2])
        y, x = (8 * each for each in divmod(place, 4))
        mean, std = torch.tensor(subject.colour.mean), torch.tensor(subject.colour.std)
        shares = values[2].reshape(3, 8, 8) * std[:, None, None] + mean[:, None, None]
        expected = (shares.permute(1, 2, 0) * 255).round().clamp(0, 255).numpy()
        assert np.abs(picture[y : y + 8, x : x + 8, :3] - expected).max() <= 1
    sets = sample.views[1].pictures["Who gets which patches"]
    assert (sets[..., 3] == 255).all()
    assert (sample.views[2].pictures["Who gets which patches"][..., 3] == 0).any()
    assert "To be predicted, beside what the student sees" not in sample.views[2].pictures


def test_whole_patches_are_the_view_in_its_own_colours(subject):
    _, batch = training_batch(subject, 0)
    whole = whole_patches(batch.global_views, subject.colour)
    assert whole.shape == (20, 16, 192)
    mean, std = torch.tensor(subject.colour.mean), torch.tensor(subject.colour.std)
    back = whole[7, 5].reshape(3, 8, 8) * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(back * 255, batch.global_views.crops_NCHW[7, :, 8:16, 8:16].float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "bands"), [("uint16", ("b4", "b3", "b2", "b8")), ("uint8", ("vv",))])
def test_other_bands_and_types_have_pictures(variant, write_dataset, tmp_path, dtype, bands):
    url = write_dataset(str(tmp_path / "data"), dtype=dtype, bands=bands, encoding="npy")
    config = variant(data=url)
    sources = open_sources(config)
    subject = Subject(config=config, sources=sources, colour=make_colour(sources, config))
    sample = read_samples(subject, 1, 0)[0]
    assert sample.tile.shape == (32, 32, 3)
    assert sample.tile.min() < 20
    assert sample.tile.max() > 235
    assert all("hue" not in told and "saturation" not in told for view in sample.views for told in view.colours)
