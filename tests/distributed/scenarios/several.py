"""Several rules in one optimizer under fully_shard, and their checkpoints on another number of processes."""

from __future__ import annotations

from typing import Any

import optgen_optim
import torch
import torch.distributed.checkpoint as dcp
from runtime.training import same
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from distributed.scenarios.engines import _fully_sharded, batches, compared, net, train
from distributed.scenarios.world import Scenario, Scenarios, World, whole

CHECKPOINT, WHOLE = "several", "several.pt"
FULL = StateDictOptions(full_state_dict=True)


def make(params: list[Tensor]) -> Any:
    """Matrices by LAMB, vectors by AdamW, clipped by the norm of all gradients together."""
    groups = [
        {"params": [param for param in params if param.ndim == 2], "rule": "lamb", "lr": 2e-2},
        {"params": [param for param in params if param.ndim != 2], "rule": "adamw"},
    ]
    return optgen_optim.create(groups, lr=1e-2, max_grad_norm=0.1, target="cpu")


def fsdp2(world: World) -> float:
    """The steps of one process; the norm is over the processes and over the rules."""
    return compared(make, _fully_sharded(net(), world.mesh()), (world.rank, world.size))


def save(world: World) -> None:
    """A checkpoint in parts, and all of it in a file."""
    model = _fully_sharded(net(), world.mesh())
    optimizer = make(list(model.parameters()))
    train(model, optimizer, (world.rank, world.size), lambda: [whole(param.grad) for param in model.parameters()])
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=world.folder.parent / CHECKPOINT)
    full = get_optimizer_state_dict(model, optimizer, options=FULL)
    if world.rank == 0:
        torch.save(full, world.folder.parent / WHOLE)


def go_on(world: World) -> None:
    """The checkpoint of two processes in one: the same bits, and a step with them."""
    model = net()
    optimizer = make(list(model.parameters()))
    saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(saved, checkpoint_id=world.folder.parent / CHECKPOINT)
    set_optimizer_state_dict(model, optimizer, saved["optimizer"])
    wanted = torch.load(world.folder.parent / WHOLE, weights_only=True)
    found = get_optimizer_state_dict(model, optimizer)
    assert found["state"].keys() == wanted["state"].keys()
    for name, entry in wanted["state"].items():
        assert same(dict(found["state"][name]), dict(entry)), name
    assert [group["rule"] for group in optimizer.param_groups] == ["LAMB", "AdamW"]
    x, y = batches()[0]
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


SCENARIOS: Scenarios = {
    2: {"fsdp2": Scenario(fsdp2), "save": Scenario(save)},
    1: {"go on": Scenario(go_on, needs=((2, "save"),))},
}
