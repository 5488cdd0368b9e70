"""Choice of the target for a parameter, and of the engine for a bucket."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeAlias

import torch

from optgen.runtime.core.bucket import Bucket
from optgen.runtime.cuda.graph_capture import asks_for_capture
from optgen.runtime.engines.torch_engine import TorchEngine
from optgen.runtime.rule import Rule

if TYPE_CHECKING:
    from optgen.runtime.engines.cpu_engine import CpuEngine
    from optgen.runtime.engines.cuda_engine import CudaEngine

Engine: TypeAlias = "CpuEngine | CudaEngine | TorchEngine"


def choose_target(name: str, device: torch.device, wanted: str | None, dtype: torch.dtype = torch.float32) -> str:
    """The target that serves the parameters of a dtype on a device.

    Args:
        name: The optimizer's class.
        wanted: The setting `target`.

    Raises:
        RuntimeError: when the cpu or the cuda target is asked for and cannot serve.

    Warns:
        RuntimeWarning: once a process, of what serves less well than was to be expected.
    """
    if dtype is torch.float64:
        if wanted not in (None, "torch"):
            raise RuntimeError(f"{name}: target={wanted!r} cannot serve a float64 parameter; leave target out")
        say_once(
            "float64 parameters are served by the torch target and rounded to float32, in which all is computed; "
            "make them float32, or evaluate the rule in float64 by optgen.reference"
        )
        return "torch"
    if wanted == "torch":
        return "torch"
    if wanted == "cuda" or (wanted is None and device.type == "cuda"):
        return _choose_cuda(name, device, wanted)
    if device.type != "cpu":
        if wanted == "cpu":
            raise RuntimeError(f"{name}: target='cpu' cannot serve a parameter on {device}; leave target out")
        return "torch"
    from optgen.runtime.building.compilers import find_compiler, why_no_compiler

    if find_compiler() is not None:
        return "cpu"
    if wanted == "cpu":
        raise RuntimeError(f"{name}: target='cpu' needs a C++ compiler: {why_no_compiler()}")
    say_once(f"no C++ compiler can be used, so the torch target serves: {why_no_compiler()}")
    return "torch"


def _choose_cuda(name: str, device: torch.device, wanted: str | None) -> str:
    from optgen.runtime.engines.cuda_factory import serves, why_no_cuda

    if not serves(device):
        raise RuntimeError(f"{name}: target='cuda' cannot serve a parameter on {device}; leave target out")
    reason = why_no_cuda(device)
    if not reason:
        return "cuda"
    if wanted == "cuda":
        raise RuntimeError(f"{name}: target='cuda' cannot serve: {reason}")
    say_once(f"{reason}; so the torch target serves, which is slower and takes more memory")
    return "torch"


def make_engine(name: str, rule: Rule, bucket: Bucket) -> Engine:
    """The engine of a bucket; the torch target's, said once, where a kernel cannot be built.

    Raises:
        CompileError: if its kernel cannot be built and the target was asked for by name, or its steps are to be
            captured.
    """
    if bucket.target == "torch":
        return TorchEngine(rule, bucket)
    from optgen.runtime.building.entries import CompileError

    try:
        return _make_kernel_engine(name, rule, bucket)
    except CompileError as error:
        settings = [member.settings for member in bucket.members]
        if any(own["target"] == bucket.target or asks_for_capture(own) for own in settings):
            raise
        say_once(f"a kernel of {name} could not be compiled, so the torch target serves: {error}")
        bucket.target = "torch"
    return TorchEngine(rule, bucket)


def _make_kernel_engine(name: str, rule: Rule, bucket: Bucket) -> Engine:
    if bucket.target == "cuda":
        from optgen.runtime.engines.cuda_factory import make_cuda_engine

        return make_cuda_engine(name, rule, bucket)
    from optgen.runtime.building.compilers import find_compiler
    from optgen.runtime.engines.cpu_engine import CpuEngine

    compiler = find_compiler()
    return TorchEngine(rule, bucket) if compiler is None else CpuEngine(name, rule, bucket, compiler)


_said: set[str] = set()


def say_once(message: str) -> None:
    """Warn of something, once a process."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
