"""MuonClip in training: logits of attention, given head by head, stay near the threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from converge_tasks import TASKS, loss
from optgen_optim import for_model
from torch import Tensor

THRESHOLD = 4.0
STEPS = 90


def greatest_logits(block: Any, projected: Tensor) -> Tensor:
    """The greatest logit of each head over a batch, of queries, keys and values in one matrix."""
    batch, length, width = projected.shape
    parts = projected.view(batch, length, 3, block.heads, width // 3 // block.heads).permute(2, 0, 3, 1, 4)
    logits = parts[0] @ parts[1].transpose(-1, -2) / math.sqrt(parts.shape[-1])
    return logits.amax(dim=(0, 2, 3))


def trained(threshold: float, given: bool) -> tuple[list[float], float]:
    """The greatest logit of each step, and the last loss."""
    task = TASKS["text"]
    torch.manual_seed(0)
    model: Any = task.model()
    own = {"rule": "MuonClip", "lr": 3e-2, "qk_threshold": threshold}
    optimizer: Any = for_model(model, own, others={"rule": "AdamW", "lr": 2e-3}, show=False)
    batches, block, found = torch.Generator().manual_seed(0), model.blocks[0], []
    block.query_key_value.register_forward_hook(
        lambda _, __, output: found.append(greatest_logits(block, output.detach()))
    )
    last = math.nan
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model, task.data().batch(batches))
        torch.autograd.backward(value)
        if given:  # of queries and keys; no head of the values is above the threshold
            heads = torch.cat([found[-1], found[-1], torch.zeros(block.heads)])
            optimizer.give(max_logits={block.query_key_value.weight: heads})
        optimizer.step()
        last = value.item()
    return [each.max().item() for each in found], last


@pytest.mark.slow
def test_logits_stay_near_the_threshold() -> None:
    """They grow above it without the clip, and are shrunk to it after each step with it, at no cost of the loss."""
    free, loss_of_free = trained(100.0, given=False)
    clipped, loss_of_clipped = trained(THRESHOLD, given=True)
    assert max(free[-20:]) > 5 * THRESHOLD
    assert THRESHOLD < max(clipped[-20:]) < 2 * THRESHOLD
    assert loss_of_clipped < 1.05 * loss_of_free
