"""What became of each scene, of each band and of equal tiles, counted over whole tables without an object per row.

A dataset of 5 million scenes and 50 million tiles passes through here file by file. A `SceneTally` holds 16 bytes
per scene, and 4 more for each reason for which tiles were left out; `exact_duplicates` holds 8 bytes per tile and
the rows that have a double; `BandSums` holds nothing that grows. About 2 µs per tile and 2 µs per scene, 4 µs more for
a scene that is left without tiles (one core).
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.keyed import hash64
from shards.schema import REJECTS, SCENES, Band

Names: TypeAlias = pa.Array | pa.ChunkedArray

_HEX = np.zeros(256, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
# A mantissa of 53 bits is added up in two halves: 2³⁶ of them fit in 64 bits.
_HALF_BITS = 26


def scene_numbers(names: Names) -> NDArray[np.uint64]:
    """Return scene ids as uint64 [N]: the value of 16 hex digits, a hash of any other text.

    Args:
        names: strings, plain or as dictionaries; no nulls.
    """
    chunks = names.chunks if isinstance(names, pa.ChunkedArray) else [names]
    return np.concatenate([np.empty(0, np.uint64), *map(_chunk_numbers, chunks)])


def _chunk_numbers(names: pa.Array) -> NDArray[np.uint64]:
    if pa.types.is_dictionary(names.type):
        places: NDArray[np.int64] = names.indices.to_numpy()
        return _chunk_numbers(names.dictionary)[places]
    is_hex = pc.match_substring_regex(names, "^[0-9a-f]{16}$")
    chosen_N = is_hex.to_numpy(zero_copy_only=False).astype(bool)
    numbers_N = np.empty(len(names), np.uint64)
    numbers_N[chosen_N] = _parse_hex(names.filter(is_hex))
    # Only datasets that other tools wrote have such ids.
    numbers_N[~chosen_N] = [hash64("scene", name) for name in names.filter(pc.invert(is_hex)).to_pylist()]
    return numbers_N


def _parse_hex(names: pa.Array) -> NDArray[np.uint64]:
    fixed = names.cast(pa.binary(16))
    if not len(fixed):
        return np.empty(0, np.uint64)
    raw = np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * 16 : (fixed.offset + len(fixed)) * 16]
    digits_N16 = _HEX[raw].reshape(-1, 16)
    bytes_N8 = np.ascontiguousarray((digits_N16[:, ::2] << 4) | digits_N16[:, 1::2])
    return bytes_N8.view(">u8").ravel().astype(np.uint64)


class SceneTally:
    """Counts tiles and left-out tiles per scene, then gives each scene its end state.

    Memory: 16 bytes per scene, and 4 for each reason code that occurs among tiles.
    """

    def __init__(self, names: Names | Iterable[Names]) -> None:
        """Take the ids of all scenes, each once, in any order: one column or several."""
        columns = [names] if isinstance(names, pa.Array | pa.ChunkedArray) else names
        numbers = np.concatenate([np.empty(0, np.uint64), *map(scene_numbers, columns)])
        self._ids_S = np.unique(numbers)
        self.num_repeated = len(numbers) - len(self._ids_S)
        """Ids that were given before."""
        self.unknown: set[str] = set()
        """Scenes of tiles and rejects that are not among the scenes."""
        self._tiles_S = np.zeros(len(self._ids_S), np.int32)
        self._whole_S = np.zeros(len(self._ids_S), np.int32)
        self._dropped_S: dict[str, NDArray[np.int32]] = {}

    def add_samples(self, samples: pa.Table) -> None:
        """Count tiles that are kept: rows with a column scene."""
        self._add(self._tiles_S, samples["scene"])

    def add_rejects(self, rejects: pa.Table) -> None:
        """Count what was left out (REJECTS schema); rows without x are whole scenes and counted apart."""
        is_whole = pc.is_null(rejects["x"])
        self._add(self._whole_S, rejects["scene"].filter(is_whole))
        tiles = rejects.filter(pc.invert(is_whole))
        for code in sorted(pc.unique(tiles["reason"]).to_pylist()):
            counts = self._dropped_S.setdefault(code, np.zeros(len(self._ids_S), np.int32))
            self._add(counts, tiles["scene"].filter(pc.equal(tiles["reason"], code)))

    def _add(self, counts_S: NDArray[np.int32], names: Names) -> None:
        places, known = self._places(names)
        if not known.all():
            self.unknown.update(names.filter(pa.array(~known)).to_pylist())
        # Not bincount: its array is as long as all scenes, and this is called for every small group.
        touched, counts = np.unique(places[known], return_counts=True)
        counts_S[touched] += counts.astype(np.int32)

    def _places(self, names: Names) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        numbers = scene_numbers(names)
        places = np.searchsorted(self._ids_S, numbers)
        if not len(self._ids_S):
            return places, np.zeros(len(numbers), bool)
        return places, self._ids_S[np.minimum(places, len(self._ids_S) - 1)] == numbers

    def counts(self, names: Names) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return int32 [N] three times for known scenes: tiles kept, tiles left out, rejects of the whole scene."""
        places, known = self._places(names)
        assert known.all(), "scenes that the tally was not made with"
        dropped = np.zeros(len(places), np.int32)
        for counts_S in self._dropped_S.values():
            dropped += counts_S[places]
        return self._tiles_S[places], dropped, self._whole_S[places]

    def settle(self, scenes: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Give the scenes of a chunk their end state.

        A row that has a reason is rejected for it. A row without one is used if it has tiles, else rejected as
        no_tiles_left, its detail counting the tiles' reasons ("1 corrupt, 3 low_contrast").

        Args:
            scenes: rows of the scenes table in any order; columns of SCENES that are missing become null.

        Returns:
            The chunk (SCENES schema) and its whole-scene rejects (REJECTS schema).
        """
        assert not self.unknown, f"tiles or rejects of unknown scenes {sorted(self.unknown)[:3]}"
        num_tiles, num_dropped, _ = self.counts(scenes["scene"])
        given = pc.is_valid(scenes["reason"])
        emptied = pc.and_(pc.invert(given), pa.array(num_tiles == 0))
        rejected = pc.or_(given, emptied)
        columns: dict[str, Any] = {
            "state": pc.if_else(rejected, "rejected", "used"),
            "num_tiles": pa.array(num_tiles),
            "num_dropped": pa.array(num_dropped),
            "reason": pc.if_else(emptied, "no_tiles_left", scenes["reason"]),
            "detail": pc.replace_with_mask(
                _one_array(scenes["detail"]), _one_array(emptied), self._told(scenes["scene"].filter(emptied))
            ),
        }
        final = _with_columns(scenes, columns)
        return final, _whole_rejects(final.filter(pc.equal(final["state"], "rejected")))

    def _told(self, names: Names) -> pa.Array:
        """Return the counts of left-out tiles by reason as texts, sorted by code; empty where there are none."""
        places, _ = self._places(names)
        told = pa.array([""] * len(places), pa.string())
        for code, counts_S in sorted(self._dropped_S.items()):
            counts = pa.array(counts_S[places])
            # With nulls to be skipped Arrow 26 loses rows in which all are null.
            separator = pc.if_else(pc.equal(told, ""), "", ", ")
            part = pc.binary_join_element_wise(counts.cast(pa.string()), code, " ")
            told = pc.if_else(pc.equal(counts, 0), told, pc.binary_join_element_wise(told, part, separator))
        return told


def _with_columns(scenes: pa.Table, columns: dict[str, Any]) -> pa.Table:
    values = [
        columns[name] if name in columns else scenes[name] if name in scenes.column_names else None
        for name in SCENES.names
    ]
    nulls = [pa.nulls(scenes.num_rows, field.type) for field in SCENES]
    filled = [null if value is None else value for value, null in zip(values, nulls, strict=True)]
    return pa.table(
        [value.cast(field.type) for value, field in zip(filled, SCENES, strict=True)],
        schema=SCENES,
    )


def _whole_rejects(scenes: pa.Table) -> pa.Table:
    nulls = pa.nulls(scenes.num_rows, pa.int32())
    columns = [scenes["scene"], scenes["path"], nulls, nulls, scenes["reason"], scenes["detail"]]
    return pa.table(columns, schema=REJECTS)


def _one_array(values: Names) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


class BandSums:
    """Adds up the tiles' band_sums and band_squares exactly, so that no order of tables changes a bit.

    Floats are split into mantissa and exponent and added as integers; the rounding happens once, at the end.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of the bands, in order."""
        self.names = tuple(names)
        self.complete = True
        """Whether every tile had its figures."""
        self._num_valid = 0
        self._sums = [Fraction(0)] * len(names)
        self._squares = [Fraction(0)] * len(names)

    def add(self, samples: pa.Table) -> None:
        """Add tiles: columns num_valid, band_sums, band_squares.

        Raises:
            ValueError: a tile's figures are not as many as the bands, or not finite.
        """
        columns = [samples[name] for name in ("num_valid", "band_sums", "band_squares")]
        if any(column.null_count for column in columns):
            self.complete = False
        if not self.complete or not samples.num_rows:
            return
        self._num_valid += pc.sum(columns[0]).as_py()
        for totals, column in [(self._sums, columns[1]), (self._squares, columns[2])]:
            values_PB = self._values(column)
            for band in range(len(self.names)):
                totals[band] += _exact_sum(values_PB[:, band])

    def _values(self, column: pa.ChunkedArray) -> NDArray[np.float64]:
        if not pc.all(pc.equal(pc.list_value_length(column), len(self.names))).as_py():
            raise ValueError(f"a tile's band figures are not {len(self.names)}")
        flat = pc.list_flatten(column)
        values = np.asarray(flat.to_numpy(), np.float64)
        if flat.null_count or not np.isfinite(values).all():
            raise ValueError("a tile's band figures are not finite")
        return values.reshape(-1, len(self.names))

    def figures(self) -> tuple[Band, ...] | None:
        """Return mean and standard deviation of each band, to 6 decimals; None where tiles lack their figures."""
        if not self.complete or not self._num_valid:
            return None
        bands = []
        for name, total, square in zip(self.names, self._sums, self._squares, strict=True):
            mean = total / self._num_valid
            # Sums of floats may be rounded within a tile: of a constant band the difference can fall below 0.
            variance = max(square / self._num_valid - mean**2, Fraction(0))
            bands.append(Band(name=name, mean=round(float(mean), 6), std=round(math.sqrt(variance), 6)))
        return tuple(bands)


def _exact_sum(values_N: NDArray[np.float64]) -> Fraction:
    mantissas, exponents = np.frexp(values_N)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    high, low = whole >> _HALF_BITS, whole & ((1 << _HALF_BITS) - 1)
    total = Fraction(0)
    for exponent in np.unique(exponents):
        mine = exponents == exponent
        sum_ = (int(high[mine].sum()) << _HALF_BITS) + int(low[mine].sum())
        total += Fraction(sum_) * Fraction(2) ** (int(exponent) - 53)
    return total


def band_figures(names: Sequence[str], samples: Iterable[pa.Table]) -> tuple[Band, ...]:
    """Return mean and standard deviation of each band over all valid pixels, to 6 decimals.

    Exact up to the last rounding, hence the same for any order of tiles and tables.

    Args:
        names: of the bands, in order.
        samples: tables with columns num_valid, band_sums, band_squares; at least one tile, no nulls.
    """
    sums = BandSums(names)
    for table in samples:
        sums.add(table)
    figures = sums.figures()
    assert figures is not None, "no tile, or tiles without band_sums"
    return figures


def exact_duplicates(samples: Iterable[pa.Table]) -> pa.Table:
    """Find tiles with equal image bytes that are not the first of their kind.

    Two passes: the first sorts the leading 64 bits of all hashes (8 bytes of memory per tile), the second compares
    the full 32 bytes of the tiles that share them.

    Args:
        samples: tables with columns key and member_sha256; iterated twice, so no generator.

    Returns:
        Columns key (of a tile to leave out) and kept (the smallest key with the same bytes), ordered by key.
    """
    prefixes = np.concatenate([np.empty(0, np.uint64), *(hash_prefixes(table["member_sha256"]) for table in samples)])
    prefixes.sort()
    shared = np.unique(prefixes[1:][prefixes[1:] == prefixes[:-1]])
    del prefixes
    schema = pa.schema([("key", pa.string()), ("member_sha256", pa.binary(32))])
    chosen = [schema.empty_table()]
    for table in samples:
        mine = table.select(schema.names).filter(pa.array(_among(hash_prefixes(table["member_sha256"]), shared)))
        chosen.append(mine.cast(schema))
    return _later_equals(pa.concat_tables(chosen))


def _later_equals(tiles: pa.Table) -> pa.Table:
    tiles = tiles.sort_by([("member_sha256", "ascending"), ("key", "ascending")]).combine_chunks()
    hashes, keys = tiles["member_sha256"], tiles["key"]
    repeats = np.zeros(tiles.num_rows, bool)
    if tiles.num_rows:
        repeats[1:] = pc.equal(hashes.slice(1), hashes.slice(0, len(hashes) - 1)).to_numpy()
    first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(repeats))))
    pairs = pa.table({"key": keys, "kept": keys.take(pa.array(first))}).filter(pa.array(repeats))
    return pairs.sort_by("key")


def hash_prefixes(hashes: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the leading 64 bits of 32-byte hashes, uint64 [N]."""
    parts = [np.empty(0, np.uint64)]
    for chunk in hashes.chunks:
        raw = np.frombuffer(chunk.buffers()[1], ">u8")[chunk.offset * 4 : (chunk.offset + len(chunk)) * 4 : 4]
        parts.append(raw.astype(np.uint64))
    return np.concatenate(parts)


def _among(values: NDArray[np.uint64], sorted_values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    found: NDArray[np.bool_] = sorted_values[places] == values
    return found
