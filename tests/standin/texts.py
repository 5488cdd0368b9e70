"""Small .cu texts in tests: compiled, loaded and launched."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from standin.build import NVCC

Compile = Callable[..., Any]
INCLUDES = "#include <cstdint>\n"


def nvcc(source: Path, *options: str, arch: str = "sm_90") -> subprocess.CompletedProcess[str]:
    """Compile as optgen does."""
    output = source.with_suffix(".cubin")
    command = [str(NVCC), "-O3", "-std=c++17", "-fmad=false", "--cubin", f"-arch={arch}", *options]
    return subprocess.run([*command, "-o", str(output), str(source)], capture_output=True, text=True, check=False)


cubins: dict[tuple[str, ...], bytes] = {}


def cubin(folder: Path, text: str, *options: str) -> bytes:
    """The image of a .cu, compiled once for each text in this process. It begins with `#include <cstdint>`."""
    key = (text, *options)
    if key not in cubins:
        source = folder / "kernels.cu"
        source.write_text(INCLUDES + text, encoding="utf-8")
        done = nvcc(source, *options)
        assert done.returncode == 0, done.stderr
        cubins[key] = source.with_suffix(".cubin").read_bytes()
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
