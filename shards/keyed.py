"""Randomness as a function: every draw is keyed by (seed, epoch, sample id, purpose), never by history.

Three tools, all pure:

- `hash64` / `generator`: a 64-bit number or a counter-based numpy Generator from any tuple of names and numbers;
- `mix64`: a vectorised bijective mixer for arrays of 64-bit ids (sort keys for whole tables);
- `permute`: a keyed permutation of range(n) that needs no array of n (random access, invertible),
  so that resuming in mid-epoch costs nothing.

Cost: `hash64` 1–2 µs, `generator` 15–20 µs, `permute` about 0.1 µs per index when called on arrays.
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
    x = np.asarray(ids, np.uint64) + np.uint64(hash64("mix64", key))
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
