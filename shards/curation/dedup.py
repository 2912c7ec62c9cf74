"""Find tiles that show the same: equal bytes, or difference hashes (dHash, 64 bits) that differ in few bits.

The definition is greedy, in order of the keys: a tile stays unless one that stays lies within the distance. So the
result depends on the set of tiles alone, not on the order of rows. Comparing all pairs would take n²/2 steps; instead
candidates must agree in k of N + k groups of bits (of N differing bits at most N groups are touched), and tiles are
taken in batches that double, each compared with the tiles that stay so far and then within itself. So a large cluster
(open water) costs no more than its few representatives.

Measured, one core, 10⁶ hashes drawn at random: distance 0 in 4 s, 4 in 6 s, 6 in 18 s, 8 in 66 s; with a fifth of them
in five dense clusters no slower. Up to distance 4 time grows in line with the number of tiles, beyond faster: for
tens of millions choose 4 or less. Memory: about 100 bytes per tile.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.curation.derive import derive
from shards.errors import UserError
from shards.schema import Version
from shards.settle import exact_duplicates
from shards.tables import iter_table, read_version

MAX_DISTANCE = 8
"""Beyond it hashes say little (two unrelated ones differ in 32 ± 4 bits) and the search nears n²/2 steps."""

_FIRST_BATCH = 1024
_PAIRS_AT_ONCE = 1 << 22

Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Tiles to leave out; a `shards.curation.derive.Decision`."""

    pairs: pa.Table
    """Columns key, kept (key of the tile that stays for it), reason (duplicate or near_duplicate)."""
    num_exact: int
    """Of the pairs: with equal bytes."""
    num_unhashed: int
    """Tiles without a hash: compared by their bytes alone."""

    @property
    def columns(self) -> list[str]:
        """Columns of the samples table that `keep` reads."""
        return ["key"]

    def keep(self, samples: pa.Table) -> NDArray[np.bool_]:
        """Return bool [N]: samples that are not to be left out."""
        is_pair: NDArray[np.bool_] = pc.is_in(samples["key"], self.pairs["key"]).to_numpy().astype(bool)
        return ~is_pair

    def reasons(self, left_out: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Return reason code and the key of the tile that stays for each sample."""
        rows = self.pairs.take(pc.index_in(left_out["key"], self.pairs["key"]))
        return rows["reason"], rows["kept"]


def dedup(
    url: str, distance: int, out: str | None = None, number: int | None = None
) -> tuple[Version, Version, Duplicates]:
    """Derive a version without duplicates: of equal or nearly equal tiles the one with the smallest key stays.

    Args:
        url: the dataset.
        distance: bits in which the hashes of near-duplicates may differ, 0…MAX_DISTANCE.
        out: the dataset to write to; None: the next version of the same.
        number: the version to start from; the newest by default.

    Returns:
        The version started from, the new one (of the dataset itself the same if there are no duplicates: then nothing
        is written), and what was found.

    Raises:
        UserError: the distance is out of range, or a table is damaged.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise UserError(f"distance is {distance}: choose a value from 0 to {MAX_DISTANCE} (of 64 bits)")
    parent = read_version(url, number)
    found = find_duplicates(_Tables(url, parent), distance)
    return parent, derive(url, parent, out, found, {"op": "dedup", "distance": distance}), found


class _Tables:
    """The samples of a version, as often as asked."""

    def __init__(self, url: str, version: Version) -> None:
        self._url, self._version = url, version

    def __iter__(self) -> Iterator[pa.Table]:
        return iter_table(self._url, self._version, "samples", ["key", "member_sha256", "dhash"])


def find_duplicates(samples: Iterable[pa.Table], distance: int) -> Duplicates:
    """Find equal tiles by their bytes, then near-duplicates among the rest.

    Args:
        samples: tables with columns key, member_sha256, dhash (null: no near-duplicate of any); iterated twice or more.
        distance: bits.
    """
    exact = exact_duplicates(samples)
    rest = [pa.schema([("key", pa.string()), ("dhash", pa.uint64())]).empty_table()]
    for table in samples:
        is_exact = pc.is_in(table["key"], exact["key"])
        rest.append(table.select(["key", "dhash"]).filter(pc.invert(is_exact)))
    tiles = pa.concat_tables(rest)
    hashed = tiles.filter(pc.is_valid(tiles["dhash"]))
    near = near_duplicates(hashed["key"], hashed["dhash"].to_numpy(), distance)
    # The tile that an exact duplicate stands back for may itself stand back for another.
    onward = near["kept"].take(pc.index_in(exact["kept"], near["key"]))
    exact = exact.set_column(1, "kept", pc.coalesce(onward, exact["kept"]))
    parts = [(exact, "duplicate"), (near, "near_duplicate")]
    pairs = [part.append_column("reason", pa.repeat(code, part.num_rows)) for part, code in parts]
    return Duplicates(
        pairs=pa.concat_tables(pairs).sort_by("key"),
        num_exact=exact.num_rows,
        num_unhashed=tiles.num_rows - hashed.num_rows,
    )


def near_duplicates(keys: pa.ChunkedArray, hashes: Hashes, distance: int) -> pa.Table:
    """Return the tiles that stand back, greedily in order of their keys.

    Cost: C(N + k, k) sorts, k chosen for the least work.

    Args:
        keys: strings [N], none twice.
        hashes: uint64 [N].
        distance: bits in which hashes of near-duplicates may differ.

    Returns:
        Columns key and kept: the smallest key among the tiles that stay within the distance.
    """
    order = pc.sort_indices(keys).to_numpy()
    # Equal hashes share one fate: that of the first of them.
    _, firsts, groups = np.unique(hashes[order], return_index=True, return_inverse=True)
    by_key = np.argsort(firsts)
    stands_for = greedy_cover(hashes[order][firsts[by_key]], distance)
    keeper = np.empty(len(firsts), np.int64)
    keeper[by_key] = firsts[by_key][stands_for]
    kept = keeper[groups]
    goes = kept != np.arange(len(order))
    named = pa.table({"key": keys.take(pa.array(order[goes])), "kept": keys.take(pa.array(order[kept[goes]]))})
    return named.cast(pa.schema([("key", pa.string()), ("kept", pa.string())]))


def greedy_cover(hashes: Hashes, distance: int) -> Places:
    """Return for each hash the first kept one within the distance, its own place if it is kept itself: int64 [C].

    A hash is kept unless a kept one before it lies within the distance.

    Args:
        hashes: different uint64 [C], in order of preference.
        distance: bits.
    """
    masks = _masks(len(hashes), distance)
    stands_for = np.arange(len(hashes))
    kept = np.empty(0, np.int64)
    start, size = 0, _FIRST_BATCH
    while start < len(hashes):
        batch = np.arange(start, min(start + size, len(hashes)))
        _against_kept(hashes, batch, kept, distance, masks, stands_for)
        open_ = batch[stands_for[batch] == batch]
        _within(hashes, open_, distance, masks, stands_for)
        kept = np.concatenate([kept, open_[stands_for[open_] == open_]])
        start, size = start + size, size * 2
    return stands_for


def _masks(count: int, distance: int) -> list[np.uint64]:
    """Return the bits in which candidates must agree, one mask per table."""

    def cost(k: int) -> float:
        # Per hash and table: sorting and searching cost as much as comparing 20 candidates.
        candidates = count / 2 ** (64 * k / (distance + k))
        return math.comb(distance + k, k) * (20 + candidates)

    k = min(range(1, 6), key=cost)
    # Neighbouring bits of a dHash are alike: groups take every (N + k)-th bit.
    groups = [sum(1 << bit for bit in range(first, 64, distance + k)) for first in range(distance + k)]
    return [np.uint64(sum(chosen)) for chosen in combinations(groups, k)]


def _against_kept(
    hashes: Hashes, batch: Places, kept: Places, distance: int, masks: list[np.uint64], stands_for: Places
) -> None:
    """Let hashes of a batch stand back for the first kept one that lies near."""
    for mask in masks:
        keys = hashes[kept] & mask
        table = np.argsort(keys)
        keys = keys[table]
        asked = batch[np.argsort(hashes[batch] & mask)]
        wanted = hashes[asked] & mask
        begins, ends = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, "right")
        for left, right in _near_pairs(hashes, asked, kept[table], begins, ends, distance):
            np.minimum.at(stands_for, left, right)


def _within(hashes: Hashes, batch: Places, distance: int, masks: list[np.uint64], stands_for: Places) -> None:
    """Decide among hashes of one batch: repeatedly keep those with no open one near before them."""
    later: list[Places] = [np.empty(0, np.int64)]
    earlier: list[Places] = [np.empty(0, np.int64)]
    for mask in masks:
        keys = hashes[batch] & mask
        order = np.argsort(keys)
        ends = np.searchsorted(keys[order], keys[order], "right")
        mine = batch[order]
        for left, right in _near_pairs(hashes, mine, mine, np.arange(1, len(mine) + 1), ends, distance):
            later.append(np.maximum(left, right))
            earlier.append(np.minimum(left, right))
    _stand_back(np.concatenate(later), np.concatenate(earlier), stands_for)


def _stand_back(later: Places, earlier: Places, stands_for: Places) -> None:
    """Walk along pairs of near hashes: a later one whose earlier one is kept stands back."""
    while len(later):
        # An earlier one that is nobody's later one has nothing to wait for: it is kept.
        is_kept = ~np.isin(earlier, later)
        np.minimum.at(stands_for, later[is_kept], earlier[is_kept])
        gone = np.unique(later[is_kept])
        # Who stands back covers nobody; other pairs of a gone later one are still needed for its first keeper.
        stays = ~np.isin(earlier, gone) & ~is_kept
        later, earlier = later[stays], earlier[stays]


def _near_pairs(
    hashes: Hashes, asked: Places, table: Places, begins: Places, ends: Places, distance: int
) -> Iterator[tuple[Places, Places]]:
    """Yield pairs (asked, of the table) within the distance, the candidates being rows begins…ends of the table."""
    counts = np.maximum(ends - begins, 0)
    some = np.flatnonzero(counts)
    totals = np.cumsum(counts[some])
    cuts = np.searchsorted(totals, np.arange(0, totals[-1] if len(totals) else 0, _PAIRS_AT_ONCE), "right")
    for rows in np.split(some, np.unique(cuts)):
        count = counts[rows]
        left = np.repeat(asked[rows], count)
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
        right = table[np.repeat(begins[rows], count) + offsets]
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= distance
        yield left[near], right[near]
