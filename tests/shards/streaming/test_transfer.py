"""Pieces of rows come whole from any shards in any order, and each row is found in its piece."""

import random
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import storage
from shards.errors import UserError
from shards.rows import read_rows
from shards.streaming import transfer

BLOCK = 512


class Shards:
    """Series of rows in shards of random bytes, as a `Dataset` shows them."""

    def __init__(self, series, draws):
        """Take for each series the (shard, gap before it, size) of each row, in blocks."""
        ends = [0] * 4
        self.parts, self.places = [], []
        for rows in series:
            places = []
            for shard, gap, size in rows:
                places.append((shard, (ends[shard] + gap) * BLOCK, size * BLOCK))
                ends[shard] += gap + size
            self.places.append(places)
        order = draws.sample(range(len(series[0])), len(series[0]))
        self.places[1:] = [[places[row] for row in order] for places in self.places[1:]]
        self.contents = [draws.randbytes(end * BLOCK) for end in ends]
        self.shards = [SimpleNamespace(url=f"memory://transfer/{number}.tar") for number in range(4)]
        for shard, content in zip(self.shards, self.contents, strict=True):
            storage.write_bytes(shard.url, content)
        self.rows, *self.parts = map(rows_of, self.places)
        self.checked = []

    def require_unchanged(self, shard):
        """Note which shards are looked at."""
        self.checked.append(shard)

    def bytes_of(self, row):
        """Return a row's bytes in each series."""
        return [self.contents[shard][offset : offset + size] for shard, offset, size in (p[row] for p in self.places)]


def rows_of(places):
    shard, offset, size = zip(*places, strict=True)
    columns = {"shard": [str(number) for number in shard], "offset": offset, "size": pa.array(size, pa.int32())}
    table = pa.table({**columns, "crc32c": pa.array([0] * len(places), pa.uint32())})
    return read_rows([table], len(places), [str(number) for number in range(4)])


def fetched(dataset, first_row, end_row):
    data = bytearray(transfer.num_bytes(dataset, first_row, end_row))
    for offset, piece in transfer.fetch(dataset, first_row, end_row):
        data[offset : offset + len(piece)] = piece
    return bytes(data)


row = st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 5, 300]), st.integers(1, 4))
series = st.integers(1, 20).flatmap(
    lambda count: st.lists(st.lists(row, min_size=count, max_size=count), min_size=1, max_size=3)
)


@given(series, st.integers(0, 2**32).map(random.Random))
def test_each_row_is_found_in_its_piece(series, draws):
    dataset = Shards(series, draws)
    count = len(series[0])
    first_row = draws.randrange(count)
    end_row = draws.randrange(first_row, count) + 1
    data = fetched(dataset, first_row, end_row)
    for number in range(first_row, end_row):
        spans = transfer.spans(dataset, first_row, end_row, number)
        assert [data[offset : offset + size] for offset, size in spans] == dataset.bytes_of(number)
    assert sum(len(each) for number in range(first_row, end_row) for each in dataset.bytes_of(number)) == len(data)
    assert set(dataset.checked) == {
        places[number][0] for places in dataset.places for number in range(first_row, end_row)
    }


def num_gets(dataset, end_row):
    before = storage.traffic["gets"]
    fetched(dataset, 0, end_row)
    return storage.traffic["gets"] - before


def test_rows_that_lie_together_are_one_request():
    assert num_gets(Shards([[(0, 0, 3)] * 50], random.Random(0)), 50) == 1
    assert num_gets(Shards([[(0, 200, 3)] * 6], random.Random(0)), 6) == 6
    assert num_gets(Shards([[(0, 1, 3)] * 6], random.Random(0)), 6) == 1
    assert num_gets(Shards([[(0, 0, 3), (1, 0, 3)], [(2, 0, 1), (2, 0, 1)]], random.Random(0)), 2) == 3


def test_a_shard_that_ends_too_early_or_is_gone_is_told():
    dataset = Shards([[(0, 0, 3)] * 5], random.Random(0))
    url = dataset.shards[0].url
    storage.write_bytes(url, dataset.contents[0][:-1])
    with pytest.raises(UserError, match=rf"{url} changed: it ends before byte {15 * BLOCK}; restore it"):
        fetched(dataset, 0, 5)
    storage.remove(url)
    with pytest.raises(UserError, match=rf"{url}: not there \(some of samples 1 to 4 lie in it\); restore it"):
        fetched(dataset, 1, 5)
