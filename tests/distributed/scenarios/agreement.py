"""Agreement among processes: what they must agree about, what they need not, and which of it they notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.tensor import Shard

from distributed.scenarios.parts import equal, furthest, maker
from distributed.scenarios.precisions import SHAPES, Forms
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    distribute_tensor,
    gradients,
    starts,
    train_plain,
    whole,
)

STEPS = 3

Make = Callable[[Any], Any]


def _lamb(**settings: Any) -> Make:
    return lambda params: optgen_optim.LAMB(params, **{"lr": 1e-2, "min_8bit_size": 0, "block_wise": True, **settings})


# What each process asks for, where they are to notice it: what is added up, or for what, would not be the same.
NOTICED: dict[str, tuple[Make, Make]] = {
    "how it is computed": (_lamb(), _lamb(bias_correction=False)),
    "sums over all": (_lamb(), _lamb(max_grad_norm=1.0)),
    "one scale": (_lamb(optim_bits=8), _lamb(optim_bits=8, block_wise=False)),
    "blocks": (_lamb(optim_bits=8), _lamb(optim_bits=8, block_size=64)),
    "which are quantized": (_lamb(optim_bits=8), _lamb(optim_bits=8, min_8bit_size=200)),
    "rules": (  # whose flags and codecs are the same
        lambda params: optgen_optim.Lion(params, max_grad_norm=1.0),
        lambda params: optgen_optim.Adagrad(params, max_grad_norm=1.0),
    ),
}


def noticed(world: World, what: str) -> None:
    """All of them say so before the first step, and nothing changes; those that agree go on."""
    begin, (step,) = starts(SHAPES), gradients(SHAPES, 1)
    params = [nn.Parameter(distribute_tensor(value, world.mesh(), [Shard(0)])) for value in begin]
    for param, grad in zip(params, step, strict=True):
        param.grad = distribute_tensor(grad, world.mesh(), [Shard(0)])
    try:
        NOTICED[what][world.rank % 2](params).step()
    except RuntimeError as error:
        assert "took different steps" in str(error), error
    else:
        raise AssertionError("not noticed")
    equal([whole(param) for param in params], begin)
    NOTICED[what][0](params).step()
    assert not any(torch.equal(whole(param), value) for param, value in zip(params, begin, strict=True))


def not_noticed(world: World) -> None:
    """Numbers are not compared: each process goes on at its own rate."""
    begin, grad = torch.zeros(8, 4), torch.ones(8, 4)
    param = nn.Parameter(distribute_tensor(begin, world.mesh(), [Shard(0)]))
    param.grad = distribute_tensor(grad, world.mesh(), [Shard(0)])
    _lamb(lr=0.5 + world.rank, weight_decay=0.0)([param]).step()
    norms = [float(rows.norm()) for rows in whole(param).chunk(world.size)]
    for rank, norm in enumerate(norms):
        assert abs(norm / norms[0] - (0.5 + rank) / 0.5) < 1e-6, norms


def own_targets(world: World, case: str) -> float:
    """Targets of each process's own choice: its parameters lie in other buckets, and each gets what is its own."""
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    params = [nn.Parameter(distribute_tensor(value, world.mesh(), [Shard(0)])) for value in begin]
    targets = [("torch", "cpu")[i % 2] if world.rank == 0 else "cpu" for i in range(len(params))]
    make = maker(case)
    optimizer = make([{"params": [param], "target": target} for param, target in zip(params, targets, strict=True)])
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = distribute_tensor(grad, world.mesh(), [Shard(0)])
        optimizer.step()
    assert optimizer.engines() == {target: targets.count(target) for target in set(targets)}, optimizer.engines()
    wanted = train_plain(lambda own: make([{"params": [param]} for param in own]), begin, grads)
    return furthest([whole(param) for param in params], wanted, begin, STEPS)


class Units(nn.Module):
    """Two modules that FSDP1 flattens apart, so that each process lacks some parameters of both."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.units = nn.ModuleList(FSDP(Forms(), **settings) for _ in range(2))

    def forward(self, step: list[Tensor]) -> Tensor:
        """step: what each parameter is multiplied by."""
        return torch.stack([unit(step) for unit in self.units]).sum()


def gradients_of_16_bits(world: World) -> float:
    """FSDP1 can keep gradients of 16 bits for parameters of 32; an empty stretch has none, and nobody knows its dtype.

    The loss is linear in the parameters, so that all processes have the same gradients, whose mean is exact.
    """
    settings = {
        "use_orig_params": True,
        "device_id": torch.device("cpu"),
        "mixed_precision": MixedPrecision(torch.bfloat16, torch.bfloat16, keep_low_precision_grads=True),
    }
    model = FSDP(Units(**settings), **settings)
    make, params = maker("lamb"), list(model.parameters())
    optimizer, grads = make(params), gradients(SHAPES, STEPS)
    for step in grads:
        optimizer.zero_grad()
        model(step).backward()
        dtypes = {None if param.grad is None else param.grad.dtype for param in params}
        assert dtypes <= {torch.bfloat16, None}, dtypes
        optimizer.step()
    buckets = [[member.number for member in engine.bucket.members] for engine in optimizer._kept.of_all[0].engines]
    assert (buckets == [[0, 4], [1, 2, 3, 5, 6, 7]]) == (world.rank == 0), buckets
    with FSDP.summon_full_params(model):
        found = [param.detach().clone() for param in model.parameters()]
    begin, exact = starts(SHAPES) * 2, [[grad.bfloat16().float() for grad in step] * 2 for step in grads]
    return furthest(found, train_plain(make, begin, exact), begin, STEPS)


SCENARIOS: Scenarios = {
    2: {
        **{f"noticed: {what}": Scenario(partial(noticed, what=what)) for what in NOTICED},
        "not noticed": Scenario(not_noticed),
        **{
            f"own targets, {case}": Scenario(partial(own_targets, case=case))
            for case in ("lamb", "adafactor", "stable_adamw")
        },
        "gradients of 16 bits": Scenario(gradients_of_16_bits),
    },
}
