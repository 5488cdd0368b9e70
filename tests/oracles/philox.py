"""Philox4x32-10 in numpy, from its definition (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").

A counter of four words x0 .. x3 goes through ten rounds under a key k0, k1. With hi and lo the halves of the product
of two words as 64 bits, a round is

    (x0, x1, x2, x3) <- (hi(M1 x2) ^ x1 ^ k0,  lo(M1 x2),  hi(M0 x0) ^ x3 ^ k1,  lo(M0 x0))

and from a round to the next W0 is added to k0, W1 to k1, each in its word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Words, key: int) -> Words:
    """The blocks of counters: (n, 4) words each, as uint64 that hold 32 bits."""
    x0, x1, x2, x3 = (counter[:, i] for i in range(4))
    for turn in range(10):
        k0 = np.uint64((key + turn * W0) % 2**32)
        k1 = np.uint64(((key >> 32) + turn * W1) % 2**32)
        left, right = M0 * x0, M1 * x2
        x0, x1, x2, x3 = right >> HALF ^ x1 ^ k0, right & LOW, left >> HALF ^ x3 ^ k1, left & LOW
    return np.stack([x0, x1, x2, x3], axis=1)


def bits16(numel: int, seed: int, position: int, step: int) -> npt.NDArray[np.int64]:
    """16 random bits for each element of a parameter in a step: eight elements share a block."""
    block = np.arange(-(-numel // 8), dtype=np.uint64)
    place = [np.full_like(block, value) for value in (position, step)]
    words = philox(np.stack([block & LOW, block >> HALF, *place], axis=1), seed)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=2)
    return halves.reshape(-1)[:numel].astype(np.int64)


def words(numel: int, seed: int, position: int, number: int, step: int = 0) -> Words:
    """Two words for each element of a parameter, for the draw of this number among a rule's initial values."""
    element = np.arange(numel, dtype=np.uint64)
    high = (element >> HALF) + np.uint64(number << 16)
    counter = np.stack([element & LOW, high, np.full_like(element, position), np.full_like(element, step)], axis=1)
    return philox(counter, seed)[:, :2]
