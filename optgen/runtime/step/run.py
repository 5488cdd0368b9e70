"""A step from its settings to its end: inputs are read, engines begun, passes run, states of groups stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optgen.log import logger
from optgen.runtime.core.bucket import StaleError
from optgen.runtime.core.host_values import HostValues, Sums, committed
from optgen.runtime.core.step_inputs import NO_INPUTS, Inputs, SkippedStepError, read_inputs
from optgen.runtime.cuda.graph_capture import is_capturing, place_every_lr
from optgen.runtime.states.stored import exchange_states
from optgen.runtime.step.interrupts import Uninterrupted
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.prepare import agreed, prepare
from optgen.runtime.step.prepared import Prepared
from optgen.runtime.step.run_passes import run_passes

LOG = logger(__name__)


class Begun(NamedTuple):
    """A step whose engines have begun, and that nothing hinders any more."""

    optimizer: OptimizerLike
    block: str
    inputs: Inputs
    prepared: Prepared

    @property
    def at_once(self) -> bool:
        """Check whether one call of a kernel is all that writes."""
        block = self.prepared.block
        return self.prepared.at_once and block.commit is None and not block.exchanges

    def end(self, values: HostValues) -> None:
        """Do what follows when all passes have run.

        Args:
            values: Those of the last pass.
        """
        for one in self.prepared.block.exchanges:
            for member in self.prepared.members:
                if one.live(member.flags):
                    exchange_states(member.entry, one.first, one.second)
        rule, kept, commit = self.optimizer._policy.rule, self.optimizer._kept, self.prepared.block.commit
        if self.block == "step" and rule.on_step is not None:
            kept.numbers.advance(member.whole for member in self.prepared.members)
        if commit is not None:
            _commit(self.optimizer, commit, self.inputs, values.numbers, self.prepared.elements)


def run(optimizers: Sequence[OptimizerLike], block: str, only: Tensor | None = None) -> None:
    """Run a block of each rule: every pass over all buckets, then what is common to groups.

    Nothing is written before all of them have begun. Callers name the module: hooks/compiled_step.py puts a function
    in this one's place that torch.compile leaves alone.

    Args:
        only: A parameter that is stepped alone.
    """
    with torch.no_grad():
        begun = [each for optimizer in optimizers if (each := _begun(optimizer, block, only)) is not None]
        if not begun:
            return
        with Uninterrupted(len(begun) == 1 and begun[0].at_once):
            values = run_passes([(each.prepared, each.prepared.values(each.inputs)) for each in begun])
            for each, last in zip(begun, values, strict=True):
                each.end(last)


def _begun(optimizer: OptimizerLike, block: str, only: Tensor | None) -> Begun | None:
    """Check a step and begin it; None if it is to be skipped, or there is nothing to do."""
    name, rule, kept = optimizer._policy.name, optimizer._policy.rule, optimizer._kept
    declared = rule.blocks[block]
    for group in optimizer.param_groups if declared.refusals else ():
        rule.refuse(name, group, declared.refusals)
    place_every_lr(name, optimizer.param_groups)
    inputs = agreed(optimizer, read_inputs(optimizer, rule.inputs), kept.of_all) if declared.grads else NO_INPUTS
    try:
        prepared = begin(optimizer, block, inputs, only)
    except StaleError:
        kept.forget(only)
        prepared = begin(optimizer, block, inputs, only)
    except SkippedStepError:
        return None
    if prepared.reducer is not None:
        prepared.reducer.check()
    if not prepared.members and declared.grads:
        return None
    if is_capturing():
        kept.captured.append(prepared)
    return Begun(optimizer, block, inputs, prepared)


def begin(optimizer: OptimizerLike, block: str, inputs: Inputs, only: Tensor | None = None) -> Prepared:
    """Find or build the engines of a step and start them; those of the last few sets of parameters are kept."""
    kept = optimizer._kept.of(only)
    prepared, grads = prepare(optimizer, block, kept, inputs, only)
    if not kept or prepared is not kept[0]:
        optimizer._kept.keep(prepared, only)
        _tell(optimizer._policy.name, block, prepared)
        if only is None:
            optimizer._look_again()
    if prepared.sharded:
        grads = prepared.own_gradients(grads)
    for engine in prepared.engines:
        engine.begin(block, engine.bucket.gradients(grads) if grads else [], inputs)
    return prepared


def _tell(name: str, block: str, prepared: Prepared) -> None:
    if LOG.isEnabledFor(logging.DEBUG):
        targets = [f"{len(engine.bucket.members)} on {engine.target}" for engine in prepared.engines]
        LOG.debug("%s: %s prepared for parameters in buckets of %s", name, block, ", ".join(targets) or "none")


def _commit(
    optimizer: OptimizerLike,
    commit: Callable[..., dict[str, float]],
    inputs: Inputs,
    sums: Sums,
    elements: float,
) -> None:
    """Store group and global states; the first group decides for the optimizer."""
    rule, groups = optimizer._policy.rule, optimizer.param_groups
    results = [committed(rule, commit, {**group, **inputs.values}, sums, id(group), elements) for group in groups]
    for group, result in zip(groups, results, strict=True):
        for key, value in result.items():
            group[key] = results[0][key] if rule.states[key].kind == "global" else value
