"""Impossible recipes are refused, each with value, limit and remedy; presets are valid."""

from pathlib import Path

import pytest

import ingest
from ingest.__main__ import _DESCRIPTION
from ingest.config import IngestConfig, Recipe
from shards import cli


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tile_px": 8}, "tile_px is 8: choose a value from 16 to 4096"),
        ({"min_valid_share": 1.5}, "min_valid_share is 1.5"),
        ({"bands": ()}, "name at least one"),
        ({"bands": ("red", "red")}, "none twice"),
        ({"source_bands": (1, 2)}, "one number from 1 or name for each"),
        ({"source_bands": (0, 1, 2)}, "one number from 1 or name for each"),
        ({"source_bands": (-1, 1, 2)}, "one number from 1 or name for each"),
        ({"cloud_band": -1, "cloud_bits": (1,)}, "cloud_band is -1: give a number from 1, or a name"),
        ({"dtype": "uint16"}, "needs normalisation keep"),
        ({"low": 5.0, "high": 5.0}, "low 5.0 is not below high 5.0"),
        ({"percentiles": (98.0, 2.0)}, "not ascending"),
        ({"bands": ("a", "b"), "encoding": "jpeg"}, "choose npy or auto"),
    ],
)
def test_impossible_recipes(values, expected):
    with pytest.raises(ValueError, match=expected):
        Recipe(**values)


@pytest.mark.parametrize("preset", sorted(Path(ingest.__file__).parent.glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_presets_are_valid(preset):
    config = cli.parse_config(
        "ingest", _DESCRIPTION, IngestConfig, ["--scenes", "in", "--out", "out", "--config", str(preset)]
    )
    assert config.scenes == "in"
