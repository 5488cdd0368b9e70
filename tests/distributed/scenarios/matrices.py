"""Matrices that are divided among processes: bit for bit as in one process, in two collectives a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import optgen_optim
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from distributed.scenarios.parts import equal, furthest
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    check_strides,
    distribute_tensor,
    gradients,
    starts,
    train_plain,
    whole,
)

# Processes have unequal parts of them, or none. Each has a shape of its own: a product of several matrices at once need
# not have the bits of one alone, and an owner may have some of those that one process takes together.
SHAPES = [(10, 7), (9, 30), (6, 12), (7, 10), (1, 5), (5, 4)]
STEPS = 3
SMALL = {"min_8bit_size": 0}
# Rows of states are sums over processes, in another order than those of one process.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "muon": ("Muon", {}, True),
    "on the torch target": ("Muon", {"target": "torch"}, True),
    "two schedules": ("Muon", {"ns_schedule": "polar_express", "adjust_lr_fn": "match_rms_adamw"}, True),
    "rows": ("NorMuon", {"lr": 0.01}, False),
    "rows on the torch target": ("NorMuon", {"lr": 0.01, "target": "torch"}, False),
    "elements": ("AdaMuon", {}, False),
}
PLACED: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "by rows": ((), [Shard(0)]),
    "by columns": ((), [Shard(1)]),
    "replicated": ((2, 2), [Replicate(), Shard(0)]),
    "both": ((2, 2), [Shard(0), Shard(1)]),
    "rows twice": ((2, 2), [Shard(0), Shard(0)]),
}


def stepped(world: World, case: str, kind: str) -> float:
    """Steps on parts, held against those of one process; two all-to-alls a step, whatever the number of matrices."""
    name, settings, exact = CASES[case]
    mesh_shape, placements = PLACED[kind]
    mesh, begin, grads = world.mesh(*mesh_shape), starts(SHAPES), gradients(SHAPES, STEPS)
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, placements)) for value in begin]
    check_strides(params, begin)
    make = partial(getattr(optgen_optim, name), **settings)
    optimizer = make(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = distribute_tensor(grad, mesh, placements)
        with CommDebugMode() as comm:
            optimizer.step()
        counts = dict(comm.get_comm_counts())
        sent = sum(count for kind, count in counts.items() if "alltoall" in str(kind))
        assert sent == 2, counts
    found, expected = [whole(param) for param in params], train_plain(make, begin, grads)
    if exact:
        equal(found, expected)
    return furthest(found, expected, begin, STEPS)


def experts(world: World) -> None:
    """Stacked matrices of which each process has some, whole: nothing is sent."""
    mesh, shape = world.mesh(), (2 * world.size, 6, 5)
    (begin,), grads = starts([shape]), gradients([shape], STEPS)
    param = torch.nn.Parameter(distribute_tensor(begin, mesh, [Shard(0)]))
    make = partial(optgen_optim.Muon, matrix_form="batch")
    optimizer = make([param])
    for (grad,) in grads:
        param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        with CommDebugMode() as comm:
            optimizer.step()
        assert not any("alltoall" in str(kind) for kind in comm.get_comm_counts()), comm.get_comm_counts()
    assert furthest([whole(param)], train_plain(make, [begin], grads), [begin], STEPS) >= 0.0


def owners_share_the_work(world: World) -> None:
    """Every process owns matrices, and none has more to do than the largest matrix more than another."""
    mesh, shapes = world.mesh(), [(12, 8)] * 8 + [(40, 30)] * 2
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in starts(shapes)]
    for param, grad in zip(params, gradients(shapes, 1)[0], strict=True):
        param.grad = distribute_tensor(grad, mesh, [Shard(0)])
    optimizer = optgen_optim.Muon(params)
    optimizer.step()
    ((_, owned),) = optimizer._kept.of_all[0].owners.groups
    work = [0] * world.size
    for each in owned:
        work[each.owner] += each.form.numel() * min(each.form)
    assert max(work) - min(work) <= 40 * 30 * 30, work
    assert len({each.owner for each in owned[-2:]}) == 2


SCENARIOS: Scenarios = {
    2: {
        **{
            f"{case}, {kind}": Scenario(partial(stepped, case=case, kind=kind))
            for case in CASES
            for kind in ("by rows", "by columns")
        },
        "experts": Scenario(experts),
        "owners share the work": Scenario(owners_share_the_work),
    },
    4: {
        f"{case}, {kind}": Scenario(partial(stepped, case=case, kind=kind))
        for case in ("muon", "rows")
        for kind in ("replicated", "both", "rows twice")
    },
}
