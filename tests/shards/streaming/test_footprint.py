"""What a stream will hold and ask for, foretold: compared with what its steps really touch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.streaming import footprint
from shards.streaming.footprint import Footprint, opening_need
from shards.streaming.mix import Mixture
from shards.streaming.order import OrderSettings
from shards.streaming.requests import piece_traffic
from shards.streaming.stream import Stream
from tests.places import BLOCK, places_only


def make_stream(datasets, *, global_batch, world=1, weights=None, start=0, ahead_steps=2, **settings):
    mixture = Mixture(weights=weights or (1,) * len(datasets))
    chosen = OrderSettings(**{"seed": 1, "lanes": 8, "block_bytes": 20 * BLOCK, "window": 2, **settings})
    return Stream(
        datasets,
        chosen,
        global_batch=global_batch,
        world=world,
        mixture=mixture,
        start=start,
        ahead_steps=ahead_steps,
    )


def touched(stream, num_steps, world):
    """Return for each rank its pieces, with first and last step and bytes, by going through the samples."""
    found = [{} for _ in range(world)]
    for rank in range(world):
        mine = Stream(
            stream.datasets,
            stream.orders[0].settings,
            global_batch=stream.global_batch,
            world=world,
            rank=rank,
            mixture=stream.mixture,
            start=stream.start,
        )
        for step in range(num_steps):
            for slot in mine.slots(step):
                first, _ = found[rank].get(slot.piece, (step, step))
                found[rank][slot.piece] = first, step
    return found


def size_of(stream, piece):
    return int(stream.datasets[piece.dataset].rows.units_P[piece.first_row : piece.end_row].sum()) * BLOCK


def really_held(stream, num_steps, world):
    """Return the most that each rank holds at a time, if pieces come as late and go as soon as they may."""
    most = []
    for pieces in touched(stream, num_steps + stream.ahead_steps, world):
        ends = {piece: end_step(stream, piece) for piece in pieces}
        held = [
            sum(
                size_of(stream, piece)
                for piece, (first, _) in pieces.items()
                if first - stream.ahead_steps <= step <= ends[piece] + 1
            )
            for step in range(num_steps)
        ]
        most.append(max(held))
    return most


def end_step(stream, piece):
    position = np.array([piece.end_position - 1])
    return int(stream.mixture.numbers(piece.dataset, position)[0] - stream.start) // stream.global_batch


sizes = st.integers(1, 200).flatmap(
    lambda count: st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(1, 12, count))
)


@settings(max_examples=15)
@given(
    sizes,
    st.sampled_from([(16, 1), (16, 2), (16, 4), (24, 3), (12, 4), (5, 5)]),
    st.integers(1, 16),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_no_rank_ever_holds_more_than_foretold(sizes, batch_world, lanes, window, ahead):
    batch, world = batch_world
    stream = make_stream(
        [places_only(sizes, "a")], global_batch=batch, world=world, lanes=lanes, window=window, ahead_steps=ahead
    )
    need = Footprint(stream).cache_need()
    num_steps = len(sizes) // batch + 1
    assert max(really_held(stream, num_steps, world)) <= need.rank_bytes


@pytest.mark.parametrize(("world", "lanes"), [(1, 8), (2, 8), (8, 16)])
def test_what_is_foretold_is_close_to_what_is_held(world, lanes):
    sizes = np.random.default_rng(0).integers(1, 8, 2500)
    stream = make_stream([places_only(sizes, "a")], global_batch=32, world=world, lanes=lanes)
    need = Footprint(stream).cache_need()
    held = really_held(stream, 3 * len(sizes) // 64, world)
    assert max(held) <= need.rank_bytes < 1.25 * max(held)
    assert need.rank_bytes <= need.node_bytes <= need.rank_bytes * world
    first = [sum(size_of(stream, piece) for piece in pieces) for pieces in touched(stream, 1, world)]
    assert need.first_bytes == max(first)


def test_mixtures_hold_no_more_than_foretold():
    rng = np.random.default_rng(1)
    datasets = [places_only(rng.integers(1, 12, count), str(count)) for count in (300, 70, 20)]
    for world, weights, start in [(1, (5, 2, 1), 0), (2, (1, 1, 0), 333), (4, (3, 1, 1), 77)]:
        stream = make_stream(datasets, global_batch=16, world=world, weights=weights, start=start)
        need = Footprint(stream).cache_need()
        assert max(really_held(stream, 40, world)) <= need.rank_bytes


def test_ranks_of_one_node_are_added():
    stream = make_stream([places_only(np.full(4000, 3), "a")], global_batch=32, world=8, lanes=16)
    footprint = Footprint(stream)
    alone, half, all_ranks = (footprint.cache_need(node_ranks=count) for count in (1, 4, None))
    assert alone.node_bytes == alone.rank_bytes < half.node_bytes < all_ranks.node_bytes
    more = footprint.cache_need(queued_steps=8)
    assert more.rank_bytes > all_ranks.rank_bytes


@pytest.mark.parametrize(("world", "lanes"), [(1, 4), (2, 1), (4, 1), (2, 4), (4, 12), (4, 16), (8, 12)])
def test_traffic_is_what_an_epoch_takes(world, lanes):
    data = places_only(np.random.default_rng(2).integers(1, 8, 1203), "a", per_shard=300)
    # A lane that is shared is taken to be needed by all its ranks in full: true where blocks have many samples.
    block_bytes = (80 if lanes == 1 else 20) * BLOCK
    stream = make_stream([data], global_batch=16, world=world, lanes=lanes, window=4, block_bytes=block_bytes)
    told = Footprint(stream).traffic(0, world)
    fetched = [piece for mine in touched(stream, 2 * 1203 // 16, world) for piece in mine]
    first_epoch = [piece for piece in fetched if piece.end_position <= 1203]
    read_bytes = sum(size_of(stream, piece) for piece in first_epoch)
    assert told.num_requests == pytest.approx(len(first_epoch), rel=0.1)
    assert told.amplification == pytest.approx(read_bytes / int(data.rows.units_P.sum()) / BLOCK, rel=0.1)
    if lanes == 1:
        assert told.amplification > 0.9 * world
    if lanes % world == 0:
        assert told.amplification < 1.2


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(("world", "batch"), [(1, 8), (1, 64), (4, 64), (4, 16)])
def test_traffic_of_an_epoch_that_is_shorter_than_a_step(world, batch, local):
    data = places_only(range(1, 11), "a", local=local)
    stream = make_stream([data], global_batch=batch, world=world)
    told = Footprint(stream).traffic(0, world)
    fetched = [piece for mine in touched(stream, 2, world) for piece in mine if piece.end_position <= 10]
    # A lane is taken to be needed by its own rank, too, though in the step of an epoch's end others may have it.
    slack = 1.5 if world > 1 else 1
    assert bool(told.num_requests) is not local
    assert told.num_requests == 0 or len(fetched) <= told.num_requests <= slack * len(fetched)
    amplification = sum(size_of(stream, piece) for piece in fetched) / 55 / BLOCK
    assert amplification <= told.amplification <= slack * amplification


def test_gaps_cost_bytes_or_requests():
    def told(gap, size=2, local=False):
        data = places_only(np.full(400, size), "a", gap=gap, local=local)
        return Footprint(make_stream([data], global_batch=16, block_bytes=10 * size * BLOCK)).traffic(0, 1)

    dense, near, far = told(0), told(1), told(3)
    assert (dense.amplification, far.amplification, far.num_requests) == (1, 1, 400)
    assert near.num_requests == dense.num_requests
    assert 1.4 < near.amplification < 1.5
    # Of local shards no gap is read.
    assert told(1, local=True).amplification == 1
    # 64 KiB are the limit, however much lies around them.
    assert told(128, 200).amplification > 1.5
    assert told(129, 200).amplification == 1


@pytest.mark.parametrize(("world", "lanes"), [(1, 8), (4, 8), (4, 2)])
def test_traffic_of_a_selection_is_what_its_pieces_take(world, lanes):
    rng = np.random.default_rng(3)
    data = places_only(rng.integers(1, 8, 1203), "a", per_shard=300, gap=rng.integers(0, 6, 1203))
    stream = make_stream([data], global_batch=16, world=world, lanes=lanes, window=4, block_bytes=60 * BLOCK)
    told = Footprint(stream).traffic(0, world)
    fetched = [piece for mine in touched(stream, 2 * 1203 // 16, world) for piece in mine if piece.end_position <= 1203]
    taken = [piece_traffic(data, np.array([piece.first_row]), np.array([piece.end_row])) for piece in fetched]
    num_bytes = sum(int(each.num_bytes[0]) for each in taken)
    assert num_bytes > 1.1 * sum(size_of(stream, piece) for piece in fetched)
    assert told.amplification == pytest.approx(num_bytes / int(data.rows.units_P.sum()) / BLOCK, rel=0.1)
    assert told.num_requests == pytest.approx(sum(int(each.num_requests[0]) for each in taken), rel=0.1)


@pytest.mark.parametrize(("world", "start"), [(1, 0), (2, 7_000), (4, 39_990)])
def test_the_next_windows_tell_what_a_whole_epoch_needs(world, start):
    data = places_only(np.random.default_rng(0).integers(1, 8, 40_000), "a")
    stream = make_stream([data], global_batch=32, world=world, lanes=16, start=start)
    whole = Footprint(stream).cache_need(node_ranks=2, queued_steps=4)
    near = opening_need(stream, node_ranks=2, queued_steps=4)
    assert near.first_bytes == whole.first_bytes
    for part, all_ in ((near.rank_bytes, whole.rank_bytes), (near.node_bytes, whole.node_bytes)):
        assert 0.85 * all_ < part <= all_


def test_an_opening_looks_at_few_blocks(monkeypatch):
    data = places_only(np.full(40_000, 3), "a")
    stream, looked_at = make_stream([data], global_batch=32, lanes=16), []
    monkeypatch.setattr(footprint, "piece_bytes", lambda _, first_rows, ends: looked_at.append(len(first_rows)) or ends)
    opening_need(stream, node_ranks=1, queued_steps=0)
    windows = 16 * (footprint.WINDOWS_AHEAD + 2)
    assert max(looked_at) <= windows * 3 < stream.orders[0].num_blocks / 5


def test_local_data_need_no_cache():
    data = places_only(np.full(400, 2), "a", local=True)
    need = Footprint(make_stream([data], global_batch=16)).cache_need()
    assert (need.rank_bytes, need.node_bytes, need.first_bytes) == (0, 0, 0)
