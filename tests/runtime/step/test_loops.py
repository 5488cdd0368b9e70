"""Loops over what is known when a spec is compiled, vectors of states, and a window of past elements."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiling import ROOT, refusal
from torch import nn

import optgen
from optgen.compiler import compile_specs
from runtime.training import gradients, run, same, saved, snapshot

SPEC = ROOT / "tests" / "specs" / "many_averages.yaml"
SHAPES = ((40, 30), (7,))
RATES = (0.9, 0.99, 0.5)


@cache
def cls() -> Any:
    return optgen.load(SPEC).ManyAverages


def new(target: str) -> tuple[Any, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(3)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return cls()(params, target=target), params


def test_it_is_the_rule(target: str) -> None:
    opt, params = new(target)
    expected = [param.detach().double() for param in params]
    for position, value in enumerate(expected):
        averages, past = [torch.zeros_like(value) for _ in RATES], [torch.zeros_like(value)] * 4
        for step in range(1, 11):
            grad = gradients(step, SHAPES)[position].double()
            averages = [r * a + (1 - r) * grad for r, a in zip(RATES, averages, strict=True)]
            total = averages[0] + averages[1] / 2 + averages[2] / 3 + 0.75 * (grad - past.pop(0))
            past.append(grad)
            total -= 0.1 * averages[2]
            value -= 0.01 * total / (1 + averages[0].norm() + averages[1].norm())
    run(opt, params, range(1, 11))
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-4, atol=1e-6)


def test_states_have_names_of_their_own(target: str) -> None:
    opt, params = new(target)
    run(opt, params, range(1, 3))
    names = [f"averages_{i}" for i in range(3)] + [f"history_{i}" for i in range(4)] + ["sizes_0", "sizes_1"]
    assert opt.state[params[0]].keys() == {"step", *names}
    again, theirs = new(target)
    with torch.no_grad():
        for mine, param in zip(theirs, params, strict=True):
            mine.copy_(param)
    again.load_state_dict(saved(opt))
    run(opt, params, range(3, 8))
    run(again, theirs, range(3, 8))
    assert same(snapshot(opt, params), snapshot(again, theirs))


def test_one_past_gradient_is_read_and_one_written() -> None:
    """Parameter, gradient, three averages, one of four past gradients; the norms take gradient and two averages."""
    info = compile_specs([SPEC], None).classes[0]
    assert info.traffic == (8 + 4 + 3 * 8 + 8) + (4 + 2 * 4)
    assert info.state_bytes == 4 * (3 + 4)


def test_the_reference_follows() -> None:
    opt, params = new("torch")
    values: Any = [param.detach() for param in params]
    reference, state = optgen.reference(SPEC), None
    for step in range(1, 7):
        values, state = reference.step(values, gradients(step, SHAPES), state)
    run(opt, params, range(1, 7))
    for param, value in zip(params, values, strict=True):
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-4, atol=1e-6)


VECTOR = """\
name: probe
hyperparameters: {lr: 1e-3, betas: [0.9, 0.99]}
states:
  many: {count: 2}
blocks:
  step: |
    many[0] = betas[0] * many[0] + betas[-1] * many[1]
    param = param - lr * grad * many[0]
    many[1] = grad
"""
MISTAKES = {
    "lr * grad * many[0]": (
        ("lr * grad * many", "error[undefined-name]: `many` is 2 numbers", "use `many_0` or `many_1`"),
        ("lr * grad * many[2]", "error[arguments]: `many` has 2 parts, from 0 to 1", ""),
        ("lr * grad * many[-3]", "error[arguments]: `many` has 2 parts, from 0 to 1", ""),
        ("lr * grad * many[step]", "error[run-time-condition]: `many` takes an index that is known", "write a number"),
        ("lr * grad * lr[0]", "error[not-in-language]", ""),
    ),
    "{count: 2}": (
        ("{count: lr}", "error[undefined-name]: `lr` is not a hyperparameter of several numbers", "write a number"),
        ("{count: 2}\n  many_1: {}", "error[duplicate-name]: `many_1` is a state of its own", "rename one"),
        ("{count: 0}", "must be above 0, not 0", ""),
    ),
}


@pytest.mark.parametrize(
    ("right", "wrong", "said", "help_text"),
    [pytest.param(right, *each, id=each[0]) for right, several in MISTAKES.items() for each in several],
)
def test_mistakes_about_vectors(right: str, wrong: str, said: str, help_text: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, VECTOR) == "accepted"
    found = refusal(tmp_path, VECTOR.replace(right, wrong))
    assert said in found, found
    assert help_text in found, found
    assert "^" in found
