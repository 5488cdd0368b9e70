"""Every scheduler of torch over every rule: it sets what it sets for torch's own optimizers, and steps take it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from optgen_optim import LARS, AdamW, AdamW8bit, StableAdamW
from support.catalogue import optimizer_class, required, rows, rules
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils

from runtime.training import SMALL, make_params, same, snapshot, train

# torch 2.8's SequentialLR says it of itself.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in .scheduler.step:UserWarning")

STEPS = 6
LR = 0.01
Make = Callable[[torch.optim.Optimizer], Any]


def cycled(opt: torch.optim.Optimizer) -> bool:
    """Check whether a schedule can cycle momentum, as torch asks for it."""
    return "betas" in opt.defaults or "momentum" in opt.defaults


SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=cycled(o)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 8, cycle_momentum=cycled(o)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.7)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)
# One class of every rule: the scheduler writes into groups, and what a class fixes or stores has no part in that.
CLASSES = [names[0] for names in rules(rows()).values()]


def build(name: str, params: Any, **settings: Any) -> Any:
    """An optimizer with a rate for the schedule: rules that choose their own are told not to."""
    own = required(name)
    if "relative_step" in rows()[name].accepted:
        own = {**own, "relative_step": False}
    if "target" in rows()[name].accepted:
        own = {**own, "target": "torch"}
    opt = optimizer_class(name)(params, **{**own, "lr": LR, **settings})
    if hasattr(opt, "train"):
        opt.train()
    return opt


def values(opt: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Values that schedules set, of every group."""
    keys = ("lr", "betas", "momentum", "initial_lr", "max_momentum", "base_momentum", "swa_lr")
    return [{key: number(group[key]) for key in keys if key in group} for group in opt.param_groups]


def number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(number(part) for part in value)
    return float(value) if isinstance(value, Tensor) else value


def scheduled(opt: torch.optim.Optimizer, params: list[Any], make: Make) -> Iterator[list[dict[str, Any]]]:
    """The settings of every step of a training with a schedule."""
    schedule = make(opt)
    for step in range(1, STEPS + 1):
        yield values(opt)
        train(opt, params, step, step)
        if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(1.0)
        else:
            schedule.step()


def test_none_is_left_out() -> None:
    there = {name for name in lr_scheduler.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert {name for name in there if inspect.isclass(getattr(lr_scheduler, name, swa_utils.SWALR))} == set(SCHEDULERS)


def every_rule_and_scheduler() -> Iterator[Any]:
    """Every scheduler with every fourth rule, and every rule with every fourth scheduler; the rest is `full`."""
    for (turn, name), (at, scheduler) in product(enumerate(CLASSES), enumerate(SCHEDULERS)):
        marks = () if (turn + at) % 4 == 0 else pytest.mark.full
        yield pytest.param(name, scheduler, id=f"{name}-{scheduler}", marks=marks)


@pytest.mark.parametrize(("name", "scheduler"), list(every_rule_and_scheduler()))
def test_each_sets_what_it_sets_for_torch_and_steps_take_it(name: str, scheduler: str) -> None:
    """As a run in which the same numbers are written into the groups by hand."""
    params, others = make_params(of=name), make_params(of=name)
    opt = build(name, params)
    seen = list(scheduled(opt, params, SCHEDULERS[scheduler]))
    mine = opt.param_groups[0]
    if "betas" in mine:
        betas = build(name, make_params(of=name)).param_groups[0]["betas"]
        theirs: torch.optim.Optimizer = torch.optim.Adam(make_params(), lr=LR)
        theirs.param_groups[0]["betas"] = betas[:2]  # its constructor refuses 1, which some rules take
    else:
        momentum = build(name, make_params(of=name)).param_groups[0].get("momentum", 0.0)
        theirs = torch.optim.SGD(make_params(), lr=LR, momentum=momentum)
        if "momentum" not in mine:
            del theirs.defaults["momentum"]
    wanted = list(scheduled(theirs, theirs.param_groups[0]["params"], SCHEDULERS[scheduler]))
    assert [row[0]["lr"] for row in seen] == [row[0]["lr"] for row in wanted]
    assert len({row[0]["lr"] for row in seen}) > 1
    for row, torchs in zip(seen, wanted, strict=True):
        for key in row[0].keys() & torchs[0].keys():
            assert number(row[0][key])[:2] == torchs[0][key] if key == "betas" else row[0][key] == torchs[0][key]
    by_hand = build(name, others)
    for step, row in enumerate(seen, 1):
        by_hand.param_groups[0].update(row[0])
        train(by_hand, others, step, step)
    assert same(snapshot(opt, params)["params"], snapshot(by_hand, others)["params"])
    assert same(snapshot(opt, params)["states"], snapshot(by_hand, others)["states"])


@each_scheduler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lr_as_a_tensor(scheduler: str, dtype: torch.dtype, target: str) -> None:
    """Schedules write into the tensor itself where this torch's do, and what they come to is what steps take."""
    params, others = make_params(), make_params()
    lr, other_lr = torch.tensor(LR, dtype=dtype), torch.tensor(LR, dtype=dtype)
    opt = AdamW8bit(params, lr=lr, min_8bit_size=SMALL, target=target)
    seen = list(scheduled(opt, params, SCHEDULERS[scheduler]))
    wanted = torch.optim.AdamW(make_params(), lr=other_lr)
    torchs = list(scheduled(wanted, wanted.param_groups[0]["params"], SCHEDULERS[scheduler]))
    assert (opt.param_groups[0]["lr"] is lr) == (wanted.param_groups[0]["lr"] is other_lr)
    assert [row[0]["lr"] for row in seen] == [row[0]["lr"] for row in torchs]
    by_hand = AdamW8bit(others, lr=LR, min_8bit_size=SMALL, target=target)
    for step, row in enumerate(seen, 1):
        by_hand.param_groups[0].update(lr=row[0]["lr"], betas=row[0]["betas"])
        train(by_hand, others, step, step)
    assert same(snapshot(opt, params)["params"], snapshot(by_hand, others)["params"])


@each_scheduler
def test_engines_are_kept(scheduler: str, target: str) -> None:
    """Another rate is no other kernel: a step under a schedule prepares nothing new."""
    params = make_params()
    opt = LARS(params, lr=LR, momentum=0.9, target=target)
    engines = []
    for _ in scheduled(opt, params, SCHEDULERS[scheduler]):
        engines.append(opt._kept.of_all[0].engines if opt._kept.of_all else None)
    assert all(engine is engines[1] for engine in engines[1:])


def test_groups_have_rates_of_their_own(target: str) -> None:
    params, others = make_params(), make_params()
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:]}]
    opt = AdamW(groups, lr=LR, target=target)
    schedule = lr_scheduler.LambdaLR(opt, [lambda t: 0.5**t, lambda t: 1.0 / (1 + t)])
    first, second = AdamW(others[:2], lr=0.1, target=target), AdamW(others[2:], lr=LR, target=target)
    for step in range(STEPS):
        train(opt, params, step, step)
        first.param_groups[0]["lr"], second.param_groups[0]["lr"] = 0.1 * 0.5**step, LR * (1.0 / (1 + step))
        for param, source in zip(others, params, strict=True):
            param.grad = source.grad
        first.step()
        second.step()
        schedule.step()
    assert same(snapshot(opt, params)["params"], [param.detach() for param in others])


# A copy of an optimizer lacks the counter that a schedule puts around `step`, in torch's classes too.
@pytest.mark.filterwarnings("ignore:Seems like .optimizer.step:UserWarning")
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "SequentialLR", "ReduceLROnPlateau"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_schedule_goes_on_from_its_checkpoint(scheduler: str, tensor_lr: bool, target: str) -> None:
    """Both state_dicts, in either order, and a deep copy of optimizer and schedule together."""

    def begin() -> tuple[Any, Any, Any]:
        params = make_params()
        opt = AdamW8bit(params, lr=torch.tensor(LR) if tensor_lr else LR, min_8bit_size=SMALL, target=target)
        return params, opt, SCHEDULERS[scheduler](opt)

    def advance(params: Any, opt: Any, schedule: Any, first: int, last: int) -> None:
        for step in range(first, last):
            train(opt, params, step, step)
            schedule.step(1.0) if scheduler == "ReduceLROnPlateau" else schedule.step()

    params, opt, schedule = begin()
    advance(params, opt, schedule, 0, 3)
    copied = copy.deepcopy((params, opt, schedule))
    saved = copy.deepcopy((opt.state_dict(), schedule.state_dict()))
    values_then = [param.detach().clone() for param in params]
    advance(params, opt, schedule, 3, STEPS)
    advance(*copied, 3, STEPS)
    assert same(snapshot(copied[1], copied[0]), snapshot(opt, params))
    for order in (0, 1):
        fresh, other, others_schedule = begin()
        for part in (order, 1 - order):
            (other, others_schedule)[part].load_state_dict(saved[part])
        with torch.no_grad():
            for param, value in zip(fresh, values_then, strict=True):
                param.copy_(value)
        advance(fresh, other, others_schedule, 3, STEPS)
        assert same(snapshot(other, fresh), snapshot(opt, params))


def test_a_number_of_the_schedule_that_has_the_name_of_a_setting(target: str) -> None:
    """`max_lr` of OneCycleLR is what StableAdamW calls the largest rate of the schedule; alone it is not refused."""
    params, others = make_params(), make_params()
    opt = StableAdamW(params, lr=LR, target=target)
    seen = list(scheduled(opt, params, SCHEDULERS["OneCycleLR"]))
    assert opt.param_groups[0]["max_lr"] == 0.1
    opt.override(params[0], weight_decay=0.0)
    resumed = StableAdamW(others, lr=LR, target=target)
    resumed.load_state_dict(opt.state_dict())
    assert resumed.param_groups[0]["max_lr"] == 0.1
    by_hand = StableAdamW(others := make_params(), lr=LR, target=target)
    for step, row in enumerate(seen, 1):
        by_hand.param_groups[0].update(lr=row[0]["lr"], betas=row[0]["betas"])
        train(by_hand, others, step, step)
    assert same(snapshot(opt, params)["params"], snapshot(by_hand, others)["params"])
    with pytest.raises(ValueError, match=r"max_lr=.* has no effect without decouple_lr=True"):
        StableAdamW(make_params(), max_lr=0.1)
