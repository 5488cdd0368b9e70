"""Sums of float32 numbers that are wider than float32, also on devices that have no float64, as Apple's GPUs.

There a sum is a pair of float32 numbers, the second of which is what the first has lost (Knuth's two-sum, in a tree):
its error is that of some 48 bits. Sums of a whole tensor go to the host, where they are float64 as everywhere; those of
rows and columns are rounded to float32 once, as elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # types of devices
SPLIT = 4097.0  # 2^12 + 1, which splits a float32 in two of 12 bits (Dekker)
BLOCK = 65_536  # numbers that are squared at a time
EXPONENT = 0x7F800000  # of a float32


def has_float64(device: torch.device) -> bool:
    """Check whether a device computes in float64."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type not in WITHOUT_FLOAT64


def wide(x: Tensor) -> Tensor:
    """A number of float32 in float64, on the host if its device has none; more numbers stay as they are there."""
    if has_float64(x.device):
        return x.double()
    return x if x.numel() > 1 or x.dim() > 1 else x.cpu().double()


def total(x: Tensor) -> Tensor:
    """The sum of all numbers, of shape (), in float64."""
    if has_float64(x.device):
        return x.sum(dtype=torch.float64)
    high, low = _pair(x.reshape(-1), None)
    return _joined(high.cpu().double(), low.cpu().double()).reshape(())


def total_squares(x: Tensor) -> Tensor:
    """The sum of the squares of all numbers, likewise."""
    if has_float64(x.device):
        return x.double().square().sum()
    scaled, unit = _scaled(x.reshape(-1))
    high, low = _pair(scaled * scaled, _lost(scaled))
    unit = unit.cpu().double()
    return (_joined(high.cpu().double(), low.cpu().double()) * unit * unit).reshape(())


def sums(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sums over dimensions, which are kept with a size of 1: float64, or float32 where there is none."""
    if has_float64(x.device):
        return x.sum(dim=dims, keepdim=True, dtype=torch.float64)
    lines = _lines(x, dims)
    return _joined(*_pair(lines, None)).reshape(_kept(x, dims))


def means(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Means over dimensions, likewise."""
    if has_float64(x.device):
        return x.mean(dims, keepdim=True, dtype=torch.float64)
    lines = _lines(x, dims)
    return (_joined(*_pair(lines, None)) / lines.shape[-1]).reshape(_kept(x, dims))


def squares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sums of squares over dimensions, likewise."""
    if has_float64(x.device):
        return x.double().square().sum(dim=dims, keepdim=True)
    scaled, unit = _scaled(_lines(x, dims))
    return (_joined(*_pair(scaled * scaled, _lost(scaled))) * unit * unit).reshape(_kept(x, dims))


def roots(x: Tensor, dims: tuple[int, ...], mean: bool) -> Tensor:
    """Roots of sums of squares, or of mean squares, over dimensions, likewise."""
    if has_float64(x.device):
        found = _squares(x, dims)
        return (found / (x.numel() // max(found.numel(), 1)) if mean else found).sqrt_()
    scaled, unit = _scaled(_lines(x, dims))
    found = _joined(*_pair(scaled * scaled, _lost(scaled)))
    found = found / scaled.shape[-1] if mean else found
    return (found.sqrt() * unit).reshape(_kept(x, dims))


def _squares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sums of squares in float64, of a large matrix on the host a few rows at a time: a copy of it takes longer."""
    if x.dim() != 2 or x.device.type != "cpu" or x.numel() < 2 * BLOCK:
        return x.double().square().sum(dims, keepdim=True)
    summed = _summed(x, dims)
    if not x.is_contiguous() and x.mT.is_contiguous():
        return _squares(x.mT, tuple(1 - dim for dim in summed)).mT
    rows = max(BLOCK // x.shape[1], 1)
    room = torch.empty(rows, x.shape[1], dtype=torch.float64, device=x.device)
    found = torch.zeros(_kept(x, (1,) if 1 in summed else (0,)), dtype=torch.float64, device=x.device)
    for first in range(0, x.shape[0], rows):
        part = x[first : first + rows]
        squares = room[: len(part)].copy_(part).square_()
        if 1 in summed:
            torch.sum(squares, 1, keepdim=True, out=found[first : first + rows])
        else:
            found += squares.sum(0, keepdim=True)
    return found.sum(0, keepdim=True) if len(summed) == 2 else found


def _lines(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The numbers of each sum along the last dimension."""
    summed = _summed(x, dims)
    others = [dim for dim in range(x.dim()) if dim not in summed]
    shape = [x.shape[dim] for dim in others]
    return x.permute(*others, *summed).reshape(*shape, torch.Size([x.shape[dim] for dim in summed]).numel())


def _summed(x: Tensor, dims: tuple[int, ...]) -> list[int]:
    """Dimensions from the first; none stands for all, as in torch."""
    return [dim % x.dim() for dim in dims] or list(range(x.dim()))


def _kept(x: Tensor, dims: tuple[int, ...]) -> list[int]:
    summed = _summed(x, dims)
    return [1 if dim in summed else size for dim, size in enumerate(x.shape)]


def _pair(high: Tensor, low: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums along the last dimension, which goes, and what they have lost.

    Args:
        low: What the numbers themselves have lost.
    """
    low = torch.zeros_like(high) if low is None else low
    if not high.shape[-1]:
        high, low = high.new_zeros(*high.shape[:-1], 1), low.new_zeros(*low.shape[:-1], 1)
    while (count := high.shape[-1]) > 1:
        if count % 2:
            high, low = (torch.nn.functional.pad(part, (0, 1)) for part in (high, low))
        half = (count + 1) // 2
        a, b = high[..., :half], high[..., half:]
        high = a + b
        other = high - a
        low = low[..., :half] + low[..., half:] + ((a - (high - other)) + (b - other))
    return high[..., 0], low[..., 0]


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """The pair as one number; infinities have lost nothing."""
    return torch.where(torch.isfinite(high), high + low, high)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers over a power of two for each line, of which squares neither overflow nor vanish; and these powers."""
    largest = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    unit = (largest.view(torch.int32) & EXPONENT).view(torch.float32)
    unit = torch.where((unit > 0) & torch.isfinite(unit), unit, 1.0)
    return x / unit.unsqueeze(-1), unit


def _lost(x: Tensor) -> Tensor:
    """The part that squares of numbers below 2 lose when they are rounded."""
    square, wide = x * x, x * SPLIT
    upper = wide - (wide - x)
    lower = x - upper
    return ((upper * upper - square) + 2.0 * upper * lower) + lower * lower
