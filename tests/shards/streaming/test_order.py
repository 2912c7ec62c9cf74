"""The order: every sample once per epoch, whatever the cut into ranks; few blocks at a time."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.streaming.order import Order, OrderSettings, cut_blocks, cut_for_rank, default_lanes

DIGEST = "0" * 64
PINNED = [6, 2, 15, 3, 1, 14, 7, 0, 16, 5, 20, 8, 4, 19, 9, 11, 18, 13, 10, 17, 12]


def make_order(sizes, *, lanes=4, window=2, seed=0, digest=DIGEST):
    rows = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return Order(rows, int(sum(sizes)), OrderSettings(seed=seed, lanes=lanes, window=window), digest)


orders = st.builds(
    make_order,
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    lanes=st.integers(1, 20),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)


@given(orders, st.integers(0, 5))
def test_every_epoch_holds_every_sample_once(order, epoch):
    n = order.num_samples
    found = order.locate(np.arange(epoch * n, (epoch + 1) * n))
    assert (found.epochs == epoch).all()
    assert sorted(found.rows.tolist()) == list(range(n))


@given(orders, st.randoms())
def test_a_position_means_the_same_in_any_company(order, random):
    positions = np.arange(3 * order.num_samples)
    whole = order.locate(positions)
    some = np.array(random.sample(range(len(positions)), min(20, len(positions))))
    for alone, together in zip(order.locate(some), whole, strict=True):
        assert alone.tolist() == together[some].tolist()


@given(orders)
def test_pieces_hold_their_samples_and_end_where_they_are_last_needed(order):
    positions = np.arange(2 * order.num_samples)
    found = order.locate(positions)
    assert ((found.first_rows <= found.rows) & (found.rows < found.end_rows)).all()
    last_use: dict[tuple[int, int, int], int] = {}
    rows: dict[tuple[int, int, int], set[int]] = {}
    ends: dict[tuple[int, int, int], int] = {}
    for position, epoch, row, first, end, until in zip(positions.tolist(), *(f.tolist() for f in found), strict=True):
        piece = epoch, first, end
        last_use[piece] = position
        rows.setdefault(piece, set()).add(row)
        assert ends.setdefault(piece, until) == until
    assert all(last_use[piece] < ends[piece] for piece in ends)
    assert all(rows[epoch, first, end] == set(range(first, end)) for epoch, first, end in rows)


@given(orders, st.integers(0, 2))
def test_the_table_of_pieces_says_what_single_positions_say(order, epoch):
    n = order.num_samples
    positions = np.arange(epoch * n, (epoch + 1) * n)
    found, table = order.locate(positions), order.pieces(epoch)
    assert int((table.end_rows - table.first_rows).sum()) == n
    pieces = {first: tuple(rest) for first, *rest in np.stack(table, 1).tolist()}
    first_uses: dict[int, int] = {}
    for position, lane, first, end, until in zip(
        positions.tolist(), order.lanes(positions).tolist(), *(f.tolist() for f in found[2:]), strict=True
    ):
        assert pieces[first][:2] == (end, lane)
        assert pieces[first][3] == until
        first_uses.setdefault(pieces[first][2], position)
    assert all(begin == used for begin, used in first_uses.items())


@given(orders)
def test_blocks_of_rows(order):
    rows = np.arange(order.num_samples)
    blocks = order.blocks(rows)
    assert set(blocks.tolist()) == set(range(order.num_blocks))
    assert (np.diff(blocks) >= 0).all()


def test_a_rank_reads_its_lanes_only_and_each_block_about_once():
    order = make_order([50] * 400, lanes=16, window=4)
    batch, world = 64, 4
    pieces = [set() for _ in range(world)]
    for step in range(order.num_samples // batch):
        positions = np.arange(step * batch, (step + 1) * batch)
        for rank in range(world):
            found = order.locate(cut_for_rank(positions, order.lanes(positions), rank, world))
            pieces[rank] |= set(zip(found.first_rows.tolist(), found.end_rows.tolist(), strict=True))
    read = sum(end - first for mine in pieces for first, end in mine)
    assert read / order.num_samples < 1.01
    assert sum(map(len, pieces)) <= 400 + 16


def test_few_blocks_are_in_use_at_a_time():
    order = make_order([50] * 400, lanes=8, window=3)
    found = order.locate(np.arange(order.num_samples))
    opened, live, most = set(), [], 0
    for position in range(order.num_samples):
        piece = int(found.first_rows[position]), int(found.end_positions[position])
        if piece not in opened:
            opened.add(piece)
            live.append(piece[1])
        live = [end for end in live if end > position]
        most = max(most, len(live))
    assert most <= 8 * 3 + 1


def test_batches_draw_from_all_over():
    order = make_order([50] * 400, lanes=64, window=4)
    distinct = [
        len(set((order.locate(np.arange(step * 256, (step + 1) * 256)).rows // 50).tolist())) for step in range(50)
    ]
    uniform = 400 * (1 - (1 - 1 / 400) ** 256)
    assert np.mean(distinct) > 0.75 * uniform


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6))
def test_ranks_share_a_batch(num_samples, world, share, start):
    order = make_order([num_samples], lanes=default_lanes(world * share))
    batch = np.arange(start, start + world * share)
    cuts = [cut_for_rank(batch, order.lanes(batch), rank, world) for rank in range(world)]
    assert sorted(np.concatenate(cuts).tolist()) == batch.tolist()
    assert {len(cut) for cut in cuts} == {share}


@pytest.mark.parametrize(("batch", "lanes"), [(64, 64), (1024, 256), (48, 48), (30, 30), (257, 1), (514, 2), (96, 96)])
def test_lanes_divide_the_batch(batch, lanes):
    assert default_lanes(batch) == lanes


def test_ranks_must_divide_the_batch():
    with pytest.raises(ValueError, match="global batch 10 is not divisible by 4 ranks"):
        cut_for_rank(np.arange(10), np.arange(10), 0, 4)


def test_seed_epoch_and_data_change_the_order():
    first = make_order([10] * 100).locate(np.arange(1000)).rows
    for other in [
        make_order([10] * 100, seed=1).locate(np.arange(1000)),
        make_order([10] * 100, digest="1" * 64).locate(np.arange(1000)),
        make_order([10] * 100).locate(np.arange(1000, 2000)),
    ]:
        assert (first != other.rows).mean() > 0.9


def test_the_order_is_the_one_it_always_was():
    # A change here breaks the promise to every run that is under way: then the stream's version must change.
    order = make_order([3, 5, 2, 7, 4], lanes=3, window=2, seed=7)
    assert order.locate(np.arange(21)).rows.tolist() == PINNED


def test_orders_travel():
    order = make_order([3, 5, 2, 7, 4])
    copy = pickle.loads(pickle.dumps(order))
    assert copy.locate(np.arange(21)).rows.tolist() == order.locate(np.arange(21)).rows.tolist()


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 100))
def test_blocks_are_runs_of_about_equal_bytes(runs, block_bytes):
    sizes = np.array([size for run in runs for size in run], np.uint32)
    starts = np.cumsum([0, *map(len, runs)])[:-1]
    blocks = cut_blocks(starts, sizes, block_bytes)
    assert set(starts.tolist()) <= set(blocks.tolist())
    assert (np.diff(blocks) > 0).all()
    for first, end in zip(blocks.tolist(), [*blocks[1:].tolist(), len(sizes)], strict=True):
        assert sizes[first : end - 1].sum() < block_bytes
