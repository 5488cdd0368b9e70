"""Requirements on the machine, for tests that need them."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from optgen.runtime.core.sweep import Sweep


def require_compiler() -> None:
    """Skip where no C++ compiler is found."""
    cache = pytest.importorskip("optgen.runtime.building.cache")
    if cache.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")


def skip_without_driver() -> None:
    """Skip where nothing is installed that calls NVIDIA's driver."""
    from optgen.runtime.building.nvidia import is_installed

    if not (is_installed("pycuda") or is_installed("cuda.bindings")):
        pytest.skip("neither PyCUDA nor cuda-bindings is installed, which call the stand-in for the CUDA driver")


@functools.cache
def why_no_gpu() -> str:
    """Say why tests marked `gpu` cannot run here; "" if they can."""
    from optgen.runtime.building import nvidia, nvrtc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of drivers that it cannot use
        available = torch.cuda.is_available()
    if not available:
        return "no NVIDIA GPU that this torch can use"
    without = "" if nvrtc.find_cuda_compiler() else f"no nvcc or NVRTC that builds: {nvrtc.why_no_cuda_compiler()}"
    return nvidia.why_no_driver() or without


def sweep_or_skip() -> Sweep:
    """sweep.cpp, compiled; skip where there is no compiler, or no header of Python."""
    from optgen.runtime.building.extension import missing
    from optgen.runtime.core.sweep import compiled_sweep

    reason = missing()
    if reason:
        pytest.skip(reason)
    return compiled_sweep()
