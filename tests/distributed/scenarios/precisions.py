"""Rules of every kind under every engine with states of 32 and of 8 bits, held against one process.

The model's loss is a sum of its parameters times given numbers, so that its gradients are these numbers, whatever
engine brings them to the parameters: each element keeps its sign, and its magnitude is between 0.5 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from distributed.scenarios.bounds import CASES, STEPS
from distributed.scenarios.parts import UNITS, equal, furthest
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    check_means,
    distribute_tensor,
    gradients,
    starts,
    train_plain,
    whole,
)

SHAPES = [(10, 70), (3, 50), (9, 31), (7,)]  # blocks of parts are cut elsewhere than those of whole tensors


class Forms(nn.Module):
    """Parameters, and a loss that is linear in them."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ParameterList(starts(SHAPES))

    def forward(self, step: list[Tensor]) -> Tensor:
        """step: what each parameter is multiplied by."""
        products = [(value * grad).sum() for value, grad in zip(self.values, step, strict=True)]
        return torch.stack([whole_sum(product) for product in products]).sum()


def whole_sum(product: Any) -> Tensor:
    """A sum over all parts, for gradients to go through."""
    result: Tensor = product.full_tensor() if hasattr(product, "full_tensor") else product
    return result


def _step(model: nn.Module, optimizer: Any, step: list[Tensor]) -> None:
    optimizer.zero_grad()
    model(step).backward()
    optimizer.step()


Make = Callable[[Any], Any]
Engine = Callable[[World, Make, list[list[Tensor]]], tuple[list[Tensor], Any]]


def ddp(world: World, make: Make, grads: list[list[Tensor]]) -> tuple[list[Tensor], Any]:
    """Every process has everything."""
    model = DistributedDataParallel(Forms())
    optimizer = make(model.parameters())
    for step in grads:
        _step(model, optimizer, step)
    return [param.detach() for param in model.parameters()], optimizer


def zero(world: World, make: Make, grads: list[list[Tensor]]) -> tuple[list[Tensor], Any]:
    """Every process has some parameters, whole."""
    model = DistributedDataParallel(Forms())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), lambda params, **_: make(params))
    for step in grads:
        _step(model, optimizer, step)
    return [param.detach() for param in model.parameters()], optimizer.optim


def sharded(world: World, make: Make, grads: list[list[Tensor]]) -> tuple[list[Tensor], Any]:
    """fully_shard."""
    check_means(world)
    model = fully_shard(Forms(), mesh=world.mesh())
    optimizer = make(model.parameters())
    for step in grads:
        _step(model, optimizer, step)
    return [whole(param) for param in model.parameters()], optimizer


def fsdp1(world: World, make: Make, grads: list[list[Tensor]]) -> tuple[list[Tensor], Any]:
    """FullyShardedDataParallel with the model's own parameters."""
    model = FSDP(Forms(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = make(model.parameters())
    for step in grads:
        _step(model, optimizer, step)
    with FSDP.summon_full_params(model):
        return [param.detach().clone() for param in model.parameters()], optimizer


def tensor_parallel(world: World, make: Make, grads: list[list[Tensor]], dim: int) -> tuple[list[Tensor], Any]:
    """Rows or columns of every matrix."""
    model, mesh = Forms(), world.mesh()

    def placed(value: Tensor) -> Any:
        return distribute_tensor(value, mesh, [Shard(min(dim, value.dim() - 1))])

    for i, value in enumerate(model.values):
        model.values[i] = nn.Parameter(placed(value.detach()))
    optimizer = make(model.parameters())
    for step in grads:
        _step(model, optimizer, [placed(grad) for grad in step])
    return [whole(param) for param in model.parameters()], optimizer


# Engines, and whether every process has whole tensors: then nothing is added up, and all bits are those of one process.
ENGINES: dict[str, tuple[Engine, bool]] = {
    "ddp": (ddp, True),
    "zero": (zero, True),
    "fully_shard": (sharded, False),
    "fsdp1": (fsdp1, False),
    "tensor parallel, rows": (partial(tensor_parallel, dim=0), False),
    "tensor parallel, columns": (partial(tensor_parallel, dim=1), False),
}


def against_one(world: World, case: str, engine: str, bits: int) -> float:
    """The largest difference to one process, over what is allowed."""
    rule, (train, has_all) = CASES[case], ENGINES[engine]
    few = {"optim_bits": 8, "min_8bit_size": 0, "block_wise": True} if bits == 8 else rule.more
    settings = {**rule.settings, **few}

    def make(params: Any) -> Any:
        return getattr(optgen_optim, rule.name)(params, **settings)

    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    found, optimizer = train(world, make, grads)
    names = [state.name for state in optimizer.rule.element_states]
    stored = [entry[name].dtype for entry in optimizer.state.values() for name in names if name in entry]
    assert set(stored) <= {torch.uint8 if bits == 8 else torch.float32}, stored
    assert stored or (case, bits) == ("adafactor", 32) or engine == "zero"
    wanted = train_plain(make, begin, grads)
    if has_all:
        equal(found, wanted)
        return 0.0
    if bits == 32:
        return furthest(found, wanted, begin, STEPS)
    worst = 0.0
    for a, b, c in zip(found, wanted, begin, strict=True):
        rounding = UNITS * 2.0**-23 * STEPS * max(b.abs().max().item(), c.abs().max().item())
        allowed = (rule.bound - 1.0) * (b - c).abs() + rounding
        worst = max(worst, ((a - b).abs() / allowed).max().item())
    assert worst <= 1.0, worst
    return worst


def _more_of_the_same(case: str, engine: str, bits: int) -> bool:
    """True where four processes show no more than two do, or than `parts`, which has rows and columns in 32 bits."""
    has_all, rows_or_columns = ENGINES[engine][1], engine.startswith("tensor parallel")
    return case == "lars" or (has_all and case not in ("adamw", "lamb")) or (rows_or_columns and bits == 32)


def _scenarios(size: int) -> dict[str, Scenario]:
    return {
        f"{case}, {engine}, {bits} bits": Scenario(
            partial(against_one, case=case, engine=engine, bits=bits),
            full=size == 4 and _more_of_the_same(case, engine, bits),
        )
        for case in CASES
        for engine in ENGINES
        for bits in (32, 8)
        if (case, engine) != ("adafactor", "fsdp1")  # refused: see engines.refusals
    }


SCENARIOS: Scenarios = {size: _scenarios(size) for size in (2, 4)}
