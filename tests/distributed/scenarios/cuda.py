"""Kernels of the cuda target on parts of tensors, run on CPUs by the stand-in for its driver."""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import Shard

from distributed.scenarios.parts import against_one, maker
from distributed.scenarios.world import LeftOut, Scenario, Scenarios, World, distribute_tensor
from optgen.runtime.building import nvidia
from optgen.runtime.cuda import cuda_device
from optgen.runtime.step.shard_limits import shard_target


def on_standin(run: Callable[[World], Any]) -> Scenario:
    """Let target="cuda" serve CPU tensors meanwhile; where the stand-in cannot be, the scenario is left out."""

    def serve(world: World) -> Any:
        if not (nvidia.is_installed("pycuda") or nvidia.is_installed("cuda.bindings")):
            raise LeftOut("neither PyCUDA nor cuda-bindings is installed, which call the stand-in for the CUDA driver")
        if ctypes.util.find_library("cuda"):
            raise LeftOut("the stand-in cannot be loaded beside a real driver")
        import standin
        from support.gpu import install_standin

        install_standin()
        standin.load().reset()
        try:
            return run(world)
        finally:
            cuda_device.register(torch.device("cpu"), None)

    return Scenario(serve)


def refusals(world: World) -> None:
    """Refusals of what these kernels cannot do with parts, where they were asked for; nothing changes."""
    for make, dtype, words in (
        (maker("adafactor", target="cuda"), torch.float32, "no place to add them up; leave target out"),
        (maker("adamw", target="cuda", rounding="stochastic"), torch.bfloat16, "draw for whole tensors"),
    ):
        value = torch.ones(8, 8, dtype=dtype)
        param = nn.Parameter(distribute_tensor(value, world.mesh(), [Shard(0)]))
        param.grad = distribute_tensor(value, world.mesh(), [Shard(0)])
        try:
            make([param]).step()
        except RuntimeError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
        assert bool((param.to_local() == 1).all())
        # Unless they were asked for: torch's target then serves the parameter.
        optimizer = make([param])
        optimizer.param_groups[0]["target"] = None
        optimizer.step()
        (member,) = optimizer._kept.of_all[0].members
        assert shard_target("", optimizer.rule, optimizer.rule.blocks["step"], member, "cuda") == "torch"


SCENARIOS: Scenarios = {
    2: {
        **{
            f"{case}, {kind}": on_standin(partial(against_one, case=case, kind=kind, target="cuda"))
            for case in ("adamw", "adamw_clipped", "lamb", "lars", "stable_adamw")
            for kind in ("rows", "columns")
        },
        "refusals": on_standin(refusals),
    }
}
