"""Ctrl-C in the middle of a step: the step is finished, then KeyboardInterrupt is raised."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, AdamW8bit, Prodigy
from support.targets import ready

from optgen.runtime.core.step_inputs import NO_INPUTS
from optgen.runtime.states.store import StateChanges
from optgen.runtime.states.stored import CodecRecord
from optgen.runtime.step.interrupts import Uninterrupted
from optgen.runtime.step.run import begin
from runtime.training import SMALL, make_params, same, set_grads, snapshot


@pytest.fixture(params=["torch", "cpu", "cuda"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target; cuda on the stand-in."""
    with ready(request.param) as name:
        yield name


@pytest.fixture(autouse=True)
def _pythons_own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "the handler is put back"


def press() -> None:
    """Ctrl-C: the handler is called at once, between two instructions."""
    os.kill(os.getpid(), signal.SIGINT)


def press_at(engine: Any, patch: pytest.MonkeyPatch, point: int) -> None:
    """Press at one of the points before and after each call that a step's passes are made of."""
    points = itertools.count()

    def pressing(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *args: Any) -> None:
            if next(points) == point:
                press()
            method(self, *args)
            if next(points) == point:
                press()

        return run

    for name in ("take", "run", "finish"):
        patch.setattr(type(engine), name, pressing(getattr(type(engine), name)))


def make(cls: Any, target: str) -> tuple[list[torch.nn.Parameter], Any]:
    params = make_params()
    settings = {"min_8bit_size": SMALL} if cls is AdamW8bit else {}
    opt = cls(params, target=target, **settings)
    set_grads(params, 1)
    opt.step()
    set_grads(params, 2)
    return params, opt


@pytest.mark.parametrize("cls", [AdamW8bit, LAMB, Prodigy])
def test_a_step_is_finished_wherever_it_is_interrupted(cls: Any, target: str) -> None:
    """Several buckets, several passes, states of the optimizer: all of it, as without Ctrl-C.

    What one call of a kernel writes may also be as it was before.
    """
    params, opt = make(cls, target)
    before = snapshot(opt, params)
    opt.step()
    whole = snapshot(opt, params)
    interrupted = 0
    for point in range(60):
        params, opt = make(cls, target)
        with pytest.MonkeyPatch.context() as patch:
            press_at(opt._kept.of_all[0].engines[0], patch, point)
            try:
                opt.step()
            except KeyboardInterrupt:
                interrupted += 1
            else:
                break  # as many points as there are
        found = snapshot(opt, params)
        assert same(found, whole) or (opt._kept.of_all[0].at_once and same(found, before)), f"interrupted at {point}"
    assert interrupted >= 6


def test_states_are_stored_whole(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another precision remakes them: Ctrl-C leaves none with scales of what it was."""
    params, opt = make(AdamW8bit, target)
    opt.override(params[0], optim_bits=32)
    store = StateChanges.store

    def pressing(self: StateChanges, entry: dict[str, Any]) -> CodecRecord:
        if entry is opt.state[params[0]]:
            press()
        return store(self, entry)

    monkeypatch.setattr(StateChanges, "store", pressing)
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    monkeypatch.setattr(StateChanges, "store", store)
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    assert "exp_avg_absmax" not in opt.state[params[0]]
    params, other = make(AdamW8bit, target)
    other.override(params[0], optim_bits=32)
    begin(other, "step", NO_INPUTS)
    assert all(same(opt.state[a], other.state[b]) for a, b in zip(opt.state, other.state, strict=True))


def test_a_second_one_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        press()
        press()
        pytest.fail("the second was not heard")


def test_the_programs_own_handler_is_called() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with Uninterrupted():
        press()
        assert heard == []
    assert heard == [signal.SIGINT]
    with pytest.raises(ZeroDivisionError), Uninterrupted():
        press()
        raise ZeroDivisionError
    assert len(heard) == 2, "what else goes wrong is not forgotten, nor is the signal"
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handlers_that_are_not_pythons_stay(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    with Uninterrupted():
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_steps_of_other_threads_touch_no_handler() -> None:
    def step() -> None:
        make(AdamW8bit, "torch")[1].step()
        seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_what_is_written_at_once_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel, whose last pass is a single call: no handler is set."""
    with ready("cpu"):
        params = make_params(shapes=((40, 30),))
        opt = LAMB(params, target="cpu")
        set_grads(params, 1)
        opt.step()
        monkeypatch.setattr(signal._signal, "signal", None)  # type: ignore[attr-defined]
        opt.step()
        params[0].data = params[0].data.t().contiguous().t()  # its values come from a copy, and go back
        with pytest.raises(TypeError):
            opt.step()
