"""Codecs of optimizer states and parameters, and the code books of the dynamic ones.

Quantized states are cut into blocks that share one scale, the largest magnitude among them (absmax); a code stands for
a number y in [-1, 1], and the state's value is y * absmax. The codecs differ in which numbers their codes stand for:

- `int8` and signed `int4`: dynamic maps (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"), dense
  near 0. They equal those of bitsandbytes (8 bits) and torchao (both) bit for bit: checkpoints can be exchanged.
  They are piecewise linear, one piece a decade up to 1: decade `l` holds the middles of n equal cells between
  0.1 * 10**(l - last) and 10**(l - last), with n = 2**l for signed books (each value also negated) and 2**(l + 1) for
  unsigned ones; 0 and 1.0 are added. 8 bits have seven decades, from 1e-7 on, 4 bits three. There is no -1.0: the
  smallest value of the signed 8-bit book is about -0.993.
- unsigned `int4`: 1/16, 2/16 ... 16/16, as in torchao (Li et al. 2023, "Memory Efficient Optimizers with 4-bit
  States": without a zero, since a denominator of zero is worse than one that is too large).
- signed `normal4`: of numbers with a normal distribution in blocks of 64 the book with the least squared error, 0 and
  1.0 among its values and the others symmetric, in the manner of NF4 (Dettmers et al. 2023, "QLoRA"); unsigned as
  `int4`. It is for directions of matrices, whose small singular values drown in rounding errors.
- `fp8`: the 8-bit floats e4m3fn, over 448, their largest.
- `companded8`: even steps of 2y / (1 + |y|) (signed) or sqrt(y) (unsigned): finer where numbers are small.

Free of torch and numpy: the compiler, which never imports torch, uses this module too.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from optgen.dtypes import DTYPES, Dtype

BLOCK_SIZES: Final = (32, 64, 128, 256)  # elements that can share one scale: what a tile of 256 divides into
COMPENSATION: Final = "param_compensation"  # the key of what is kept beside a parameter, among its states
PAGED_NUMEL: Final = 100_000  # elements from which on the states of a parameter are paged, where that is asked for
WHOLE_TENSOR: Final = -1  # as Codec.block: one scale for the tensor
SMALLEST_ABSMAX: Final = 2.0**-126  # float32's smallest normal number: below it a block's scale is stored as 0
FP8_LARGEST: Final = 448.0


@dataclass(frozen=True)
class Codec:
    """Codec of a state: the form in which its elements are stored.

    name: as in a spec's `codecs` list.
    bits: of one element, without scales.
    storage: name of the dtype of what is stored (see optgen.dtypes).
    block: elements that share one scale; 0: no scales, WHOLE_TENSOR: one for the tensor.
    book: the C++ type of the codes of a quantized state, a format over `signed` (see templates/include/optgen/tile.h).
    zero: what is stored for a state that is 0 everywhere, without and with a sign.
    """

    name: str
    bits: int
    storage: str
    block: int = 0
    book: str = ""
    zero: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        match self.block:
            case 0:
                return self.name
            case -1:
                return f"{self.name} with one scale for the tensor"
            case block:
                return f"{self.name} in blocks of {block}"

    def with_block(self, block: int) -> Codec:
        """The same codes with another number of elements a scale."""
        return replace(self, block=block) if self.scaled else self

    def cpp_type(self, signed: bool) -> str:
        """The C++ type for a state that can or cannot be negative."""
        book = self.book.format(signed=str(signed).lower())
        match self.block:
            case 0:
                return f"Plain<{self.dtype.cpp}>"
            case -1:
                return f"Tensorwise<{book}>"
            case block:
                return f"Blocked<{book}, {block}>"

    @cached_property
    def scaled(self) -> bool:
        """True if a float32 absmax is stored beside the codes."""
        return self.block != 0

    @property
    def dtype(self) -> Dtype:
        """The dtype of what is stored."""
        return DTYPES[self.storage]

    @cached_property
    def packed(self) -> int:
        """Number of elements that one stored number holds."""
        return 8 * self.dtype.bytes // self.bits

    def takes(self, numel: int) -> bool:
        """Check whether a tensor of `numel` elements can be stored: it must fill one stored number at least."""
        return self.packed == 1 or numel >= self.packed

    def codes_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the codes of a state: its own, or flat where several elements share a byte."""
        if self.packed == 1:
            return tuple(shape)
        numel = 1
        for size in shape:
            numel *= size
        return (-(-numel // self.packed),)

    def scales(self, numel: int) -> int:
        """Number of float32 scales of a tensor of `numel` elements."""
        match self.block:
            case 0:
                return 0
            case -1:
                return 1
            case block:
                return -(-numel // block)

    def is_like(self, other: Codec, numel: int) -> bool:
        """Check whether both codecs store a tensor of `numel` elements equally: a single block is one scale for the
        tensor."""
        return self.name == other.name and self.scales(numel) == other.scales(numel)

    def state_bytes(self, numel: int) -> int:
        """All bytes that a state of `numel` elements takes, scales included."""
        return -(-numel // self.packed) * self.dtype.bytes + 4 * self.scales(numel)

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one element of a large tensor, its share of the scales included: 1.015625 for int8."""
        return self.bits / 8 + (4 / self.block if self.block > 0 else 0.0)


CODECS: Final[Mapping[str, Codec]] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("fp32", 32, "float32"),
            Codec("bf16", 16, "bfloat16"),
            Codec("fp16", 16, "float16"),
            Codec("int8", 8, "uint8", 256, "Int8<{signed}>", zero=(0, 127)),
            Codec("int4", 4, "uint8", 128, "Int4<{signed}>", zero=(0x00, 0x77)),
            Codec("normal4", 4, "int8", 64, "Int4<{signed}, NormalBook>", zero=(0x00, 0x77)),
            Codec("fp8", 8, "float8_e4m3fn", 256, "Fp8<{signed}>"),
            Codec("companded8", 8, "int8", 32, "Companded8<{signed}>", zero=(-128, 0)),
        )
    }
)
OF_BITS: Final[Mapping[int, str]] = MappingProxyType({32: "fp32", 16: "bf16", 8: "int8", 4: "int4"})


@cache
def plain_codec(names: tuple[str, ...]) -> str:
    """Name of the codec of a state where it is not quantized: the first of its codecs without scales."""
    return next(name for name in names if not CODECS[name].scaled)


@cache
def plain_codec_of(dtype: str) -> Codec:
    """The codec without scales that stores numbers of a dtype."""
    return next(codec for codec in CODECS.values() if codec.storage == dtype and not codec.scaled)


def is_asked(bits: int, name: str) -> bool:
    """Check whether settings ask for a codec at all: 32 bits without a name are each state's own default."""
    return name != "auto" or bits != 32


@lru_cache
def chosen_codec(bits: int, name: str, block_wise: bool, block_size: int) -> Codec:
    """The codec that the settings of an optimizer ask for.

    bits: 32, 16, 8 or 4.
    name: a codec, or "auto" for the one of these bits.
    block_size: elements that share a scale; 0 for the codec's own.
    """
    codec = CODECS[OF_BITS[bits] if name == "auto" else name]
    if not codec.scaled:
        return codec
    return codec.with_block((block_size or codec.block) if block_wise else WHOLE_TENSOR)


@lru_cache
def codec_among(among: tuple[str, ...], bits: int, name: str, block_wise: bool, block_size: int) -> Codec | None:
    """The codec that the settings of an optimizer ask for of a state that takes these: for "auto" the first of so many
    bits; None if there is none."""
    found = (each for each in among if (CODECS[each].bits == bits if name == "auto" else each == name))
    chosen = next(found, None)
    return None if chosen is None else chosen_codec(bits, chosen, block_wise, block_size)


@dataclass(frozen=True)
class ParameterCodec:
    """Codec of a parameter: decoded to float32 before the equations, encoded once after them.

    name: of the rounding.
    cpp: the type that renders it in C++, a format over `dtype`.
    compensation: the dtype of what is kept beside the parameter; "same": its own; "": nothing.
    dtypes: the parameters that it is for; others are rounded to nearest.
    """

    name: str
    cpp: str
    compensation: str = ""
    dtypes: tuple[str, ...] = ("bfloat16", "float16")

    def cpp_type(self, dtype: str) -> str:
        """The C++ type for a parameter of this dtype, or for a gradient, which is only decoded."""
        return self.cpp.format(dtype=DTYPES[dtype].cpp)

    def compensation_dtype(self, dtype: str) -> str:
        """The dtype of what is kept beside a parameter of this dtype; "" for nothing."""
        return dtype if self.compensation == "same" else self.compensation


PARAMETER_CODECS: Final[Mapping[str, ParameterCodec]] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            ParameterCodec("nearest", "Plain<{dtype}>", dtypes=("float32", "bfloat16", "float16")),
            ParameterCodec("stochastic", "Stochastic<{dtype}>"),
            ParameterCodec("kahan", "Kahan<{dtype}>", "same"),
            ParameterCodec("split8", "Split<int8_t>", "int8", ("bfloat16",)),
            ParameterCodec("split16", "Split<int16_t>", "int16", ("bfloat16",)),
        )
    }
)


def parameter_codec(rounding: str, dtype: str) -> ParameterCodec:
    """Codec of a parameter of this dtype under this rounding."""
    codec = PARAMETER_CODECS[rounding]
    return codec if dtype in codec.dtypes else PARAMETER_CODECS["nearest"]


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


VALUE_SHIFT: Final = MappingProxyType({True: 41 / 64, False: 1.0})
"""Number that is added to a magnitude's own, so that powers of two begin decades, by sign."""

# A line a decade, (slope, offset). Of the float32 numbers around those of a dynamic map, whose decade of n cells has
# their middles, 10**decade * (0.1 + 0.9 * (i + 0.5) / n), the pair with which its values are nearest to them.
_VALUE_LINES: Final = MappingProxyType(
    {
        True: (
            (8.99999804e-07, -9.26562223e-07),
            (4.4999997e-06, -8.63281184e-06),
            (2.25000003e-05, -8.31640646e-05),
            (0.000112499998, -0.000815820298),
            (0.000562500034, -0.00807910226),
            (0.00281250011, -0.0803955123),
            (0.0140624996, -0.801977515),
        ),
        False: (
            (4.49999987e-07, -5.75000001e-07),
            (2.24999985e-06, -6.8749996e-06),
            (1.12499984e-05, -7.43749843e-05),
            (5.62499954e-05, -0.000771874911),
            (0.000281249959, -0.00785937347),
            (0.00140625006, -0.0792968795),
            (0.00703124981, -0.796484351),
        ),
    }
)


NORMAL4: Final = (0.0, 0.0969, 0.1963, 0.301, 0.4152, 0.5447, 0.7003, 0.907, 1.0)
"""Magnitudes of signed `normal4`, by which an error of 9.2 % of the root mean square is left; `int4` leaves 14 %."""


@cache
def value_lines(signed: bool) -> tuple[tuple[float, float], ...]:
    """(slope, offset) of the line that the values of each decade of `int8` lie on, each exactly a float32."""
    return tuple((float32(slope), float32(offset)) for slope, offset in _VALUE_LINES[signed])


@cache
def code_book(signed: bool, name: str = "int8") -> tuple[float, ...]:
    """The values of the codes of `int8`, `int4` or `normal4`, ascending, each exactly a float32.

    Of `int8` those of `dynamic_map`, but for their last two places: a value is slope * x + offset, rounded once, so
    that kernels compute it. Of `int4` with a sign a dynamic map of three decades, as torchao's; of both codecs of 4
    bits without a sign sixteenths.
    """
    if name != "int8" and not signed:
        return tuple((code + 1) / 16 for code in range(16))
    if name == "int4":
        return dynamic_map(True, 3)
    if name == "normal4":
        magnitudes = [float32(value) for value in NORMAL4]
        return tuple(sorted({*magnitudes, *(-value for value in magnitudes[1:-1])}))
    values, shift = [0.0, 1.0], VALUE_SHIFT[signed]
    for decade, (slope, offset) in enumerate(value_lines(signed)):
        cells = 2 ** (decade if signed else decade + 1)
        first = cells if signed else cells - 1
        for number in range(first, first + cells):
            value = float32(slope * (number + shift) + offset)  # exact in float64 before it is rounded
            values.extend((value, -value) if signed else (value,))
    return tuple(sorted(values))


@cache
def dynamic_map(signed: bool, decades: int = 7) -> tuple[float, ...]:
    """The dynamic map that bitsandbytes publishes, ascending, each value exactly a float32.

    0, decades of which each has twice the cells of the one before, and 1; of a cell there is the middle.
    """
    values = [0.0, 1.0]
    for decade in range(decades):
        cells = 2 ** (decade if signed else decade + 1)
        scale = float32(10.0 ** (decade - decades + 1))
        edges = _cell_edges(cells)
        for low, high in pairwise(edges):
            # Sums and products of two float32 are exact in float64 here, so that each rounds once, as float32 would.
            value = float32(scale * (float32(low + high) / 2))
            values.extend((value, -value) if signed else (value,))
    return tuple(sorted(values))


@cache
def midpoints(signed: bool, name: str = "int8") -> tuple[float, ...]:
    """The float32 thresholds between neighbouring magnitudes: magnitude number k is nearest where exactly k lie below.

    Of 8 bits 128 for the signed book (129 magnitudes, 0 and 1.0 included), 255 for the unsigned one; of 4 bits 8 and
    15.
    """
    magnitudes = [value for value in code_book(signed, name) if value >= 0.0]
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
