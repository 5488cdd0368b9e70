"""Checkpoints of FSDP1 and ZeroRedundancyOptimizer, whose states are plain tensors; and what get_state_dict asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from distributed.scenarios.parts import equal, furthest
from distributed.scenarios.precisions import SHAPES, Forms
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    check_means,
    distribute_tensor,
    gradients,
    starts,
    train_plain,
)
from optgen.codecs import CODECS
from optgen.runtime.states.stored import scale_key
from optgen.runtime.states.torch_codecs import decode
from optgen.runtime.step.find_shards import find_shards

STEPS = 2  # of each run
GRADIENTS = gradients(SHAPES, 3 * STEPS)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "32 bits": ("LAMB", {"lr": 1e-2}),
    "16 bits": ("AdamW", {"optim_bits": 16}),
    "8 bits": ("AdamW8bit", {"min_8bit_size": 0}),
    "4 bits": ("AdamW", {"optim_bits": 4, "min_8bit_size": 0}),
    "clipped": ("AdamW", {"percentile_clipping": 50}),
}


def maker(case: str) -> Callable[[Any], Any]:
    """Maker of a case's optimizers."""
    name, settings = CASES[case]
    return lambda params, **_: getattr(optgen_optim, name)(params, **settings)


def train(model: nn.Module, optimizer: Any, first: int) -> None:
    """The steps of a run."""
    for step in GRADIENTS[first : first + STEPS]:
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()


# FSDP1


def flat(case: str) -> tuple[nn.Module, Any]:
    """A model under FSDP1 and its optimizer."""
    model = FSDP(Forms(), use_orig_params=True, device_id=torch.device("cpu"))
    return model, maker(case)(model.parameters())


def values(model: nn.Module) -> list[Tensor]:
    """Whole parameters."""
    with FSDP.summon_full_params(model):
        return [param.detach().clone() for param in model.parameters()]


def of_every_process(world: World, case: str) -> None:
    """Each process loads what it has saved, and goes on as if nothing had been."""
    model, optimizer = flat(case)
    train(model, optimizer, 0)
    file = world.folder / f"{case} of {world.rank}.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, STEPS)
    again, other = flat(case)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(again, other, STEPS)
    equal(values(again), values(model))


def _folder(world: World, case: str, size: int) -> Path:
    return world.folder.parent / f"fsdp1, {case} from {size}"


def flat_save(world: World, case: str, model: Any = None, optimizer: Any = None) -> None:
    """Save with torch.distributed.checkpoint, and what all processes together have in one file."""
    if model is None:
        model, optimizer = flat(case)
        train(model, optimizer, 0)
    states, optimizer_states = get_state_dict(model, optimizer)
    folder = _folder(world, case, world.size)
    dcp.save({"model": states, "optimizer": optimizer_states}, checkpoint_id=folder)
    whole = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    if world.rank == 0:
        torch.save(whole, folder / "whole.pt")
    dist.barrier()


def flat_go_on(world: World, case: str, before: int) -> float:
    """Load what another number of processes has saved, and train on: how far that is from one process."""
    model, optimizer = flat(case)
    states, optimizer_states = get_state_dict(model, optimizer)
    content = {"model": states, "optimizer": optimizer_states}
    dcp.load(content, checkpoint_id=_folder(world, case, before))
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    first = STEPS * (1 if before == 4 else 2)
    train(model, optimizer, first)
    flat_save(world, case, model, optimizer)
    return _furthest(case, values(model), first + STEPS)


def _furthest(case: str, found: list[Tensor], steps: int) -> float:
    begin = starts(SHAPES)
    return furthest(found, train_plain(maker(case), begin, GRADIENTS[:steps]), begin, steps)


def flat_whole(world: World, case: str, how: str) -> float:
    """One file of all processes goes into a plain model, and into one under fully_shard or FSDP1."""
    whole, whole_optimizer = torch.load(_folder(world, case, 4) / "whole.pt", weights_only=True)
    model: Any = Forms()
    if how == "fsdp1":
        model = FSDP(model, use_orig_params=True, device_id=torch.device("cpu"))
    elif how == "fully_shard":
        check_means(world)
        fully_shard(model, mesh=world.mesh())
    optimizer = maker(case)(model.parameters())
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=whole, optim_state_dict=whole_optimizer, options=options)
    train(model, optimizer, STEPS)
    found = values(model) if how == "fsdp1" else [getattr(p, "full_tensor", p.detach)() for p in model.parameters()]
    return _furthest(case, [param.detach() for param in found], 2 * STEPS)


def flat_not_gathered(world: World, case: str) -> None:
    """FSDP1 gathers states of one dtype that have a number an element, and refuses all others."""
    model, optimizer = flat(case)
    train(model, optimizer, 0)
    try:
        get_optimizer_state_dict(model, optimizer)
    except AssertionError as error:
        assert str(error).startswith("Expected") or torch.__version__.startswith("2.8."), error  # which says nothing
    else:
        raise AssertionError("gathered")


def plain_into_flat(world: World, case: str) -> float:
    """A checkpoint of one process loads into any number of flat shards."""
    plain = Forms()
    one = maker(case)(plain.parameters())
    train(plain, one, 0)
    model, optimizer = flat(case)
    with FSDP.summon_full_params(model):
        for param, value in zip(model.parameters(), plain.parameters(), strict=True):
            param.data.copy_(value.data)
    optimizer.load_state_dict(one.state_dict())
    train(model, optimizer, STEPS)
    return _furthest(case, values(model), 2 * STEPS)


def plain_into_flat_anew(world: World, case: str) -> None:
    """Quantized states of one process are re-encoded, in the blocks of the shards: off by half a cell at most."""
    plain = Forms()
    one = maker(case)(plain.parameters())
    train(plain, one, 0)
    model, optimizer = flat(case)
    optimizer.load_state_dict(one.state_dict())
    parts = find_shards("", list(model.parameters()))
    cells = {"exp_avg": 0.45 / 64, "exp_avg_sq": 0.45 / 128}
    seen = 0
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        part = parts[id(mine)]
        for state in optimizer.rule.element_states:
            if state.name not in cells or mine.numel() == 0:
                continue
            value, wanted = (
                decode(
                    CODECS["int8"],
                    entry[state.name],
                    entry[scale_key(state.name)],
                    state.signed,
                    entry[state.name].shape,
                )
                for entry in (optimizer.state[mine], one.state[theirs])
            )
            wanted = wanted.reshape(-1)[part.start : part.start + mine.numel()]
            assert value.shape == wanted.shape
            off = (value - wanted).abs().max() / wanted.abs().max()
            assert off <= cells[state.name] + 4 * 2.0**-24, off
            seen += 1
    assert seen


def values_of_before(world: World) -> None:
    """Earlier versions saved quantized states of columns as float32: these still load."""
    begin, step = starts([(10, 70)])[0], gradients([(10, 70)], 1)[0][0]

    def begun(steps: int) -> tuple[Any, Any]:
        param = nn.Parameter(distribute_tensor(begin, world.mesh(), [Shard(1)]))
        optimizer = maker("8 bits")([param])
        param.grad = distribute_tensor(step, world.mesh(), [Shard(1)])
        for _ in range(steps):
            optimizer.step()
        return param, optimizer

    param, optimizer = begun(2)
    saved = optimizer.state_dict()
    entry = saved["state"][0]
    wanted = {}
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        own = optimizer.state[param]
        wanted[name] = decode(CODECS["int8"], own[name], own[scale_key(name)], signed, own[name].shape)
        for key in (name, f"{name}_scales", f"{name}_division"):
            del entry[key]
        entry[f"{name}_values"] = DTensor.from_local(wanted[name], world.mesh(), [Shard(1)])
    again, other = begun(0)
    other.load_state_dict(saved)
    own = other.state[again]
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        value = decode(CODECS["int8"], own[name], own[scale_key(name)], signed, own[name].shape)
        assert (value - wanted[name]).abs().max() <= (0.45 / 64 + 4 * 2.0**-24) * wanted[name].abs().max()


# ZeroRedundancyOptimizer


def zero(case: str) -> tuple[nn.Module, Any]:
    """A model under DDP, its optimizer's parameters divided among processes."""
    model = DistributedDataParallel(Forms())
    return model, ZeroRedundancyOptimizer(model.parameters(), maker(case))


def consolidated(world: World, case: str) -> None:
    """States of all that one process has go into as many processes, into a file, and into one process."""
    model, optimizer = zero(case)
    train(model, optimizer, 0)
    optimizer.consolidate_state_dict(to=0)
    file = world.folder.parent / f"zero, {case} from {world.size}.pt"
    if world.rank == 0:
        torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    dist.barrier()
    train(model, optimizer, STEPS)
    saved = torch.load(file, weights_only=True)
    again, other = zero(case)
    again.module.load_state_dict(saved["model"])
    other.load_state_dict(copy.deepcopy(saved["optimizer"]))  # it clears what other processes have
    plain = Forms()
    plain.load_state_dict(saved["model"])
    one = maker(case)(plain.parameters())
    one.load_state_dict(saved["optimizer"])
    for one_model, one_optimizer in ((again, other), (plain, one)):
        train(one_model, one_optimizer, STEPS)
        equal(list(one_model.parameters()), list(model.parameters()))


def consolidated_before(world: World, case: str, before: int) -> None:
    """Steps after those of another number of processes, bit for bit."""
    saved = torch.load(world.folder.parent / f"zero, {case} from {before}.pt", weights_only=True)
    model, optimizer = zero(case)
    model.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, STEPS)
    equal(list(model.parameters()), train_plain(maker(case), starts(SHAPES), GRADIENTS[: 2 * STEPS]))


# get_state_dict


def relative_step(world: World) -> None:
    """get_state_dict takes a step with lr=0 where none was taken, which a relative step refuses; later it does not."""

    def begun() -> tuple[Any, Any]:
        model = fully_shard(Forms(), mesh=world.mesh())
        return model, optgen_optim.Adafactor(model.parameters())

    model, optimizer = begun()
    try:
        get_optimizer_state_dict(model, optimizer)
    except ValueError as error:
        assert "cannot be combined with relative_step=True" in str(error), error
    else:
        raise AssertionError("not refused")
    model, optimizer = begun()
    train(model, optimizer, 0)
    saved = get_optimizer_state_dict(model, optimizer)
    again, other = begun()
    again.load_state_dict(model.state_dict())
    train(again, other, 0)
    set_optimizer_state_dict(again, other, saved)
    again.load_state_dict(model.state_dict())
    train(model, optimizer, STEPS)
    train(again, other, STEPS)
    equal([p.to_local() for p in again.parameters()], [p.to_local() for p in model.parameters()])


FLOATS = ("32 bits", "16 bits")


def _whole_into(how: str) -> Scenario:
    return Scenario(partial(flat_whole, case="32 bits", how=how), needs=((4, "fsdp1, save 32 bits"),))


SCENARIOS: Scenarios = {
    4: {
        **{f"fsdp1, save {case}": Scenario(partial(flat_save, case=case)) for case in FLOATS},
        **{f"zero, {case}": Scenario(partial(consolidated, case=case)) for case in ("32 bits", "8 bits")},
    },
    2: {
        **{f"fsdp1 of every process, {case}": Scenario(partial(of_every_process, case=case)) for case in CASES},
        **{
            f"fsdp1 from 4, {case}": Scenario(
                partial(flat_go_on, case=case, before=4), needs=((4, f"fsdp1, save {case}"),)
            )
            for case in FLOATS
        },
        **{f"fsdp1 whole into {how}": _whole_into(how) for how in ("fsdp1", "fully_shard")},
        **{
            f"fsdp1 cannot gather, {case}": Scenario(partial(flat_not_gathered, case=case))
            for case in ("8 bits", "clipped")
        },
        **{f"plain into fsdp1, {case}": Scenario(partial(plain_into_flat, case=case)) for case in FLOATS},
        **{f"zero, {case}": Scenario(partial(consolidated, case=case)) for case in CASES},
        **{
            f"zero from 4, {case}": Scenario(
                partial(consolidated_before, case=case, before=4), needs=((4, f"zero, {case}"),)
            )
            for case in ("32 bits", "8 bits")
        },
        "plain into fsdp1, 8 bits": Scenario(partial(plain_into_flat_anew, case="8 bits")),
        "relative step": Scenario(relative_step),
        "values of before": Scenario(values_of_before),
    },
    1: {
        **{
            f"fsdp1 from 2, {case}": Scenario(
                partial(flat_go_on, case=case, before=2), needs=((2, f"fsdp1 from 4, {case}"),)
            )
            for case in FLOATS
        },
        "fsdp1 whole into plain": _whole_into("plain"),
    },
}
