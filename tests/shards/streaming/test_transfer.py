"""Pieces of rows come whole from any shards in any order, and each row is found in its piece."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import storage
from shards.errors import UserError
from shards.streaming import transfer
from tests.shards.streaming.shards_of_bytes import BLOCK, Shards, series


def fetched(dataset, first_row, end_row):
    data = bytearray(transfer.num_bytes(dataset, first_row, end_row))
    for offset, piece in transfer.fetch(dataset, first_row, end_row):
        data[offset : offset + len(piece)] = piece
    return bytes(data)


@given(series, st.integers(0, 2**32).map(random.Random))
def test_each_row_is_found_in_its_piece(series, draws):
    dataset = Shards(series, draws)
    count = len(series[0])
    first_row = draws.randrange(count)
    end_row = draws.randrange(first_row, count) + 1
    data = fetched(dataset, first_row, end_row)
    starts = transfer.starts(dataset, first_row, end_row)
    for at, number in enumerate(range(first_row, end_row)):
        assert [data[each[at] : each[at + 1]] for each in starts] == dataset.bytes_of(number)
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
    assert num_gets(Shards([[(0, 4, 3)] * 6], random.Random(0)), 6) == 6
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
