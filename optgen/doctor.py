"""What this machine offers to generated optimizers, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from optgen.package_name import STOCK_PACKAGE

Status = Literal["ok", "missing", "problem"]

INSTALL_COMPILER = {
    "linux": "apt install g++, or dnf install gcc-c++, or apk add g++",
    "darwin": "xcode-select --install, then brew install libomp; or brew install gcc",
}
"""How a C++ compiler is installed, by platform."""


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
    """Look for everything that generated optimizers can use. Never raises: what fails is a finding of its own."""
    findings: list[Finding] = []
    for name, look in _LOOKS.items():
        try:
            findings.extend(look())
        except Exception as error:
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}"))
    return tuple(findings)


def is_usable(findings: tuple[Finding, ...]) -> bool:
    """Whether all that is required was found."""
    return all(finding.status == "ok" for finding in findings if finding.required)


def print_findings(findings: tuple[Finding, ...]) -> None:
    """Print a line for each finding, and below it what to do."""
    from optgen.console import console

    out = console()
    colours = {"ok": "green", "missing": "yellow", "problem": "red"}
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        out.print(f"{finding.name:<{width}}  ", end="")
        out.print(f"{finding.status:<7}", style=colours[finding.status], end="")
        out.print(f"  {finding.found}")
        if finding.advice:
            out.print(f"{'':<{width + 11}}{finding.advice}")


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}", required=True)


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
    from optgen.runtime.cache import compiler_candidates

    advice = INSTALL_COMPILER.get(sys.platform, "install g++ or clang with OpenMP")
    rejected = []
    for candidate in compiler_candidates():
        if candidate.compiler is not None:
            found = candidate.compiler
            yield Finding("C++ compiler", "ok", f"{found.version.partition(chr(10))[0]} at {found.path}")
            return
        rejected.append(f"{candidate.name}: {candidate.reason}")
    yield Finding(
        "C++ compiler",
        "missing",
        "; ".join(rejected) or "nothing to try",
        f"{advice}. Until then optimizers run on the torch target, which is slower",
    )


def _cuda() -> Iterator[Finding]:
    later = "nothing to do: this version generates for the cpu and torch targets, and torch serves tensors on a GPU"
    if importlib.util.find_spec("torch") is None:
        yield Finding("CUDA", "missing", "cannot tell without torch", later)
        return
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        yield Finding("CUDA", "ok", f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}", later)
    elif torch.version.cuda is None:
        driver = "; an NVIDIA driver is installed" if shutil.which("nvidia-smi") else ""
        yield Finding("CUDA", "missing", f"this torch is built without CUDA{driver}", later)
    else:
        yield Finding("CUDA", "missing", f"torch is built for CUDA {torch.version.cuda} but sees no GPU", later)


def _pycuda() -> Iterator[Finding]:
    if importlib.util.find_spec("pycuda") is None:
        yield Finding("PyCUDA", "missing", "not installed", "nothing to do: this version does not use it")
    else:
        yield Finding(
            "PyCUDA", "ok", importlib.metadata.version("pycuda"), "nothing to do: this version does not use it"
        )


def _cache() -> Iterator[Finding]:
    from optgen.runtime.cache import cache_dir, cache_size

    advice = "set OPTGEN_CACHE_DIR to a folder of yours that can be written"
    try:
        directory = cache_dir()
        files, size = cache_size()
    except (OSError, RuntimeError) as error:
        yield Finding("cache", "problem", str(error), advice)
        return
    writable = os.access(directory, os.W_OK | os.X_OK)
    found = f"{directory}: {files} files, {readable_size(size)}"
    yield Finding("cache", "ok" if writable else "problem", found, "" if writable else advice)


def _stock_package() -> Iterator[Finding]:
    found = importlib.util.find_spec(STOCK_PACKAGE)
    if found is None or found.origin is None:
        advice = "in a source checkout: optgen build specs/, then pip install -e ."
        yield Finding(STOCK_PACKAGE, "missing", "cannot be imported", advice)
    else:
        yield Finding(STOCK_PACKAGE, "ok", os.path.dirname(found.origin))


_LOOKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": _python,
    "torch": _torch,
    "C++ compiler": _compiler,
    "CUDA": _cuda,
    "PyCUDA": _pycuda,
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
