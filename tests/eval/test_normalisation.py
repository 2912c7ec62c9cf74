import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eval import normalisation
from eval.__main__ import parse
from eval.data.decode import labelled_chips
from eval.data.kinds import LabelledData, Sample
from eval.data.resolve import open_data
from eval.data.split import TRAIN
from eval.evaluate import evaluate
from eval.features import Work
from eval.models.exports import read_export
from eval.models.floors import floor_model
from eval.models.model import export_model
from eval.normalisation import BandFigures, Normalisation, band_figures, measure, renormalised, sums_of
from eval.prepared import prepare
from shards.errors import UserError

CPU = torch.device("cpu")


@given(st.integers(0, 10**6), st.sampled_from(["uint8", "uint16", "int16", "int32", "float32"]), st.integers(1, 4))
def test_figures_are_numpy_s_in_any_parts(seed, dtype, num_bands):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 9, (4, 2))
    images = [(draw.normal(90, 20, (*size, num_bands))).astype(dtype) for size in sizes]
    pixels = np.concatenate([image.reshape(-1, num_bands) for image in images]).astype(np.float64)
    scale = 1 if dtype == "float32" else np.iinfo(dtype).max
    figures = band_figures(sums_of(images), dtype)
    np.testing.assert_allclose(figures.mean, pixels.mean(axis=0) / scale, rtol=1e-12)
    expected = pixels.std(axis=0) / scale
    np.testing.assert_allclose(figures.std, np.where(expected == 0, 1, expected), rtol=1e-6)
    if dtype not in ("int32", "float32"):
        turned = band_figures(sums_of(images[2:]) + sums_of(images[:2]), dtype)
        assert turned == figures, "whole numbers are exact in any order"


def test_sums_of_the_largest_values_are_exact():
    image = np.full((3000, 1000, 1), 65_535, np.uint16)
    image[0, 0] = 65_534
    sums = sums_of([image, image])
    assert sums.num_values == (6_000_000,)
    assert sums.values == (65_535 * 6_000_000 - 2,)
    assert sums.squares == (65_535**2 * 5_999_998 + 2 * 65_534**2,)
    constant = band_figures(sums_of([np.full((8, 8, 2), 255, np.uint8)]), "uint8")
    assert (constant.mean, constant.std) == ((1.0, 1.0), (1.0, 1.0)), "what is constant is only shifted"


def test_both_images_of_a_pair_count(tmp_path: Path, write_pairs):
    data = open_data("d", str(write_pairs(tmp_path / "d")), 2)
    figures = measure(data, range(len(data.ids)), Work(batch_size=3, workers=2))
    images = np.stack([image for place in range(len(data.ids)) for image in data.read(place).images]) / 255
    np.testing.assert_allclose(figures.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(figures.std, images.std(axis=(0, 1, 2)), rtol=1e-9)


def test_a_model_sees_the_training_part_standardised(tmp_path: Path, write_classes, write_export):
    data, out = write_classes(tmp_path / "d", side_px=32), tmp_path / "out"
    config = parse(["--models", "x", "--data", f"d={data}", "--out", str(out), "--normalisation", "dataset"])
    (item,) = prepare(config)
    model = export_model(read_export(str(write_export(tmp_path / "e", bands=("blue", "red")))), CPU)
    seen = Normalisation(config, CPU).of(model, item)
    assert seen.normalise is not None
    train = np.stack([item.data.read(int(place)).images[0] for place in np.flatnonzero(item.split.parts == TRAIN)])
    inputs = seen.normalise(torch.from_numpy(train[..., [2, 0]]))
    torch.testing.assert_close(inputs.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert model.network is not None
    with torch.inference_mode():
        tokens = model.network.forward_features(inputs[:2])
    embedded = seen.embed(torch.from_numpy(train[:2][..., [2, 0]]))
    torch.testing.assert_close(embedded.pooled["cls"], tokens[:, 0])
    assert seen.digest != model.digest
    assert (model.mean, model.std) == ((0.4, 0.4), (0.2, 0.2)), "the model itself stays as it was"


def test_figures_are_measured_once_and_kept(tmp_path: Path, write_classes, monkeypatch: pytest.MonkeyPatch):
    config = parse(["--models", "x", "--data", f"d={write_classes(tmp_path / 'd')}", "--out", str(tmp_path / "out")])
    (item,) = prepare(config)
    first = normalisation.figures_of(item, config)
    monkeypatch.setattr(normalisation, "measure", None)
    assert normalisation.figures_of(item, config) == first
    (stored,) = (tmp_path / "out" / "features").iterdir()
    for damaged in ("?", "{}", "[1]"):
        stored.write_text(damaged)
        with pytest.raises(UserError, match=r"cached figures .* are damaged .*: remove the file"):
            normalisation.figures_of(item, config)


def test_what_is_missing_counts_for_nothing(tmp_path: Path, write_floats):
    data = open_data("d", str(write_floats(tmp_path / "d", {"dry/3.tif": np.nan, "wet/0.tif": np.inf})), 2)
    figures = measure(data, range(len(data.ids)), Work(batch_size=7, workers=2))
    with labelled_chips():
        images = np.stack([data.read(place).images[0] for place in range(len(data.ids))]).astype(np.float64)
    images[~np.isfinite(images)] = np.nan
    np.testing.assert_allclose(figures.mean, np.nanmean(images, axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(figures.std, np.nanstd(images, axis=(0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "all values of green are NaN or infinite in the training images of d: choose the other bands with"),
        (1e308, "d has training images with values too large to be measured"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_bands_that_cannot_be_measured_are_refused(value, message):
    image = np.ones((4, 4, 3))
    image[:, :, 1] = value
    data = LabelledData(
        name="d", url="d", kind="classes", classes=("dry", "wet"), ids=("a", "b"), bands=("red", "green", "blue"),
        dtype="float64", digest="", read=lambda place: Sample(images=(image,)),
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        measure(data, range(2), Work(batch_size=3, workers=2))


def _report(models, data, out, *flags):
    arguments = ["--models", *map(str, models), "--data", f"d={data}", "--out", str(out), "--protocols", "knn", *flags]
    return evaluate(parse(arguments), "", Console(file=io.StringIO()))


def test_results_of_the_two_never_mix(tmp_path: Path, write_classes, write_export):
    models, data = (
        [write_export(tmp_path / "e"), "floor:image_stats", "floor:random_init"],
        write_classes(tmp_path / "d"),
    )
    flags = ("--floors", "false")
    own = _report(models, data, tmp_path / "out", *flags)
    by_data = _report(models, data, tmp_path / "out", *flags, "--normalisation", "dataset")
    again = _report(models, data, tmp_path / "out", *flags)
    fresh = _report(models, data, tmp_path / "fresh", *flags, "--normalisation", "dataset")

    def told(report, *names):
        return {(row["model"], row["protocol"], row["features"]): [row[n] for n in names] for row in report["rows"]}

    assert told(again, "value", "low", "high", "seconds") == told(own, "value", "low", "high", "seconds")
    assert told(fresh, "value", "low", "high", "model_digest") == told(by_data, "value", "low", "high", "model_digest")
    for key, (digest, kind) in told(own, "model_digest", "normalisation").items():
        other, other_kind = told(by_data, "model_digest", "normalisation")[key]
        # A floor of fixed figures has no normalisation to change: its rows serve both.
        is_fixed = key[0] == "floor:image_stats"
        assert (kind, other_kind) == (("none", "none") if is_fixed else ("model", "dataset"))
        assert (digest == other) == is_fixed
    seconds = [
        {key: s for key, s in told(r, "seconds").items() if key[0] == "floor:image_stats"} for r in (own, by_data)
    ]
    assert seconds[0] == seconds[1], "they were not computed again"
    assert "training_mean" not in own["data"][0]
    assert len(by_data["data"][0]["training_mean"]) == 3
    assert by_data["config"]["normalisation"] == "dataset"
    assert json.dumps(by_data)


def test_floors_of_fixed_figures_are_left_alone(tmp_path: Path, write_classes, write_export):
    config = parse(["--models", "x", "--data", f"d={write_classes(tmp_path / 'd')}", "--out", str(tmp_path / "out"),
                    "--normalisation", "dataset"])  # fmt: skip
    (item,) = prepare(config)
    rule = Normalisation(config, CPU)
    for name in ("image_stats", "random_conv"):
        floor = floor_model(name)
        assert rule.of(floor, item) is floor
        assert rule.name(floor) == "none"
    assert rule.figures(item) == {}, "nothing was measured for them"


def test_bands_are_taken_by_name(write_export, tmp_path: Path):
    model = export_model(read_export(str(write_export(tmp_path / "e", bands=("nir", "red")))), CPU)
    figures = BandFigures(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    seen = renormalised(model, ("red", "green", "nir"), figures, CPU)
    assert (seen.mean, seen.std) == ((0.3, 0.1), (3.0, 1.0))
