"""The sample scenes: right formats, same seed same bytes, and land that colour alone does not tell apart."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ingest import landcover, sample
from shards.errors import UserError
from shards.images import decode_image
from shards.keyed import generator

seeds = st.integers(0, 2**32)
LAND = [spec for spec in sample.SCENES if spec.layout not in sample.UNUSABLE]


def write_small(out: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> sample.SampleSummary:
    monkeypatch.setattr(sample, "SCENES", tuple(dataclasses.replace(s, side_px=160) for s in sample.SCENES))
    monkeypatch.setattr(sample, "CHIPS_PER_CLASS", 2)
    return sample.write_sample(str(out), seed)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sample.SampleSummary]:
    out = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return out, write_small(out, 0, monkeypatch)


def test_summary_counts_what_is_there(small):
    out, summary = small
    assert len(list(out.glob("scenes/*.tif"))) == summary.num_scenes + summary.num_unusable == len(sample.SCENES)
    assert len(list(out.glob("chips/*/*.png"))) == summary.num_chips == 2 * len(summary.classes)
    assert sorted(path.name for path in (out / "chips").iterdir()) == list(summary.classes)
    assert not list(out.rglob("*.aux.xml"))


def test_same_seed_writes_the_same_bytes(small, tmp_path, monkeypatch):
    write_small(tmp_path, 0, monkeypatch)
    assert files(tmp_path) == files(small[0])


def test_another_seed_draws_other_land(small, tmp_path, monkeypatch):
    write_small(tmp_path, 1, monkeypatch)
    first, other = files(small[0]), files(tmp_path)
    assert first.keys() == other.keys()
    same = {name for name in first if first[name] == other[name]}
    assert same <= {"scenes/README.txt", "scenes/nairobi_empty.tif"}
    with rasterio.open(small[0] / "scenes/lima_a.tif") as a, rasterio.open(tmp_path / "scenes/lima_a.tif") as b:
        assert (a.read() != b.read()).mean() > 0.5


@pytest.mark.parametrize("spec", LAND, ids=lambda spec: spec.name)
def test_scene_carries_place_bands_and_time(small, spec):
    with rasterio.open(small[0] / f"scenes/{spec.name}.tif") as raster:
        pixels = raster.read()
        bands = {"reflectance": ("blue", "green", "red", "nir"), "alpha": ("red", "green", "blue", "alpha")}
        assert raster.descriptions == bands.get(spec.layout, ("red", "green", "blue"))
        assert tuple(interp.name for interp in raster.colorinterp) == raster.descriptions
        assert raster.dtypes[0] == ("uint16" if spec.layout == "reflectance" else "uint8")
        assert (raster.block_shapes[0] == (256, 256)) == (spec.layout != "striped")
        assert raster.crs.to_epsg() == spec.epsg
        assert raster.res == (spec.gsd_m, spec.gsd_m)
        assert (raster.bounds.left, raster.bounds.top) == spec.origin_m
        assert raster.nodata == (None if spec.layout == "alpha" else 0)
        assert raster.tags()["TIFFTAG_DATETIME"].startswith("2023:")
        valid = (raster.dataset_mask() > 0).mean()
    assert 0.5 < valid < 0.95 if spec.layout in ("swath", "alpha") else valid == 1
    assert len(np.unique(pixels)) > 60


def test_scenes_span_utm_zones_of_both_hemispheres():
    zones = {spec.epsg for spec in LAND}
    assert len(zones) >= 3
    assert {epsg // 100 for epsg in zones} == {326, 327}
    assert len({spec.name for spec in sample.SCENES}) == len(sample.SCENES)


def test_unusable_scenes_fail_each_in_its_way(small):
    scenes = small[0] / "scenes"
    with rasterio.open(scenes / "nairobi_empty.tif") as raster:
        assert not raster.dataset_mask().any()
    with rasterio.open(scenes / "nairobi_truncated.tif") as raster, pytest.raises(rasterio.errors.RasterioIOError):
        raster.read()
    with pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(scenes / "nairobi_damaged.tif")


def test_chip_is_a_small_rgb_image(small):
    for path in (small[0] / "chips").glob("*/*.png"):
        image = decode_image("png", path.read_bytes())
        assert image.shape == (landcover.CHIP_PX, landcover.CHIP_PX, 3)
        assert image.dtype == np.uint8


def test_out_that_is_a_file_is_the_users_mistake(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match="blocked"):
        sample.write_sample(str(blocked))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(landcover.CLASSES), seed=seeds, h=st.integers(1, 70), w=st.integers(1, 70))
def test_texture_is_reflectance_for_any_shape(name, seed, h, w):
    rng = generator(seed, "test")
    land = landcover.TEXTURES[name]((h, w), landcover.draw_look(1.0, False, rng), rng)
    assert land.shape == (h, w, 4)
    assert land.dtype == np.float32
    assert land.min() > -0.1
    assert land.max() < 1.2


@settings(max_examples=30, deadline=None)
@given(seed=seeds, spacing=st.floats(2, 40), jitter=st.floats(0, 1))
def test_cells_find_the_nearest_of_all_points(seed, spacing, jitter):
    x, y = landcover.axes((24, 24), 0.0, generator(seed, "axes"))
    at = landcover.cells(x, y, spacing, jitter, generator(seed, "cells"))
    points = np.stack([x - at.dx, y - at.dy], axis=-1).reshape(-1, 1, 2)
    pixels = np.stack([x, y], axis=-1).reshape(1, -1, 2)
    # Every point that is some pixel's nearest is a candidate for all the others.
    nearest = np.hypot(*np.moveaxis(points - pixels, -1, 0)).min(axis=0).reshape(x.shape)
    np.testing.assert_allclose(np.hypot(at.dx, at.dy), nearest, atol=2e-3)
    assert at.gap.min() >= 0


@given(seed=seeds, scale=st.floats(0.5, 50))
@settings(max_examples=20, deadline=None)
def test_noise_has_zero_mean_and_unit_deviation(seed, scale):
    field = landcover.noise((64, 128), scale, generator(seed, "noise"))
    assert abs(field.mean()) < 1e-3
    assert field.std() == pytest.approx(1, abs=1e-3)


def test_hillshade_lights_the_side_towards_the_sun():
    hill = -np.abs(np.arange(-8, 9, dtype=np.float32))[None].repeat(5, axis=0)
    light = landcover.hillshade(hill, 0.0, 0.2)  # sun at the right
    np.testing.assert_allclose(light[:, 10:], 1.2, atol=1e-6)
    np.testing.assert_allclose(light[:, 1:8], 0.8, atol=1e-6)


def test_display_values_follow_the_tone_curve():
    reflectance = np.linspace(-0.1, 1.0, 4001, dtype=np.float32)
    curve = 255 * (reflectance.clip(0).astype(np.float64) / 0.6) ** 0.6
    values = landcover.to_uint8(reflectance)
    assert (abs(values - curve.clip(1, 255)) <= 0.5 + 1e-4).all()
    assert (values.min(), values.max()) == (1, 255)


def knn_accuracy(features: NDArray[np.float64], labels: list[str]) -> float:
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    return float(cross_val_score(model, features, labels, cv=5).mean())


def test_colour_hints_at_the_class_and_texture_does_without_colour():
    labels = [name for name in landcover.CLASSES for _ in range(40)]
    chips = np.stack([landcover.draw_chip(name, 0, i) for name in landcover.CLASSES for i in range(40)]) / 255
    statistics = np.concatenate([chips.mean((1, 2)), chips.std((1, 2))], axis=1)
    assert 0.5 < knn_accuracy(statistics, labels) < 0.85
    grey = chips.mean(-1)
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    steps = [np.abs(np.diff(grey[:, ::s, ::s], axis=axis)) for s in (1, 2, 4) for axis in (1, 2)]
    texture = np.stack([f(step, axis=(1, 2)) for step in steps for f in (np.mean, np.std)], axis=1)
    assert knn_accuracy(texture, labels) > 0.5  # chance is 1/7


def test_the_same_sample_again_touches_no_file(tmp_path, monkeypatch):
    write_small(tmp_path, 0, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    write_small(tmp_path, 0, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    write_small(tmp_path, 1, monkeypatch)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tif")}
    assert all(before[path] != time for path, time in after.items())
