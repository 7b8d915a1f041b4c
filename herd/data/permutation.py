"""A shuffle computed on the fly: any element of any epoch in constant time and memory.

A Feistel network is a bijection whatever its round function; on the smallest even number of bits that holds `size`
it may leave the range, and is then applied again until it comes back (cycle walking, fewer than four times on average).
"""

import numpy as np

_ROUNDS = 6


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """The images of `index` (any shape) under a pseudo-random permutation of `range(size)`, chosen by `key`."""
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    keys = _mix(np.arange(_ROUNDS, dtype=np.uint64) + np.uint64(key * _ROUNDS % 2**63))
    place = _feistel(np.asarray(index, dtype=np.uint64), half, keys)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], half, keys)
    return place.astype(np.int64)


def _feistel(value: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    permuted: np.ndarray = (left << half) | right
    return permuted


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
