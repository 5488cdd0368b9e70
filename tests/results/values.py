"""Parameters and gradients that trainings start from: the same on every machine and with every version.

They are whole numbers of a bit generator, whose stream numpy promises to keep, times powers of two: no function is
asked that another machine could compute otherwise.
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

# Every number of dimensions; sizes around the tile and the blocks of codecs, and of several chunks of the cpu target.
SHAPES: dict[str, tuple[int, ...]] = {
    "0-dim": (),
    "one": (1,),
    "block-1": (255,),
    "block+1": (257,),
    "matrix": (37, 140),
    "transposed": (30, 17),
    "column": (130, 1),
    "matrices": (3, 20, 51),
    "image": (2, 3, 5, 7),
    "zeros": (300,),
    "empty": (0,),
    "late": (70,),
    "long": (33_001,),
    "special": (520,),
    "special matrix": (8, 33),
}
SPECIAL = ("special", "special matrix")  # there only where it is asked for: a sum over all parameters takes it in
FIRST, SECOND = 1, 2  # steps in which a parameter has no gradient
WITHOUT = {FIRST: ("late",), SECOND: ("block+1", "image")}
EDGES = (
    0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 6e-8, -6.1e-5, 1e-20, 1e20, -1e30, 3.4e38, 65504.0, -65520.0,
    float("inf"), float("-inf"), float("nan"), 1.0, -1.0, 0.1,
)  # fmt: skip


@cache
def numbers(name: str, turn: int) -> Tensor:
    """About normal, of magnitudes from 2^-8 to 8, a tenth of them 0; float32."""
    shape = SHAPES[name]
    count = int(np.prod(shape))
    raw = np.random.PCG64(zlib.crc32(f"{name}/{turn}".encode())).random_raw(count)
    parts = [(raw >> np.uint64(16 * place)) & np.uint64(0xFFFF) for place in range(4)]
    middle = sum(part.astype(np.int64) for part in parts[:3]) - 3 * 0x8000
    power = -(parts[3] & np.uint64(7)).astype(np.int64)
    values = np.ldexp(middle.astype(np.float64), power - 14)
    values[parts[3] % 10 == 0] = 0.0
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def _edged(values: Tensor, turn: int) -> Tensor:
    """With each special value somewhere, at other places in every turn."""
    flat = values.clone().reshape(-1)
    flat[torch.arange(len(EDGES)) * 7 + turn] = torch.tensor(EDGES)
    return flat.reshape(values.shape)


def make_params(names: list[str], dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters by name; one is zero, one lies transposed in memory."""
    params = []
    for name in names:
        value = numbers(name, 0)
        if name == "zeros":
            value = torch.zeros_like(value)
        elif name in SPECIAL:
            value = _edged(value, 0)
        elif name == "transposed":
            value = value.t()
        made = torch.empty_strided(value.shape, value.stride(), dtype=dtype).copy_(value)
        params.append(nn.Parameter(made))
    return params


def make_grads(names: list[str], turn: int, dtype: torch.dtype, nonfinite: bool) -> list[Tensor | None]:
    """Gradients of a turn, from 1, which differ in size from turn to turn.

    Args:
        nonfinite: Whether there are NaN and Inf among those of every parameter.
    """
    grads: list[Tensor | None] = []
    for name in names:
        if name in WITHOUT.get(turn, ()):
            grads.append(None)
            continue
        value = numbers(name, turn) * 2.0 ** (turn % 3 - 4)
        if name in SPECIAL:
            value = _edged(value, turn)
        if nonfinite and value.numel() > 9:
            flat = value.clone().reshape(-1)
            flat[turn::53], flat[turn + 1 :: 101], flat[turn + 2 :: 97] = torch.nan, torch.inf, -torch.inf
            value = flat.reshape(value.shape)
        grads.append((value.t() if name == "transposed" else value).to(dtype))
    return grads
