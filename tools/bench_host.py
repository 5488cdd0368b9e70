"""Cost of a step beside its kernels on a GPU: the host's time, and a step that is replayed from a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from optgen.bench.cases import Case
from optgen.bench.contenders import Contender
from optgen.bench.gpu import DEVICE, event_seconds
from optgen.bench.measure import Tensors

HOST_STEPS = 200
GRAPH_STEPS = 50


@dataclass(frozen=True)
class HostResult:
    """Cost of a step beside its kernels, in seconds; `graph` is a replay's time on the GPU, `replay` on the host."""

    case: str
    name: str
    host: float | None = None
    graph: float | None = None
    replay: float | None = None
    failure: str = ""


def measure_host(case: Case, contender: Contender) -> HostResult:
    """Take steps with new gradients without waiting for the GPU, then replay one from a CUDA graph."""
    try:
        host = host_seconds(case, contender)
    except Exception as error:  # a peer that fails is reported, the others are still measured
        return HostResult(case.name, contender.name, failure=f"{type(error).__name__}: {error}".splitlines()[0])
    if contender.capturable is None:
        return HostResult(case.name, contender.name, host)
    try:
        graph, replay = graph_seconds(case, contender.capturable)
    except Exception as error:
        return HostResult(case.name, contender.name, host, failure=f"{type(error).__name__}: {error}".splitlines()[0])
    return HostResult(case.name, contender.name, host, graph, replay)


def host_seconds(case: Case, contender: Contender, steps: int = HOST_STEPS, device: torch.device = DEVICE) -> float:
    """The median of the host's time in `step()`; every step has gradients that no step before it had."""
    tensors = Tensors(case, device)
    params = tensors.params()
    optimizer = contender.make(params)
    samples = []
    for number in range(steps):
        optimizer.zero_grad(set_to_none=True)
        # New memory as well: what lies at another address has to be told to the kernels.
        fresh = [gradient.clone() for gradient in tensors.gradients[number % len(tensors.gradients)]]
        for param, gradient in zip(params, fresh, strict=True):
            param.grad = gradient
        if number % 10 == 0:
            _wait(device)  # before the queue of launches is full, which would make the host wait inside a step
        start = time.perf_counter()
        optimizer.step()
        samples.append(time.perf_counter() - start)
    _wait(device)
    return median(samples[steps // 10 :])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_seconds(case: Case, make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> tuple[float, float]:
    """The medians of a replayed step: on the GPU, and of the host that starts it."""
    tensors = Tensors(case, DEVICE)
    params = tensors.params()
    optimizer = make(params)
    tensors.give_gradients(params)
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    on_gpu = [event_seconds(graph.replay) for _ in range(GRAPH_STEPS)]
    on_host = []
    for _ in range(GRAPH_STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        on_host.append(time.perf_counter() - start)
    return median(on_gpu), median(on_host)


HOST_COLUMNS = ("case", "optimizer", "notes", "step() µs", "graph µs on GPU", "replay µs")


def host_rows(results: Sequence[HostResult]) -> list[tuple[str, ...]]:
    """One row an optimizer and case; what was not measured is a dash."""

    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else f"{1e6 * seconds:.0f}"

    return [(r.case, r.name, r.failure, shown(r.host), shown(r.graph), shown(r.replay)) for r in results]
