from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from eval.data.decode import labelled_chips
from eval.data.resolve import open_data
from eval.features import Work
from eval.models.exports import read_export
from eval.models.floors import floor_model
from eval.models.model import export_model
from eval.models.windows import embed_large
from eval.patches import patches_of
from shards.errors import UserError

WORK = Work(batch_size=4, workers=2)


@pytest.fixture
def masks(tmp_path: Path, write_masks):
    return write_masks(tmp_path / "d")


def test_stored_features_are_those_of_the_images_in_halves(tmp_path: Path, masks, write_export):
    data = open_data("d", str(masks), 2)
    model = export_model(read_export(str(write_export(tmp_path / "e"))), torch.device("cpu"))
    for _ in range(2):  # computed, then from the cache
        with patches_of(model, data, str(tmp_path / "out"), WORK) as table:
            assert table.index.tolist() == list(range(12))
            for number in (0, 7):
                sample, stored = data.read(number), table.samples[number]
                expected = embed_large(model, [torch.from_numpy(np.array(sample.images[0]))])[0]
                assert stored.features[0].dtype == np.float16
                np.testing.assert_allclose(stored.features[0], expected.values, rtol=2e-3, atol=2e-3)
                np.testing.assert_array_equal(stored.mask, sample.mask)
                assert (stored.cell_px, stored.manner) == (expected.cell_px, expected.manner)
            chosen = table.samples.at(np.array([5, 2]))
            np.testing.assert_array_equal(chosen[1].mask, data.read(2).mask)
            assert len(chosen) == 2


def test_pairs_have_two_grids(tmp_path: Path, write_pairs):
    data = open_data("d", str(write_pairs(tmp_path / "d")), 2)
    with patches_of(floor_model("image_stats"), data, str(tmp_path / "out"), WORK) as table:
        before, after = table.samples[3].features
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_what_is_missing_is_filled_in_and_counted(tmp_path: Path, masks, write_export):
    for number, path in enumerate(sorted((masks / "images").iterdir())):
        pixels = np.asarray(Image.open(path)).astype(np.float32)
        pixels[:, :4] = [np.nan, 90, 90] if number == 2 else 90
        size = {"width": 32, "height": 32, "count": 3}
        with (
            labelled_chips(),
            rasterio.open(path.with_suffix(".tif"), "w", driver="GTiff", dtype="float32", **size) as image,
        ):
            image.write(np.moveaxis(pixels, 2, 0))
        path.unlink()
    data = open_data("d", str(masks), 2)
    export = read_export(str(write_export(tmp_path / "e", dtype="float32", mean=[90.0] * 3, std=[60.0] * 3)))
    model = export_model(export, torch.device("cpu"))
    for _ in range(2):  # computed, then from the cache
        with patches_of(model, data, str(tmp_path / "out"), WORK) as table:
            assert (len(table.index), table.rejected, table.num_incomplete) == (12, (), 1)
            found = table.samples[2].features[0]
    with labelled_chips():
        expected = embed_large(model, [torch.from_numpy(np.nan_to_num(data.read(2).images[0], nan=90))])[0]
    np.testing.assert_allclose(found, expected.values, rtol=2e-3, atol=2e-3)


def test_images_of_several_sizes(tmp_path: Path, masks, write_export):
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(masks / "images" / "3.png")
    Image.fromarray(np.ones((70, 90), np.uint8)).save(masks / "masks" / "3.png")
    data = open_data("d", str(masks), 2)
    model = export_model(read_export(str(write_export(tmp_path / "e"))), torch.device("cpu"))
    with patches_of(model, data, str(tmp_path / "out"), WORK) as table:
        shapes = {data.ids[place]: table.samples[number].mask.shape for number, place in enumerate(table.index)}
        manners = [table.samples[number].manner for number in range(len(table.samples))]
    assert sorted(set(shapes.values())) == [(32, 32), (70, 90)]
    assert manners.count("windowed") == 1


def test_a_damaged_cache_is_named(tmp_path: Path, masks):
    data, model = open_data("d", str(masks), 2), floor_model("image_stats")
    with patches_of(model, data, str(tmp_path / "out"), WORK) as table:
        assert len(table.samples) == 12
    stored = next((tmp_path / "out" / "features").glob("*.bin"))
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(UserError, match="are damaged"), patches_of(model, data, str(tmp_path / "out"), WORK):
        pass
    redone = Work(batch_size=4, workers=2, redo=True)
    with patches_of(model, data, str(tmp_path / "out"), redone) as table:
        assert len(table.samples) == 12


def test_more_than_one_in_a_hundred_unreadable_is_an_error_that_names_three(tmp_path: Path, masks):
    data = open_data("d", str(masks), 2)
    for number in range(4):
        (masks / "images" / f"{number}.png").write_bytes(b"no image")
    with (
        pytest.raises(UserError, match=r"more than 1% of its 12 images .*0\.png.*1\.png.*2\.png") as caught,
        patches_of(floor_model("image_stats"), data, str(tmp_path / "out"), WORK),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out" / "features").iterdir())
