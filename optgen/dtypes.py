"""The number formats that optgen stores: names, sizes and their C++ spelling. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Dtype:
    """Format of one number.

    name: torch's own name of the format ("float32").
    bytes: size of one number.
    cpp: type name in generated C++ (templates/include/optgen/dtypes.h).
    """

    name: str
    bytes: int
    cpp: str


FLOAT32: Final = Dtype("float32", 4, "float")
BFLOAT16: Final = Dtype("bfloat16", 2, "optgen::bf16")
FLOAT16: Final = Dtype("float16", 2, "optgen::fp16")
FLOAT8: Final = Dtype("float8_e4m3fn", 1, "uint8_t")
UINT8: Final = Dtype("uint8", 1, "uint8_t")
INT8: Final = Dtype("int8", 1, "int8_t")
INT16: Final = Dtype("int16", 2, "int16_t")

DTYPES: Final[Mapping[str, Dtype]] = MappingProxyType(
    {d.name: d for d in (FLOAT32, BFLOAT16, FLOAT16, FLOAT8, UINT8, INT8, INT16)}
)

# dtypes of parameters and gradients; the others are for states and for what is kept beside a parameter.
PARAM_DTYPES: Final = (FLOAT32, BFLOAT16, FLOAT16)


def dtype(name: str) -> Dtype:
    """The dtype called `name`; ValueError with the known names if there is none."""
    try:
        return DTYPES[name]
    except KeyError:
        raise ValueError(f"unknown dtype {name!r}: expected one of {', '.join(DTYPES)}") from None
