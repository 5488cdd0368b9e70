"""Compiling the C++ headers for tests, and calling them with tensors."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optgen.codecs import Codec, ParameterCodec
from optgen.runtime.building.compilers import processor
from optgen.runtime.states.philox import Draw
from support.asked import ask

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "templates" / "include"
FLAGS = ("-std=c++17", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# What each build is for: the processor's own instructions; those of one without AVX-512; the plain loops, vectorised as
# far as the processor goes; the plain loops on the least processor of its kind.
BUILDS = {
    "native": ("-O3", "-march=native"),
    **({"narrow": ("-O3", "-march=native", "-mno-avx512f")} if "avx512f" in processor().split() else {}),
    "generic": ("-O3", "-march=native", "-DOPTGEN_GENERIC"),
    "least": ("-O1",),
}
GUARD = 0x5A
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]


@dataclass(frozen=True)
class Headers:
    """The compiled headers; tensors in, tensors out."""

    library: ctypes.CDLL
    build: str = ""  # the compiler, and which of BUILDS

    def __str__(self) -> str:
        return self.build

    def encode(self, codec: Codec, x: Tensor, signed: bool, new_scale: float = 0.0) -> tuple[Tensor, Tensor]:
        """(codes, absmax) of a float32 tensor in a codec with scales; nothing is written beyond them.

        new_scale: the scale of a codec that has one for the tensor.
        """
        storage = getattr(torch, codec.storage)
        codes, beyond = guarded(codec.codes_shape(x.shape), storage)
        absmax, beyond_scales = guarded((codec.scales(x.numel()),), torch.float32)
        if codec.block < 0:
            absmax.fill_(new_scale)
        function = getattr(self.library, f"encode_{_state(codec, signed)}")
        function(_address(x), _address(codes), _address(absmax), ctypes.c_int64(x.numel()), ctypes.c_float(new_scale))
        assert (beyond == GUARD).all()
        assert (beyond_scales == GUARD).all()
        return codes, absmax

    def decode(self, codec: Codec, codes: Tensor, absmax: Tensor, signed: bool, numel: int) -> Tensor:
        """The float32 numbers that codes and scales stand for."""
        out, beyond = guarded((numel,), torch.float32)
        function = getattr(self.library, f"decode_{_state(codec, signed)}")
        function(_address(codes), _address(absmax), _address(out), ctypes.c_int64(numel))
        assert (beyond == GUARD).all()
        return out

    def encode_parameter(
        self, codec: ParameterCodec, x: Tensor, dtype: torch.dtype, draw: Draw
    ) -> tuple[Tensor, Tensor | None]:
        """A parameter of a float32 tensor, and what is kept beside it; nothing is written beyond them."""
        name = str(dtype).removeprefix("torch.")
        param, beyond = guarded(x.shape, dtype)
        kept = codec.compensation_dtype(name)
        beside, beyond_beside = guarded(x.shape, getattr(torch, kept)) if kept else (None, None)
        getattr(self.library, f"encode_{codec.name}_{name}")(
            _address(x),
            _address(param),
            _address(beside),
            ctypes.c_int64(x.numel()),
            ctypes.c_uint64(draw.seed),
            ctypes.c_uint32(draw.position),
            ctypes.c_uint32(draw.step),
        )
        assert (beyond == GUARD).all()
        assert beyond_beside is None or (beyond_beside == GUARD).all()
        return param, beside

    def decode_parameter(self, codec: ParameterCodec, param: Tensor, beside: Tensor | None) -> Tensor:
        """The float32 numbers of a parameter."""
        out = torch.empty(param.shape)
        function = getattr(self.library, f"decode_{codec.name}_{str(param.dtype).removeprefix('torch.')}")
        function(_address(param), _address(beside), _address(out), ctypes.c_int64(param.numel()))
        return out

    def philox(self, counter: list[int], key: int) -> list[int]:
        """The four words of a counter's block."""
        words = (ctypes.c_uint32 * 4)()
        self.library.c_philox((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(key), words)
        return list(words)

    def draw_tile(self, draw: Draw, at: int) -> Tensor:
        """The 16 random bits of the 256 elements from number `at` on, as int32."""
        out = torch.empty(256, dtype=torch.int16)
        self.library.c_draw_tile(
            ctypes.c_uint64(draw.seed),
            ctypes.c_uint32(draw.position),
            ctypes.c_uint32(draw.step),
            ctypes.c_int64(at),
            _address(out),
        )
        return out.to(torch.int32) & 0xFFFF

    def finite_absmax(self, x: Tensor) -> float:
        """finite_absmax of all of x."""
        return float(self.library.c_finite_absmax(_address(x), x.numel()))

    def convert(self, function: str, x: Tensor, to: torch.dtype) -> Tensor:
        """The conversion `function` of x, whose result is stored as `to`."""
        result = torch.empty(x.shape, dtype=to)
        getattr(self.library, f"c_{function}")(_address(x), _address(result), ctypes.c_int64(x.numel()))
        return result


def guarded(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor to be written, and the bytes right behind it, each GUARD."""
    numel = torch.Size(shape).numel()
    memory = torch.full((numel * dtype.itemsize + 64,), GUARD, dtype=torch.uint8)
    return memory[: numel * dtype.itemsize].view(dtype).view(torch.Size(shape)), memory[numel * dtype.itemsize :]


def _state(codec: Codec, signed: bool) -> str:
    block = "tensor" if codec.block < 0 else codec.block
    return f"{codec.name}_{'signed' if signed else 'unsigned'}_{block}"


def _address(x: Tensor | None) -> ctypes.c_void_p:
    if x is None:
        return ctypes.c_void_p(None)
    assert x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr())


def compile_cpp(compiler: str, source: Path, target: Path, *flags: str) -> None:
    """Compile one file that includes the headers, every warning an error."""
    command = [compiler, *FLAGS, *WARNINGS, f"-I{INCLUDE}", *flags, str(source), "-o", str(target)]
    ask(command, source, target)
