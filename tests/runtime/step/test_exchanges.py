"""States that are exchanged: their memory changes places, and nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from support.compiling import write_spec
from torch import Tensor, nn

import optgen
from optgen.compiler import compile_specs
from optgen.explanation import ClassInfo
from optgen.schedule.traffic import traffic
from runtime.training import gradients, make_params, run, same, saved, snapshot

SPEC = """
name: two_averages
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)", doc: Step size.}
  decay: {default: 0.9, range: "[0, 1)", doc: Decay rate of the averages.}
  period: {default: 3, integer: true, range: "[1, inf)", doc: Steps between two exchanges.}
states:
  now: {doc: Average of the gradients since the last exchange.}
  before: {doc: Average of those before it.}
  sizes: {shape: tensor, doc: Size of that.}
blocks:
  step: |
    now = decay * now + (1 - decay) * grad
    param = param - lr * (now - 0.5 * before)
    if every(period):
        before, now = now, before
        sizes = norm(before)
"""
SHAPES = ((40, 30), (7,))


def write(folder: Path, text: str = SPEC) -> Path:
    return write_spec(folder, text)


@cache
def cls() -> Any:
    with TemporaryDirectory() as folder:
        return optgen.load(write(Path(folder))).TwoAverages


def info(folder: Path, text: str = SPEC, **settings: Any) -> ClassInfo:
    (found,) = compile_specs([write(folder, text)], None).classes
    return found.given(settings)


def new(target: str, **settings: Any) -> tuple[Any, list[nn.Parameter]]:
    params = make_params(shapes=SHAPES)
    return cls()(params, target=target, **settings), params


def by_hand(params: Sequence[Tensor], steps: int) -> list[list[Tensor]]:
    """Parameter, both averages and the size after so many steps, in float64."""
    result = []
    for position, param in enumerate(params):
        value = param.detach().double()
        now, before, size = torch.zeros_like(value), torch.zeros_like(value), torch.zeros((), dtype=torch.float64)
        for step in range(1, steps + 1):
            now = 0.9 * now + 0.1 * gradients(step, SHAPES)[position].double()
            value = value - 0.1 * (now - 0.5 * before)
            if step % 3 == 0:
                now, before = before, now
                size = before.norm()
        result.append([value, now, before, size])
    return result


@pytest.mark.parametrize("settings", [{}, {"skip_zeros": True}], ids=["exchanged", "copied"])
def test_it_is_the_rule(target: str, settings: Any) -> None:
    opt, params = new(target, **settings)
    expected = by_hand(params, 8)
    run(opt, params, range(1, 9))
    for param, values in zip(params, expected, strict=True):
        entry = opt.state[param]
        found = [param.detach(), entry["now"], entry["before"], entry["sizes"]]
        for ours, value in zip(found, values, strict=True):
            torch.testing.assert_close(ours.double().cpu(), value, rtol=1e-5, atol=1e-6)


def test_the_reference_follows(tmp_path: Path) -> None:
    params: Sequence[Tensor] = [param.detach() for param in make_params(shapes=SHAPES)]
    expected, reference, state = by_hand(params, 8), optgen.reference(write(tmp_path)), None
    for step in range(1, 9):
        params, state = reference.step(params, gradients(step, SHAPES), state)
    assert state is not None
    for ours, own, (value, now, before, _) in zip(params, state.params, expected, strict=True):
        for found, wanted in ((ours, value), (own["now"], now), (own["before"], before)):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_an_exchange_moves_no_bytes(tmp_path: Path) -> None:
    """A step with an exchange moves what one without it does: all of `before` is read, and never written."""
    text = "".join(line for line in SPEC.splitlines(keepends=True) if "sizes" not in line)
    exchanging = info(tmp_path, text, period=1)
    without = info(tmp_path, text.replace("before, now = now, before", "pass"), period=1)
    assert exchanging.traffic == without.traffic == 4 + 2 * 4 + 4 + 2 * 4
    copied = replace(exchanging.setting, guards={**exchanging.setting.guards, "skip_zeros": True})
    assert traffic(exchanging.plans["step"], copied) == 24 + 4
    alone = "    param = param - lr * grad\n    if every(period):\n        before, now = now, before\n"
    head, _, _ = text.partition("    now = decay")
    assert info(tmp_path, head + alone, period=1).traffic == 4 + 2 * 4


def test_memory_changes_places(target: str) -> None:
    """Also that of scales: both states keep their names, in their order."""
    opt, params = new(target, optim_bits=8, min_8bit_size=0)
    run(opt, params, range(1, 3))
    names = list(opt.state[params[0]])
    where = [{key: value.data_ptr() for key, value in opt.state[param].items()} for param in params]
    run(opt, params, range(3, 4))
    for param, old in zip(params, where, strict=True):
        entry = opt.state[param]
        assert list(entry) == names
        for end in ("", "_absmax"):
            found = entry[f"now{end}"].data_ptr(), entry[f"before{end}"].data_ptr()
            assert found == (old[f"before{end}"], old[f"now{end}"])


@pytest.mark.parametrize("at", [2, 3])
def test_a_checkpoint(target: str, at: int) -> None:
    """One of before and one of just after an exchange go on as the optimizer itself."""
    opt, params = new(target, optim_bits=8, min_8bit_size=0)
    run(opt, params, range(1, at + 1))
    again, theirs = new(target, optim_bits=8, min_8bit_size=0)
    with torch.no_grad():
        for mine, param in zip(theirs, params, strict=True):
            mine.copy_(param)
    again.load_state_dict(saved(opt))
    run(opt, params, range(at + 1, 9))
    run(again, theirs, range(at + 1, 9))
    assert same(snapshot(opt, params), snapshot(again, theirs))


def test_a_skipped_step_exchanges_nothing(target: str) -> None:
    opt, params = new(target)
    run(opt, params, range(1, 3))
    before = snapshot(opt, params)
    opt.found_inf = torch.ones(())
    run(opt, params, range(3, 4))
    assert same(snapshot(opt, params), before)
    del opt.found_inf
    run(opt, params, range(3, 4))
    again, theirs = new(target)
    run(again, theirs, range(1, 4))
    assert same(snapshot(opt, params), snapshot(again, theirs))


def test_fused_backward(target: str) -> None:
    """Each parameter exchanges its own states, when it is stepped."""
    opt, params = new(target)
    run(opt, params, range(1, 8))
    fused, theirs = new(target, fused_backward=True)
    for step in range(1, 8):
        grads = gradients(step, SHAPES)
        sum((param * grad.to(param.device)).sum() for param, grad in zip(theirs, grads, strict=True)).backward()
        fused.step()
    for param, own in zip(params, theirs, strict=True):
        assert torch.equal(param, own)
        assert same(dict(opt.state[param]), dict(fused.state[own]))


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled() -> None:
    """A graph would not know of it: the step stays outside."""
    opt, params = new("torch")
    plain, theirs = new("torch")
    step = torch.compile(opt.step, backend="eager")
    for number in range(1, 8):
        for param, grad in zip(params, gradients(number, SHAPES), strict=True):
            param.grad = grad
        step()
    run(plain, theirs, range(1, 8))
    assert same(snapshot(opt, params), snapshot(plain, theirs))


def test_recorded_steps_copy(tmp_path: Path) -> None:
    """The replay of a step is the same whatever the step: with `capturable=True` values are moved, by the GPU."""
    found = info(tmp_path)
    recorded = {**found.setting.guards, "capturable": True, "every_period": True}
    (block,) = found.whole_rule.blocks.values()
    assert not any(one.live.holds(recorded) for one in block.exchanges)
    written = found.plans["step"].passes[-1].writes
    assert {write.input.name for write in written if write.live.holds(recorded)} == {"param", "now", "before"}


def test_states_that_are_stored_otherwise_are_copied(tmp_path: Path) -> None:
    text = SPEC.replace("  before: {", "  before: {codecs: [fp32], ")
    (block,) = info(tmp_path, text).whole_rule.blocks.values()
    assert block.exchanges == ()


def test_values_are_those_from_before_the_statement(tmp_path: Path, target: str) -> None:
    """Names on both sides, with calls of functions: as in Python."""
    text = """
name: several
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)", doc: Step size.}
states:
  kept: {doc: Something.}
functions: |
  def half(x):
      return x / 2
blocks:
  step: |
    a, b = grad, 3 * grad
    a, b = b + kept, half(a)
    kept, a = a, half(kept)
    param = param - lr * (b + a)
"""
    opt_class = optgen.load(write(tmp_path, text)).Several
    params = make_params(shapes=SHAPES)
    values = [param.detach().clone() for param in params]
    opt = opt_class(params, target=target)
    run(opt, params, range(1, 4))
    for position, value in enumerate(values):
        kept = torch.zeros_like(value)
        for step in range(1, 4):
            grad = gradients(step, SHAPES)[position]
            a, b = grad, 3 * grad
            a, b = b + kept, a / 2
            kept, a = a, kept / 2
            value -= 0.1 * (b + a)
        torch.testing.assert_close(params[position].detach(), value, rtol=1e-5, atol=1e-6)
