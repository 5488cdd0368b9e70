"""Sets of tensors that are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]

MIN_GRADIENT_BYTES = 2**26
GRADIENT_SETS = (2, 16)
ONE_SET_FROM = 2**30


@dataclass(frozen=True)
class Case:
    """A set of parameters; `gradient_sets` is how many sets of gradients take turns."""

    name: str
    shapes: tuple[Shape, ...]
    gradient_sets: int
    dtype: str = "float32"

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(shape) for shape in self.shapes)


def case_of(name: str, shapes: tuple[Shape, ...], dtype: str, itemsize: int) -> Case:
    """A case with as many sets of gradients as lie beyond a cache together; one of gigabytes has one.

    Args:
        itemsize: Bytes of one number of the dtype.
    """
    size = itemsize * sum(math.prod(shape) for shape in shapes)
    least, most = GRADIENT_SETS
    sets = 1 if size >= ONE_SET_FROM else min(most, max(least, math.ceil(MIN_GRADIENT_BYTES / size)))
    return Case(name, shapes, sets, dtype)


def gpt2_shapes(width: int = 768, layers: int = 12) -> tuple[Shape, ...]:
    """The shapes of GPT-2's parameters in the order of the model: by default small's 148."""
    norm: tuple[Shape, ...] = ((width,), (width,))
    attention = ((width, 3 * width), (3 * width,), (width, width), (width,))
    mlp = ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    block = (*norm, *attention, *norm, *mlp)
    return ((50257, width), (1024, width), *(block * layers), *norm)
