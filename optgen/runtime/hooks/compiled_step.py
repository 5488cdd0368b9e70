"""A step in a function that torch.compile compiles: one operator, `optgen::step`, in place of all of a step's Python.

The operator names what it changes, parameters and states, so that a compiler keeps the order of whatever else reads or
writes them. Where a compiler hands it copies, as functionalization does, these take the place of the real tensors while
the step runs, and the real ones stay as they were: the graph brings the result back. Settings are read from the param
groups when the operator runs, so that another learning rate compiles nothing new.

A step that a graph cannot hold runs outside of it, as torch.optim's steps do in part: see `hindrance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.bucket import StaleError
from optgen.runtime.core.shards import is_dtensor
from optgen.runtime.core.step_inputs import LOSS, SkippedStepError, read_inputs
from optgen.runtime.cuda.paged_memory import is_paged
from optgen.runtime.hooks.handles import Stepper, optimizer_of
from optgen.runtime.step import run as acts
from optgen.runtime.step.last_norm import is_asked
from optgen.runtime.step.target_choice import choose_target


def graph_step(optimizer: Stepper, closure: Callable[[], float] | None) -> float | None:
    """`optimizer.step`, as a compiler traces it."""
    loss = None
    if closure is not None:
        if _reads_loss(optimizer._handle):
            raise RuntimeError(
                "a compiled step cannot hand the loss of its closure to the rule: call the closure before, set "
                "`optimizer.loss` to what it returns, and call step() without it"
            )
        with torch.enable_grad():
            loss = closure()
    # By __dict__: a compiler that sees `optimizer.param_groups` compiles again for every lr, and sets `capturable`.
    groups = optimizer.__dict__["param_groups"]
    handle = optimizer._handle
    every = [param for group in groups for param in group["params"]]
    positions = [position for position, param in enumerate(every) if param.grad is not None]
    params = [every[position] for position in positions]
    reason = hindrance(handle, tuple(positions))
    entries = optimizer.__dict__["state"]
    there = [param in entries for param in params]  # where this changes, the compiler looks again
    if reason or not all(there):
        OUTSIDE[reason or STARTS](handle, "step")
    elif params:
        states = [value for param in params for value in entries[param].values()]
        grads = [param.grad for param in params]
        places = tensor_settings(handle)
        settings = [groups[index][key] for index, key in _split(places)]
        with torch.no_grad():
            step_operator(params, states, grads, settings, positions, places, handle)
    return loss


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _reads_loss(handle: str) -> bool:
    return LOSS in optimizer_of(handle)._policy.rule.inputs


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def tensor_settings(handle: str) -> str:
    """Names of the groups' settings that are tensors, as `0.lr 1.lr`."""
    optimizer = optimizer_of(handle)
    groups = enumerate(optimizer.param_groups)
    found = [(index, key) for index, group in groups for key in optimizer.defaults if isinstance(group[key], Tensor)]
    return " ".join(f"{index}.{key}" for index, key in found)


# Reasons why a step, or another block, runs outside of the graph; torch shows them where `fullgraph=True` is set.
METHOD = "methods of the optimizer beside step() run outside of graphs"
BACKWARD = "fused_backward=True updates parameters within backward"
SHARED = "the rule keeps numbers of a param group, which a graph cannot hold, since they are not tensors"
TENSORS = "tensors in betas, in overrides or set for this step are unknown to the graph"
CHANGED = (
    "the compiled function changes param groups, states or the optimizer, which takes place when its graph has run"
)
DIVIDED = "parameters are divided among processes"
EXCHANGED = "the rule exchanges states, which takes place when kernels have run"
STARTS = "states start from values that the graph has yet to compute; take a first step before compiling"
STORED = "states are paged, or are not tensors"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def hindrance(handle: str, positions: tuple[int, ...]) -> str:
    """Reason why no graph can hold this step, or "". A compiler asks while it traces. Makes states, as torch does."""
    optimizer = optimizer_of(handle)
    if optimizer._in_backward is not None:
        return BACKWARD
    if optimizer._policy.rule.blocks["step"].commit is not None:
        return SHARED
    if is_asked(optimizer._policy.name, optimizer.param_groups):
        return SHARED
    if optimizer._policy.rule.blocks["step"].exchanges:
        return EXCHANGED
    if _has_hidden_tensors(optimizer):
        return TENSORS
    if _is_changed(optimizer):
        return CHANGED
    every = [param for group in optimizer.param_groups for param in group["params"]]
    if any(is_dtensor(param) for param in every):
        return DIVIDED
    params = [every[position] for position in positions]
    if not all(optimizer.state.get(param) for param in params) and not _make_states(optimizer, params):
        return STARTS
    values = [value for param in params for value in optimizer.state[param].values()]
    return "" if all(isinstance(value, Tensor) and not is_paged(value) for value in values) else STORED


def _has_hidden_tensors(optimizer: Stepper) -> bool:
    """Check for tensors in settings that `tensor_settings` does not know, and in inputs of this step."""
    parts = [value for group in optimizer.param_groups for value in group.values() if isinstance(value, tuple)]
    own = [override for group in optimizer.param_groups for override in group.get("overrides", {}).values()]
    values = [*(part for part in parts for part in part), *(value for override in own for value in override.values())]
    inputs = (*optimizer._policy.rule.inputs, "found_inf")
    return any(isinstance(value, Tensor) for value in values) or any(hasattr(optimizer, name) for name in inputs)


def _is_changed(optimizer: Stepper) -> bool:
    """Check whether the function that is being compiled has changed settings, states or attributes of the optimizer.

    It counts as changed where this torch does not tell.
    """
    effects = _side_effects()
    if effects is None:
        return True
    groups = optimizer.param_groups
    overrides = [group["overrides"] for group in groups if "overrides" in group]
    inner = [own for part in overrides for own in part.values()]
    things = [optimizer, groups, *groups, *overrides, *inner, optimizer.state, *optimizer.state.values()]
    known = [effects.id_to_variable[id(thing)] for thing in things if id(thing) in effects.id_to_variable]
    return any(effects.is_modified(variable) for variable in known)


def _side_effects() -> Any:
    """Side effects so far of the function that is being compiled, as the compiler keeps them; None if it cannot say."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        effects = InstructionTranslator.current_tx().output.side_effects
        return effects if hasattr(effects, "is_modified") and hasattr(effects, "id_to_variable") else None
    except (ImportError, AttributeError):
        return None


@torch.no_grad()
def _make_states(optimizer: Stepper, params: Sequence[Tensor]) -> bool:
    """Make the states of a first step while it is traced, from the gradients that are there."""
    effects = _side_effects()
    if effects is None or id(optimizer.state) in effects.id_to_variable:
        return False  # the function has looked at them, and would not find what it saw
    starts = [state for state in optimizer._policy.rule.states.values() if callable(state.init)]
    if any(state.reads_elements for state in starts) or (starts and tensor_settings(optimizer._handle)):
        return False  # the graph may change them before
    with_grads = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if len(with_grads) != len(params) or any(a is not b for a, b in zip(with_grads, params, strict=True)):
        return False
    try:
        acts.begin(optimizer, "step", read_inputs(optimizer, optimizer._policy.rule.inputs))
    except (StaleError, SkippedStepError, RuntimeError, TypeError, ValueError):
        return False  # the step itself will say why
    return True


def _undo_capturable(optimizer: Stepper, group: dict[str, Any]) -> None:
    """Take back `capturable` where nothing can serve it: torch.compile sets it in groups that a function changes."""
    if group.get("capturable") and not optimizer.defaults["capturable"] and group["params"]:
        name, param = optimizer._policy.name, group["params"][0]
        if param.device.type != "cuda" or choose_target(name, param.device, group["target"], param.dtype) != "cuda":
            group["capturable"] = False


def _run_outside(handle: str, block: str) -> None:
    optimizer = optimizer_of(handle)
    for group in optimizer.param_groups:
        _undo_capturable(optimizer, group)
    if block == "step":
        optimizer._check_step()
        optimizer._end_round()
    acts.run((optimizer,), block)
    if block == "step":
        optimizer._kept.last_norm.end_step(optimizer.param_groups)


def _outside(function: Callable[..., None], reason: str) -> Callable[..., None]:
    """A function that torch.compile leaves as it is, and says why."""
    told = f"{reason}; leave fullgraph=True out"
    return torch.compiler.disable(function, reason=told)  # type: ignore[no-untyped-call, no-any-return]


# Where torch gives up on a function before its graph has anything in it, it runs the function itself and looks into
# what that calls, without `is_compiling`.
acts.run = _outside(acts.run, "steps run outside of graphs that torch has given up")


REASONS = (METHOD, BACKWARD, SHARED, TENSORS, CHANGED, DIVIDED, STARTS, STORED)
# Functions that run a block of the optimizer with a handle outside of the graph, by the reason for it.
OUTSIDE = {reason: _outside(_run_outside, reason) for reason in REASONS}


def _update_outside(handle: str, param: Tensor) -> None:
    optimizer_of(handle)._update_in_backward(param)


update_outside = _outside(_update_outside, BACKWARD)
"""Steps a parameter with fused_backward, outside of the graph."""


def _step(
    params: list[Tensor],
    states: list[Tensor],
    grads: list[Tensor],
    settings: list[Tensor],
    positions: list[int],
    places: str,
    optimizer: str,
) -> None:
    """Step parameters that may be copies of the real ones, with gradients that need not be in `param.grad`.

    Args:
        states: Of these parameters, in their order; empty if there were none when the graph was made.
        settings: Settings that are tensors.
        positions: Of the parameters, among all of the optimizer.
        places: Of the settings, as `tensor_settings` has them.
        optimizer: Its handle.
    """
    found = optimizer_of(optimizer)
    every = [param for group in found.param_groups for param in group["params"]]
    own = [every[position] for position in positions]
    kept = [value for param in own for value in found.state[param].values()] if states else []
    read = [found.param_groups[index][key] for index, key in _split(places)]
    pairs = [*zip(own, params, strict=True), *zip(kept, states, strict=True), *zip(read, settings, strict=True)]
    with _gradients(every, dict(zip(positions, grads, strict=True))), _in_place_of(pairs):
        _run_outside(optimizer, "step")


def _split(places: str) -> list[tuple[int, str]]:
    pairs = [place.split(".", 1) for place in places.split()]
    return [(int(index), key) for index, key in pairs]


@contextmanager
def _in_place_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give real tensors the memory of those that the operator was handed, where it is other memory."""
    others = [(real, given) for real, given in pairs if real is not given and real.data_ptr() != given.data_ptr()]
    before = [real.data for real, _ in others]
    try:
        for real, given in others:
            real.data = given.data
        yield
    finally:
        for (real, _), data in zip(others, before, strict=True):
            real.data = data


@contextmanager
def _gradients(every: Sequence[Tensor], grads: Mapping[int, Tensor]) -> Iterator[None]:
    """Let `param.grad` be what the graph has computed, and nothing where it has none."""
    before = [param.grad for param in every]
    changed = [index for index, grad in enumerate(before) if grad is not grads.get(index)]
    try:
        for index in changed:
            every[index].grad = grads.get(index)
        yield
    finally:
        for index in changed:
            every[index].grad = before[index]


# A CUDA graph would replay what the kernels did without the host, which launches them and reads the settings.
_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
_TAGS: dict[str, Any] = {} if _UNSAFE is None else {"tags": (_UNSAFE,)}

step_operator = torch.library.custom_op("optgen::step", _step, mutates_args=("params", "states"), **_TAGS)


step_operator.register_fake(lambda *_, **__: None)  # a step changes no shapes
