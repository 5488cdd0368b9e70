"""Compiling the C++ headers for tests, and calling them with tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
INCLUDE = ROOT / "templates" / "include"
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# What each build is for: the processor's own instructions; the plain loops, vectorised as far as the processor goes;
# the plain loops on the least processor of its kind.
BUILDS = {"native": ("-march=native",), "generic": ("-march=native", "-DOPTGEN_GENERIC"), "least": ()}
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]


@dataclass(frozen=True)
class Headers:
    """The compiled headers; tensors in, tensors out."""

    library: ctypes.CDLL

    def encode(self, x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
        """(codes, absmax) of a float32 tensor, one scale for every 256 elements."""
        codes = torch.empty(x.shape, dtype=torch.uint8)
        absmax = torch.empty(-(-x.numel() // 256))
        self.library.c_encode_blocks(
            int(signed), _address(x), _address(absmax), _address(codes), ctypes.c_int64(x.numel())
        )
        return codes, absmax

    def encode_block(self, x: Tensor, absmax: float, signed: bool, codes: Tensor, n: int) -> None:
        """Write the codes of x[:n] into codes[:n]."""
        self.library.c_encode(int(signed), _address(x), ctypes.c_float(absmax), _address(codes), n)

    def decode_block(self, codes: Tensor, absmax: float, signed: bool, out: Tensor, n: int) -> None:
        """Write the values of codes[:n] into out[:n]."""
        self.library.c_decode(int(signed), _address(codes), ctypes.c_float(absmax), _address(out), n)

    def finite_absmax(self, x: Tensor) -> float:
        """finite_absmax of all of x."""
        return float(self.library.c_finite_absmax(_address(x), x.numel()))

    def convert(self, function: str, x: Tensor, to: torch.dtype) -> Tensor:
        """The conversion `function` of x, whose result is stored as `to`."""
        result = torch.empty(x.shape, dtype=to)
        getattr(self.library, f"c_{function}")(_address(x), _address(result), ctypes.c_int64(x.numel()))
        return result


def _address(x: Tensor) -> ctypes.c_void_p:
    assert x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr())


def compile_cpp(compiler: str, source: Path, target: Path, *flags: str) -> None:
    """Compile one file that includes the headers, every warning an error."""
    command = [compiler, *FLAGS, *WARNINGS, f"-I{INCLUDE}", *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
