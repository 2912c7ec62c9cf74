import pytest

from pretrain.training.plan import make_plan


@pytest.mark.parametrize(
    ("every", "keep_every", "steps"),
    [
        ("1 epochs", "10 epochs", (39, 390)),  # of 39.125 steps
        ("5 %", "33 %", (39, 273)),
        ("100 steps", "250 steps", (100, 200)),
        ("2 epochs", "1 epochs", (78, 78)),
        ("1 epochs", None, (39, None)),
    ],
)
def test_what_is_kept_for_good_is_saved_before(variant, every, keep_every, steps):
    changes = {"checkpoint__every": every, "checkpoint__keep_every": keep_every, "loader__batch": 32}
    plan = make_plan(variant(schedule__length="20 epochs", **changes), num_samples=1252)
    assert (plan.checkpoint_steps, plan.keep_steps) == steps
