"""Findings about this machine: what it offers to generated optimizers, and what to do about what is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optgen.package_name import STOCK_PACKAGE
from optgen.runtime.building.nvidia import Driver, ask_driver

if TYPE_CHECKING:
    from optgen.runtime.building.nvcc import Nvcc

Status = Literal["ok", "missing", "problem"]

INSTALL_COMPILER = {
    "linux": "apt install g++, or dnf install gcc-c++, or apk add g++",
    "darwin": "xcode-select --install",
    "win32": "winget install LLVM.LLVM, for clang-cl",
}
"""Command that installs a C++ compiler, by platform."""
INSTALL_HEADERS = "apt install python3-dev, or dnf install python3-devel"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: what was looked for.
        status: "ok", "missing" or "problem" (there, but it does not work).
        found: what was found, or why nothing was.
        advice: what to do; "" if there is nothing to do.
        required: whether nothing works without it.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    required: bool = False


def examine() -> tuple[Finding, ...]:
    """Search for everything that generated optimizers can use. Never raises: a failure is a finding too."""
    findings: list[Finding] = []
    _driver_answer.cache_clear()
    for name, look in _LOOKS.items():
        try:
            findings.extend(look())
        except Exception as error:
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}"))
    return tuple(findings)


def is_usable(findings: tuple[Finding, ...]) -> bool:
    """Check whether all that is required was found."""
    return all(finding.status == "ok" for finding in findings if finding.required)


def print_findings(findings: tuple[Finding, ...]) -> None:
    """Print a line for each finding, and below it what to do."""
    from optgen.console import print_text

    colours = {"ok": "green", "missing": "yellow", "problem": "red"}
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print_text(f"{finding.name:<{width}}  ", end="")
        print_text(f"{finding.status:<7}", style=colours[finding.status], end="")
        print_text(f"  {finding.found}")
        if finding.advice:
            print_text(f"{'':<{width + 11}}{finding.advice}")


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}", required=True)


def _optgen() -> Iterator[Finding]:
    import optgen
    from optgen.distribution import RUNTIME

    found = f"{optgen.__version__} at {os.path.dirname(optgen.__file__)}"
    try:
        beside = importlib.metadata.version(RUNTIME)
    except importlib.metadata.PackageNotFoundError:
        yield Finding("optgen", "ok", found)
        return
    advice = (
        f"pip uninstall {RUNTIME}, then install optgen again: each brings the same files, and removing one takes them"
    )
    yield Finding("optgen", "problem", f"{found}, and {RUNTIME} {beside} is installed over it", advice)


def _torch() -> Iterator[Finding]:
    install = "pip install torch; for a CPU build see PyTorch's installation page"
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "missing", "not installed", install, required=True)
        return
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "problem", f"does not import: {error}", install, required=True)
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads", required=True)


def _compiler() -> Iterator[Finding]:
    from optgen.runtime.building.cache import find_compiler, why_no_compiler
    from optgen.runtime.building.compilers import vectors

    found = find_compiler()
    if found is not None:
        threads = "OpenMP's threads" if found.openmp else "threads of their own, without OpenMP"
        kernels = f"kernels with {vectors(found)}, on {threads}"
        yield Finding("C++ compiler", "ok", f"{found.version.partition(chr(10))[0]} at {found.path}: {kernels}")
        return
    advice = INSTALL_COMPILER.get(sys.platform, "install g++ or clang")
    yield Finding(
        "C++ compiler",
        "missing",
        why_no_compiler(),
        f"{advice}. Until then optimizers run on the torch target, which is slower",
    )


def _python_headers() -> Iterator[Finding]:
    from optgen.runtime.building.entries import CompileError
    from optgen.runtime.building.extension import missing
    from optgen.runtime.core.sweep import compiled_sweep

    name, without = "Python headers", "Until then steps of many small tensors take longer"
    reason = missing()
    if reason:
        yield Finding(name, "missing", reason, f"{INSTALL_HEADERS}. {without}")
        return
    found = sysconfig.get_path("include")
    try:
        compiled_sweep()
    except CompileError as error:
        yield Finding(name, "problem", f"{found}, but {str(error).partition(chr(10))[0]}", without)
    else:
        yield Finding(name, "ok", found)


COMPILED_ANEW = "Until then each process compiles its kernels again"
WITHOUT_GPU = "nothing to do on a machine without an NVIDIA GPU"


def _driver() -> Iterator[Finding]:
    name = "NVIDIA driver"
    driver = _driver_answer()
    if not driver.installed:
        yield Finding(
            name,
            "missing",
            driver.failure,
            f"{WITHOUT_GPU}; with one: install its driver, or start the container with --gpus all",
        )
        return
    runs = f"runs CUDA {driver.cuda}" if driver.cuda else "is installed"
    if driver.failure:
        advice = "reload or update the driver; restart the machine or the container if it was just updated"
        yield Finding(name, "problem", f"{runs}, but {driver.failure}", advice)
    elif not driver.gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
        yield Finding(name, "missing", f"{runs}, and shows no GPU{shown}", WITHOUT_GPU)
    else:
        count = Counter(f"{gpu.name} ({gpu.arch})" for gpu in driver.gpus)
        yield Finding(name, "ok", f"{runs}: {', '.join(f'{n} x {gpu}' for gpu, n in count.items())}")


@functools.lru_cache(maxsize=1)
def _driver_answer() -> Driver:
    return ask_driver()


def _torch_cuda() -> Iterator[Finding]:
    name = "CUDA in torch"
    if importlib.util.find_spec("torch") is None:
        yield Finding(name, "missing", "cannot tell without torch")
        return
    import torch

    if torch.version.cuda is not None:
        yield Finding(name, "ok", f"torch is built for CUDA {torch.version.cuda}")
    else:
        advice = f"{WITHOUT_GPU}; with one: pip install --force-reinstall torch --index-url https://pypi.org/simple"
        yield Finding(name, "missing", "this torch is built without CUDA", advice)


def _driver_calls() -> Iterator[Finding]:
    """Modules that call the driver: the first that can serves."""
    from optgen.runtime.building import nvidia

    serves = nvidia.find_driver()
    yield _calls("PyCUDA", "pycuda", nvidia.PYCUDA, nvidia.why_no_pycuda(), nvidia.INSTALL_PYCUDA, serves)
    yield _calls(
        "cuda-bindings", "cuda.bindings", nvidia.BINDINGS, nvidia.why_no_bindings(), nvidia.INSTALL_BINDINGS, serves
    )


def _calls(name: str, module: str, own: str, reason: str, install: str, serves: str | None) -> Finding:
    """One of those.

    Args:
        own: Its name among those that can serve.
        reason: Why it cannot; "" if it can.
        serves: The one that does; None if none can.
    """
    from optgen.runtime.building.nvidia import is_installed

    if not is_installed(module):
        advice = f"nothing to do: {serves} serves" if serves else f"{WITHOUT_GPU}; with one: {install}"
        return Finding(name, "missing", "not installed", advice)
    version = importlib.metadata.version(own)
    if not reason:
        forced = "OPTGEN_CUDA_DRIVER asks for it" if os.environ.get("OPTGEN_CUDA_DRIVER") else "the first that works"
        used = f"serves: {forced}" if serves == own else f"is not used: {serves or 'OPTGEN_CUDA_DRIVER'} comes first"
        return Finding(name, "ok", f"{version}, {used}")
    found, _, advice = reason.partition(". ")
    without = not _driver_answer().installed
    advice = WITHOUT_GPU if without else f"nothing to do: {serves} serves" if serves else advice
    return Finding(name, "missing" if without or serves else "problem", f"{version}: {found}", advice)


def _cuda_compilers() -> Iterator[Finding]:
    """Compilers for GPUs: the first that can serves."""
    from optgen.runtime.building.nvcc import INSTALL as INSTALL_NVCC
    from optgen.runtime.building.nvcc import nvcc_candidates
    from optgen.runtime.building.nvrtc import INSTALL, NAME, find_cuda_compiler, nvrtc_candidates
    from optgen.runtime.building.programs import first_found, why_none

    serves = find_cuda_compiler()
    is_left_out = os.environ.get("OPTGEN_NVCC") == NAME
    nvcc = None if is_left_out else first_found(nvcc_candidates())
    nvrtc = first_found(nvrtc_candidates())
    if nvcc is None and is_left_out:
        yield Finding("nvcc", "missing", "not looked for: OPTGEN_NVCC asks for NVRTC")
    elif nvcc is None:
        other = "nothing to do: NVRTC serves" if serves else f"{WITHOUT_GPU}; with one: {INSTALL_NVCC}, or NVRTC"
        yield Finding("nvcc", "missing", why_none(nvcc_candidates()), other)
    else:
        yield _builds("nvcc", nvcc, serves)
    if nvrtc is None:
        other = "nothing to do: nvcc serves" if serves else f"{WITHOUT_GPU}; with one: {INSTALL}"
        yield Finding("NVRTC", "missing", why_none(nvrtc_candidates()), other)
    else:
        yield _builds("NVRTC", nvrtc, serves)


def _builds(name: str, found: Nvcc, serves: Nvcc | None) -> Finding:
    """One of those that is there."""
    builds = f"CUDA {found.release} at {found.file}, for {', '.join(found.archs)}"
    if found != serves:
        why = (
            "OPTGEN_NVCC names another" if serves is None else f"{'NVRTC' if serves.is_library else 'nvcc'} comes first"
        )
        return Finding(name, "ok", f"{builds}; is not used: {why}")
    runs = _driver_answer().cuda
    if runs and int(found.release.partition(".")[0]) > int(runs.partition(".")[0]):
        advice = f"the driver may refuse what it builds: update the driver, or point OPTGEN_NVCC at one of CUDA {runs}"
        return Finding(name, "problem", f"{builds}; serves", advice)
    return Finding(name, "ok", f"{builds}; serves")


def _cache() -> Iterator[Finding]:
    from optgen.runtime.building.cache import cache_size
    from optgen.runtime.building.private_dir import wanted_dir, why_not_usable

    directory = wanted_dir()
    reason = why_not_usable(directory)
    if not reason and not os.access(directory, os.W_OK | os.X_OK):
        reason = "it cannot be written to"
    if reason:
        advice = "set OPTGEN_CACHE_DIR to a folder of your own, in folders that only you and root can write to"
        yield Finding("cache", "problem", f"{directory}: {reason}", f"{advice}. {COMPILED_ANEW}")
        return
    files, size = cache_size()
    yield Finding("cache", "ok", f"{directory}: {files} files, {readable_size(size)}")


def _stock_package() -> Iterator[Finding]:
    found = importlib.util.find_spec(STOCK_PACKAGE)
    if found is None or found.origin is None:
        advice = "in a source checkout: optgen build specs/, then pip install -e ."
        yield Finding(STOCK_PACKAGE, "missing", "cannot be imported", advice)
    else:
        yield Finding(STOCK_PACKAGE, "ok", os.path.dirname(found.origin))


_LOOKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": _python,
    "optgen": _optgen,
    "torch": _torch,
    "C++ compiler": _compiler,
    "Python headers": _python_headers,
    "NVIDIA driver": _driver,
    "CUDA in torch": _torch_cuda,
    "PyCUDA": _driver_calls,
    "nvcc": _cuda_compilers,
    "cache": _cache,
    STOCK_PACKAGE: _stock_package,
}


def readable_size(size: int) -> str:
    """A number of bytes as a person would say it: `12.3 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
