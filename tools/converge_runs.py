"""One training run of `make converge`, and what is kept of it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from converge_rates import training
from converge_tasks import TASKS, loss, sampled

from optgen.bench import driving
from optgen.bench.driving import Made, arguments, begin_training, bits_of, starting_settings

EVALUATIONS = 8
LAST_SHARE = 0.2
WARM_UP_SHARE = 0.05
LAST_RATE = 0.1
HESSIAN_EVERY = 10
FORMS = {"APOLLOMini": "apollo_mini", "APOLLOMini8bit": "apollo_mini"}
SOURCES = ("converge_rates", "converge_runs", "converge_tasks")


@dataclass(frozen=True)
class Wanted:
    """A run to be made.

    Attributes:
        lr: In place of the rule's own line in converge_rates.py.
    """

    task: str
    family: str
    name: str
    bits: int
    seed: int
    steps: int
    lr: float | None = None
    package: str = "optgen_optim"


@dataclass(frozen=True)
class Run:
    """Result of one run.

    Attributes:
        start: The held-out loss of the untrained model.
        final: The mean of the held-out losses at EVALUATIONS steps, evenly spaced over the last LAST_SHARE of the
            run, the last step among them; NaN if training failed.
        losses: All held-out losses, by step.
        quantized: Share of the parameters whose states are stored in fewer than 32 bits each.
        key: Key of everything that the run depends on; a run of another key is not this one.
    """

    wanted: Wanted
    start: float
    final: float
    losses: dict[int, float]
    quantized: float
    seconds: float
    key: str

    def record(self) -> dict[str, Any]:
        """Text of the run as JSON, which `read` reads."""
        return asdict(self)


def read(record: dict[str, Any]) -> Run:
    """A run from its record."""
    named = {field.name: record[field.name] for field in fields(Run)}
    named["wanted"] = Wanted(**record["wanted"])
    named["losses"] = {int(step): value for step, value in record["losses"].items()}
    return Run(**named)


def rules(classes: Mapping[str, Made]) -> dict[str, list[Made]]:
    """The classes of each rule, in the order of the package; FORMS of a rule stand by themselves."""
    result: dict[str, list[Made]] = {}
    for name, made in classes.items():
        result.setdefault(FORMS.get(name, made.rule.name), []).append(made)
    return result


def representative(members: list[Made], bits: int) -> Made | None:
    """The class of a rule that stands for it in these bits: the first that lets the user choose, then the first at all.

    Classes that are paged or of one target alone come last.
    """

    def rank(made: Made) -> tuple[bool, bool]:
        special = made.fixed.get("is_paged", False) or "target" in made.fixed
        return bool(special), made.bits is not None

    able = [made for made in members if bits in bits_of(made)]
    return min(able, key=rank, default=None)


@cache
def code_of(rule: str, package: str) -> str:
    """A digest of the sources that decide a run: the rule's generated files, the runtime, this tool."""
    digest = hashlib.sha256()
    module = Path(inspect.getfile(importlib.import_module(f"{package}.{rule}")))
    runtime = Path(inspect.getfile(importlib.import_module("optgen.runtime")))
    files = [
        *module.parent.glob(f"{rule}.*"),
        *module.parent.glob(f"{rule}_torch.py"),
        *runtime.parent.rglob("*.py"),
    ]
    files.append(Path(inspect.getfile(driving)))
    files += [Path(__file__).with_name(f"{name}.py") for name in SOURCES]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def key_of(wanted: Wanted) -> str:
    """Key of a run; one that is stored under its key need not be made again."""
    rule = getattr(importlib.import_module(wanted.package), wanted.name).rule.name
    return f"{wanted} {code_of(rule, wanted.package)} torch {torch.__version__}"


def steps_of(task: str, family: str) -> int:
    """Default number of steps of a rule on a task."""
    return TASKS[task].steps * training(family).longer.get(task, 1)


def evaluated_steps(steps: int) -> list[int]:
    """The steps after which the loss counts."""
    first = steps * (1 - LAST_SHARE)
    return sorted({round(first + (steps - first) * i / (EVALUATIONS - 1)) for i in range(EVALUATIONS)})


def rate_at(step: int, steps: int) -> float:
    """The share of the learning rate at a step, 0 the first: a linear warm-up, then a line down to LAST_RATE."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return 1 - (1 - LAST_RATE) * (step - warm_up) / max(1, steps - warm_up)


def train(wanted: Wanted) -> Run:
    """Make a run, on one thread."""
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(wanted, began)
    finally:
        torch.set_num_threads(threads)


def _train(wanted: Wanted, began: float) -> Run:
    task, rule = TASKS[wanted.task], training(wanted.family)
    data = task.data()
    torch.manual_seed(wanted.seed)
    model = task.model()
    made = getattr(importlib.import_module(wanted.package), wanted.name)
    lr = rule.lr.get(wanted.task) if wanted.lr is None else wanted.lr
    settings = {name: value for name, value in rule.settings.items() if name in arguments(made)}
    settings |= {} if lr is None else {"lr": lr}
    optimizer = _optimizer(wanted, made, model, starting_settings(made, wanted.bits, **settings))
    # Each purpose draws from numbers of its own, so that one rule's draws do not move another's batches.
    batches = torch.Generator().manual_seed(wanted.seed)
    labels = torch.Generator().manual_seed(wanted.seed + 1)
    falling = rule.decayed and all(group.get("lr") is not None for group in optimizer.param_groups)
    schedule = (
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, wanted.steps)) if falling else None
    )

    def held_out() -> float:
        if "eval" in made.rule.blocks:
            optimizer.eval()
        with torch.no_grad():
            value = loss(model, data.held_out).item()
        begin()
        return value

    def begin() -> None:
        if made.rule.ndim is None:
            begin_training(optimizer)

    begin()
    losses = {0: held_out()}
    counted = evaluated_steps(wanted.steps)
    has_hessian = callable(getattr(optimizer, "update_hessian", None))
    shown = {*counted, *(round(wanted.steps * i / 10) for i in range(1, 11))}
    for step in range(1, wanted.steps + 1):
        pair = data.batch(batches)
        if has_hessian and step % HESSIAN_EVERY == 1:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(model, sampled(model, pair, labels)))
            optimizer.update_hessian()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(model, pair))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if step in shown:
            losses[step] = held_out()
            if not math.isfinite(losses[step]):
                break
    final = math.nan if any(s not in losses for s in counted) else sum(losses[s] for s in counted) / len(counted)
    return Run(wanted, losses[0], final, losses, _quantized(optimizer), time.perf_counter() - began, key_of(wanted))


def _optimizer(wanted: Wanted, made: Made, model: torch.nn.Module, settings: dict[str, Any]) -> Any:
    """The optimizer of a model: of a rule of matrices, with AdamW in the same bits for all that is none."""
    if made.rule.ndim is None:
        return made(model.parameters(), **settings)
    package = importlib.import_module(wanted.package)
    others = {"lr": training("adam").lr[wanted.task], "optim_bits": wanted.bits}
    own, rest = {"rule": made.__name__, **settings}, {"rule": "AdamW", **others}
    return package.for_model(model, own, others=rest, show=False)


def _quantized(optimizer: Any) -> float:
    """The share of elements with a state that takes less than four bytes an element."""
    elements = small = 0
    for param, entry in optimizer.state.items():
        kept = [v for v in entry.values() if isinstance(v, torch.Tensor) and v.dim()]
        elements += param.numel()
        small += param.numel() * any(v.element_size() < 4 for v in kept)
    return small / elements if elements else 0.0
