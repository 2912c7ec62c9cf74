from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from eval.data.decode import labelled_chips
from eval.data.resolve import open_data
from eval.features import Variant, Work, check_compatible, extract, features_of
from eval.models.exports import read_export
from eval.models.floors import floor_model
from eval.models.model import export_model
from eval.models.windows import resized
from shards.errors import UserError


def _extract(model, data, batch_size=16):
    return extract(model, data, range(len(data.ids)), Work(batch_size=batch_size, workers=2))


def test_image_stats_are_numpy_s(tmp_path: Path, write_classes):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    table = _extract(floor_model("image_stats"), data)
    images = np.stack([np.asarray(Image.open(tmp_path / "d" / path)) for path in data.ids]) / 255
    expected = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(table.values["stats"], expected, atol=1e-5)
    np.testing.assert_array_equal(table.index, np.arange(60))


@pytest.mark.parametrize("name", ["image_stats", "random_conv"])
def test_floors_take_images_of_several_sizes_in_any_batches(tmp_path: Path, write_classes, name):
    root = write_classes(tmp_path / "d")
    Image.fromarray(np.full((40, 30, 3), 9, np.uint8)).save(root / "class_1" / "image_3.png")
    data = open_data("d", str(root), 2)
    tables = [_extract(floor_model(name), data, batch_size) for batch_size in (1, 7, 64)]
    for kind, values in tables[0].values.items():
        for table in tables[1:]:
            np.testing.assert_allclose(table.values[kind], values, atol=1e-5)


def test_features_are_cached_by_what_they_depend_on(tmp_path: Path, write_classes, write_export):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    model = export_model(read_export(str(write_export(tmp_path / "e"))), torch.device("cpu"))
    done: list[int] = []

    def compute(redo=False):
        work = Work(batch_size=16, workers=2, redo=redo, advance=done.append)
        return features_of(model, data, str(tmp_path / "out"), work)

    first = compute()
    assert done == [16, 16, 16, 12]
    second = compute()
    assert done[4:] == [60]
    assert compute(redo=True).cost != first.cost
    assert list(second.values) == ["cls", "patch_mean", "cls+mean"]
    for kind, values in first.values.items():
        np.testing.assert_array_equal(second.values[kind], values)
    assert first.values["cls+mean"].shape == (60, 64)
    assert first.cost.memory_bytes > 1 << 20
    next((tmp_path / "out" / "features").iterdir()).write_bytes(b"damaged")
    with pytest.raises(UserError, match="are damaged"):
        compute()


def test_a_corrupt_image_is_listed_and_many_are_an_error(tmp_path: Path, write_classes):
    root = write_classes(tmp_path / "d", num_images=50)
    (root / "class_2" / "image_7.png").write_bytes(b"no image")
    data = open_data("d", str(root), 2)
    table = _extract(floor_model("image_stats"), data)
    assert [path for path, _ in table.rejected] == ["class_2/image_7.png"]
    assert len(table.index) == 149
    assert data.ids.index("class_2/image_7.png") not in table.index
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(root / "class_0" / "image_0.png", "JPEG")
    (root / "class_0" / "image_1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"more than 1% of its 150 images .* class_0/image_1\.png"):
        _extract(floor_model("image_stats"), open_data("d", str(root), 2))


def test_what_is_missing_is_zero_for_a_network_and_the_mean_for_a_floor(tmp_path: Path, write_floats, write_export):
    lacking = {"dry/3.tif": np.nan, "wet/7.tif": -np.inf}
    data = open_data("d", str(write_floats(tmp_path / "d", lacking)), 2)
    export = read_export(str(write_export(tmp_path / "e", bands=("green", "red"), dtype="float32", mean=[-9.0, -8.0])))
    model, work, out = export_model(export, torch.device("cpu")), Work(batch_size=16, workers=2), str(tmp_path / "out")
    place = data.ids.index("wet/7.tif")
    with labelled_chips():
        image = np.array(data.read(place).images[0])
    assert not np.isfinite(image[5, 6, 1])
    for _ in range(2):  # computed, then from the cache
        table = features_of(model, data, out, work)
        assert (table.num_incomplete, table.rejected, len(table.index)) == (2, (), 120)
    image[5, 6, 1] = -9
    shown = resized(torch.from_numpy(image[:, :, [1, 0]]), (32, 32))
    np.testing.assert_allclose(table.values["cls"][place], model.embed(shown[None]).pooled["cls"][0], atol=1e-5)
    image[5, 6, 1] = np.nan
    stats = _extract(floor_model("image_stats"), data).values["stats"][place]
    np.testing.assert_allclose(stats[:3], np.nanmean(image, axis=(0, 1)), rtol=1e-5)
    assert np.isfinite(_extract(floor_model("random_conv"), data).values["responses"]).all()


def test_an_image_without_any_value_is_unreadable(tmp_path: Path, write_floats):
    root = write_floats(tmp_path / "d", {"dry/3.tif": np.nan})
    with labelled_chips(), rasterio.open(root / "wet" / "9.tif", "r+") as image:
        image.write(np.full((3, 24, 20), np.nan, np.float32))
    table = _extract(floor_model("image_stats"), open_data("d", str(root), 2))
    assert table.rejected == (("wet/9.tif", "all of its values are NaN or infinite"),)
    assert (table.num_incomplete, len(table.index)) == (1, 119)


def test_features_that_are_not_finite_are_the_model_s_fault(tmp_path: Path, write_floats, write_export):
    data = open_data("d", str(write_floats(tmp_path / "d", {"dry/3.tif": np.nan})), 2)
    model = export_model(read_export(str(write_export(tmp_path / "e", dtype="float32"))), torch.device("cpu"))
    torch.nn.init.constant_(model.network.norm.weight, float("nan"))
    with pytest.raises(UserError, match="e step 100 gives cls features that are not finite: its weights are unusable"):
        _extract(model, data)


def test_bands_and_types_that_do_not_fit_are_refused(tmp_path: Path, write_classes, write_export):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    four = read_export(str(write_export(tmp_path / "e", bands=("red", "green", "blue", "nir"))))
    with pytest.raises(UserError, match="d has no nir"):
        check_compatible(export_model(four, torch.device("cpu")), data)
    wide = read_export(str(write_export(tmp_path / "f", dtype="uint16")))
    with pytest.raises(UserError, match="takes uint16 images, d is uint8"):
        check_compatible(export_model(wide, torch.device("cpu")), data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resize_is_pillow_s_bicubic(dtype):
    image = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(dtype)
    small = resized(torch.from_numpy(image), (24, 24)).numpy()
    expected = np.asarray(Image.fromarray(image.astype(np.uint8)).resize((24, 24), Image.Resampling.BICUBIC))
    assert small.dtype == dtype
    assert np.abs(small.astype(float).clip(0, 255) - expected.astype(float)).max() <= 1


def test_a_variant_has_the_features_of_the_image_at_its_share_of_the_size(tmp_path: Path, write_classes):
    data = open_data("d", str(write_classes(tmp_path / "d")), 2)
    model, work, out = floor_model("random_conv"), Work(batch_size=16, workers=2), str(tmp_path / "out")
    half = features_of(model, data, out, work, Variant(places=(3, 50), share=0.5))
    images = [resized(torch.from_numpy(data.read(place).images[0].copy()), (12, 12)) for place in (3, 50)]
    expected = model.embed(torch.stack(images)).pooled["responses"]
    np.testing.assert_allclose(half.values["responses"], expected, atol=1e-5)
    assert half.index.tolist() == [3, 50]
    whole = features_of(model, data, out, work)
    assert len(whole.index) == 60, "each has a cache of its own"
