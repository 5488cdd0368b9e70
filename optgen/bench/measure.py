"""Timing of a step: contenders take turns, caches are emptied and gradients are new before every step."""

from __future__ import annotations

import ctypes
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from optgen.bench.cases import Case
from optgen.bench.contenders import Contender
from optgen.bench.memory import stored_bytes
from optgen.bench.peers import quiet
from optgen.runtime.building.cache import CompileError, find_compiler, shared_library
from optgen.runtime.core import sweep

STATES_AGE = 10
BANDWIDTH_BYTES = 12
TRIAD = """\
#include <optgen/threads.h>
extern "C" __attribute__((visibility("default")))
void triad(float* a, const float* b, float s, int64_t n, int threads) {
    optgen::with_threads(threads, [&](const optgen::Team& team) {
        team.each(threads, [&](int64_t part) {
            const int64_t end = n * (part + 1) / threads;
#pragma omp simd
            for (int64_t i = n * part / threads; i < end; ++i) a[i] += s * b[i];
        });
    });
}
"""


@dataclass(frozen=True)
class Budget:
    """Limits of measuring: seconds that all cases and each case may take, seconds that a contender may spend growing
    old, and the fewest and most steps."""

    run_seconds: float
    case_seconds: float
    aging_seconds: float
    least: int
    most: int
    # No contender takes more than this share of a case's time, however slow it is.
    share: float = 0.12

    def for_case(self, elapsed: float, cases_left: int) -> Budget:
        """Return the budget of the next case, so that a busy machine does not make the whole run take forever."""
        fair = max(self.run_seconds - elapsed, 0.0) / cases_left
        # About half of a case's time goes into building, compiling and growing old.
        return replace(self, case_seconds=min(self.case_seconds, fair / 2))


@dataclass
class Measured:
    """Measurements of one contender.

    Attributes:
        samples: The seconds of each timed step.
        age: Steps that its states had seen.
        engines: Parameters that each engine served.
        failure: Reason why it could not run.
        state_bytes: Bytes of all that it keeps for the parameters.
    """

    contender: Contender
    samples: list[float] = field(default_factory=list)
    age: int = 0
    engines: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    state_bytes: int | None = None

    @property
    def seconds(self) -> float:
        """The median of its samples. Raises StatisticsError without any."""
        return median(self.samples)


@dataclass
class CaseResult:
    """All that was measured of one case, and the seconds of each pass over `bandwidth_bytes` that stood between."""

    case: Case
    measured: list[Measured]
    bandwidth_samples: list[float]
    bandwidth_bytes: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.bandwidth_bytes / median(self.bandwidth_samples)


class Meter(Protocol):
    """Work between steps: it empties the caches, and its own time gives the memory's bandwidth."""

    bytes: int

    @property
    def how(self) -> str:
        """Name of what runs."""

    def seconds(self) -> float:
        """Run it once; return how long it took."""


class Bandwidth:
    """The in-place update a += s * b over arrays beyond the cache: it measures the memory and empties the caches."""

    def __init__(self) -> None:
        self.numel = bandwidth_numel()
        self.bytes = BANDWIDTH_BYTES * self.numel
        self.a, self.b = torch.rand(self.numel), torch.rand(self.numel)
        self.kernel = triad_kernel()

    @property
    def how(self) -> str:
        """Name of what runs: a compiled loop, or torch's operation where there is no compiler."""
        return "torch.add_" if self.kernel is None else "C++"

    def seconds(self) -> float:
        """Run it once; return how long it took."""
        start = time.perf_counter()
        if self.kernel is None:
            self.a.add_(self.b, alpha=1e-9)
        else:
            self.kernel(self.a.data_ptr(), self.b.data_ptr(), 1e-9, self.numel, torch.get_num_threads())
        return time.perf_counter() - start


def bandwidth_numel() -> int:
    """Elements of an array beyond the cache."""
    return max(16 * 2**20, last_level_cache() // 2)


def bandwidth_bytes() -> int:
    """Bytes of the two arrays that measure the bandwidth."""
    return 2 * 4 * bandwidth_numel()


def triad_kernel() -> Callable[..., None] | None:
    """Return the compiled kernel, or None where there is no compiler."""
    compiler = find_compiler()
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "triad.cpp"
        source.write_text(TRIAD, encoding="utf-8")
        try:
            kernel = shared_library(source, {}, compiler, ["triad"]).triad
        except CompileError:
            return None
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int]
    kernel.restype = None
    made: Callable[..., None] = kernel
    return made


def last_level_cache() -> int:
    """Return the bytes of the largest cache, or 32 MiB where that cannot be read."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=32 * 2**20)


class Tensors:
    """The parameters of a case and the gradients that take turns. Contenders share both, so that all fit in memory."""

    def __init__(self, case: Case, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        generator = torch.Generator(device).manual_seed(0)

        def drawn(scale: float) -> list[Tensor]:
            made = (torch.randn(shape, generator=generator, device=device) for shape in case.shapes)
            return [(value * scale).to(getattr(torch, case.dtype)) for value in made]

        self.values = drawn(0.1)
        self.gradients = [drawn(0.01) for _ in range(case.gradient_sets)]
        self.turn = 0

    def params(self) -> list[Tensor]:
        """Return new leaf tensors over the shared values."""
        return [value.detach().requires_grad_() for value in self.values]

    def give_gradients(self, params: Sequence[Tensor]) -> None:
        """Give every parameter a gradient object that no optimizer has seen, as after zero_grad(set_to_none=True)."""
        self.turn = (self.turn + 1) % len(self.gradients)
        for param, gradient in zip(params, self.gradients[self.turn], strict=True):
            param.grad = gradient.view_as(gradient)


Clock = Callable[[Callable[[], object]], float]
Say = Callable[[str, float], None]
"""Is told what goes on, and which share of the case is done."""
FIRST_STEPS = 0.4
"""The share of a case that first steps are counted as: they compile and build states."""


def wall_seconds(run: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Runner:
    """One contender at work on one case."""

    def __init__(self, contender: Contender, tensors: Tensors, clock: Clock) -> None:
        self.clock = clock
        self.result = Measured(contender)
        self.tensors = tensors
        self.params = tensors.params()
        self.optimizer: torch.optim.Optimizer | None = None
        self.used = 0.0

    def grow_old(self, budget: Budget) -> None:
        """Take the first steps, which build states and compile; a slow contender takes fewer than STATES_AGE."""
        start = time.perf_counter()
        try:
            if self.result.contender.ours:
                sweep.compile_now()  # as it is in training that has gone on for a while
            with quiet():
                self.optimizer = self.result.contender.make(self.params)
                for age in range(STATES_AGE):
                    # The first step may compile for long; it does not count against the budget.
                    start = time.perf_counter() if age == 1 else start
                    if age > 1 and time.perf_counter() - start > budget.aging_seconds:
                        break
                    self.tensors.give_gradients(self.params)
                    if age == 1:
                        seconds = self.clock(self.optimizer.step)
                        if seconds > budget.aging_seconds:  # so slow that each of its steps is measured
                            self.result.samples.append(seconds)
                            self.used = seconds
                            break
                    else:
                        self.optimizer.step()
                    self.result.age += 1
        except Exception as error:  # a peer that fails is reported, the others are still measured
            self.result.failure = f"{type(error).__name__}: {error}".splitlines()[0]

    def time_a_step(self) -> None:
        """Take one timed step."""
        assert self.optimizer is not None
        self.tensors.give_gradients(self.params)
        seconds = self.clock(self.optimizer.step)
        self.result.samples.append(seconds)
        self.used += seconds

    def is_due(self, elapsed: float, budget: Budget) -> bool:
        """Decide whether to take part in a round: a slow contender keeps to its share of the time that has passed."""
        if not self.result.samples:
            return True
        # The best step tells what is slow by itself from what was held up once by something else.
        quick = min(self.result.samples) * budget.most <= budget.share * budget.case_seconds
        return quick or self.used <= budget.share * elapsed

    def finish(self) -> Measured:
        """Return the measurements, with the bytes of the states and the engines that served the contender."""
        if self.optimizer is not None and not self.result.failure:
            self.result.state_bytes = stored_bytes(self.optimizer)
        engines = getattr(self.optimizer, "engines", None)
        if callable(engines):
            self.result.engines = dict(engines())
        return self.result


def measure_case(
    case: Case,
    contenders: Sequence[Contender],
    bandwidth: Meter,
    budget: Budget,
    say: Say,
    device: torch.device | None = None,
    clock: Clock = wall_seconds,
) -> CaseResult:
    """Measure all contenders on one case, in rounds, so that noise of the machine meets all alike."""
    tensors = Tensors(case, device)
    runners = [Runner(contender, tensors, clock) for contender in contenders]
    for number, runner in enumerate(runners):
        say(f"first steps of {runner.result.contender.name}", FIRST_STEPS * number / len(runners))
        runner.grow_old(budget)
    able = [runner for runner in runners if not runner.result.failure]
    samples: list[float] = []
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < budget.case_seconds:
            say("measuring", FIRST_STEPS + (1 - FIRST_STEPS) * elapsed / budget.case_seconds)
            wanting = [runner for runner in able if len(runner.result.samples) < budget.most]
            if not wanting:
                break
            due = [runner for runner in wanting if runner.is_due(elapsed, budget)]
            for runner in due or [min(wanting, key=lambda runner: runner.used)]:
                samples.append(bandwidth.seconds())
                runner.time_a_step()
        for runner in able:
            while len(runner.result.samples) < budget.least:
                late = time.perf_counter() - start > 1.5 * budget.case_seconds
                if late and runner.result.samples:
                    break
                samples.append(bandwidth.seconds())
                runner.time_a_step()
    finally:
        gc.enable()
    return CaseResult(case, [runner.finish() for runner in runners], samples or [bandwidth.seconds()], bandwidth.bytes)
