"""fused_backward: a parameter is updated within backward as soon as its gradient is there, and the gradient is freed.

A hook of autograd steps one parameter at a time, with engines of its own. `step()` then ends the round: it updates what
still has a gradient (parameters without fused_backward, and those whose hook is not there yet), and lets the next
backward pass begin. A batch may come in parts where a rule can add the gradients of all but the last to its momentum:
its method `accumulate`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from optgen.runtime.block import Settings
from optgen.runtime.core.shards import is_dtensor
from optgen.runtime.cuda.graph_capture import check_capture
from optgen.runtime.rule import Rule
from optgen.runtime.settings.param_groups import members_of
from optgen.runtime.settings.seen import Seen, seen_settings
from optgen.runtime.settings.storage import LARGE
from optgen.runtime.step import run as acts
from optgen.runtime.step.last_norm import clips_alone
from optgen.runtime.step.optimizer_like import OptimizerLike

VECTOR = (1, *LARGE[1:])
ACCUMULATE = "accumulate"
"""The method of a rule that takes the gradients of a part of a batch."""


class Fusing(OptimizerLike, Protocol):
    """An optimizer that may update parameters within backward."""

    _handle: str
    _in_backward: InBackward | None


def attach(optimizer: Fusing) -> None:
    """Hook what is to be updated within backward, if anything is.

    Raises:
        ValueError: for a parameter that another optimizer updates within backward.
    """
    if optimizer._in_backward is None:
        if not _is_asked(optimizer.param_groups):
            return
        optimizer._in_backward = InBackward(optimizer)
    optimizer._in_backward.attach(optimizer)


def _is_asked(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Check whether anything is to be updated within backward."""
    return any(part.get("fused_backward") for group in groups for part in _parts(group))


def _parts(group: Mapping[str, Any]) -> Iterator[Settings]:
    """A group, and the overrides in it."""
    yield group
    yield from group.get("overrides", {}).values()


def check_settings(name: str, rule: Rule, settings: Settings) -> None:
    """Raise for what cannot go with fused_backward=True, where that is asked for.

    Raises:
        ValueError: with the reason.
    """
    if not settings.get("fused_backward"):
        return
    if settings.get("capturable"):
        raise ValueError(
            f"{name}: fused_backward=True does not go with capturable=True: every parameter has a step of its own, and "
            "a CUDA graph could hold only a few of them; leave one out"
        )
    if settings.get("distribute_matrices"):
        raise ValueError(
            f"{name}: fused_backward=True does not go with distribute_matrices=True, which brings the results of all "
            "matrices together in a step; leave one out"
        )
    if rule.shared_states:
        states = ", ".join(state.name for state in rule.shared_states)
        owner = "optimizer" if any(state.kind == "global" for state in rule.shared_states) else "param group"
        raise ValueError(
            f"{name} cannot have fused_backward=True: it keeps states of the whole {owner} ({states}), which change "
            "once a step, and each parameter is updated before the next one has its gradient"
        )
    others = [block for block, declared in rule.blocks.items() if declared.grads and block not in ("step", ACCUMULATE)]
    if others:
        raise ValueError(
            f"{name} cannot have fused_backward=True: {others[0]}() reads the gradients of a backward pass of its own, "
            "which would be applied as an update and freed"
        )
    settings = clips_alone(settings)
    if _needs_all(rule, settings):
        hypers = [hyper.name for hyper in rule.hypers.values() if hyper.scope == "global"]
        cause = next((key for key in hypers if not _needs_all(rule, {**settings, key: 0.0})), None)
        if cause is None:
            raise ValueError(
                f"{name} cannot have fused_backward=True: its step takes a sum over all parameters, whose gradients "
                "are never there together"
            )
        raise ValueError(
            f"{name}: fused_backward=True does not go with {cause}={settings[cause]}, which takes all gradients "
            "together: each is applied and freed before the next one is there. clip_by_last_norm=True takes the norm "
            "of the last step; percentile_clipping and max_unorm clip parameter by parameter"
        )


def _needs_all(rule: Rule, settings: Settings) -> bool:
    """Check whether a step takes a sum over all parameters."""
    block = rule.blocks["step"]
    wanted = {reduction for _, _, reduction in block.sums}
    flags = [rule.flags(settings, *facts) for facts in (LARGE, VECTOR)]
    return any(block.runs(item, own) and wanted.intersection(item.names) for item in block.passes for own in flags)


class Hook:
    """Hook that autograd calls when a parameter has its gradient; it does nothing once its optimizer is gone."""

    def __init__(self, optimizer: Fusing) -> None:
        self.optimizer = weakref.ref(optimizer)

    def __call__(self, param: Tensor) -> None:
        """Update the parameter."""
        optimizer = self.optimizer()
        if optimizer is None or optimizer._in_backward is None:
            return
        if torch.compiler.is_compiling():
            from optgen.runtime.hooks.compiled_step import update_outside

            update_outside(optimizer._handle, param)
        else:
            optimizer._in_backward.update(optimizer, param)


class InBackward:
    """The hooks of an optimizer, and what they have done since its last `step()`.

    Attributes:
        block: What they run: a step, or the method that takes the gradients of a part of a batch.
        has_begun: Whether the settings of this round have been checked.
    """

    block = "step"
    has_begun = False

    def __init__(self, optimizer: Fusing) -> None:
        self._hook = Hook(optimizer)
        self._handles: list[Any] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._updated: set[int] = set()
        self._checked: list[Seen] = []
        self._lock = threading.Lock()  # backward has a thread for every device
        weakref.finalize(optimizer, _remove, self._handles).atexit = False

    def attach(self, optimizer: Fusing) -> None:
        """Hook what is to be updated within backward and is not hooked yet: frozen parameters once they are thawed.

        Raises:
            ValueError: for a parameter that another optimizer updates within backward; nothing is hooked then.
        """
        new = [
            param
            for param, settings in members_of(optimizer.param_groups)
            if settings.get("fused_backward") and param.requires_grad and self._hook not in _hooks(param)
        ]
        for param in new:
            check_free(optimizer, param)
        for param in new:
            handle = param.register_post_accumulate_grad_hook(self._hook)  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def update(self, optimizer: Fusing, param: Tensor) -> None:
        """Step one parameter with its gradient, or add this to its momentum, and free it.

        Raises:
            RuntimeError: for a second gradient since the last `step()`, and with several processes.
            TypeError, ValueError: as `step()`. The parameter is as it was then, and has no gradient.
        """
        with self._lock:
            settings = self._settings(optimizer, param)
            if settings is None or not settings.get("fused_backward"):
                return  # it was taken out of the optimizer, or has been made an ordinary parameter: step() will see it
            try:
                self._check(optimizer, param)
                acts.run((optimizer,), self.block, param)
                if self.block == "step":
                    self._updated.add(id(param))
            finally:
                param.grad = None

    def end_round(self, optimizer: Fusing) -> None:
        """End a round: the next gradients are those of another step."""
        self._updated.clear()
        self.has_begun = False
        self.attach(optimizer)

    def check_scaler(self, optimizer: Fusing) -> None:
        """Raise in a step of a gradient scaler, which can do nothing any more about gradients that are applied.

        Raises:
            RuntimeError: saying so.
        """
        groups = optimizer.param_groups
        if getattr(optimizer, "found_inf", None) is None or not _is_asked(groups):
            return
        scale = getattr(optimizer, "grad_scale", None)
        by = "" if scale is None else f" by {float(scale):g}"
        for key in ("grad_scale", "found_inf"):
            optimizer.__dict__.pop(key, None)
        damage = ""
        if self._updated:
            damage = (
                f". {len(self._updated)} parameters and their states have been changed with gradients scaled{by} since "
                "the last step(), and are not what training would have made of them: go back to a checkpoint"
            )
        raise RuntimeError(
            f"{optimizer._policy.name}: fused_backward=True does not go with torch.amp.GradScaler: gradients are "
            "applied within backward, before the scaler can unscale them or look for an Inf among them. Train in "
            "bfloat16, which needs no scaler, leave fused_backward out, or multiply the loss by a factor of your own "
            f"and set optimizer.grad_scale to it before backward{damage}"
        )

    def _settings(self, optimizer: Fusing, param: Tensor) -> Settings | None:
        """The settings of a parameter as they are now; None if it is no longer in the optimizer."""
        groups = optimizer.param_groups
        number, index = self._places.get(id(param), (-1, -1))
        known = groups[number]["params"] if 0 <= number < len(groups) else ()
        if not known[index : index + 1] or known[index] is not param:
            self._places = {
                id(member): (number, index)
                for number, group in enumerate(groups)
                for index, member in enumerate(group["params"])
            }
            if id(param) not in self._places:
                return None
            number, index = self._places[id(param)]
        return {**groups[number], **groups[number].get("overrides", {}).get(index, {})}

    def _check(self, optimizer: Fusing, param: Tensor) -> None:
        name = optimizer._policy.name
        if id(param) in self._updated:
            raise RuntimeError(
                f"{name}: a parameter of shape {tuple(param.shape)} has a second gradient since the last step(), and "
                "fused_backward=True has applied and freed the first: gradients cannot be accumulated over backward "
                f"passes. Call step() after every one of them, {_way_out(optimizer)}"
            )
        if is_dtensor(param):
            raise RuntimeError(
                f"{name}: fused_backward=True is not for parameters that are divided among processes, whose gradients "
                "need not be complete on all of them in the same order; leave fused_backward out"
            )
        if _has_processes():
            raise RuntimeError(
                f"{name}: fused_backward=True applies a gradient before other processes' are added to it, so that each "
                "would train a model of its own; leave fused_backward out"
            )
        if not self.has_begun:  # the first of a round: what is wrong with others is said before anything is changed
            check_capture(name, optimizer.param_groups)
            rows = [{**group, **part} for group in optimizer.param_groups for part in _parts(group)]
            seen = [seen_settings(optimizer._policy.rule, optimizer.defaults, row) for row in rows]
            if seen != self._checked:
                for row in rows:
                    optimizer._policy.check_row(row, optimizer.defaults)
                self._checked = seen
            self.has_begun = True


@contextmanager
def accumulating(optimizers: Sequence[Fusing]) -> Iterator[None]:
    """Let backward passes add to momenta instead of stepping, of parameters with fused_backward.

    Raises:
        ValueError: for a rule that cannot, and settings with which it cannot. Nothing is changed then.
    """
    hooks = []
    for optimizer in optimizers:
        name, rule, hook = optimizer._policy.name, optimizer._policy.rule, optimizer._in_backward
        groups = [group for group in optimizer.param_groups if _is_asked((group,))]
        if hook is None or not groups:
            continue
        if ACCUMULATE not in rule.blocks:
            raise ValueError(
                f"{name} cannot take a batch in parts with fused_backward=True: its step needs the gradient of the "
                "whole batch. Leave fused_backward out for its parameters, whose gradients then add up"
            )
        for group in groups:
            rule.refuse(name, group, rule.blocks[ACCUMULATE].refusals)
        hooks.append(hook)
    for hook in hooks:
        hook.block = ACCUMULATE
    try:
        yield
    finally:
        for hook in hooks:
            hook.block, hook.has_begun = "step", False


def _way_out(optimizer: Fusing) -> str:
    if ACCUMULATE in optimizer._policy.rule.blocks:
        return "have all but the last of them within `with optimizer.accumulating():`, or leave fused_backward out"
    return "or leave fused_backward out"


def check_free(optimizer: Fusing, param: Tensor) -> None:
    """Raise for a parameter that another optimizer updates within backward.

    Raises:
        ValueError: naming the other one.
    """
    for hook in _hooks(param):
        other = hook.optimizer() if isinstance(hook, Hook) else None
        if other is not None and other is not optimizer:
            raise ValueError(
                f"{optimizer._policy.name}: a parameter of shape {tuple(param.shape)} is updated within backward by "
                f"another optimizer, a {type(other).__name__} with fused_backward=True, which frees its gradient; "
                "delete that one first"
            )


def check_step(optimizer: Fusing) -> None:
    """Raise for a step of a gradient scaler, which can do nothing any more about gradients that are applied.

    Raises:
        RuntimeError: saying so.
    """
    if optimizer._in_backward is not None:
        optimizer._in_backward.check_scaler(optimizer)


def end_round(optimizer: Fusing) -> None:
    """Let the next backward pass begin: its gradients are those of another step."""
    if optimizer._in_backward is not None:
        optimizer._in_backward.end_round(optimizer)


def update(optimizer: Fusing, param: Tensor) -> None:
    """Step a parameter that has its gradient, if it is to be updated within backward."""
    if optimizer._in_backward is not None:
        optimizer._in_backward.update(optimizer, param)


def check_group(optimizer: Fusing, group: Mapping[str, Any]) -> None:
    """Raise if a group that is to be updated within backward has a parameter which another optimizer updates there.

    Raises:
        ValueError: naming the other one.
    """
    if group.get("fused_backward", optimizer.defaults.get("fused_backward")):
        for param in group["params"]:
            check_free(optimizer, param)


def check_members(optimizer: Fusing) -> None:
    """Raise for a parameter that is to be updated within backward by this optimizer, and is by another one.

    Raises:
        ValueError: naming the other one.
    """
    for param, settings in members_of(optimizer.param_groups):
        if settings.get("fused_backward"):
            check_free(optimizer, param)


def _hooks(param: Tensor) -> list[Any]:
    """Hooks that autograd calls when a parameter has its gradient."""
    return list((getattr(param, "_post_accumulate_grad_hooks", None) or {}).values())


def _has_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
