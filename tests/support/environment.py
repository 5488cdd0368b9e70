"""Environment of the tests, set before anything is compiled."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def prepare_compiling() -> None:
    """Compile quickly, into a cache of the tests' own, unless the environment says otherwise.

    Of what the compiler makes, tests look at results, which no flag changes; tests of its speed say so themselves.
    """
    os.environ.setdefault("OPTGEN_CXXFLAGS", "-Og -fuse-ld=gold" if shutil.which("ld.gold") else "-Og")
    if "OPTGEN_CACHE_DIR" not in os.environ:
        # One folder for the session and all its processes (which inherit the variable), kept between sessions:
        # entries are keyed by content, so that a kernel is compiled once until it changes.
        cache = Path(tempfile.gettempdir()) / f"optgen-test-cache-{os.getuid()}"
        cache.mkdir(mode=0o700, exist_ok=True)
        os.environ["OPTGEN_CACHE_DIR"] = str(cache)


def same_loops() -> None:
    """Let torch take loops that every processor can run, unless the environment says otherwise.

    To be called before torch is imported. How wide its loops are decides the order of sums.
    """
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
