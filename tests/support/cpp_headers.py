"""Compiling the C++ headers for tests, and calling them with tensors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optgen.codecs import Codec, ParameterCodec
from optgen.runtime.building.compilers import processor
from optgen.runtime.building.flags import SCHEDULED
from optgen.runtime.states.philox import Draw
from support.asked import ask
from support.libraries import Emulated, Library

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


def build_flags(compiler: str, build: str) -> tuple[str, ...]:
    """The flags of a build, with those that g++ has for kernels without AVX-512."""
    without = build == "narrow" or (build == "native" and "narrow" not in BUILDS)
    return (*BUILDS[build], *(SCHEDULED if without and compiler == "g++" else ()))


@dataclass(frozen=True)
class Headers:
    """The compiled headers; tensors in, tensors out."""

    library: Library
    build: str = ""  # the compiler, and which of BUILDS

    def __str__(self) -> str:
        return self.build

    def tries(self, length: int) -> bool:
        """True if a test of every length is to try this one: of an emulated one those beside ends of vectors."""
        return not isinstance(self.library, Emulated) or length % 8 in (0, 1, 7)

    def encode(self, codec: Codec, x: Tensor, signed: bool, new_scale: float = 0.0) -> tuple[Tensor, Tensor]:
        """(codes, absmax) of a float32 tensor in a codec with scales; nothing is written beyond them.

        new_scale: the scale of a codec that has one for the tensor.
        """
        storage = getattr(torch, codec.storage)
        codes, beyond = guarded(codec.codes_shape(x.shape), storage)
        absmax, beyond_scales = guarded((codec.scales(x.numel()),), torch.float32)
        if codec.block < 0:
            absmax.fill_(new_scale)
        self.library.call(f"encode_{_state(codec, signed)}", x, codes, absmax, x.numel(), float(new_scale))
        assert (beyond == GUARD).all()
        assert (beyond_scales == GUARD).all()
        return codes, absmax

    def decode(self, codec: Codec, codes: Tensor, absmax: Tensor, signed: bool, numel: int) -> Tensor:
        """The float32 numbers that codes and scales stand for."""
        out, beyond = guarded((numel,), torch.float32)
        self.library.call(f"decode_{_state(codec, signed)}", codes, absmax, out, numel)
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
        keys = draw.seed, draw.position, draw.step
        self.library.call(f"encode_{codec.name}_{name}", x, param, beside, x.numel(), *keys)
        assert (beyond == GUARD).all()
        assert beyond_beside is None or (beyond_beside == GUARD).all()
        return param, beside

    def decode_parameter(self, codec: ParameterCodec, param: Tensor, beside: Tensor | None) -> Tensor:
        """The float32 numbers of a parameter."""
        out = torch.empty(param.shape)
        name = str(param.dtype).removeprefix("torch.")
        self.library.call(f"decode_{codec.name}_{name}", param, beside, out, param.numel())
        return out

    def philox(self, counter: list[int], key: int) -> list[int]:
        """The four words of a counter's block."""
        words = torch.empty(4, dtype=torch.uint32)
        self.library.call("c_philox", torch.tensor(counter, dtype=torch.uint32), key, words)
        return words.tolist()

    def draw_tile(self, draw: Draw, at: int) -> Tensor:
        """The 16 random bits of the 256 elements from number `at` on, as int32."""
        out = torch.empty(256, dtype=torch.int16)
        self.library.call("c_draw_tile", draw.seed, draw.position, draw.step, at, out)
        return out.to(torch.int32) & 0xFFFF

    def finite_absmax(self, x: Tensor) -> float:
        """finite_absmax of all of x."""
        return self.library.call("c_finite_absmax", x, x.numel())

    def convert(self, function: str, x: Tensor, to: torch.dtype) -> Tensor:
        """The conversion `function` of x, whose result is stored as `to`."""
        result = torch.empty(x.shape, dtype=to)
        self.library.call(f"c_{function}", x, result, x.numel())
        return result


def guarded(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor to be written, and the bytes right behind it, each GUARD."""
    numel = torch.Size(shape).numel()
    memory = torch.full((numel * dtype.itemsize + 64,), GUARD, dtype=torch.uint8)
    return memory[: numel * dtype.itemsize].view(dtype).view(torch.Size(shape)), memory[numel * dtype.itemsize :]


def _state(codec: Codec, signed: bool) -> str:
    block = "tensor" if codec.block < 0 else codec.block
    return f"{codec.name}_{'signed' if signed else 'unsigned'}_{block}"


def compile_cpp(compiler: str, source: Path, target: Path, *flags: str) -> None:
    """Compile one file that includes the headers, every warning an error."""
    command = [compiler, *FLAGS, *WARNINGS, f"-I{INCLUDE}", *flags, str(source), "-o", str(target)]
    ask(command, source, target)
