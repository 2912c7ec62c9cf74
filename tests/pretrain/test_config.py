from pathlib import Path

import pytest

import pretrain
from pretrain.config import Config, MixConfig
from shards.cli import parse_config

CONFIGS = Path(pretrain.__file__).parent / "configs"


def test_flags_win_over_the_preset():
    argv = [
        "--seed",
        "7",
        "--config",
        str(CONFIGS / "vit_b16.yaml"),
        "--data",
        "d",
        "--run",
        "r",
        "--model.depth",
        "4",
    ]
    config = parse_config("pretrain", "", Config, argv)
    assert (config.seed, config.model.depth, config.model.width) == (7, 4, 768)


def test_a_mixture_may_be_given_as_a_flag():
    argv = ["--data", "a", "--run", "r", "--weight", "0.5", "--mix", "[{data: b, weight: 1}, {data: c, weight: 2.5}]"]
    config = parse_config("pretrain", "", Config, argv)
    assert config.mix == (MixConfig(data="b", weight=1), MixConfig(data="c", weight=2.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader__batch": 1}, "KoLeo"),
        ({"schedule__lr": float("inf")}, r"schedule\.lr inf is not a finite number"),
        ({"loader__block_mb": float("inf")}, r"loader\.block_mb inf is not a finite number"),
        ({"views__ratio": (0.75, float("inf"))}, r"views\.ratio inf is not a finite number"),
        ({"schedule__length": "1e999 steps"}, r"schedule\.length: '1e999 steps' is beyond 1e\+15"),
        ({"checkpoint__every": "1e308 epochs"}, r"checkpoint\.every: '1e308 epochs' is beyond"),
        ({"optimiser__clip": -1.0}, r"optimiser\.clip -1"),
        ({"optimiser__betas": (1.5, 0.9)}, r"optimiser\.betas"),
        ({"optimiser__eps": -1.0}, r"optimiser\.eps"),
        ({"loss__koleo": -1.0}, r"loss\.koleo -1"),
        ({"schedule__weight_decay": (-1.0, 0.2)}, r"schedule\.weight_decay"),
        ({"colour__mean": (120.0,) * 3}, "give shares of the value range"),
        ({"checkpoint__every": "0 steps"}, r"checkpoint\.every '0 steps' is not above 0"),
        ({"bands": ("red", "red")}, "bands .* name one twice"),
        ({"views__local_px": 20}, r"views\.local_px 20"),
        ({"model__image_px": 30}, r"model\.image_px 30"),
        ({"model__heads": 3}, r"model\.heads 3"),
        ({"masks__student": 0.5}, "leave none|overlap"),
        ({"masks__teacher": 0.0}, r"masks\.teacher 0.*loss\.cls 0"),
        ({"masks__learnable": 0.5}, r"masks\.learnable"),
        ({"masks__learnable": 0.0}, r"loss\.pixel 0"),
        ({"masks__teacher": 1.0, "masks__independent": True}, r"masks\.learnable"),
        ({"model__join": 2}, r"model\.join 2 is outside 0…1"),
        ({"loss__cls": 0.0}, r"views\.num_local 0"),
        ({"loss__cls": 0.0, "loss__pixel": 0.0}, "nothing is left"),
        ({"loss__crossed": True, "views__num_global": 1}, r"views\.num_global 1"),
        ({"schedule__length": "soon"}, r"schedule\.length"),
        ({"schedule__length": "10 %"}, "share of itself"),
        ({"views__global_scale": (0.9, 0.4)}, r"views\.global_scale"),
        ({"colour__mean": (0.5,)}, "both or neither"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"precision": "float16"}, "float16"),
        ({"loader__on_bad": "skip"}, r"loader\.on_bad 'skip'"),
        ({"loader__window": 0}, r"loader\.window 0"),
        ({"loader__cache_gb": -1.0}, r"loader\.cache_gb -1"),
        ({"mix": (MixConfig(data="other", weight=2.0),)}, "1 of 2 weights are given"),
        ({"weight": 0.0, "mix": (MixConfig(data="other", weight=0.0),)}, "one of them above 0"),
        ({"weight": 1.0, "mix": (MixConfig(data="other", weight=-2.0),)}, "not ≥ 0"),
    ],
)
def test_impossible_values_are_refused_by_name(variant, change, message):
    with pytest.raises(ValueError, match=message):
        variant(**change)


def test_no_local_views_is_allowed(variant):
    assert variant(views__num_local=0).views.num_local == 0
