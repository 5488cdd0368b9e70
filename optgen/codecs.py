"""How an optimizer state is stored: the table of codecs and the code books of the 8-bit ones.

The 8-bit books are the dynamic maps of 8-bit optimizers (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization") and equal those of bitsandbytes bit for bit, so that checkpoints can be exchanged. They are piecewise
linear, one piece a decade from 1e-7 to 1: decade `l` (0 to 6) holds the middles of n equal cells between
0.1 * 10**(l - 6) and 10**(l - 6), with n = 2**l for signed books (each value also negated) and 2**(l + 1) for
unsigned ones; 0 and 1.0 are added. There is no -1.0: the smallest value of the signed book is about -0.993.

Free of torch and numpy: the compiler, which never imports torch, uses this module too.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from optgen.dtypes import DTYPES, Dtype

BLOCK: Final = 256  # elements that share one scale in the block-wise 8-bit codec
PAGED_NUMEL: Final = 100_000  # elements from which on the states of a parameter are paged, where that is asked for
WHOLE_TENSOR: Final = -1  # as Codec.block: one scale for the tensor
ZERO_CODE: Final[Mapping[bool, int]] = MappingProxyType({True: 127, False: 0})  # signed? -> code whose value is 0
SMALLEST_ABSMAX: Final = 2.0**-126  # float32's smallest normal number: below it a block's scale is stored as 0

_DECADES: Final = 7


@dataclass(frozen=True)
class Codec:
    """How a state's elements are stored.

    name: as in a spec's `codecs` list.
    bits: of one element, without scales.
    storage: name of the dtype of what is stored (see optgen.dtypes).
    block: elements that share one scale; 0: no scales, WHOLE_TENSOR: one for the tensor.
    cpp: the type that renders it in C++, a format over `dtype` and `signed` (see templates/include/optgen/tile.h).
    """

    name: str
    bits: int
    storage: str
    block: int = 0
    cpp: str = "Plain<{dtype}>"

    def cpp_type(self, signed: bool) -> str:
        """The C++ type for a state that can or cannot be negative."""
        return self.cpp.format(dtype=self.dtype.cpp, signed=str(signed).lower())

    @property
    def scaled(self) -> bool:
        """Whether a float32 absmax is stored beside the codes."""
        return self.block != 0

    @property
    def dtype(self) -> Dtype:
        """The dtype of what is stored."""
        return DTYPES[self.storage]

    def scales(self, numel: int) -> int:
        """How many float32 scales a tensor of `numel` elements has."""
        match self.block:
            case 0:
                return 0
            case -1:
                return 1
            case block:
                return -(-numel // block)

    def state_bytes(self, numel: int) -> int:
        """All bytes that a state of `numel` elements takes, scales included."""
        return numel * self.dtype.bytes + 4 * self.scales(numel)

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one element of a large tensor, its share of the scales included: 1.015625 for int8."""
        return self.dtype.bytes + (4 / self.block if self.block > 0 else 0.0)


CODECS: Final[Mapping[str, Codec]] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("fp32", 32, "float32"),
            Codec("bf16", 16, "bfloat16"),
            Codec("fp16", 16, "float16"),
            Codec("int8", 8, "uint8", block=BLOCK, cpp="Int8<{signed}>"),
            Codec("int8_tensor", 8, "uint8", block=WHOLE_TENSOR, cpp="Int8Tensor<{signed}>"),
        )
    }
)


def plain_codec(names: Sequence[str]) -> str:
    """How a state that can take these codecs is stored where it is not quantized: the first one without scales."""
    return next(name for name in names if not CODECS[name].scaled)


@dataclass(frozen=True)
class ParameterCodec:
    """How a parameter is stored: decoded to float32 before the equations, encoded once after them.

    name: of the rounding.
    cpp: the type that renders it in C++, a format over `dtype`.
    """

    name: str
    cpp: str

    def cpp_type(self, dtype: str) -> str:
        """The C++ type for a parameter of this dtype, or for a gradient, which is only decoded."""
        return self.cpp.format(dtype=DTYPES[dtype].cpp)


PARAMETER_CODECS: Final[Mapping[str, ParameterCodec]] = MappingProxyType(
    {codec.name: codec for codec in (ParameterCodec("nearest", "Plain<{dtype}>"),)}
)


def codec(name: str) -> Codec:
    """The codec called `name`; ValueError with the known names if there is none."""
    try:
        return CODECS[name]
    except KeyError:
        raise ValueError(f"unknown codec {name!r}: expected one of {', '.join(CODECS)}") from None


def float32(value: float) -> float:
    """`value` rounded to the nearest float32, ties to even."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@cache
def code_book(signed: bool) -> tuple[float, ...]:
    """The 256 values of the 8-bit codes, ascending, each exactly a float32."""
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        cells = 2 ** (decade if signed else decade + 1)
        scale = float32(10.0 ** (decade - _DECADES + 1))
        edges = _cell_edges(cells)
        for low, high in pairwise(edges):
            # Sums and products of two float32 are exact in float64 here, so that each rounds once, as float32 would.
            value = float32(scale * (float32(low + high) / 2))
            values.extend((value, -value) if signed else (value,))
    return tuple(sorted(values))


@cache
def midpoints(signed: bool) -> tuple[float, ...]:
    """The float32 thresholds between neighbouring magnitudes: magnitude number k is nearest where exactly k lie below.

    128 of them for the signed book (129 magnitudes, 0 and 1.0 included), 255 for the unsigned one.
    """
    magnitudes = [value for value in code_book(signed) if value >= 0.0]
    return tuple(float32((a + b) / 2) for a, b in pairwise(magnitudes))


def _cell_edges(cells: int) -> list[float]:
    """`cells` + 1 float32 numbers from 0.1 to 1, equally spaced.

    Rounded as torch.linspace does on processors with fused multiply-add: one rounding a number, counted from the
    nearer end, with the step rounded before. The books' last bits depend on it.
    """
    start, end = float32(0.1), 1.0
    step = float32(float32(end - start) / cells)
    half = (cells + 1) // 2
    return [float32(start + step * i) if i < half else float32(end - step * (cells - i)) for i in range(cells + 1)]
