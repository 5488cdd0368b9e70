"""Codecs of states that are matrices of their own, and square roots, compiled for the processor.

They compute what `torch_codecs` and `torch_math.sqrt` do, in one pass over memory each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from optgen.codecs import CODECS, WHOLE_TENSOR, Codec
from optgen.runtime import torch_math
from optgen.runtime.building.cache import shared_library
from optgen.runtime.building.compilers import Compiler
from optgen.runtime.rule import Rule
from optgen.runtime.states import torch_codecs

SOURCE = Path(__file__).with_suffix(".cpp")
FUNCTIONS = {"decode": 3, "encode": 3, "roots": 2}  # with the number of addresses that each takes
FOR_ROOTS = (CODECS["fp32"], True)  # a codec that needs little of the compiler
WORTH_A_THREAD = 32_768  # elements, as of kernels


def decoded_beside(rule: Rule, codecs: Sequence[Codec]) -> list[tuple[Codec, bool]]:
    """The codecs to compile for a rule whose states have these, each with whether the state has a sign."""
    if not rule.matrix_states:
        return []
    states = list(zip(rule.coded_states, codecs, strict=True))
    coded = [(codec, state.signed) for state, codec in states if state.kind == "shaped" and _is_compiled(codec)]
    return [*([] if torch_math.EXACT_ROOTS else [FOR_ROOTS]), *dict.fromkeys(coded)]


def codec_library(codec: Codec, signed: bool, compiler: Compiler) -> ctypes.CDLL:
    """The functions of a codec, compiled if no cache has them.

    Raises:
        CompileError: when they cannot be built.
    """
    library = shared_library(SOURCE, {"OPTGEN_CODEC": codec.cpp_type(signed)}, compiler, FUNCTIONS)
    for function, addresses in FUNCTIONS.items():
        called = getattr(library, function)
        called.argtypes = [*[ctypes.c_void_p] * addresses, ctypes.c_int64, ctypes.c_int64]
        called.restype = None
    return library


class CpuCodecs:
    """The codecs of a rule's states, compiled; others are torch's.

    Raises:
        CompileError: when one cannot be built.
    """

    def __init__(self, rule: Rule, codecs: Sequence[Codec], compiler: Compiler) -> None:
        beside = decoded_beside(rule, codecs)
        self.libraries = {key: codec_library(*key, compiler) for key in beside}
        if FOR_ROOTS in self.libraries:
            torch_math.exact_roots = partial(roots, self.libraries[FOR_ROOTS])

    def decode(self, codec: Codec, codes: Tensor, absmax: Tensor | None, signed: bool, shape: Sequence[int]) -> Tensor:
        """Decode as `torch_codecs.decode` does."""
        library = self.libraries.get((codec, signed))
        if library is None or absmax is None or not (codes.is_contiguous() and absmax.is_contiguous()):
            return torch_codecs.decode(codec, codes, absmax, signed, shape)
        values = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
        library.decode(codes.data_ptr(), absmax.data_ptr(), values.data_ptr(), *_work(values))
        return values

    def encode(self, codec: Codec, x: Tensor, signed: bool) -> tuple[Tensor, Tensor | None]:
        """Encode float32 numbers that lie one after the other, as `torch_codecs.encode` does."""
        library = self.libraries.get((codec, signed))
        if library is None:
            return torch_codecs.encode(codec, x, signed)
        codes = torch.empty(codec.codes_shape(x.shape), dtype=getattr(torch, codec.storage), device="cpu")
        absmax = torch.empty(codec.scales(x.numel()), dtype=torch.float32, device="cpu")
        library.encode(x.data_ptr(), codes.data_ptr(), absmax.data_ptr(), *_work(x))
        return codes, absmax


def roots(library: ctypes.CDLL, x: Tensor) -> Tensor:
    """Square roots of float32, correctly rounded."""
    x = x.contiguous()
    result = torch.empty_like(x)
    library.roots(x.data_ptr(), result.data_ptr(), *_work(x))
    return result


def _work(x: Tensor) -> tuple[int, int]:
    """Number of elements, and of the threads that they are worth."""
    return x.numel(), max(min(torch.get_num_threads(), x.numel() // WORTH_A_THREAD), 1)


def _is_compiled(codec: Codec) -> bool:
    """True for a codec with a scale for each block: torch copies what has none, and few states have one scale."""
    return codec.scaled and codec.block != WHOLE_TENSOR
