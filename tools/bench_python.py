"""Time of Python in steps and loads of few numbers, beside torch's fused AdamW: the least of many runs, in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from optgen.runtime.core import sweep

ELEMENTS = 10
MANY = 1000
RUNS = 3000  # of steps of one parameter; of a thousand, a tenth

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class PythonPart:
    """One figure.

    Attributes:
        ours, other: Seconds of the processor, of the thread that calls.
        limit: Largest allowed ratio of ours to the other's; None for no limit.
    """

    name: str
    ours: float
    other: float
    limit: float | None

    @property
    def ratio(self) -> float:
        """Ours over the other's."""
        return self.ours / self.other


def python_figures(ours: Make, other: Make, runs: int = RUNS) -> list[PythonPart]:
    """Measure steps of one parameter and of a thousand, and a load of those."""
    makes, few = (ours, other), max(runs // 10, 1)
    with _one_thread(), _looked_at_by(sweep.PLAIN):  # one parameter alone has no sweep compiled
        one = _least([_Steps(make, 1) for make in makes], runs)
        scheduled = _least([_Steps(make, 1, scheduled=True) for make in makes], runs)
    with _one_thread(), _looked_at_by(sweep.compile_now()):
        many = _least([_Steps(make, MANY) for make in makes], few)
        loads = _least([_Loads(make, MANY) for make in makes], max(few // 10, 1))
    return [
        PythonPart("step of 1 parameter", *one, 1.3),
        PythonPart("step of 1 parameter, at another lr", *scheduled, None),
        PythonPart(f"step of {MANY} parameters", *many, 1.0),
        PythonPart(f"load_state_dict of {MANY} parameters", *loads, 2.0),
    ]


class _Steps:
    """An optimizer that takes steps, each with gradients in new memory."""

    def __init__(self, make: Make, count: int, scheduled: bool = False) -> None:
        self.params = [torch.randn(ELEMENTS, requires_grad=True) for _ in range(count)]
        self.optimizer = make(self.params)
        self.scheduled = scheduled
        for _ in range(3):  # states and engines are made
            self.prepare()
            self.run()

    def prepare(self) -> None:
        """Prepare a step: new gradients, and the schedule's learning rate."""
        for param in self.params:
            param.grad = torch.ones(ELEMENTS)
        if self.scheduled:
            self.optimizer.param_groups[0]["lr"] *= 0.9999

    def run(self) -> None:
        """Run the step that is timed."""
        self.optimizer.step()


class _Loads(_Steps):
    """An optimizer that loads what it has saved."""

    def __init__(self, make: Make, count: int) -> None:
        super().__init__(make, count)
        self.run = partial(self.optimizer.load_state_dict, self.optimizer.state_dict())  # type: ignore[method-assign]


def _least(contenders: list[_Steps], runs: int) -> tuple[float, float]:
    """The least seconds of the processor that each takes, in turns, so that what else the machine does meets both."""
    least = [float("inf")] * len(contenders)
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            for index, contender in enumerate(contenders):
                contender.prepare()
                start = time.thread_time()
                contender.run()
                least[index] = min(least[index], time.thread_time() - start)
    finally:
        gc.enable()
    return least[0], least[1]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _looked_at_by(look: sweep.Sweep) -> Iterator[None]:
    before, sweep.used = sweep.used, look
    try:
        yield
    finally:
        sweep.used = before
