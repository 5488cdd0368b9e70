"""A compiler of CUDA C++ with nvcc's command line, made of NVRTC; run as a program, which is given the library's path.

    python -I run_nvrtc.py LIBRARY [options] --cubin -arch=sm_XX -o OUT FILE.cu

It takes the options that kernels are compiled with, `--version` and `--list-gpu-code`. NVRTC is part of torch's wheels
for CUDA; it needs no toolkit and no host compiler. It knows no headers of C and C++: what kernels use of them is here.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

HEADERS = {
    "stdint.h": """\
#pragma once
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
""",
    # Their functions are built in.
    "math.h": "#pragma once\n",
    "string.h": "#pragma once\n",
    "type_traits": """\
#pragma once
namespace std {
template <class A, class B> constexpr bool is_same_v = false;
template <class A> constexpr bool is_same_v<A, A> = true;
}  // namespace std
""",
}

# Code is for the GPU where it does not say so: there is no other side.
FLAGS = ("-default-device",)
# For ptxas, at whose highest level NVRTC is by default; that machine code is what is made.
OF_NVCC = ("-O3", "--cubin")


class Failure(Exception):
    """A message for the user, as the compiler says it."""


class Nvrtc:
    """The library.

    Raises:
        OSError: if it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # It asks for a library beside it by name alone.
        for beside in sorted(path.parent.glob("libnvrtc-builtins*.so*")):
            ctypes.CDLL(str(beside), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(path))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of it; one that fails raises Failure."""
        status = getattr(self.library, function)(*arguments)
        if status != 0:
            raise Failure(f"{function} failed: {self.library.nvrtcGetErrorString(status).decode()}")

    def version(self) -> str:
        """Version, as nvcc tells its own; the last line differs whenever what is compiled may."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        build = hashlib.sha256(Path(__file__).read_bytes())
        for file in (self.path, *sorted(self.path.parent.glob("libnvrtc-builtins*.so*"))):
            build.update(file.read_bytes())
        return (
            "NVRTC: the CUDA compiler as a library\n"
            f"Cuda compilation tools, release {major.value}.{minor.value}\n"
            f"Build {build.hexdigest()[:32]}"
        )

    def archs(self) -> list[str]:
        """The architectures it compiles for."""
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", numbers)
        return [f"sm_{number}" for number in numbers]

    def cubin(self, source: Path, options: Sequence[str]) -> tuple[bytes, str]:
        """Compile a file; return its machine code and what the compiler says of it.

        Raises:
            Failure: with the compiler's messages.
        """
        program = ctypes.c_void_p()
        names, texts = _texts(list(HEADERS)), _texts(list(HEADERS.values()))
        text = source.read_bytes()
        self.call("nvrtcCreateProgram", ctypes.byref(program), text, str(source).encode(), len(HEADERS), texts, names)
        given = [*FLAGS, *options]
        status = self.library.nvrtcCompileProgram(program, len(given), _texts(given))
        log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode("utf-8", "replace")
        if status != 0:
            raise Failure(log.strip() or f"error: {self.library.nvrtcGetErrorString(status).decode()}")
        return self._bytes("nvrtcGetCUBIN", program), log

    def _bytes(self, function: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self.call(f"{function}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self.call(function, program, found)
        return found.raw


def _texts(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode("utf-8", "surrogateescape") for text in texts))


def split(arguments: Sequence[str]) -> tuple[Path, Path, list[str]]:
    """The source, the output, and the options that NVRTC takes.

    Raises:
        Failure: for a command line that is none.
    """
    sources, options, output = [], [], None
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            output = next(rest, None)
        elif not argument.startswith("-"):
            sources.append(argument)
        elif argument not in OF_NVCC:
            options.append(argument.replace("\\,", ","))  # nvcc would take it for two values
    if len(sources) != 1 or output is None:
        raise Failure("error: one .cu file and -o are needed")
    return Path(sources[0]), Path(output), options


def main(library: str, arguments: Sequence[str]) -> int:
    """Do what a command line says; return the exit status."""
    try:
        nvrtc = Nvrtc(Path(library))
        if "--version" in arguments:
            print(nvrtc.version())
        elif "--list-gpu-code" in arguments:
            print("\n".join(nvrtc.archs()))
        else:
            source, output, options = split(arguments)
            code, said = nvrtc.cubin(source, options)
            output.write_bytes(code)
            print(said, end="")
    except (Failure, OSError) as error:
        print(error if isinstance(error, Failure) else f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
