"""Matrices that are divided among processes: bit for bit as in one process, in two collectives a step."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from distributed.scenarios.parts import equal, furthest
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    check_means,
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
RANK = {"rank": 3, "update_proj_gap": 2}  # a refresh within the steps
# Steps on whole matrices, whose states the owner alone has: all bits are those of one process.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "galore": ("GaLoreAdamW", {**RANK, "lr": 1e-2}),
    "galore, 8 bits": ("GaLoreAdamW8bit", {**RANK, **SMALL}),
    "galore, 4 bits, torch target": ("GaLoreAdamW", {**RANK, **SMALL, "optim_bits": 4, "target": "torch"}),
    "galore adafactor": ("GaLoreAdafactor", {**RANK, "beta1": 0.9}),
    "galore adafactor, torch target": ("GaLoreAdafactor", {**RANK, "target": "torch"}),
    "apollo": ("APOLLO", RANK),
    "apollo mini, 8 bits": ("APOLLOMini8bit", {**RANK, **SMALL, "block_wise": False}),
    "soap": ("SOAP", {"precondition_frequency": 2}),
    "soap, 16 bits, torch target": ("SOAP", {"precondition_frequency": 2, "optim_bits": 16, "target": "torch"}),
    "shampoo": ("Shampoo", {"precondition_frequency": 2}),
    "dion": ("Dion", {"rank": 3}),
    "dion, 4 bits": ("Dion", {"rank": 3, "optim_bits": 4, **SMALL}),
}
CASES |= {case: (*made, True) for case, made in OWN.items()}
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
    if case in OWN:
        check_kept_once(world, optimizer, params)
    if exact:
        equal(found, expected)
    return furthest(found, expected, begin, STEPS)


def check_kept_once(world: World, optimizer: Any, params: list[Any]) -> None:
    """Check that one process of each group of replicas has the matrices of a parameter, and the others nothing."""
    for param in params:
        entry, replicas = optimizer.state[param], 1
        for size, placement in zip(param.device_mesh.shape, param.placements, strict=True):
            replicas *= size if placement.is_replicate() else 1
        states = [state.name for state in optimizer.rule.matrix_states if state.name in entry]
        had = torch.tensor([float(entry[name].numel() > 0) for name in states])
        dist.all_reduce(had)
        assert had.tolist() == [float(replicas)] * len(states), (states, had)


def shared_work(world: World, case: str) -> None:
    """Processes that have all of every matrix compute a share each: bits and states of one, in one all-to-all."""
    name, settings, _ = CASES[case]
    make = partial(getattr(optgen_optim, name), **settings)
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    params, alone = ([torch.nn.Parameter(value.clone()) for value in begin] for _ in range(2))
    optimizer, single = make(params, distribute_matrices=True), make(alone)
    for step in grads:
        for own in (params, alone):
            for param, grad in zip(own, step, strict=True):
                param.grad = grad.clone()
        with CommDebugMode() as comm:
            optimizer.step()
        counts = {str(kind): count for kind, count in comm.get_comm_counts().items()}
        assert sorted(counts.values()) == [1, 1], counts  # the results, and the check that all take the same step
        assert sum("alltoall" in kind for kind in counts) == 1, counts
        single.step()
    equal(list(params), list(alone))
    found, expected = optimizer.state_dict()["state"], single.state_dict()["state"]
    for key, entry in expected.items():
        assert all(torch.equal(found[key][state], value) for state, value in entry.items()), key
    single.load_state_dict(optimizer.state_dict())
    ((_, owned),) = optimizer._kept.of_all[0].owners.groups.values()
    assert len(owned) == len(SHAPES)
    assert len({each.owner.rank for each in owned}) == world.size, "some have nothing to do"


def forms_of_shared_work(world: World) -> None:
    """Convolutions, experts and heads, and a group that does without: as in one process."""
    shapes = [(4, 3, 2, 2), (2, 6, 5), (12, 7), (8, 9)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)

    def make(params: list[Any], asked: bool = False) -> Any:
        ways: list[dict[str, Any]] = [{"matrix_form": "flatten"}, {"matrix_form": "batch"}, {"row_blocks": 3}, {}]
        groups = [
            {"params": [param], "distribute_matrices": asked, **way} for param, way in zip(params, ways, strict=True)
        ]
        groups[-1]["distribute_matrices"] = False
        return optgen_optim.Muon(groups)

    equal(train_plain(partial(make, asked=True), begin, grads), train_plain(make, begin, grads))


def shared_work_differs(world: World) -> None:
    """Processes with gradients for different matrices: all of them say so, and nothing changes."""
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = optgen_optim.Muon(params, distribute_matrices=True)
    for own in ([world.rank % 2], [0, 1][: world.rank + 1], [0, 1][: world.rank]):
        for i, param in enumerate(params):
            param.grad = torch.ones(4, 4) if i in own else None
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "took different steps" in str(error), error
        else:
            raise AssertionError("not noticed")
        equal(list(params), [torch.ones(4, 4)] * 2)
    for param in params:
        param.grad = torch.ones(4, 4)
    optimizer.step()  # together they go on


def shared_work_of_some(world: World) -> None:
    """ZeroRedundancyOptimizer has divided the work already, and says so."""
    param = torch.nn.Parameter(torch.ones(4, 4))
    zero = ZeroRedundancyOptimizer(
        [param, torch.nn.Parameter(torch.ones(3, 3))], lambda own, **_: optgen_optim.Muon(own, distribute_matrices=True)
    )
    for each in zero.param_groups[0]["params"]:
        each.grad = torch.ones_like(each)
    try:
        zero.step()
    except RuntimeError as error:
        assert "leave it out" in str(error), error
    else:
        raise AssertionError("not noticed")
    equal([param], [torch.ones(4, 4)])


def under_ddp(world: World) -> None:
    """A model under DistributedDataParallel, whose processes see parts of a batch: equal everywhere, and as without."""

    def trained(**settings: Any) -> list[torch.Tensor]:
        torch.manual_seed(5)
        layers = [torch.nn.Linear(6, 20, bias=False), torch.nn.Tanh(), torch.nn.Linear(20, 3, bias=False)]
        model = DistributedDataParallel(torch.nn.Sequential(*layers))
        optimizer = optgen_optim.Muon(model.parameters(), **settings)
        for step in range(STEPS):
            source = torch.Generator().manual_seed(world.size * step + world.rank)
            optimizer.zero_grad()
            model(torch.randn(8, 6, generator=source)).square().mean().backward()
            optimizer.step()
        return [param.detach() for param in model.parameters()]

    found = trained(distribute_matrices=True)
    equal(found, trained())
    for param in found:
        first = param.clone()
        dist.broadcast(first, 0)
        equal([param], [first])


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
    ((_, owned),) = optimizer._kept.of_all[0].owners.groups.values()
    work = [0] * world.size
    for each in owned:
        work[each.owner.rank] += each.form.numel() * min(each.form)
    assert max(work) - min(work) <= 40 * 30 * 30, work
    assert len({each.owner.rank for each in owned[-2:]}) == 2


def owners_stay(world: World) -> None:
    """Owners are those of all parameters, whichever a step takes; a group more changes none, a parameter less does."""
    mesh, begin, grads = world.mesh(), starts(SHAPES), gradients(SHAPES, STEPS)
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in begin]
    plain = [torch.nn.Parameter(value.clone()) for value in begin]
    pairs = [(optgen_optim.GaLoreAdamW(own[:3], **RANK), own) for own in (params, plain)]
    for number, step in enumerate(grads):
        for optimizer, own in pairs:
            if number == 2:
                optimizer.add_param_group({"params": own[3:]})
            for i, (param, grad) in enumerate(zip(own, step, strict=True)):
                there = i != number  # one of them has none
                param.grad = None if not there else distribute_tensor(grad, mesh, [Shard(0)]) if own is params else grad
            optimizer.step()
    equal([whole(param) for param in params], plain)
    check_kept_once(world, pairs[0][0], [param for param in params if param in pairs[0][0].state])
    optimizer, before = pairs[0][0], [whole(param) for param in params]
    del optimizer.param_groups[0]["params"][1]  # the largest
    try:
        optimizer.step()
    except ValueError as error:
        assert "is the owner follows from all parameters" in str(error), error
    else:
        raise AssertionError("stepped")
    equal([whole(param) for param in params], before)


def taken_away(world: World) -> None:
    """A parameter less moves owners: who has other states than its share says so, and no other process waits."""
    mesh, shapes = world.mesh(), [(12, 8), (9, 8), (8, 8), (8, 7), (7, 7)]
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in starts(shapes)]
    optimizer = optgen_optim.GaLoreAdamW(params, **RANK)
    for param, grad in zip(params, gradients(shapes, 1)[0], strict=True):
        param.grad = distribute_tensor(grad, mesh, [Shard(0)])
    optimizer.step()
    before, saved = [whole(param) for param in params], optimizer.state_dict()
    optimizer.param_groups[0]["params"] = params[:2] + params[3:]
    said = ""
    try:
        optimizer.step()
    except (ValueError, RuntimeError) as error:
        said = str(error)
    every: list[Any] = [None] * world.size
    dist.all_gather_object(every, said)
    assert any("is the owner follows from all parameters" in one for one in every), every
    assert any("took different steps, or one of them has raised" in one for one in every), every
    assert all(every), every
    equal([whole(param) for param in params], before)
    optimizer.param_groups[0]["params"] = params
    optimizer.load_state_dict(saved)
    optimizer.step()  # together they go on


def uneven_rows(world: World) -> None:
    """fully_shard gives processes unequal numbers of rows, or none: as in one process."""
    check_means(world)
    for name, settings in (("Muon", {}), ("GaLoreAdamW", RANK), ("Shampoo", {})):

        def layers() -> torch.nn.Sequential:
            torch.manual_seed(5)
            return torch.nn.Sequential(*(torch.nn.Linear(*sizes, bias=False) for sizes in ((6, 11), (11, 5), (5, 3))))

        model, make = layers(), partial(getattr(optgen_optim, name), **settings)
        begin = [param.detach().clone() for param in model.parameters()]
        fully_shard(model, mesh=world.mesh())
        optimizer, grads = make(list(model.parameters())), []
        for step in range(STEPS):
            optimizer.zero_grad()
            source = torch.Generator().manual_seed(world.size * step + world.rank)
            model(torch.randn(8, 6, generator=source)).square().mean().backward()
            grads.append([whole(param.grad) for param in model.parameters()])
            optimizer.step()
        equal([whole(param) for param in model.parameters()], train_plain(make, begin, grads))


def blocks_cut_by_rows(world: World) -> None:
    """Rows of processes that are no whole blocks are refused, and the way out works: columns."""
    mesh, begin = world.mesh(), starts([(9, 8)])
    grads, make = gradients([(9, 8)], STEPS), partial(optgen_optim.Muon, row_blocks=3)
    for placement in (Shard(0), Shard(1)):
        param = torch.nn.Parameter(distribute_tensor(begin[0], mesh, [placement]))
        optimizer = make([param])
        for (grad,) in grads:
            param.grad = distribute_tensor(grad, mesh, [placement])
            try:
                optimizer.step()
            except ValueError as error:
                assert placement == Shard(0), error
                assert "divide it by columns" in str(error), error
        equal([whole(param)], begin if placement == Shard(0) else train_plain(make, begin, grads))


FORMS: list[tuple[tuple[int, ...], dict[str, Any], list[Any]]] = [
    ((6, 2, 3, 2), {"matrix_form": "flatten"}, [Shard(0)]),
    ((4, 5, 6), {"matrix_form": "batch"}, [Shard(0)]),
    ((3, 6, 5), {"matrix_form": "batch"}, [Shard(1)]),
    ((12, 7), {"row_blocks": 2}, [Shard(0)]),
    ((12, 5), {"row_blocks": 3}, [Shard(1)]),
]


def forms(world: World, name: str, settings: dict[str, Any]) -> None:
    """Convolutions, stacked experts and heads, whole at their owner; a checkpoint goes on as they do."""
    mesh, shapes = world.mesh(), [shape for shape, _, _ in FORMS]
    begin, grads = starts(shapes), gradients(shapes, STEPS)

    def made(own: list[Any]) -> Any:
        groups = [{"params": [param], **form} for param, (_, form, _) in zip(own, FORMS, strict=True)]
        return getattr(optgen_optim, name)(groups, **settings)

    def placed(values: list[torch.Tensor]) -> list[Any]:
        pairs = zip(values, FORMS, strict=True)
        return [distribute_tensor(value, mesh, placements) for value, (_, _, placements) in pairs]

    plain = [torch.nn.Parameter(value.clone()) for value in begin]
    params = [torch.nn.Parameter(value) for value in placed(begin)]
    pairs = [(made(plain), plain), (made(params), params)]
    for number, step in enumerate(grads):
        if number == STEPS - 1:
            again = [torch.nn.Parameter(param.detach().clone()) for param in params]
            other = made(again)
            other.load_state_dict(pairs[1][0].state_dict())
            pairs.append((other, again))
        for optimizer, own in pairs:
            for param, grad in zip(own, step if own is plain else placed(step), strict=True):
                param.grad = grad.clone()
            optimizer.step()
    check_kept_once(world, pairs[1][0], params)
    equal([whole(param) for param in params], plain)
    equal([whole(param) for param in again], plain)


def given(world: World) -> None:
    """Numbers of heads are given whole, for parameters of which a process has a part: it takes its own."""
    mesh, shapes = world.mesh(), [(12, 7), (9, 10), (8, 6)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)
    plain = [torch.nn.Parameter(value.clone()) for value in begin]
    placed = zip(begin, ([Shard(0)], [Shard(1)], [Shard(0)]), strict=True)
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, placement)) for value, placement in placed]
    pairs = [(optgen_optim.MuonClip(own, lr=0.01), own) for own in (params, plain)]
    for number, step in enumerate(grads):
        for optimizer, own in pairs:
            logits = {own[0]: 80.0 * torch.arange(1, 5) + number, own[1]: torch.tensor([50.0, 200.0, 300.0])}
            optimizer.give(max_logits=logits)
            for param, grad in zip(own, step, strict=True):
                there = getattr(param, "placements", None)
                param.grad = grad.clone() if there is None else distribute_tensor(grad, mesh, there)
            optimizer.step()
    equal([whole(param) for param in params], plain)


def not_finite(world: World) -> None:
    """A matrix of which one process has an Inf stays as it was on all of them, and so do its states."""
    mesh, shapes = world.mesh(), [(6, 5), (4, 7)]
    params = [torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in starts(shapes)]
    optimizer = optgen_optim.GaLoreAdamW(params, **RANK)
    kept: list[Any] = []
    for number, step in enumerate(gradients(shapes, 2)):
        step[0][0, 0] = torch.inf if number == 1 else step[0][0, 0]
        for param, grad in zip(params, step, strict=True):
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        if number == 1:
            kept = [whole(params[0]), {key: value.clone() for key, value in optimizer.state[params[0]].items()}]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step()
    here = optimizer.state[params[0]]["basis"].numel() > 0
    assert [str(one.message) for one in said if "was left as it was" in str(one.message)] != [] or not here
    equal([whole(params[0])], kept[:1])
    entry = optimizer.state[params[0]]
    assert all(torch.equal(entry[key], value) for key, value in kept[1].items() if key != "step"), entry


def left_whole(world: World, name: str, settings: dict[str, Any]) -> None:
    """nonfinite="skip": a NaN of one process leaves the matrix as it was on all; others step as in one process."""
    mesh, shapes = world.mesh(), [(10, 7), *(shape for shape, _, _ in FORMS)]
    ways: list[dict[str, Any]] = [{}, *(way for _, way, _ in FORMS)]
    placed = [[Shard(0)], *(placements for _, _, placements in FORMS)]
    begin, grads = starts(shapes), gradients(shapes, STEPS + 1)
    plain = [torch.nn.Parameter(value.clone()) for value in begin]
    parts = [distribute_tensor(value, mesh, own) for value, own in zip(begin, placed, strict=True)]
    params = [torch.nn.Parameter(value) for value in parts]
    pairs = []
    for own in (params, plain):
        groups = [{"params": [param], **way} for param, way in zip(own, ways, strict=True)]
        pairs.append((getattr(optgen_optim, name)(groups, nonfinite="skip", **settings), own))
    for number, step in enumerate(grads):
        for grad in step if number in (0, 2) else ():
            grad.view(-1)[-1] = torch.nan if number else torch.inf
        before = [whole(param) for param in params]
        for optimizer, own in pairs:
            for param, grad, placements in zip(own, step, placed, strict=True):
                param.grad = grad.clone() if own is plain else distribute_tensor(grad, mesh, placements)
            optimizer.step()
        equal([whole(param) for param in params], plain)
        if number in (0, 2):
            assert all(torch.equal(whole(p).view(-1)[-1], b.view(-1)[-1]) for p, b in zip(params, before, strict=True))
            equal([whole(params[0])], before[:1])
    found, expected = (optimizer.state_dict()["state"] for optimizer, _ in pairs)
    for key, entry in expected.items():
        assert float(found[key]["step"]) == float(entry["step"]), (key, found[key]["step"], entry["step"])


SCENARIOS: Scenarios = {
    2: {
        **{
            f"{case}, {kind}": Scenario(partial(stepped, case=case, kind=kind))
            for case in CASES
            for kind in ("by rows", "by columns")
        },
        "experts": Scenario(experts),
        **{f"shared work, {case}": Scenario(partial(shared_work, case=case)) for case in CASES},
        "shared work, forms": Scenario(forms_of_shared_work),
        "shared work differs": Scenario(shared_work_differs),
        "shared work of some": Scenario(shared_work_of_some),
        "shared work under DDP": Scenario(under_ddp),
        "owners share the work": Scenario(owners_share_the_work),
        "owners stay": Scenario(owners_stay),
        "uneven rows": Scenario(uneven_rows),
        "blocks cut by rows": Scenario(blocks_cut_by_rows),
        "not finite": Scenario(not_finite),
        "given": Scenario(given),
        "left whole": Scenario(partial(left_whole, name="Muon", settings={})),
        "left whole, own states": Scenario(partial(left_whole, name="GaLoreAdamW", settings=RANK)),
        **{
            f"forms, {case}": Scenario(partial(forms, name=OWN[case][0], settings=OWN[case][1]))
            for case in ("galore", "galore, 8 bits", "apollo", "soap", "shampoo", "dion, 4 bits")
        },
    },
    4: {
        "taken away": Scenario(taken_away),
        "uneven rows": Scenario(uneven_rows),
    }
    | {
        f"{case}, {kind}": Scenario(partial(stepped, case=case, kind=kind))
        for case in ("muon", "rows", "galore", "soap, 16 bits, torch target", "dion, 4 bits")
        for kind in ("replicated", "both", "rows twice")
    }
    | {f"shared work, {case}": Scenario(partial(shared_work, case=case)) for case in ("muon", "galore, 8 bits")},
}
