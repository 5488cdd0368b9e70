"""Every class, codec, rounding and state: a run that is killed at every step ends as one that never was.

A killed run goes on in a new optimizer over copies of the parameters, from a checkpoint that went through a file:
before the first step, after every one, and amid the gradients of one. The runs are compared bit for bit after every
step, so that each is one at which a kill changes nothing. What specs/ declares says which cases there are. Processes
that are really killed: test_killed.py. Paged states on a GPU: tests/cuda/test_paged_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from oracles.declared import State
from support.catalogue import exists, optimizer_class, required, rows, rules, values_of
from torch import nn

from optgen.codecs import CODECS
from runtime.training import SMALL, make_params, same, saved, set_grads, snapshot

STEPS = 3
SHAPES = ((8, 40), (7,))  # the first has quantized states, with a block that is not full
CODEC_OF_BITS = {4: ("int4", "normal4"), 8: ("int8", "fp8", "companded8"), 32: ("fp32",)}
ROUNDED = ("stochastic", "kahan", "split8", "split16")


def build(name: str, params: Sequence[nn.Parameter], settings: Mapping[str, Any]) -> Any:
    return optimizer_class(name)(params, **settings)


def modes(opt: Any) -> list[str]:
    """Methods without gradients, as `eval` and `train`: the one that allows steps comes last."""
    names = [name for name, block in opt.rule.blocks.items() if name != "step" and not block.grads]
    return sorted(names, key=lambda name: (name == "train", name))


def advance(opt: Any, params: Sequence[nn.Parameter], step: int) -> None:
    """One step, and before it what a rule has to be called beside it."""
    set_grads(params, step)
    for name, block in opt.rule.blocks.items():
        if name != "step" and block.grads:
            with suppress(ValueError) if block.refusals else nullcontext():  # of settings that it cannot go with
                getattr(opt, name)()
    opt.step()


def check(name: str, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """The run's optimizer, after its killed twin has been found equal to it all the way."""
    whole_params, params = make_params(dtype, SHAPES, name), make_params(dtype, SHAPES, name)
    whole, killed = build(name, whole_params, settings), build(name, params, settings)
    for mode in modes(whole)[-1:]:
        getattr(whole, mode)()
        getattr(killed, mode)()
    params, killed = resumed(name, settings, params, killed)
    for step in range(1, STEPS + 1):
        advance(whole, whole_params, step)
        advance(killed, params, step)
        assert same(snapshot(whole, whole_params), snapshot(killed, params)), f"step {step}"
        params, killed = resumed(name, settings, params, killed)
        for mode in modes(whole):
            getattr(whole, mode)()
            getattr(killed, mode)()
            params, killed = resumed(name, settings, params, killed)
            assert same(snapshot(whole, whole_params), snapshot(killed, params)), f"{mode} after step {step}"
    return whole


def resumed(name: str, settings: Mapping[str, Any], params: Sequence[nn.Parameter], opt: Any) -> tuple[Any, Any]:
    """A new optimizer over copies of the parameters, from the file of this one."""
    checkpoint = saved(opt)
    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    other = build(name, fresh, settings)
    other.load_state_dict(checkpoint)
    return fresh, other


def codecs_of(name: str) -> tuple[str, ...]:
    """The codecs that a class's states can have: what it takes, of the bits it fixes."""
    row = rows()[name]
    if "codec" not in row.accepted:
        return ("fp32",)
    allowed = CODEC_OF_BITS.get(row.bits or 0, tuple(CODECS))
    states = [state for state in row.rule.states.values() if state.window is None]
    return tuple(codec for codec in allowed if codec == "fp32" or any(state.takes(codec) for state in states))


def stored(name: str, codec: str) -> dict[str, Any]:
    """Settings that ask for a codec, under which a matrix has a state that takes it."""
    row = rows()[name]
    least = 0 if any(state.has_dimensions for state in row.rule.states.values()) else SMALL
    small = {"min_8bit_size": least} if "min_8bit_size" in row.accepted else {}
    taking = [state for state in row.rule.states.values() if state.takes(codec)]
    found = (with_state(name, state) for state in taking)
    settings = next((settings for settings in found if settings is not None), required(name))
    return settings | small | ({"codec": codec} if "codec" in row.accepted else {})


def with_state(name: str, state: State, ndim: int = 2) -> dict[str, Any] | None:
    """Settings under which a parameter of so many dimensions has a state: the class's own, one change, or two."""
    row, start = rows()[name], required(name)
    changes = [{key: value} for key, setting in row.accepted.items() for value in values_of(row, setting)]
    for change in ({}, *changes, *({**a, **b} for a in changes for b in changes)):
        settings = start | change
        if row.refusal(settings) is None and exists(row, state, settings, ndim):
            return settings
    return None


CASES = [(name, codec) for name in rows() for codec in codecs_of(name)]
FIRST_OF_EACH = {(rows()[name].rule.name, codec): (name, codec) for name, codec in reversed(CASES)}.values()


def marked(cases: Iterable[tuple[str, str]]) -> list[ParameterSet]:
    """Cases, marked `full` where the rule in that codec is another class's case already: the code is the same."""
    return [pytest.param(*case, marks=[] if case in FIRST_OF_EACH else [pytest.mark.full]) for case in cases]


@pytest.mark.parametrize(("name", "codec"), marked(CASES), ids=lambda value: value)
def test_every_class_and_codec(name, codec) -> None:
    settings = stored(name, codec)
    if not rows()[name].torch_only:
        settings["target"] = "torch"
    opt = check(name, settings)
    dtypes = {v.dtype for entry in opt.state.values() for v in entry.values() if v.dim()}
    if any(state.takes(codec) for state in rows()[name].rule.states.values()) and dtypes:
        assert getattr(torch, CODECS[codec].storage) in dtypes
    if rows()[name].fixed.get("is_paged"):
        assert opt.param_groups[0]["is_paged"] is True


def test_every_codec_is_among_them() -> None:
    assert {codec for _, codec in CASES} == set(CODECS)
    assert {name for name, _ in CASES} == set(rows())


FIRST = [names[0] for names in rules(rows()).values()]


@pytest.mark.parametrize("rounding", ROUNDED)
@pytest.mark.parametrize("name", FIRST)
def test_every_rule_and_rounding(name, rounding) -> None:
    codec = "int8" if "int8" in codecs_of(name) else "fp32"
    settings = stored(name, codec) | {"rounding": rounding, "target": "torch"}
    if rounding == "stochastic":
        settings["seed"] = 3
    opt = check(name, settings, torch.bfloat16)
    kept = [entry.get("param_compensation") for entry in opt.state.values()]
    assert all((each is not None) == (rounding != "stochastic") for each in kept)


@pytest.mark.parametrize("name", FIRST)
def test_between_micro_batches(name) -> None:
    """Gradients that are half added up are no part of a checkpoint: what is killed there begins with them again."""
    settings = stored(name, "int8" if "int8" in codecs_of(name) else "fp32") | {"target": "torch"}
    whole_params, params = make_params(shapes=SHAPES, of=name), make_params(shapes=SHAPES, of=name)
    whole, killed = build(name, whole_params, settings), build(name, params, settings)
    for mode in modes(whole)[-1:]:
        getattr(whole, mode)()
        getattr(killed, mode)()

    def accumulate(members: Sequence[nn.Parameter], step: int) -> None:
        """The second micro batch's gradients, on those of the first."""
        first = [param.grad for param in members]
        set_grads(members, 100 + step)
        for param, grad in zip(members, first, strict=True):
            param.grad = param.grad + grad

    for step in range(1, STEPS + 1):
        set_grads(whole_params, step)
        accumulate(whole_params, step)
        whole.step()
        before = saved(killed)
        set_grads(params, step)
        assert same(saved(killed), before)
        params, killed = resumed(name, settings, params, killed)
        assert all(param.grad is None for param in params)
        set_grads(params, step)
        accumulate(params, step)
        killed.step()
        assert same(snapshot(whole, whole_params), snapshot(killed, params)), f"step {step}"


@pytest.mark.parametrize("name", rows())
def test_checkpoints_without_what_is_said_of_them(name) -> None:
    """As earlier versions wrote them: no mark, or one that does not name codecs."""
    for codec in ("fp32", "int8", "int4"):
        if codec not in codecs_of(name):
            continue
        settings = stored(name, codec) | ({} if rows()[name].torch_only else {"target": "torch"})
        params = make_params(shapes=SHAPES, of=name)
        opt = build(name, params, settings)
        for mode in modes(opt)[-1:]:
            getattr(opt, mode)()
        for step in range(1, 3):
            advance(opt, params, step)
        now = saved(opt)
        stored_states = [state for state in opt.rule.coded_states if any(state.name in e for e in opt.state.values())]
        assert ("codecs" in now["optgen"]) == bool(stored_states)
        short = {key: value for key, value in now["optgen"].items() if key != "codecs"}
        for mark in ({}, {"optgen": short}):
            old = {key: value for key, value in now.items() if key != "optgen"} | mark
            again = [nn.Parameter(param.detach().clone()) for param in params]
            other = build(name, again, settings)
            other.load_state_dict(old)
            advance(other, again, 3)
            twin = [nn.Parameter(param.detach().clone()) for param in params]
            straight = build(name, twin, settings)
            straight.load_state_dict(now)
            advance(straight, twin, 3)
            assert same(snapshot(other, again), snapshot(straight, twin))


def conditional() -> list[tuple[str, str]]:
    """Every state that not all settings have, with its rule's first class."""
    table = rules(rows())
    return [
        (names[0], state.name)
        for names in table.values()
        for state in rows()[names[0]].rule.states.values()
        if state.when is not None
    ]


@pytest.mark.parametrize(("name", "state"), conditional())
def test_every_state(name, state) -> None:
    declared = rows()[name].rule.states[state]
    settings = next(found for found in (with_state(name, declared, ndim) for ndim in (2, 1)) if found is not None)
    opt = check(name, settings | {"target": "torch"})
    assert any(state in entry for entry in opt.state.values())


IN_KERNELS = [(name, codec) for name, codec in CASES if not rows()[name].torch_only]
OWN = [(name, codecs_of(name)[0]) for name in dict(IN_KERNELS)]  # every class in the codec of its own bits


def check_in_kernels(name: str, codec: str) -> None:
    from support.machine import require_compiler

    require_compiler()
    opt = check(name, stored(name, codec) | {"target": "cpu"})
    assert opt.engines() == {"cpu": len(SHAPES)}


@pytest.mark.parametrize(("name", "codec"), marked(OWN), ids=str)
def test_every_class_in_kernels(name, codec) -> None:
    assert codec == {4: "int4", 8: "int8"}.get(rows()[name].bits or 32, "fp32")
    check_in_kernels(name, codec)


@pytest.mark.full
@pytest.mark.parametrize(("name", "codec"), sorted({*IN_KERNELS} - {*OWN}), ids=str)
def test_every_class_and_codec_in_kernels(name, codec) -> None:
    check_in_kernels(name, codec)
