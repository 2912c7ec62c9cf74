"""The state: small, complete, and refused where it would go on with something else."""

import json

import pytest

from shards.errors import UserError
from shards.streaming.state import StreamState, begin, check, open_stream, state_at
from tests.places import places_only


@pytest.fixture
def datasets():
    return [places_only([3] * count, f"{count:064d}") for count in (50, 20)]


@pytest.fixture
def state(datasets):
    stream = open_stream(begin(datasets, seed=7, global_batch=12, weights=(2, 1)), datasets, global_batch=12)
    return state_at(stream, 5)


def test_it_survives_json_in_under_a_kilobyte(state):
    data = json.dumps(state.to_json())
    assert len(data) < 1000
    assert StreamState.from_json(json.loads(data)) == state
    assert state.to_json() == {
        "version": 1,
        "seed": 7,
        "consumed": 60,
        "order": {"lanes": 12, "block_bytes": 2 * 2**20, "window": 4},
        "mixture": {"weights": [2, 1], "start": 0, "taken": [0, 0]},
        "datasets": [{"digest": f"{count:064d}", "layout": f"layout of {count:064d}"} for count in (50, 20)],
    }


@pytest.mark.parametrize("values", [None, [], {}, {"version": 2}, {"version": "1"}])
def test_another_version_is_refused(values):
    with pytest.raises(ValueError, match=r"state of version .*, known is 1: go on with the code that made it"):
        StreamState.from_json(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("consumed", -1),
        ("consumed", "60"),
        ("order", {"lanes": 0, "block_bytes": 1, "window": 1}),
        ("order", {"lanes": 1}),
        ("mixture", {"weights": [2, 1], "start": 1, "taken": [0, 0]}),
        ("mixture", {"weights": [2], "start": 0, "taken": [0]}),
        ("datasets", []),
        ("seed", None),
    ],
)
def test_a_damaged_state_is_refused(state, name, value):
    with pytest.raises(ValueError, match="a damaged state of a stream"):
        StreamState.from_json(state.to_json() | {name: value})


def test_missing_values_are_damage(state):
    values = state.to_json()
    del values["consumed"]
    with pytest.raises(ValueError, match="damaged state of a stream: KeyError"):
        StreamState.from_json(values)


def test_other_data_are_refused_by_name(state, datasets):
    check(state, datasets)
    check(state, [*datasets, places_only([1], "new")])
    with pytest.raises(UserError, match="began with 2 datasets, 1 are given: give all in the same order"):
        check(state, datasets[:1])
    with pytest.raises(UserError, match=r"in another order: number 1 was places of 0+50, now it is places of 0+20"):
        check(state, datasets[::-1])
    datasets[1].digest = "f" * 64
    with pytest.raises(UserError, match=r"places of 0+20 version 1 is not what .* digest is f{16}…, not 0{16}…; give"):
        check(state, datasets)


def test_the_same_samples_in_other_shards_are_refused_by_name(state, datasets):
    datasets[0].layout = "another"
    with pytest.raises(UserError, match=r"places of 0+50 version 1 has the samples .* but in other shards .*: give it"):
        check(state, datasets)


def test_a_dataset_given_twice_is_refused(datasets):
    with pytest.raises(UserError, match=r"have the same content: give one of them, with a higher weight"):
        begin([*datasets, datasets[0]], seed=0, global_batch=4)


def test_a_dataset_that_a_stream_has_already_is_refused_later_too(state, datasets):
    again = places_only([3] * 50, datasets[0].digest)
    with pytest.raises(UserError, match=r"have the same content: give one of them, with a higher weight"):
        open_stream(state, [*datasets, again], global_batch=12, weights=(2, 1, 1))


def test_new_datasets_need_weights(state, datasets):
    more = [*datasets, places_only([1] * 9, "new")]
    with pytest.raises(UserError, match="1 of 3 datasets are new to the stream: give weights for all"):
        open_stream(state, more, global_batch=12)
    assert open_stream(state, more, global_batch=12, weights=(2, 1, 1)).mixture.taken == (40, 20, 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": (1,)}, "1 weights for 2 datasets: give one for each"),
        ({"weights": (1, -1)}, "not numbers ≥ 0"),
        ({"weights": (0.1234567, 1)}, "too fine"),
        ({"lanes": 0}, "lanes 0 is below 1"),
        ({"block_bytes": 0}, "block_bytes 0 is below 1"),
        ({"window": -2}, "window -2 is below 1"),
        ({"seed": 2**63}, "too large: 63 bits"),
        ({"global_batch": 0}, "global batch 0 is below 1"),
    ],
)
def test_settings_that_do_not_work_are_refused(datasets, options, told):
    with pytest.raises(UserError, match=told):
        begin(datasets, **{"seed": 0, "global_batch": 8, **options})


def test_defaults(datasets):
    state = begin(datasets, seed=0, global_batch=300)
    assert state.mixture.weights == (5, 2)
    assert state.settings.lanes == 150
    assert open_stream(state, datasets, global_batch=12).orders[0].settings.lanes == 150
