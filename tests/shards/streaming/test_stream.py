"""The stream: every sample once per epoch, the same for any ranks and workers, from any place on."""

import hashlib
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import storage
from shards.curation.dedup import dedup
from shards.curation.select import select
from shards.dataset import CorruptSampleError, open_dataset
from shards.errors import UserError
from shards.streaming.mix import Mixture
from shards.streaming.order import OrderSettings, default_lanes
from shards.streaming.serve import in_turn, report_step
from shards.streaming.state import begin, open_stream, state_at
from shards.streaming.stream import Stream, _groups, make_order
from tests.places import places_only

BATCH = 16
PINNED = "7b9e5f399195973b730528caaf0c9eb2b126050a08ff0e2e0d63baa4abb7daf4"


@pytest.fixture(scope="module")
def url(tmp_path_factory, write_dataset):
    return write_dataset(str(tmp_path_factory.mktemp("stream") / "data"), num_samples=103, num_shards=5)


@pytest.fixture(scope="module")
def dataset(url):
    return open_dataset(url)


def stream_of(datasets, *, batch=BATCH, state=None, **options):
    state = state or begin(datasets, seed=3, global_batch=batch, block_bytes=20_000)
    return open_stream(state, datasets, global_batch=batch, **options)


def numbered(stream, num_steps):
    """Return (dataset, epoch, row) of each number in the stream, from the slots of a rank."""
    return {slot.number: slot[1:4] for step in range(num_steps) for slot in stream.slots(step)}


def told_by(slots, datasets):
    """Return keys and digest of slots, worked out without the code that is tested."""
    digest, keys = hashlib.sha256(), []
    for slot in slots:
        sample = datasets[slot.dataset].read(slot.row)
        digest.update(f"{slot.number} {sample.key}\n".encode())
        for extension, content in sample.members.items():
            digest.update(f"{extension} {len(content)}\n".encode() + content)
        keys.append(sample.key)
    return keys, digest.hexdigest()


@pytest.mark.parametrize(
    ("world", "workers", "batch"),
    [
        *((1, 0, 16), (1, 2, 16), (2, 1, 16), (2, 2, 16), (2, 3, 16), (4, 1, 16), (4, 2, 16), (8, 1, 16)),
        *((3, 1, 24), (3, 0, 15)),
    ],
)
def test_ranks_and_workers_change_nothing(dataset, world, workers, batch):
    whole, num_steps = stream_of([dataset], batch=batch), 9
    for rank in range(world):
        make = partial(report_step, stream_of([dataset], batch=batch, world=world, rank=rank), True)
        share = slice(rank * batch // world, (rank + 1) * batch // world)
        for report in in_turn(make, range(num_steps), workers):
            assert (report.keys, report.digest) == told_by(whole.slots(report.step)[share], [dataset])


@pytest.fixture(scope="module")
def uninterrupted(dataset):
    stream = stream_of([dataset])
    return stream, numbered(stream, 60)


@settings(max_examples=40)
@given(st.integers(0, 30), st.sampled_from([(16, 1), (16, 4), (24, 2), (10, 5), (1, 1), (120, 2)]))
def test_resumed_at_any_step_it_is_the_same_stream(dataset, uninterrupted, step, batch_world):
    batch, world = batch_world
    before, expected = uninterrupted
    state = state_at(before, step)
    for _ in range(2):
        ranks = [stream_of([dataset], batch=batch, state=state, world=world, rank=rank) for rank in range(world)]
        found = {number: place for rank in ranks for number, place in numbered(rank, 2).items()}
        assert found == {number: expected[number] for number in range(state.consumed, state.consumed + 2 * batch)}
        state = state_at(ranks[0], 2)


def test_a_step_means_the_same_in_any_order(dataset):
    stream = stream_of([dataset])
    forwards = [stream.slots(step) for step in range(80)]
    again = stream_of([dataset])
    assert [again.slots(step) for step in reversed(range(80))] == forwards[::-1]
    for stride in (2, 3, 40):
        strided = stream_of([dataset])
        assert [strided.slots(step) for step in range(1, 80, stride)] == forwards[1::stride]
    assert pickle.loads(pickle.dumps(stream)).slots(5) == forwards[5]


@pytest.mark.parametrize(
    ("num_samples", "num_shards", "batch", "world"),
    [(103, 5, 16, 4), (103, 1, 16, 2), (29, 3, 8, 8), (1, 1, 8, 2), (7, 2, 16, 4), (40, 40, 12, 3), (64, 4, 16, 1)],
)
def test_three_epochs_count_every_sample_three_times(tmp_path, write_dataset, num_samples, num_shards, batch, world):
    data = open_dataset(write_dataset(str(tmp_path / "data"), num_samples=num_samples, num_shards=num_shards))
    assert set(counts_of([data], 3, batch, world).values()) == {3}


def counts_of(datasets, epochs, batch, world):
    """Count (dataset, row) over so many epochs of all datasets together, whatever batch they end in."""
    num_samples = epochs * sum(each.num_samples for each in datasets)
    ranks = [stream_of(datasets, batch=batch, world=world, rank=rank) for rank in range(world)]
    found = {number: place for each in ranks for number, place in numbered(each, -(-num_samples // batch)).items()}
    assert len(found) == -(-num_samples // batch) * batch
    counts = Counter((data, row) for number, (data, _, row) in found.items() if number < num_samples)
    assert len(counts) == sum(each.num_samples for each in datasets)
    return counts


@settings(max_examples=20)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=5), st.sampled_from([(16, 4), (12, 3), (7, 1), (64, 8)]))
def test_ragged_shards_count_too(shards, batch_world):
    data = places_only(np.full(sum(shards), 3), "ragged")
    data.rows.run_starts_R = np.cumsum([0, *shards[:-1]])
    assert set(counts_of([data], 3, *batch_world).values()) == {3}


def test_curated_versions_work_like_any_other(tmp_path, url):
    out = str(tmp_path / "some")
    select(url, "key like '%3' or key like '%7' or key < 'sample-000020'", out)
    dedup(out, 8)
    data = open_dataset(out)
    assert 10 < data.num_samples < 60
    assert set(counts_of([data], 3, 8, 4).values()) == {3}
    stream = stream_of([data])
    assert report_step(stream, True, 2)[1:3] == tuple(told_by(stream.slots(2), [data]))


@pytest.fixture
def several():
    return [places_only(np.full(count, 3), f"data {count}") for count in (90, 33, 7)]


def test_mixed_datasets_have_epochs_of_their_own(several):
    state = begin(several, seed=3, global_batch=BATCH, weights=(3, 2, 1))
    ranks = [stream_of(several, state=state, world=2, rank=rank) for rank in range(2)]
    found = [place for each in ranks for place in numbered(each, 60).values()]
    for number, data in enumerate(several):
        rows = Counter((epoch, row) for dataset, epoch, row in found if dataset == number)
        assert set(rows.values()) == {1}
        drawn = sum(rows.values())
        assert abs(drawn - 60 * BATCH * (3 - number) / 6) <= 1
        by_epoch = Counter(epoch for epoch, _ in rows)
        assert all(by_epoch[epoch] == data.num_samples for epoch in range(drawn // data.num_samples))


def test_default_weights_end_epochs_together(several):
    assert set(counts_of(several, 1, 10, 5).values()) == {1}
    assert set(counts_of(several, 2, 10, 1).values()) == {2}


def test_weights_may_change_on_the_way(several):
    first = stream_of(several[:2], state=begin(several[:2], seed=3, global_batch=BATCH, weights=(1, 1)))
    second = stream_of(several[:2], state=state_at(first, 5), weights=(3, 1))
    third = stream_of(several, state=state_at(second, 5), batch=8, weights=(0, 1, 1))
    found = numbered(first, 5) | numbered(second, 5) | numbered(third, 10)
    assert sorted(found) == list(range(240))
    in_order = [found[number] for number in range(240)]
    for dataset, drawn in enumerate([40 + 60, 40 + 20 + 40, 40]):
        alone = numbered(Stream([several[dataset]], first.orders[0].settings, global_batch=BATCH), 7)
        expected = [alone[number][1:] for number in range(drawn)]
        assert [place[1:] for place in in_order if place[0] == dataset] == expected


def test_the_same_weights_again_change_nothing(several):
    first = stream_of(several, state=begin(several, seed=3, global_batch=10, weights=(3, 2, 2)), batch=10)
    expected = numbered(first, 20)
    again = stream_of(several, state=state_at(first, 3), batch=10, weights=(0.3, 0.2, 0.2))
    assert numbered(again, 10) == {number: expected[number] for number in range(30, 130)}
    paused = stream_of([*several, places_only([1], "new")], state=state_at(first, 3), batch=10, weights=(3, 2, 2, 0))
    assert numbered(paused, 10) == numbered(again, 10)


def test_ranks_must_divide_the_batch(dataset):
    with pytest.raises(UserError, match="global batch 16 is not divisible by 3 ranks: choose a multiple"):
        stream_of([dataset], world=3)


def damage(url, *rows):
    """Flip a byte in these rows' samples."""
    data = open_dataset(url)
    for row in rows:
        (place,) = data.places(row)
        path = Path(data.shards[place.shard].url)
        content = bytearray(path.read_bytes())
        content[place.offset + 700] ^= 1
        path.write_bytes(content)
    return open_dataset(url)


@pytest.fixture
def damaged_url(tmp_path, write_dataset):
    return write_dataset(str(tmp_path / "data"), num_samples=40, num_shards=2)


def test_a_bad_sample_stops_the_stream_by_name(damaged_url):
    data = damage(damaged_url, 11)
    steps = in_turn(partial(report_step, stream_of([data]), False), range(3), 0)
    with pytest.raises(CorruptSampleError, match=r"sample 11 \(byte \d+ of .*\.tar\) does not match its checksum"):
        list(steps)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1), (4, 0)])
def test_a_bad_sample_is_replaced_by_the_same_neighbour_everywhere(damaged_url, world, workers):
    data = damage(damaged_url, 11, 12)
    alone = stream_of([data], on_bad="replace")
    expected = [report_step(alone, True, step) for step in range(5)]
    ranks = [
        in_turn(
            partial(report_step, stream_of([data], world=world, rank=rank, on_bad="replace"), True), range(5), workers
        )
        for rank in range(world)
    ]
    for whole, *parts in zip(expected, *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == whole.keys
        assert [each for part in parts for each in part.replaced] == whole.replaced
    replaced = [each for whole in expected for each in whole.replaced]
    assert [each.row for each in replaced if each.number < 40] in ([11, 12], [12, 11])
    for each in replaced:
        assert each.replaced_by not in (11, 12)
        assert "does not match its checksum" in each.fault
        (slot,) = [slot for step in range(5) for slot in alone.slots(step) if slot.number == each.number]
        assert slot.piece.first_row <= each.replaced_by < slot.piece.end_row


@pytest.fixture
def in_a_store(damaged_url):
    """A dataset whose shards are read as those in a store are: by ranged reads of the storage."""
    dataset = open_dataset(damaged_url)
    dataset.shards = [replace(shard, local=False) for shard in dataset.shards]
    return dataset


def flipped(data):
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_byte_that_is_flipped_once_makes_no_sample_bad(in_a_store, damaged_url, monkeypatch):
    read, seen = storage.read_range, set()

    def read_range(*place):
        data = read(*place)
        return data if place in seen or seen.add(place) else flipped(data)

    monkeypatch.setattr(storage, "read_range", read_range)
    stream, before = stream_of([in_a_store], on_bad="replace"), storage.retries["checksum"]
    alone = stream_of([open_dataset(damaged_url)])
    assert [report_step(stream, True, step) for step in range(5)] == [
        report_step(alone, True, step) for step in range(5)
    ]
    assert storage.retries["checksum"] - before == len(seen) == 40


class FlippingCache:
    """Its copies of some rows are damaged whenever they are read."""

    def __init__(self, dataset, rows):
        """Take what to read of, and which rows."""
        self._dataset, self._rows = dataset, rows

    def prefetch(self, pieces, kept=()):
        """Fetch nothing."""

    def read(self, piece, row, *, refresh=False):
        """Return a row's bytes, maybe not as they are."""
        data = self._dataset.read_places(row, self._dataset.places(row))
        return list(map(flipped, data)) if row in self._rows else data


def test_no_sample_is_bad_whose_own_bytes_are_good(in_a_store, damaged_url):
    cache = FlippingCache(in_a_store, {7, 8, 30})
    stream, alone = stream_of([in_a_store], on_bad="replace", cache=cache), stream_of([open_dataset(damaged_url)])
    assert [report_step(stream, True, step) for step in range(5)] == [
        report_step(alone, True, step) for step in range(5)
    ]


@pytest.mark.parametrize("read_bytes", [1, 20_000, 2**30])
def test_how_many_are_read_before_they_are_decoded_changes_nothing(damaged_url, monkeypatch, read_bytes):
    before = [report_step(stream_of([open_dataset(damaged_url)], on_bad="replace"), True, step) for step in range(5)]
    monkeypatch.setattr("shards.streaming.stream._READ_BYTES", read_bytes)
    stream = stream_of([open_dataset(damaged_url)], on_bad="replace")
    sizes = [len(group) for group in _groups(stream._placed(stream.slots(0)))]
    assert sum(sizes) == BATCH
    assert (max(sizes) == 1) == (read_bytes == 1)
    assert [report_step(stream, True, step) for step in range(5)] == before


def test_a_decoder_may_call_a_sample_bad(dataset):
    def refuse(sample, _):
        if sample.key.endswith("7"):
            raise ValueError("no sevens")
        return sample.key

    stream = stream_of([dataset], on_bad="replace")
    steps = [stream.read(step, refuse) for step in range(7)]
    keys = [key for step in steps for key in step.items]
    assert len(keys) == 7 * BATCH
    assert not any(key.endswith("7") for key in keys)
    assert all("no sevens" in each.fault for step in steps for each in step.replaced)
    with pytest.raises(CorruptSampleError, match=r"key sample-\d+7: no sevens"):
        [stream_of([dataset]).read(step, refuse) for step in range(7)]


def test_a_block_without_a_good_sample_stops_the_stream(dataset):
    def refuse(sample, _):
        raise ValueError("no")

    with pytest.raises(CorruptSampleError, match=r"is bad, and so are all \d+ around it"):
        stream_of([dataset], on_bad="replace").read(0, refuse)


def test_a_bad_sample_that_is_a_block_of_its_own_gives_way_to_one_nearby(dataset):
    def refuse(sample, _):
        if sample.key.endswith("7"):
            raise ValueError("no sevens")
        return sample.key

    chosen = OrderSettings(seed=1, lanes=2, block_bytes=512)
    stream = Stream([dataset], chosen, global_batch=BATCH, on_bad="replace")
    replaced = [each for step in range(7) for each in stream.read(step, refuse).replaced]
    assert replaced
    assert all(0 < abs(each.replaced_by - each.row) <= 32 for each in replaced)


def test_a_block_holds_the_bytes_of_all_series():
    dataset = places_only([1] * 100, "a", per_shard=100)
    alone = make_order(dataset, OrderSettings(seed=0, lanes=1, block_bytes=10 * 512)).locate(np.arange(100))
    dataset.parts = (places_only([9] * 100, "a", per_shard=100).rows,)
    both = make_order(dataset, OrderSettings(seed=0, lanes=1, block_bytes=10 * 512)).locate(np.arange(100))
    assert (alone.end_rows - alone.first_rows).max() == 10
    assert (both.end_rows - both.first_rows).max() == 1


def test_steps_are_cut_together_as_they_are_alone(several):
    stream = stream_of(several, world=4)
    steps = [7, 0, 31]
    together = stream.cut(steps, 2, 4)
    for place, step in enumerate(steps):
        for some, alone in zip(together, stream.cut([step], 2, 4), strict=True):
            assert some[place].tolist() == alone[0].tolist()
    assert [slot.number for slot in stream_of(several, world=4, rank=2).slots(31)] == together[0][2].tolist()


def test_the_stream_is_the_one_it_always_was():
    # A change here breaks the promise to every run that is under way: then shards.streaming.state.VERSION must change.
    datasets = [places_only([1 + row % 5 for row in range(count)], str(count), per_shard=17) for count in (97, 31)]
    chosen = OrderSettings(seed=5, lanes=default_lanes(12), block_bytes=15 * 512, window=2)
    stream = Stream(datasets, chosen, global_batch=12, mixture=Mixture(weights=(3, 1)), world=3, rank=1)
    told = repr([tuple(slot[:4]) + tuple(slot.piece) for step in range(60) for slot in stream.slots(step)])
    assert hashlib.sha256(told.encode()).hexdigest() == PINNED
