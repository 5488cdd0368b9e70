"""Runs a script with AddressSanitizer, to find accesses outside of tensors and arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from standin.build import CXX, library

# Room beside every block of memory; reports are the script's only reason to fail.
ASAN_OPTIONS = {
    "detect_leaks": 0,
    "detect_stack_use_after_return": 0,
    "detect_odr_violation": 0,
    "redzone": 512,
    "max_redzone": 2048,
    "allocator_may_return_null": 1,
}
UBSAN_OPTIONS = "print_stacktrace=1"


def sanitized_run(script: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Python text in a process of its own, in which AddressSanitizer watches the driver, kernels and all memory.

    The script calls `standin.load()` as usual. If it fails, `stderr` has the sanitizer's report: `AddressSanitizer:
    heap-buffer-overflow` for an access outside of memory, `runtime error:` for other undefined behaviour of a kernel (a
    misaligned vector, an index outside of an array); the kernel's own lines are shown.

    Raises subprocess.TimeoutExpired, and BuildError.
    """
    library(sanitize=True)
    runtimes = [_runtime("libasan.so"), _runtime("libstdc++.so.6")]
    with tempfile.TemporaryDirectory() as folder:  # of modules, which stay for the report
        environment = {
            **os.environ,
            "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in ASAN_OPTIONS.items()),
            "LD_PRELOAD": " ".join(runtimes),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "STANDIN_SANITIZE": "1",
            "TMPDIR": folder,
            "UBSAN_OPTIONS": UBSAN_OPTIONS,
        }
        environment.setdefault("OPTGEN_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"optgen-standin-{os.getuid()}"))
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )


def _runtime(name: str) -> str:
    """The path of a library that g++ links with."""
    found = subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())
