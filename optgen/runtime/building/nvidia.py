"""Search for NVIDIA's driver and what calls it, PyCUDA or cuda-bindings, without initialising CUDA in this process."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "libcuda.so.1"
INSTALL_PYCUDA = "pip install pycuda"
INSTALL_BINDINGS = "pip install cuda-bindings"
PYCUDA, BINDINGS = "pycuda", "cuda-bindings"  # what OPTGEN_CUDA_DRIVER may be
DRIVER_TIMEOUT_SECONDS = 30.0

_ASK_DRIVER = Path(__file__).with_name("ask_driver.py")


@functools.lru_cache(maxsize=1)
def why_no_pycuda() -> str:
    """Return in one line why PyCUDA cannot be used and what mends it; "" if `import pycuda.driver` works.

    It is imported where that has a chance, which does not initialise CUDA. Found out once a process.
    """
    if not is_installed("pycuda"):
        return f"PyCUDA is not installed: {INSTALL_PYCUDA}"
    missing = _why_no_library()
    if missing:
        return missing
    try:
        importlib.import_module("pycuda.driver")
    except Exception as error:
        symbol = re.search(r"undefined symbol: (\w+)", str(error))
        if symbol is not None and symbol[1].startswith("cu"):
            return (
                f"the NVIDIA driver is older than the CUDA that PyCUDA was built with: it lacks {symbol[1]}. "
                "Update the driver, or build PyCUDA with an older CUDA toolkit: "
                "pip install --force-reinstall --no-binary=:all: --no-deps pycuda"
            )
        return f"PyCUDA does not import: {type(error).__name__}: {error}. Reinstall it: {INSTALL_PYCUDA}"
    return ""


@functools.lru_cache(maxsize=1)
def why_no_bindings() -> str:
    """Return in one line why cuda-bindings cannot be used and what mends it; "" if it can. Found out once a process."""
    if not is_installed("cuda.bindings"):
        return f"cuda-bindings is not installed: {INSTALL_BINDINGS}"
    missing = _why_no_library()
    if missing:
        return missing
    try:
        importlib.import_module("cuda.bindings.driver")
    except Exception as error:
        return f"cuda-bindings does not import: {type(error).__name__}: {error}. Reinstall it: {INSTALL_BINDINGS}"
    return ""


def is_installed(module: str) -> bool:
    """Check whether a module could be imported, if what it needs is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _why_no_library() -> str:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return f"the NVIDIA driver is missing: {error}. Install it, or start the container with --gpus all"
    return ""


def driver_reasons() -> Iterator[tuple[str, str]]:
    """Yield what calls the driver, in order, and why each cannot serve, "" if it can; the first that can serves.

    `$OPTGEN_CUDA_DRIVER` alone is tried where it is set; otherwise PyCUDA, then cuda-bindings.
    """
    known = {PYCUDA: why_no_pycuda, BINDINGS: why_no_bindings}
    forced = os.environ.get("OPTGEN_CUDA_DRIVER")
    if forced and forced not in known:
        yield forced, f"OPTGEN_CUDA_DRIVER is {forced!r}; it can be {' or '.join(known)}"
        return
    for name, why in known.items():
        if not forced or name == forced:
            yield name, why()


def find_driver() -> str | None:
    """Return what calls the driver, PYCUDA or BINDINGS; None if neither can."""
    return next((name for name, reason in driver_reasons() if not reason), None)


def why_no_driver() -> str:
    """Return in one line why the driver cannot be called and what mends it; "" if it can."""
    reasons = []
    for _, reason in driver_reasons():
        if not reason:
            return ""
        reasons.append(reason)
    there = [reason for reason in reasons if " is not installed: " not in reason]
    if not there and len(reasons) > 1:
        return f"neither PyCUDA nor cuda-bindings is installed: {INSTALL_BINDINGS}"
    return "; ".join(dict.fromkeys(there or reasons))


@dataclass(frozen=True)
class Gpu:
    """A device of the driver: its name and architecture, as "sm_90"."""

    name: str
    arch: str


@dataclass(frozen=True)
class Driver:
    """Answer of NVIDIA's driver about itself.

    Attributes:
        installed: Whether its library can be loaded.
        failure: Reason why it cannot be used; "" if it can.
        cuda: The newest CUDA that it runs: "13.0"; "" if it did not say.
        gpus: The devices it shows.
    """

    installed: bool
    failure: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()


def ask_driver() -> Driver:
    """Ask the driver in a process of its own: one that hangs or crashes harms nothing. Never raises."""
    try:
        asked = subprocess.Popen(
            [sys.executable, "-I", str(_ASK_DRIVER), LIBRARY],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return Driver(False, f"cannot be asked: {error}")
    try:
        said, complained = asked.communicate(timeout=DRIVER_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs inside the kernel does not even end when killed
            asked.communicate(timeout=1.0)
        return Driver(True, f"does not answer within {DRIVER_TIMEOUT_SECONDS:.0f} seconds")
    status = asked.returncode
    if status != 0:
        lines = complained.strip().splitlines()
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return Driver(True, f"asking it failed ({ended}){f': {lines[-1]}' if lines else ''}")
    try:
        fields = json.loads(said)
        gpus = tuple(Gpu(str(name), str(arch)) for name, arch in fields["gpus"])
        return Driver(bool(fields["installed"]), str(fields["failure"]), str(fields["cuda"]), gpus)
    except (ValueError, KeyError, TypeError):
        return Driver(True, f"gave an answer that is not understood: {said[:200]!r}")
