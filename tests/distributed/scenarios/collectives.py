"""Counts of the collectives of a step: one all-reduce a pass that adds anything up, for all tensors and groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from distributed.scenarios.world import Scenario, Scenarios, World, distribute_tensor, gradients, starts

SHAPES = [(10, 7), (9,), (6, 4, 3, 3)]
MANY = 5  # times as many tensors

# Class, settings, and the passes over memory whose results belong to whole tensors, as `optgen explain` shows them.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "adamw": ("AdamW", {}, 0),
    "adamw_8_bits": ("AdamW8bit", {"min_8bit_size": 0}, 0),
    "lamb": ("LAMB", {}, 1),  # the norms of the parameter and of the update
    "lars": ("LARS", {"lr": 1.0, "momentum": 0.9}, 1),  # the same
    "lars_as_in_the_paper": ("LARS", {"lr": 1.0, "momentum": 0.9, "trust_ratio": "lars"}, 1),  # parameter, gradient
    "adafactor": ("Adafactor", {}, 2),  # rows and columns; then the root mean squares that follow from them
    "adafactor_with_averages": ("Adafactor", {"beta1": 0.9}, 2),
    "stable_adamw": ("StableAdamW", {}, 1),  # the mean of squares over their averages
    "stable_adamw_8_bits": ("StableAdamW", {"optim_bits": 8, "min_8bit_size": 0}, 1),
    "clipped": ("AdamW", {"max_grad_norm": 1.0}, 1),
    "clipped_twice": ("AdamW", {"max_grad_norm": 1.0, "percentile_clipping": 50}, 2),  # the second of what is left
    "lamb_clipped_twice": ("LAMB", {"max_grad_norm": 1.0, "percentile_clipping": 50}, 3),
    "lars_clipped_twice": ("LARS", {"lr": 1.0, "momentum": 0.9, "max_grad_norm": 1.0, "percentile_clipping": 50}, 3),
    "stable_adamw_clipped_twice": ("StableAdamW", {"max_grad_norm": 1.0, "percentile_clipping": 50}, 3),
    "adafactor_clipped_twice": ("Adafactor", {"max_grad_norm": 1.0, "percentile_clipping": 50}, 4),
    "one_scale": ("AdamW8bit", {"min_8bit_size": 0, "block_wise": False}, 1),  # maxima alone
    "one_scale_and_norms": ("LAMB8bit", {"min_8bit_size": 0, "block_wise": False}, 1),  # maxima beside sums
}

PLACED: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...]], list[Any]], int]] = {
    "rows": ((), lambda shape: [Shard(0)], 1),
    "columns": ((), lambda shape: [Shard(len(shape) - 1)], 1),
    "replicated": ((2, 2), lambda shape: [Replicate(), Shard(0)], 1),
    "both": ((2, 2), lambda shape: [Shard(0), Shard(len(shape) - 1)], 2),  # one for each dimension of the mesh
}


def counted(world: World, case: str, kind: str) -> None:
    """The collectives of a step are those of the table, however many tensors and groups there are."""
    name, settings, passes = CASES[case]
    mesh_shape, placed, dimensions = PLACED[kind]
    mesh = world.mesh(*mesh_shape)
    checks = int(passes > 0)  # that all processes take the same step, on CPUs
    for times, groups in ((1, 1), (MANY, 3)):
        shapes = SHAPES * times
        params = [
            torch.nn.Parameter(distribute_tensor(value, mesh, placed(tuple(value.shape)))) for value in starts(shapes)
        ]
        for param, grad in zip(params, gradients(shapes, 1)[0], strict=True):
            param.grad = distribute_tensor(grad, mesh, param.placements)
        own = [{"params": params[i::groups], "weight_decay": 0.01 * i} for i in range(groups)]
        optimizer = getattr(optgen_optim, name)(own, **settings)
        assert _planned(optimizer, params) == passes
        with CommDebugMode() as comm:
            optimizer.step()
        wanted = {torch.ops.c10d.allreduce_: dimensions * (passes + checks)} if passes else {}
        assert dict(comm.get_comm_counts()) == wanted, (times, groups, dict(comm.get_comm_counts()))


def _planned(optimizer: Any, params: list[Any]) -> int:
    """Passes of the plan that make anything of a whole tensor, for any of these parameters."""
    from optgen.runtime.core.bucket import flags_of
    from optgen.runtime.settings.storage import choose_codecs, tensorwise

    rule, found = optimizer.rule, set()
    for group in optimizer.param_groups:
        for param in group["params"]:
            one_scale = tensorwise(rule, choose_codecs(rule, group, param.shape))
            flags = flags_of(rule, group, param.shape, 0, one_scale)
            block = rule.blocks["step"]
            found |= {number for number, item in enumerate(block.passes) if block.taken(item, flags)}
    return len(found)


def maxima_beside_sums(world: World) -> None:
    """Maxima that travel with sums are the largest of all processes, unrounded; a NaN or Inf of one is not lost."""
    from optgen.runtime.step.all_reduce import Item, _all_reduce

    own = torch.tensor([[0.1, 7.0, 3.0, 0.0], [0.3, 1e-30, 2.0, 0.0]], dtype=torch.float64)[world.rank % 2]
    for extra in (0.0, float("inf"), float("nan")):
        found: dict[str, torch.Tensor] = {}
        values = torch.cat([own, torch.tensor([extra if world.rank == 1 else 0.0], dtype=torch.float64)])
        sums = Item(lambda: torch.ones(2, dtype=torch.float64), partial(found.__setitem__, "sums"))
        maxima = Item(lambda values=values: values, partial(found.__setitem__, "maxima"))
        _all_reduce([sums], [maxima], dist.group.WORLD)
        assert torch.equal(found["sums"], torch.full((2,), float(world.size), dtype=torch.float64))
        wanted = torch.tensor([0.3, 7.0, 3.0, 0.0, extra], dtype=torch.float64)
        assert torch.equal(found["maxima"].nan_to_num(-1.0), wanted.nan_to_num(-1.0)), found["maxima"]


def _counted(*kinds: str, cases: str = "") -> dict[str, Scenario]:
    chosen = cases.split() or list(CASES)
    return {f"{case}, {kind}": Scenario(partial(counted, case=case, kind=kind)) for kind in kinds for case in chosen}


SCENARIOS: Scenarios = {
    2: {**_counted("rows"), "maxima beside sums": Scenario(maxima_beside_sums)},
    4: {**_counted("columns", "replicated", "both", cases="lamb adafactor one_scale_and_norms")},
}
