"""Checkpoints of torch.distributed.checkpoint that other numbers of processes go on from: 4, then 2, then 1.

Each run of processes leaves its checkpoints in the folder above its own, where the next one finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_scenarios import furthest
from distributed_steps import World, gradients, starts, train_plain, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

STEPS = 2  # of each run

FITTING = [(10, 256), (6, 512), (9, 256)]
UNEVEN = [(10, 70), (3, 50), (9,), (6, 4, 5, 3)]

# Class, settings, shapes, and whether every number of processes cuts its blocks in the same places.
CASES: dict[str, tuple[str, dict[str, Any], list[tuple[int, ...]], bool]] = {
    "32 bits": ("LAMB", {"lr": 1e-2}, UNEVEN, True),
    "16 bits": ("AdamW", {"optim_bits": 16}, UNEVEN, True),
    "8 bits": ("AdamW8bit", {"min_8bit_size": 0}, FITTING, True),
    "4 bits": ("AdamW", {"optim_bits": 4, "min_8bit_size": 0}, FITTING, True),
    "8 bits, uneven": ("AdamW8bit", {"min_8bit_size": 0}, UNEVEN, False),
    "4 bits, uneven": ("AdamW", {"optim_bits": 4, "min_8bit_size": 0}, UNEVEN, False),
    "8 bits, columns": ("AdamW8bit", {"min_8bit_size": 0}, [(10, 70), (3, 50), (6, 4, 5, 3)], False),
    "one scale": ("LAMB8bit", {"min_8bit_size": 0, "block_wise": False}, UNEVEN, True),
    "rows and columns": (
        "Adafactor",
        {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "percentile_clipping": 50},
        UNEVEN,
        True,
    ),
}


class Model(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList([value.clone() for value in values])


def _begin(world: World, case: str) -> tuple[Model, Any]:
    name, settings, shapes, _ = CASES[case]
    model = Model(starts(shapes))
    if "columns" in case and "rows" not in case:
        for i, value in enumerate(model.values):
            divided = distribute_tensor(value.detach(), world.mesh(), [Shard(value.dim() - 1)])
            model.values[i] = nn.Parameter(divided)
    else:
        fully_shard(model, mesh=world.mesh())
    return model, getattr(optgen_optim, name)(model.parameters(), **settings)


def _train(world: World, case: str, model: Model, optimizer: Any, first: int) -> None:
    shapes = CASES[case][2]
    for step in gradients(shapes, 3 * STEPS)[first : first + STEPS]:
        for param, grad in zip(model.parameters(), step, strict=True):
            param.grad = distribute_tensor(grad, world.mesh(), param.placements)
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


def states(model: Model, optimizer: Any) -> list[dict[str, Tensor]]:
    """What the states of every parameter stand for, whole."""
    from torch.distributed.tensor import DTensor

    from optgen.runtime.parts import find_parts
    from optgen.runtime.states import scale_key, stored_codec
    from optgen.runtime.storage import choose_codecs
    from optgen.runtime.torch_codecs import decode

    result = []
    rule, group = optimizer.rule, optimizer.param_groups[0]
    parts = find_parts("", list(model.parameters()))
    for param in model.parameters():
        part, entry = parts.get(id(param)), optimizer.state[param]
        own = param.shape if part is None else part.own
        found = {}
        for state, wanted in zip(rule.element_states, choose_codecs(rule, group, param.numel()), strict=True):
            if state.name not in entry:
                continue
            scales = entry.get(scale_key(state.name))
            codec = stored_codec(state, entry[state.name], scales, own, wanted)
            assert codec == wanted, (codec, wanted)
            value = decode(codec, entry[state.name], scales, state.signed, own)
            if part is not None:
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


def _compare(case: str, found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> float:
    """How far states are from what was saved, over what storing them anew allows; equal where blocks lie as before.

    Half a cell of the largest scale: of 8 bits 0.45 / 64, of 4 bits 0.45 / 4 (see codecs.py), and four roundings.
    """
    worst, exact = 0.0, CASES[case][3]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if exact or key == "step":
                assert torch.equal(ours[key], value), key
            else:
                cell = 0.45 / (64 if "8 bits" in case else 4) + 4 * 2.0**-24
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
    folder = world.folder.parent / f"{case} from {before}"
    content = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(content, checkpoint_id=folder)
    model.load_state_dict(content["model"])
    set_optimizer_state_dict(model, optimizer, content["optimizer"])
    saved = torch.load(folder / "values.pt", weights_only=True)
    for param, value in zip(model.parameters(), saved["params"], strict=True):
        assert torch.equal(whole(param), value)
    worst = _compare(case, states(model, optimizer), saved["states"])
    assert worst <= 1.0, worst
    first = STEPS * (1 if before == 4 else 2)
    _train(world, case, model, optimizer, first)
    _save(world, case, model, optimizer)
    if CASES[case][3]:
        begin, grads = starts(CASES[case][2]), gradients(CASES[case][2], 3 * STEPS)[: first + STEPS]
        name, settings, _, _ = CASES[case]
        wanted = train_plain(lambda params: getattr(optgen_optim, name)(params, **settings), begin, grads)
        return furthest([whole(param) for param in model.parameters()], wanted, begin, first + STEPS)
    return worst


def whole_state(world: World, case: str, before: int) -> None:
    """What all processes together save in one file goes into a plain model too."""
    name, settings, shapes, _ = CASES[case]
    folder = world.folder.parent / f"{case} from {before}"
    full = torch.load(folder / "full.pt", weights_only=True)
    model = Model(starts(shapes))
    optimizer = getattr(optgen_optim, name)(model.parameters(), **settings)
    set_optimizer_state_dict(model, optimizer, full, options=StateDictOptions(full_state_dict=True))
    saved = torch.load(folder / "values.pt", weights_only=True)
    assert _compare(case, states(model, optimizer), saved["states"]) <= 1.0
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


SCENARIOS: dict[int, dict[str, Callable[[World], Any]]] = {
    4: {f"save {case}": partial(save, case=case) for case in CASES},
    2: {f"go on from 4 with {case}": partial(go_on, case=case, before=4) for case in CASES},
    1: {
        **{f"go on from 2 with {case}": partial(go_on, case=case, before=2) for case in CASES},
        **{f"plain from 4 with {case}": partial(whole_state, case=case, before=4) for case in CASES},
    },
}
