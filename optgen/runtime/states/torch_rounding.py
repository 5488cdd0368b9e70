"""Codecs of parameters in plain torch operations: the reference for every other target.

- `nearest`: rounded to the parameter's dtype, ties to even.
- `stochastic`: rounded down or up in magnitude, up with the probability that makes the expected value exact, to
  2^-16: where 16 random bits, added to what is below the last place, carry into it; of float16's subnormal numbers,
  where the bits are below the fraction of the last place. Nothing happens to what the dtype holds exactly.
- `kahan`: nearest, and the rest, rounded to the same dtype, is kept beside the parameter and added when it is read
  (Kahan summation, as in Zamirai et al. 2020, "Revisiting BFloat16 Training").
- `split16`, `split8`: the parameter and what is kept beside it are a float32, or one cut to 24 bits (rounded to
  nearest even): bf16 is its upper half, rounded half up, the signed difference to it 16 or 8 bits (the idea of split
  master weights). Reading gives the very number back.

A value that is not finite has nothing beside it, and neither has one that overflows when it is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optgen.codecs import ParameterCodec
from optgen.runtime.states.philox import Draw

BITS = {torch.int8: 8, torch.int16: 16}  # of the difference that split weights keep


def decode_parameter(codec: ParameterCodec, param: Tensor, compensation: Tensor | None) -> Tensor:
    """Decode a parameter of any shape to the float32 tensor that the equations read."""
    value = param.to(torch.float32)
    if compensation is None:
        return value
    if codec.name == "kahan":
        return value + compensation.to(torch.float32)
    return (_bits(value) + (compensation.to(torch.int32) << 16 - BITS[compensation.dtype])).view(torch.float32)


def encode_parameter(
    codec: ParameterCodec, value: Tensor, dtype: torch.dtype, draw: Draw
) -> tuple[Tensor, Tensor | None]:
    """Encode a float32 tensor: the parameter and what is kept beside it.

    draw: where the random numbers of stochastic rounding come from.
    """
    match codec.name:
        case "stochastic":
            return _stochastic(value, dtype, draw), None
        case "split8" | "split16":
            value = _cut(value, 16 - BITS[getattr(torch, codec.compensation)])
            half_up = torch.where(torch.isfinite(value), _bits(value) + 0x8000 & ~0xFFFF, _bits(value))
            param = half_up.view(torch.float32).to(torch.bfloat16)
        case _:
            param = value.to(dtype)
    return param, compensation_of(codec, value, param)


def compensation_of(codec: ParameterCodec, value: Tensor, param: Tensor) -> Tensor | None:
    """Compute the compensation beside a parameter that stands for a float32 value."""
    if not codec.compensation:
        return None
    stored = param.to(torch.float32)
    exact = torch.isfinite(value) & torch.isfinite(stored)
    if codec.name == "kahan":
        return torch.where(exact, value - stored, 0.0).to(param.dtype)
    dtype: torch.dtype = getattr(torch, codec.compensation)
    largest = torch.iinfo(dtype)
    difference = torch.where(exact, _bits(_cut(value, 16 - BITS[dtype])) - _bits(stored), 0) >> 16 - BITS[dtype]
    return difference.clamp(largest.min, largest.max).to(dtype)


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32)


def _cut(value: Tensor, places: int) -> Tensor:
    """Rounded to nearest even, without the last `places` bits."""
    if places == 0:
        return value
    bits = _bits(value)
    rounded = bits + (1 << places - 1) - 1 + (bits >> places & 1) & -(1 << places)
    return torch.where(torch.isfinite(value), rounded.view(torch.float32), value)


def _stochastic(value: Tensor, dtype: torch.dtype, draw: Draw) -> Tensor:
    random = draw.bits16(value.numel(), value.device).reshape(value.shape)
    nearest = value.to(dtype)
    bits = _bits(value)
    magnitude = bits & 0x7FFFFFFF
    if dtype is torch.bfloat16:
        rounded = magnitude + random & ~0xFFFF
    else:
        normal = magnitude + (random >> 3) & ~0x1FFF
        # Below 2^-14 the last place of fp16 is 2^-24.
        places = magnitude.view(torch.float32) * 2.0**24
        down = places.floor()
        up = random.to(torch.float32) < (places - down) * 2.0**16
        subnormal = _bits((down + up.to(torch.float32)) * 2.0**-24)
        rounded = torch.where(magnitude < 0x38800000, subnormal, normal)
    sign = bits & torch.iinfo(torch.int32).min
    exact = (rounded | sign).view(torch.float32).to(dtype)
    return torch.where(torch.isfinite(value), exact, nearest)
