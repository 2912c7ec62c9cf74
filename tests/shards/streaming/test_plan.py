"""The plan says what the stream will do."""

from dataclasses import replace

import pyarrow as pa
import pytest

from shards.dataset import open_dataset
from shards.streaming import plan
from shards.streaming.plan import make_plan, measure_mixing
from shards.streaming.state import begin, open_stream, state_at


@pytest.fixture(scope="module")
def url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("plan") / "data"), num_samples=210, num_shards=3)


def stream_of(*datasets, batch=16, state=None, weights=None, **options):
    state = state or begin(datasets, seed=0, global_batch=batch, weights=weights, block_bytes=25_000, window=2)
    return open_stream(state, datasets, global_batch=batch, **options)


def in_a_store(dataset):
    dataset.shards = [replace(shard, local=False) for shard in dataset.shards]
    return dataset


def test_the_numbers_are_those_of_the_dataset(url):
    dataset = open_dataset(url)
    made = make_plan(stream_of(dataset))
    (told,) = made.datasets
    assert told.name == f"{url} version 1"
    assert (told.num_samples, told.num_shards, told.num_requests) == (210, 3, 0)
    assert told.num_bytes == sum(dataset.places(row)[0].size for row in range(210))
    assert told.steps_per_epoch == 210 / 16
    assert told.num_blocks >= told.num_bytes / 25_000
    assert told.num_blocks / 2 <= told.num_windows <= told.num_blocks + 2 * 17
    assert made.need.rank_bytes == 0
    assert list(made.amplification) == [1, 2, 4, 8, 16]
    assert made.amplification[1] == 1
    lines = made.lines()
    assert lines[1] == "samples                       210"
    assert lines[-1].startswith("cache                         none: all shards are on a local disk")
    assert not any("requests" in line for line in lines)


def test_data_in_a_store_need_a_cache_and_requests(url):
    dataset = in_a_store(open_dataset(url))
    made = make_plan(stream_of(dataset, world=2), node_ranks=2)
    (told,) = made.datasets
    assert told.num_blocks <= told.num_requests <= told.num_blocks + 16 + 3 * 16
    assert 0 < made.need.first_bytes <= made.need.rank_bytes <= made.need.node_bytes <= 2 * made.need.rank_bytes
    titles = [line[:30].strip() for line in made.lines()]
    assert titles[-5:] == [
        "requests per 1,000 samples",
        "read ahead",
        "before the first step",
        "cache of a rank",
        "caches of a node, 2 ranks",
    ]


def test_every_process_that_reads_looks_once_at_every_shard(url):
    stream = stream_of(in_a_store(open_dataset(url)), world=2)
    assert [make_plan(stream, num_workers=count).datasets[0].num_checks for count in (0, 1, 3)] == [12, 12, 24]
    assert "checks (HEAD) at most, once   24" in make_plan(stream, num_workers=3).lines()
    assert make_plan(stream_of(open_dataset(url))).datasets[0].num_checks == 0


def test_a_paused_dataset_does_not_count_in_the_mixing(url, tmp_path, write_dataset, monkeypatch):
    datasets = open_dataset(url), open_dataset(write_dataset(str(tmp_path / "b"), num_samples=20, seed=1))
    scenes = plan._scenes
    monkeypatch.setattr(
        plan, "_scenes", lambda data, rows: pa.nulls(len(rows)) if data is datasets[1] else scenes(data, rows)
    )
    assert measure_mixing(stream_of(*datasets, weights=(1, 1))).unit == "scenes or blocks"
    assert measure_mixing(stream_of(*datasets, weights=(1, 0))) == measure_mixing(stream_of(datasets[0]))


def test_odd_numbers_of_ranks_are_told_too(url):
    assert list(make_plan(stream_of(open_dataset(url), batch=12, world=3)).amplification) == [1, 2, 3, 4]


def test_several_datasets_have_a_column_each(url, tmp_path, write_dataset):
    other = write_dataset(str(tmp_path / "b"), num_samples=20, num_shards=1)
    datasets = open_dataset(url), in_a_store(open_dataset(other))
    made = make_plan(stream_of(*datasets, weights=(3, 1)))
    assert [each.steps_per_epoch for each in made.datasets] == [210 / 12, 20 / 4]
    assert [bool(each.num_requests) for each in made.datasets] == [False, True]
    assert made.lines()[1].split() == ["weight", "3", "1"]
    paused = make_plan(stream_of(*datasets, weights=(1, 0)))
    assert (paused.datasets[1].steps_per_epoch, paused.datasets[1].num_requests) == (float("inf"), 0)
    assert paused.need.rank_bytes == 0


def test_it_can_be_made_in_the_middle_of_a_run(url):
    stream = stream_of(in_a_store(open_dataset(url)))
    later = stream_of(*stream.datasets, state=state_at(stream, 17))
    assert make_plan(later).need.rank_bytes > 0


def scenes_like(values):
    """Return something that takes the place of `iter_columns` and yields these scenes in two tables."""

    def iter_columns(*_):
        column = pa.array(values, pa.string()).dictionary_encode()
        yield pa.table({"scene": column[:100]})
        yield pa.table({"scene": column[100:]})

    return iter_columns


def test_scenes_are_counted_in_batches(url, monkeypatch):
    stream = stream_of(open_dataset(url))
    told = measure_mixing(stream)
    assert (told.unit, told.num_distinct, told.num_uniform) == ("scenes", 16, 16)
    monkeypatch.setattr(plan, "iter_columns", scenes_like(["one"] * 210))
    assert measure_mixing(stream).num_distinct == 1
    # Even and odd rows: both kinds come in a batch of 16, whatever the order.
    monkeypatch.setattr(plan, "iter_columns", scenes_like([str(row % 2) for row in range(210)]))
    told = measure_mixing(stream)
    assert 1.8 < told.num_distinct <= 2
    assert 1.8 < told.num_uniform <= 2


def test_blocks_are_counted_where_there_are_no_scenes(url, monkeypatch):
    monkeypatch.setattr(plan, "iter_columns", scenes_like([None] * 210))
    stream = stream_of(open_dataset(url))
    told = measure_mixing(stream)
    expected = [len({int(stream.orders[0].blocks(slot.row)) for slot in stream.slots(step)}) for step in range(13)]
    assert told.unit == "blocks"
    assert told.num_distinct == pytest.approx(sum(expected) / 13, rel=0.1)
    assert 0.7 * told.num_uniform < told.num_distinct < 1.3 * told.num_uniform


def test_tiny_datasets_can_be_planned(tmp_path, write_dataset):
    dataset = in_a_store(open_dataset(write_dataset(str(tmp_path / "one"), num_samples=1, num_shards=1)))
    made = make_plan(stream_of(dataset, batch=8, world=4))
    assert made.mixing.num_distinct == 1
    assert made.need.rank_bytes >= dataset.places(0)[0].size
