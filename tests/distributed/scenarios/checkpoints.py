"""Checkpoints of torch.distributed.checkpoint that other numbers of processes go on from: 4, then 2, then 1.

Each run of processes leaves its checkpoints in the folder above its own, where the next one finds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from runtime.checkpoints import kept
from runtime.training import same
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from distributed.scenarios.parts import equal, furthest
from distributed.scenarios.world import (
    LeftOut,
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

STEPS = 2  # of each run

FITTING = [(10, 256), (6, 512), (9, 256)]
UNEVEN = [(10, 70), (3, 50), (9,), (6, 4, 5, 3)]
MATRICES = [(10, 70), (30, 5), (300, 3), (6, 4, 5, 3)]
WHOLE = [(10, 7), (9, 30), (6, 12), (7, 10), (1, 5)]  # matrices whose states owners have
THIN = [(1, 2), (1, 4), (4, 1), (5, 1), (2, 2, 1), (4, 3, 1)]  # codes, scales and parts of them have equal shapes


@dataclass(frozen=True)
class Case:
    """Optimizer and parameters that are trained.

    Attributes:
        how: Division of parameters: see `_divided`.
        exact: Whether every number of processes cuts its blocks in the same places.
        full: Whether it is of the full product alone (-m full), as other cases have its bits, and its division.
    """

    name: str
    settings: dict[str, Any]
    shapes: list[tuple[int, ...]]
    exact: bool = True
    how: str = "fully_shard"
    full: bool = False

    @property
    def half_cell(self) -> float:
        """Half a cell where the map is coarsest, in shares of the scale (see optgen/codecs.py), and four roundings."""
        return 0.45 / (64 if self.name.endswith("8bit") or self.settings.get("optim_bits") == 8 else 4) + 4 * 2.0**-24


EIGHT, FOUR = {"min_8bit_size": 0}, {"optim_bits": 4, "min_8bit_size": 0}
GALORE = {"rank": 3, "update_proj_gap": 2}
FACTORS = {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "percentile_clipping": 50}

CASES: dict[str, Case] = {
    "32 bits": Case("LAMB", {"lr": 1e-2}, UNEVEN),
    "16 bits": Case("AdamW", {"optim_bits": 16}, UNEVEN),
    "8 bits": Case("AdamW8bit", EIGHT, FITTING),
    "4 bits": Case("AdamW", FOUR, FITTING),
    "8 bits, uneven": Case("AdamW8bit", EIGHT, UNEVEN, exact=False),
    "4 bits, uneven": Case("AdamW", FOUR, UNEVEN, exact=False),
    "one scale": Case("LAMB8bit", {**EIGHT, "block_wise": False}, UNEVEN),
    "one scale, 4 bits": Case("AdamW", {**FOUR, "block_wise": False}, [*UNEVEN, (5, 1)]),
    "rows and columns": Case("Adafactor", FACTORS, UNEVEN),
    "hybrid": Case("LAMB", {"lr": 1e-2}, UNEVEN, how="hybrid"),
    "hybrid, 8 bits": Case("AdamW8bit", EIGHT, UNEVEN, exact=False, how="hybrid"),
    "rows twice, 8 bits": Case("AdamW8bit", EIGHT, UNEVEN, exact=False, how="twice"),
    "rows twice, 4 bits": Case("AdamW", FOUR, UNEVEN, exact=False, how="twice", full=True),
    "columns twice, 8 bits": Case("AdamW8bit", EIGHT, MATRICES, exact=False, how="columns twice"),
    "replicas": Case("LAMB8bit", EIGHT, UNEVEN, how="ddp"),
    "columns": Case("Adafactor", FACTORS, MATRICES, how="columns"),
    "columns, 8 bits": Case("AdamW8bit", EIGHT, MATRICES, exact=False, how="columns"),
    "columns, 4 bits": Case("AdamW", FOUR, MATRICES, exact=False, how="columns"),
    "columns, one scale": Case("LAMB8bit", {**EIGHT, "block_wise": False}, MATRICES, how="columns"),
    "thin rows, 8 bits": Case("AdamW8bit", EIGHT, THIN, exact=False),
    "thin rows, 4 bits": Case("AdamW", FOUR, THIN, exact=False),
    "thin columns, 8 bits": Case("AdamW8bit", EIGHT, THIN, exact=False, how="columns"),
    "thin columns, 4 bits": Case("AdamW", FOUR, THIN, exact=False, how="columns"),
    "thin rows by columns, 4 bits": Case("AdamW", FOUR, THIN, exact=False, how="both"),
    "rows by columns": Case("LAMB", {"lr": 1e-2}, MATRICES, how="both"),
    "rows by columns, 8 bits": Case("AdamW8bit", EIGHT, MATRICES, exact=False, how="both", full=True),
    "rows by columns, 4 bits": Case("AdamW", FOUR, MATRICES, exact=False, how="both"),
    "owned": Case("GaLoreAdamW", GALORE, WHOLE),
    "owned, 16 bits": Case("SOAP", {"optim_bits": 16, "precondition_frequency": 2}, WHOLE, how="hybrid"),
    "owned, 8 bits": Case("GaLoreAdamW8bit", {**GALORE, **EIGHT}, WHOLE, how="columns"),
    "owned, 4 bits": Case("Dion", {"rank": 3, **FOUR}, WHOLE, how="both"),
    "owned, one scale": Case("APOLLOMini8bit", {**GALORE, **EIGHT, "block_wise": False}, WHOLE, how="twice"),
}


class Model(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList([value.clone() for value in values])


def _divided(world: World, model: Model, how: str) -> Any:
    """The model under an engine, or its parameters divided by hand.

    hybrid: over the second dimension of a mesh, with replicas over the first. columns: the last dimension of each.
    both: rows among the processes of a column of the mesh, and columns among those of a row. twice: rows among those
    of a row, and fully_shard divides what they have.
    """
    two = {4: (2, 2), 2: (1, 2), 1: (1, 1)}[world.size]
    if how == "ddp":
        return DistributedDataParallel(model)
    if how in ("fully_shard", "hybrid"):
        return fully_shard(model, mesh=world.mesh(*(two if how == "hybrid" else ())))
    for i, value in enumerate(model.values):
        last = Shard(value.dim() - 1)
        mesh, placed = {
            "columns": (world.mesh(), [last]),
            "both": (world.mesh(*two), [Shard(0), last]),
            "twice": (world.mesh(*two)["tensor"], [Shard(0)]),
            "columns twice": (world.mesh(*two), [last, last]),
        }[how]
        model.values[i] = nn.Parameter(distribute_tensor(value.detach(), mesh, placed))
    if how == "twice":
        values = [value.full_tensor().detach() for value in model.values]
        fully_shard(model, mesh=world.mesh(*two)["data"])
        check_strides(model.values, values)
    return model


def _begin(world: World, case: str) -> tuple[Any, Any]:
    chosen = CASES[case]
    model = _divided(world, Model(starts(chosen.shapes)), chosen.how)
    return model, _optimizer(chosen, model)


def _optimizer(case: Case, model: nn.Module) -> Any:
    return getattr(optgen_optim, case.name)(model.parameters(), **case.settings)


def _train(world: World, case: str, model: Model, optimizer: Any, first: int) -> None:
    for step in gradients(CASES[case].shapes, 3 * STEPS)[first : first + STEPS]:
        for param, grad in zip(model.parameters(), step, strict=True):
            if hasattr(param, "placements"):
                everywhere = [Replicate()] * param.device_mesh.ndim
                grad = distribute_tensor(grad, param.device_mesh, everywhere).redistribute(placements=param.placements)
            param.grad = grad
        optimizer.step()
    optimizer.zero_grad()


def _save(world: World, case: str, model: Model, optimizer: Any) -> None:
    folder = world.folder.parent / f"{case} from {world.size}"
    dcp.save(
        {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder
    )
    values = {"params": [whole(param) for param in model.parameters()], "states": states(model, optimizer)}
    everything = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    if world.rank == 0:
        torch.save(values, folder / "values.pt")
        torch.save(everything, folder / "full.pt")
    dist.barrier()
    again = _load(world, case, folder)
    pairs = zip(*(each.param_groups[0]["params"] for each in (optimizer, again)), strict=True)
    for mine, theirs in ((optimizer.state[a], again.state[b]) for a, b in pairs):
        assert mine.keys() == theirs.keys(), (sorted(mine), sorted(theirs))
        for key, value in mine.items():
            assert torch.equal(theirs[key], value), f"{key} is not what as many processes saved"


def _saved_from(world: World, case: str, size: int) -> Path:
    """The folder of what so many processes have saved."""
    folder = world.folder.parent / f"{case} from {size}"
    if not (folder / "values.pt").exists():
        raise LeftOut(f"{size} processes have saved nothing of this case")
    return folder


def _load(world: World, case: str, folder: Path, model: Any = None, optimizer: Any = None) -> Any:
    """Load into a model, or a new one; the optimizer."""
    if model is None:
        model, optimizer = _begin(world, case)
    content = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(content, checkpoint_id=folder)
    model.load_state_dict(content["model"])
    set_optimizer_state_dict(model, optimizer, content["optimizer"])
    return optimizer


def states(model: Model, optimizer: Any) -> list[dict[str, Tensor]]:
    """Values that the states of every parameter stand for, whole."""
    from torch.distributed.tensor import DTensor

    from optgen.runtime.settings.storage import choose_codecs
    from optgen.runtime.states.stored import stored_in
    from optgen.runtime.step.find_shards import find_shards

    result = []
    rule, group = optimizer.rule, optimizer.param_groups[0]
    parts = find_shards("", list(model.parameters()))
    for param in model.parameters():
        part, entry = parts.get(id(param)), optimizer.state[param]
        found = {}
        for state, wanted in zip(rule.coded_states, choose_codecs(rule, group, param.shape), strict=True):
            if state.name not in entry:
                continue
            has_rows = not state.dims or len(entry[state.name]) > 0
            own = state.shape(param.shape if part is None or state.dims else part.own, group, here=has_rows)
            stored = stored_in(state, entry, own, optimizer._codecs.get(param), wanted)
            assert stored is not None
            assert stored.codec == wanted, (stored.codec, wanted)
            value = stored.values(state.signed, own)
            if part is not None and state.dims:
                value = _of_owner(value)
            elif part is not None:
                mesh, placements = part.placed
                value = DTensor.from_local(
                    value, mesh, placements, shape=param.shape, stride=param.stride()
                ).full_tensor()
            found[state.name] = value
        for state in rule.tensor_states:
            if state.name in entry and state.kind == "tensor":
                found[state.name] = entry[state.name]
        found["step"] = entry["step"]
        result.append(found)
    return result


def _of_owner(value: Tensor) -> Tensor:
    """A matrix that one process has, or one in each group of replicas; the others have none of its rows."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    owned = [each for each in values if len(each)]
    assert all(torch.equal(each, owned[0]) for each in owned)
    return owned[0]


def _compare(case: str, found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> float:
    """Distance of states from what was saved, over what re-encoding them allows; equal where blocks lie as before."""
    worst, exact, cell = 0.0, CASES[case].exact, CASES[case].half_cell
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if exact or key == "step":
                assert torch.equal(ours[key], value), key
            else:
                worst = max(worst, (ours[key] - value).abs().max().item() / (cell * value.abs().max().item()))
    return worst


def save(world: World, case: str) -> None:
    """Train and save."""
    model, optimizer = _begin(world, case)
    _train(world, case, model, optimizer, 0)
    _save(world, case, model, optimizer)


def go_on(world: World, case: str, before: int) -> float:
    """Load what so many processes have saved, look at it, train on and save."""
    model, optimizer = _begin(world, case)
    folder = _saved_from(world, case, before)
    _load(world, case, folder, model, optimizer)
    saved = torch.load(folder / "values.pt", weights_only=True)
    for param, value in zip(model.parameters(), saved["params"], strict=True):
        assert torch.equal(whole(param), value)
    worst = _compare(case, states(model, optimizer), saved["states"])
    assert worst <= 1.0, worst
    first = STEPS * (1 if before == 4 else 2)
    _train(world, case, model, optimizer, first)
    _save(world, case, model, optimizer)
    chosen = CASES[case]
    if chosen.exact:
        begin, grads = starts(chosen.shapes), gradients(chosen.shapes, 3 * STEPS)[: first + STEPS]
        wanted = train_plain(lambda params: getattr(optgen_optim, chosen.name)(params, **chosen.settings), begin, grads)
        found = [whole(param) for param in model.parameters()]
        if optimizer.rule.matrix_states:
            equal(found, wanted)
        return furthest(found, wanted, begin, first + STEPS)
    return worst


def whole_state(world: World, case: str, before: int) -> None:
    """Load what all processes together saved in one file into a plain model."""
    folder = _saved_from(world, case, before)
    full = torch.load(folder / "full.pt", weights_only=True)
    model = Model(starts(CASES[case].shapes))
    optimizer = _optimizer(CASES[case], model)
    set_optimizer_state_dict(model, optimizer, full, options=StateDictOptions(full_state_dict=True))
    saved = torch.load(folder / "values.pt", weights_only=True)
    assert _compare(case, states(model, optimizer), saved["states"]) <= 1.0
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


def whole_state_elsewhere(world: World, case: str, how: str) -> None:
    """Load what all processes together saved in one file into a model that is divided in another way."""
    folder = _saved_from(world, case, 4)
    model = _divided(world, Model(starts(CASES[case].shapes)), how)
    optimizer = _optimizer(CASES[case], model)
    options = StateDictOptions(full_state_dict=True)
    full = torch.load(folder / "full.pt", weights_only=True)
    set_optimizer_state_dict(model, optimizer, full, options=options)
    saved = torch.load(folder / "values.pt", weights_only=True)
    assert _compare(case, states(model, optimizer), saved["states"]) <= 1.0


def elsewhere(world: World, case: str, how: str) -> None:
    """States without blocks go into any placement, bit for bit."""
    folder = _saved_from(world, case, 4)
    model = _divided(world, Model(starts(CASES[case].shapes)), how)
    optimizer = _optimizer(CASES[case], model)
    _load(world, case, folder, model, optimizer)
    saved = torch.load(folder / "values.pt", weights_only=True)
    assert CASES[case].exact
    _compare(case, states(model, optimizer), saved["states"])


def placed_otherwise(world: World, case: str, how: str) -> None:
    """Quantized states of columns do not go into rows: the checkpoint lacks a key that these ask for."""
    model = _divided(world, Model(starts(CASES[case].shapes)), how)
    optimizer = _optimizer(CASES[case], model)
    try:
        _load(world, case, _saved_from(world, case, 4), model, optimizer)
    except CheckpointException as error:
        assert "Missing key in checkpoint state_dict: optimizer.state.values.0.exp_avg_" in str(error), error
    else:
        raise AssertionError("loaded")


def kept_shards(world: World) -> None:
    """Load what two processes of an earlier version have saved: each has again what it had, bit for bit."""
    folder = world.folder / "kept"
    if world.rank == 0:
        shutil.unpack_archive(kept.FOLDER / "shards.tar.xz", folder, filter="data")
    dist.barrier()
    optimizers = kept.divided()
    for optimizer in optimizers.values():
        kept.train_divided(optimizer, 1, 1)
    found = kept.stored_by(optimizers)
    dcp.load(found, checkpoint_id=folder / "shards")
    own = torch.load(folder / "shards" / f"own{world.rank}.pt", weights_only=True)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {int(k): e for k, e in found[name].items()}})
        assert same(kept.own_entries(optimizer), own[name]), name


def _of(case: str, run: Callable[..., Any], *needs: tuple[int, str], **more: Any) -> Scenario:
    return Scenario(partial(run, case=case, **more), needs=needs, full=CASES[case].full)


def _saved(case: str) -> tuple[int, str]:
    return 4, f"save {case}"


SCENARIOS: Scenarios = {
    4: {f"save {case}": _of(case, save) for case in CASES},
    2: {
        **{f"go on from 4 with {case}": _of(case, go_on, _saved(case), before=4) for case in CASES},
        **{
            f"{case} whole into {how}": _of(case, whole_state_elsewhere, _saved(case), how=how)
            for case, how in (
                ("columns, 8 bits", "columns"),
                ("columns, 8 bits", "fully_shard"),
                ("columns, 4 bits", "fully_shard"),
                ("rows by columns, 4 bits", "columns"),
                ("8 bits, uneven", "fully_shard"),
                ("owned, 8 bits", "fully_shard"),
                ("owned, 4 bits", "columns"),
            )
        },
        **{
            f"{case} into {how}": _of(case, elsewhere, _saved(case), how=how)
            for case, how in (
                ("columns", "fully_shard"),
                ("rows by columns", "fully_shard"),
                ("columns, one scale", "fully_shard"),
                ("32 bits", "columns"),
                ("owned, 8 bits", "fully_shard"),
                ("owned, 4 bits", "columns"),
                ("owned", "both"),
            )
        },
        "kept shards": Scenario(kept_shards),
        **{
            name: _of(case, placed_otherwise, _saved(case), how=how)
            for name, case, how in (
                ("columns into rows", "columns, 8 bits", "fully_shard"),
                ("rows into columns", "8 bits, uneven", "columns"),
            )
        },
    },
    1: {
        **{f"go on from 2 with {case}": _of(case, go_on, (2, f"go on from 4 with {case}"), before=2) for case in CASES},
        **{f"plain from 4 with {case}": _of(case, whole_state, _saved(case), before=4) for case in CASES},
    },
}
