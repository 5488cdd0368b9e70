"""Bounds of steps with 8-bit states beside those of one process whose blocks are cut elsewhere: derived, not tuned.

Gradients are those of world.gradients: each element keeps its sign, and its magnitude is between 0.5 and 1.
docs/distributed.md states the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEPS = 3

# Half a cell of the 8-bit maps between a tenth of the scale and all of it, in shares of the scale (64 cells where there
# are signs, else 128), and four roundings of float32: see optgen/codecs.py.
SIGNED, UNSIGNED = (0.45 / cells + 4 * 2.0**-24 for cells in (64, 128))


def drift(half_cell: float, least: float) -> float:
    """By what factor two runs can differ in a state that is stored in 8 bits, when the last of STEPS steps reads it.

    A state is an average of numbers whose signs do not change: errors are not more in it, in proportion, than in what
    it is made of. It has been stored STEPS - 1 times, and each time it was off by half a cell at most.

    Args:
        half_cell: In shares of a block's scale.
        least: Factor by which every other number is smaller than the largest of its block, before any rounding.
    """
    low = high = 1.0
    for _ in range(STEPS - 1):
        smallest = least * low / high
        assert smallest >= 0.1, "in finer cells than these"
        low, high = low * (1.0 - half_cell / smallest), high * (1.0 + half_cell / smallest)
    return high / low


def norms(rate: float) -> float:
    """By what factor the norms of a tensor can differ at the last step, if a step changes them by `rate` of it."""
    return ((1.0 + rate) / (1.0 - rate)) ** (STEPS - 1)


# Averages of gradients are between 0.5 and 1 of the largest in the block, those of their squares between 0.25 and 1.
MEAN, SQUARE = drift(SIGNED, 0.5), drift(UNSIGNED, 0.25)
ADAM = MEAN * SQUARE**0.5  # of an average over the root of one of squares
RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """A rule.

    Attributes:
        settings: Of both precisions.
        more: Of 32 bits. What decays parameters makes updates follow from them, which the bound of 8 bits leaves out.
        bound: By what factor the change of an element can differ between two runs with 8-bit states.
    """

    name: str
    settings: dict[str, Any]
    more: dict[str, Any]
    bound: float


CASES = {
    "adamw": Case("AdamW", {"lr": RATE, "weight_decay": 0.0}, {"weight_decay": 1e-2}, ADAM),
    # The update, its norm, and that of the parameter, which a step changes by lr.
    "lamb": Case("LAMB", {"lr": RATE}, {"weight_decay": 1e-2}, ADAM * ADAM * norms(RATE)),
    # The same, of an average of gradients; max_unorm keeps the update below 0.02 of the parameter's norm.
    "lars": Case("LARS", {"lr": 0.1, "momentum": 0.9}, {"weight_decay": 1e-2}, MEAN * MEAN * norms(0.1 * 0.02)),
    # The average is of gradients over roots of means of squares, of rows and columns: a factor of 2 each, which are
    # 8-bit ones in vectors alone. There they decide the direction and its root mean square. The rate is relative.
    "adafactor": Case(
        "Adafactor",
        {"lr": RATE, "relative_step": False, "beta1": 0.9},
        {"weight_decay": 1e-2},
        SQUARE * drift(SIGNED, 0.125) * norms(RATE),
    ),
    # The rate is divided by a root of a mean of squares over their averages.
    "stable_adamw": Case("StableAdamW", {"lr": RATE, "weight_decay": 0.0}, {"weight_decay": 1e-2}, ADAM * SQUARE**0.5),
}
