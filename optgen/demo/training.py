"""Trains the same model on the same batches with one optimizer after another."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optgen.bench.memory import stored_bytes
from optgen.demo.model import Size, Transformer
from optgen.demo.text import Text, batch

BATCH_SIZE = 16
HELD_OUT_BATCHES = 8
HELD_OUT_POINTS = 20
WARM_UP_SHARE = 0.1
MAX_GRAD_NORM = 1.0
SEED = 1234


@dataclass(frozen=True)
class Contender:
    """An optimizer to train with: its name in the table and how it is made."""

    name: str
    make: Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass
class Run:
    """Results of training with one optimizer. Losses are held-out ones, by the number of steps before them."""

    name: str
    losses: dict[int, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    state_bytes_per_parameter: float = 0.0
    engine: str = ""
    seconds: float = 0.0

    @property
    def final_loss(self) -> float:
        """The held-out loss after the most steps."""
        return self.losses[max(self.losses)]

    @property
    def step_milliseconds(self) -> float:
        """The median time of the optimizer's step; the first ones, which compile and allocate, do not move it."""
        return 1000 * statistics.median(self.step_seconds)


def new_model(text: Text) -> Transformer:
    """The untrained model that all runs start from."""
    torch.manual_seed(SEED)
    return Transformer(Size(alphabet=len(text.alphabet)))


def train(
    start: Transformer, text: Text, contender: Contender, steps: int, report: Callable[[int, float], None]
) -> Run:
    """Train a copy of `start`.

    Args:
        report: called after each step with the number of steps done and the latest training loss.
    """
    began = time.perf_counter()
    model = copy.deepcopy(start)
    optimizer = contender.make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    batches = torch.Generator().manual_seed(SEED)
    length = model.positions.num_embeddings
    every = max(1, steps // HELD_OUT_POINTS)
    run = Run(contender.name, {0: held_out_loss(model, text)})
    for step in range(1, steps + 1):
        loss = model.loss(*batch(text.training, BATCH_SIZE, length, batches))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        before = time.perf_counter()
        optimizer.step()
        run.step_seconds.append(time.perf_counter() - before)
        schedule.step()
        if step % every == 0 or step == steps:
            run.losses[step] = held_out_loss(model, text)
        report(step, loss.item())
    run.state_bytes_per_parameter = stored_bytes(optimizer) / sum(p.numel() for p in model.parameters())
    run.engine = _engine(optimizer)
    run.seconds = time.perf_counter() - began
    return run


def held_out_loss(model: Transformer, text: Text) -> float:
    """The mean loss over the same few batches of the held-out text each time."""
    generator = torch.Generator().manual_seed(SEED + 1)
    length = model.positions.num_embeddings
    with torch.no_grad():
        losses = [
            model.loss(*batch(text.held_out, BATCH_SIZE, length, generator)).item() for _ in range(HELD_OUT_BATCHES)
        ]
    return statistics.fmean(losses)


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step: a linear warm-up, then half a cosine down to a tenth."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _engine(optimizer: torch.optim.Optimizer) -> str:
    """Name of the target that served the last step."""
    engines = getattr(optimizer, "engines", None)
    return ", ".join(engines()) if callable(engines) else "torch"
