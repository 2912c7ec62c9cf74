"""Randomness as a function: every draw is keyed by (seed, epoch, sample id, purpose), never by history.

Four tools, all pure:

- `hash64` / `generator`: a 64-bit number or a counter-based numpy Generator from any tuple of names and numbers;
- `mix64`: a vectorised bijective mixer for arrays of 64-bit ids (sort keys for whole tables);
- `permute`: a keyed permutation of range(n) that needs no array of n (random access, invertible),
  so that resuming in mid-epoch costs nothing;
- `permute_each`: the same where every index has a range and a key of its own.

Cost: `hash64` 1–2 µs, `generator` 15–20 µs; on arrays `permute` about 0.1 µs per index, `permute_each` 1 µs.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Part = int | str | bytes
_FEISTEL_ROUNDS = 6


def _digest(parts: tuple[Part, ...], size: int) -> bytes:
    # Each part carries its type and length, so that ("ab", "c") and ("a", "bc") or 1 and "1" never collide.
    h = hashlib.blake2b(digest_size=size)
    for part in parts:
        if isinstance(part, bytes):
            tag, raw = b"b", part
        elif isinstance(part, str):
            tag, raw = b"s", part.encode()
        else:
            tag, raw = b"i", int(part).to_bytes(17, "little", signed=True)
        h.update(tag + len(raw).to_bytes(4, "little") + raw)
    return h.digest()


def hash64(*parts: Part) -> int:
    """Return a 64-bit unsigned integer that depends on the parts alone."""
    return int.from_bytes(_digest(parts, 8), "little")


def generator(*parts: Part) -> np.random.Generator:
    """Return a counter-based (Philox) Generator keyed by the parts alone."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(parts, 16), "little")))


def mix64(ids: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Mix 64-bit ids with a key; for a fixed key it is a bijection (splitmix64 finaliser, Steele et al. 2014)."""
    return _mixed(np.asarray(ids, np.uint64) + np.uint64(hash64("mix64", key)))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Map each index of range(n) to its place under a keyed permutation of range(n).

    A Feistel network over the smallest even number of bits that holds n, walked until the value
    falls below n (Black and Rogaway 2002): under 4 rounds of walking on average.

    Args:
        indices: int64 array of any shape, values in [0, n).
        n: size of the permuted range, at least 1.
        key: selects the permutation.

    Raises:
        ValueError: an index lies outside [0, n).
    """
    x = np.array(indices, np.int64)
    if x.size and (x.min() < 0 or x.max() >= n):
        raise ValueError(f"index outside [0, {n})")
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    flat = x.reshape(-1)
    todo = np.arange(flat.size)
    while todo.size:
        walked = _feistel(flat[todo].astype(np.uint64), half, key).astype(np.int64)
        flat[todo] = walked
        todo = todo[walked >= n]
    return flat.reshape(x.shape)


def _feistel(x: NDArray[np.uint64], half: int, key: int) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for round_ in range(_FEISTEL_ROUNDS):
        left, right = right, left ^ (mix64(right, key * _FEISTEL_ROUNDS + round_) & mask)
    return (left << bits) | right


def permute_each(indices: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Map each index to its place under a keyed permutation of its own range; the method is that of `permute`.

    Args:
        indices: int64 [I], each in [0, its size).
        sizes: int64 [I], sizes of the permuted ranges.
        keys: uint64 [I]; equal sizes and keys mean the same permutation.
    """
    assert ((indices >= 0) & (indices < sizes)).all()
    # frexp's exponent of n is the number of n's bits.
    half_I = np.maximum(1, (np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    places_I = np.array(indices, np.int64)
    todo = np.arange(len(places_I))
    while todo.size:
        walked = _feistel_each(places_I[todo].astype(np.uint64), half_I[todo], keys[todo]).astype(np.int64)
        places_I[todo] = walked
        todo = todo[walked >= sizes[todo]]
    return places_I


_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: keys of successive rounds are far apart


def _feistel_each(x: NDArray[np.uint64], bits: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = x >> bits, x & mask
    for round_ in range(1, _FEISTEL_ROUNDS + 1):
        key = _mixed(keys + np.uint64(round_ * _GOLDEN % 2**64))
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right
