"""Dimensions of a tensor that numbers of each kind have: one number for each index of those.

Equations read numbers of a kind in the rank of the tensor, with 1 for the other dimensions, so that torch broadcasts
them: rows as (..., rows, 1), columns as (..., 1, cols), channels as (channels, 1, ..., 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

LAST = {"last": 1, "last2": 2, "last3": 3, "last4": 4}
"""Kinds of one dimension, with its number from the end."""


SIDE = "proj_type"
"""The setting that says which dimension a projection reduces; states of another one are of other shapes."""
Settings = Mapping[str, Any]


def matrix_sizes(dims: Sequence[str], shape: Sequence[int], settings: Settings) -> tuple[int, ...]:
    """The sizes of dimensions by their names: of the parameter's, `long` and `short` its greater and its smaller one,
    `reduced` the one that a projection reduces and `kept` the other; others are settings, which are no more than the
    smaller one.

    Args:
        shape: That which the rule sees the parameter in, (..., rows, cols).
    """
    rows, cols = shape[-2:]
    kept, reduced = (cols, rows) if is_turned(shape, settings) else (rows, cols)
    known = {"rows": rows, "cols": cols, "long": max(rows, cols), "short": min(rows, cols), "1": 1}
    known |= {"kept": kept, "reduced": reduced}
    return tuple(known[dim] if dim in known else min(int(settings[dim]), rows, cols) for dim in dims)


def is_turned(shape: Sequence[int], settings: Settings) -> bool:
    """Check whether a projection, which acts on columns, sees a matrix of this shape transposed."""
    rows, cols = shape[-2:]
    ways = {"right": False, "left": True, "reverse_std": rows >= cols}
    return ways.get(settings.get(SIDE, "std"), rows < cols)


@lru_cache(maxsize=1024)
def kind_dims(kind: str, rank: int) -> tuple[int, ...]:
    """The dimensions of a tensor of this rank that numbers of a kind have, in their order."""
    every = range(rank)
    match kind:
        case "element":
            return tuple(every)
        case "row":
            return tuple(every[:-1])
        case "col":
            return tuple(dim for dim in every if dim != rank - 2)
        case "matrix":
            return tuple(every[:-2])
        case "channel":
            return tuple(every[:1])
    return tuple(dim for dim in every if dim == rank - LAST.get(kind, 0))


def shape_of(kind: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of numbers of a kind as a state keeps them: the sizes of their dimensions."""
    return tuple(shape[dim] for dim in kind_dims(kind, len(shape)))


def spread_shape(kind: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of numbers of a kind as equations read them: in the rank of the tensor."""
    dims = kind_dims(kind, len(shape))
    return tuple(size if dim in dims else 1 for dim, size in enumerate(shape))
