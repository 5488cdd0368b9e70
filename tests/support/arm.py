"""ARM (AArch64) on another processor: Debian's compiler for it, and QEMU, which runs a program of another processor."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from optgen.runtime.building.flags import COMMON_FLAGS, OPENMP, OWN_THREADS
from support.asked import ask
from support.libraries import Emulated

COMPILER = "aarch64-linux-gnu-g++"
CLANG = ("clang++", "--target=aarch64-linux-gnu")  # with that one's libraries, but for OpenMP: as on Apple silicon
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
FLAGS = (*COMMON_FLAGS, OPENMP)  # what users' kernels are compiled with, for the least of these processors


def why_no_arm() -> str:
    """Reason in one line why nothing can be run as on ARM; "" if it can."""
    if platform.machine() in ("arm64", "aarch64"):
        return "this is one"
    for program, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR[0], "qemu-user")):
        if shutil.which(program) is None:
            return f"no {program} (apt install {package})"
    return ""


def emulated(source: Path, folder: Path, *flags: str, clang: bool = False) -> Emulated:
    """The functions of a source, compiled for ARM by g++ or clang. Close it at the end."""
    answerer, library = folder / "answer", folder / f"{source.stem}.so"
    answering = Path(__file__).with_name("answer.cpp")
    ask([COMPILER, "-O1", "-Wall", "-Wextra", "-Werror", str(answering), "-o", str(answerer)], answering, answerer)
    command = [*CLANG, *COMMON_FLAGS, *OWN_THREADS] if clang else [COMPILER, *FLAGS]
    ask([*command, "-Werror", *flags, str(source), "-o", str(library)], source, library)
    return Emulated(EMULATOR, answerer, library)
