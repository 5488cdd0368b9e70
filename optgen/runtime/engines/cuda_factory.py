"""The cuda target; nothing of it is imported before a tensor of a GPU, target="cuda" or paging asks for it."""

from __future__ import annotations

import torch

from optgen.runtime.building.nvidia import why_no_driver
from optgen.runtime.building.nvrtc import find_cuda_compiler
from optgen.runtime.core.bucket import Bucket
from optgen.runtime.cuda.cuda_device import OLDEST, cuda_device, serves
from optgen.runtime.cuda.paging import Pager, pager_of
from optgen.runtime.engines.cuda_engine import CudaEngine
from optgen.runtime.rule import Rule

__all__ = ["make_cuda_engine", "pager_on", "serves", "why_no_cuda"]


def why_no_cuda(device: torch.device) -> str:
    """Reason why kernels cannot run on a GPU, with what mends it; "" if they can."""
    if torch.version.hip is not None:
        return f"{device} is a GPU of AMD's (ROCm), for which there are no kernels"
    reason = why_no_driver()
    if reason:
        return reason
    capability = cuda_device(device).capability
    if capability < OLDEST:
        have, need = (".".join(map(str, version)) for version in (capability, OLDEST))
        return f"{device} has compute capability {have}, and optgen's kernels need {need} or newer"
    return ""


def pager_on(device: torch.device) -> Pager:
    """Pager of the paged states of parameters on a GPU."""
    return pager_of(cuda_device(device))


def make_cuda_engine(name: str, rule: Rule, bucket: Bucket) -> CudaEngine:
    """The engine of a bucket of an optimizer, whose class has this name.

    Raises:
        CompileError: if its kernel cannot be built.
    """
    return CudaEngine(name, rule, bucket, cuda_device(bucket.device), find_cuda_compiler())
