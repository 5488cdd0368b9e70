"""Small .cu texts in tests: compiled, loaded and launched."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.asked import ask

from standin import build

Compile = Callable[..., Any]
INCLUDES = "#include <cstdint>\n"


def command(source: Path, output: Path, *options: str, arch: str = "sm_90") -> list[str]:
    """Compiles as optgen does."""
    flags = ["-O3", "-std=c++17", "-fmad=false", "--cubin", f"-arch={arch}"]
    program = build.nvcc(sanitize=os.environ.get("STANDIN_SANITIZE") == "1")
    return [str(program), *flags, *options, "-o", str(output), str(source)]


def nvcc(source: Path, *options: str, arch: str = "sm_90") -> subprocess.CompletedProcess[str]:
    """Compile as optgen does, beside the source."""
    words = command(source, source.with_suffix(".cubin"), *options, arch=arch)
    return subprocess.run(words, capture_output=True, text=True, check=False)


cubins: dict[tuple[str, ...], bytes] = {}


def cubin(folder: Path, text: str, *options: str) -> bytes:
    """The image of a .cu, compiled once for each text. It begins with `#include <cstdint>`."""
    key = (text, *options)
    if key not in cubins:
        source = folder / "kernels.cu"
        source.write_text(INCLUDES + text, encoding="utf-8")
        output = source.with_suffix(".cubin")
        ask(command(source, output, *options), source, output)
        cubins[key] = output.read_bytes()
    return cubins[key]


def prepared(module: Any, name: str, arguments: str = "PPq") -> Any:
    """A kernel of two pointers and a number, if nothing else is said."""
    function = module.get_function(name)
    function.prepare(arguments)
    return function


def address(array: np.ndarray) -> int:
    """An array's memory as a device pointer."""
    return int(array.ctypes.data)


class Call(ctypes.Structure):
    """A struct of fields of 8 bytes, given to a kernel by value."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("factor", ctypes.c_double),
    )
