"""Series of rows in shards of random bytes in memory, for tests of what is asked for and what comes."""

from types import SimpleNamespace

import pyarrow as pa
from hypothesis import strategies as st

from shards import storage
from shards.rows import read_rows

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


row = st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 5, 300]), st.integers(1, 4))
series = st.integers(1, 20).flatmap(
    lambda count: st.lists(st.lists(row, min_size=count, max_size=count), min_size=1, max_size=3)
)
