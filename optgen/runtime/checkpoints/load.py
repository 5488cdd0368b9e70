"""A load: a checkpoint is brought to one form, all of it is looked at, and only then is any of it taken over.

Whoever has written it, each entry of `state` becomes one in which states with a number an element are `Stored`, with
their codec: bitsandbytes' by bitsandbytes_form.py, those of sharded parameters by shards.py, others by misfits.py.
States keep their dtypes and codecs, whatever the parameter's dtype; the next step stores them as settings ask for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.log import logger
from optgen.runtime.checkpoints import bitsandbytes_form
from optgen.runtime.checkpoints.misfits import (
    MARK,
    Said,
    StoredAnewWarning,
    group_errors,
    lacks_count,
    mark_errors,
    read_entry,
    read_said,
    setting_errors,
    structure_errors,
    unreadable,
)
from optgen.runtime.checkpoints.places import Place, places_in
from optgen.runtime.checkpoints.shards import own_form
from optgen.runtime.cuda.graph_capture import adopted_lr
from optgen.runtime.cuda.paged_memory import asks_for_paging, wait_for_host
from optgen.runtime.dimensions import SIDE
from optgen.runtime.rule import Rule
from optgen.runtime.settings.validation import check_agreement, checked, unscheduled
from optgen.runtime.states.step_counts import as_state
from optgen.runtime.states.store import NO_ROOM, no_room
from optgen.runtime.states.stored import CodecRecord, Stored, scale_key
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.target_choice import choose_target

if TYPE_CHECKING:
    from optgen.runtime.cuda.paging import Pager

APART = ("capturable", "fused_backward")  # what an optimizer decides for itself, in overrides too

LOG = logger(__name__)


@dataclass(frozen=True, eq=False)
class Loading:
    """A checkpoint that fits, ready to be taken over.

    Attributes:
        groups: As this optimizer takes them over.
        states: By parameter, where this optimizer keeps them, with records of their codecs.
    """

    groups: Sequence[dict[str, Any]]
    states: Mapping[Tensor, CodecRecord]


def fitting(optimizer: OptimizerLike, saved: Mapping[str, Any]) -> Loading:
    """Read a checkpoint, look at all of it, and copy its states to where they are to be.

    Raises:
        TypeError, ValueError: if it does not fit, naming every difference.
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.
    """
    policy = optimizer._policy
    name, rule, own = policy.name, policy.rule, optimizer.param_groups
    found = structure_errors(own, saved) or mark_errors(rule, name, saved)
    found = found or unreadable([*optimizer.defaults, *bitsandbytes_form.GROUP_OF_TWO], saved)
    said: Said = {}
    if not found:
        said, found = read_said(saved)
        for number, group in enumerate(saved["param_groups"]):
            found += setting_errors(rule, number, group, len(group["params"]))
    if not found:
        saved, found = bitsandbytes_form.read(name, rule, own, saved)
    if not found:
        for number, group in enumerate(saved["param_groups"]):
            found += group_errors(rule, policy.fixed, name, number, group)
    _refuse(name, found)
    groups = [_adopted_group(optimizer, *pair) for pair in zip(own, saved["param_groups"], strict=True)]
    check_agreement(name, rule, groups)
    entries: list[tuple[Place, Mapping[str, Any]]] = []
    for number, place in enumerate(places_in(optimizer, groups)):
        entry, wrong = _read(rule, f"parameter {number}", place, saved, said)
        found += wrong
        if place.key in saved["state"]:
            entries.append((place, entry))
    _refuse(name, found)
    _warn_of_reencoding(name, rule, entries)
    LOG.info("%s: a checkpoint fits: %d groups, states of %d parameters", name, len(groups), len(entries))
    return Loading(groups, adopted_states(name, rule, entries))


def _refuse(name: str, found: Sequence[str]) -> None:
    if found:
        raise ValueError(f"{name}: this checkpoint does not fit: " + "; ".join(found))


def _read(
    rule: Rule, label: str, place: Place, saved: Mapping[str, Any], said: Said
) -> tuple[Mapping[str, Any], list[str]]:
    """Read a parameter's entry for this process, in one form, with a list of misfits in words."""
    try:
        entry = own_form(rule, place, saved["state"].get(place.key, {}), said)
    except (TypeError, ValueError, RuntimeError) as error:
        return {}, [f"{label}: {error}"]
    first = place.codecs if place.shard is not None else ()
    return read_entry(rule, label, place.own, entry, said, MARK in saved, place.lines, first, place.state_shape)


def _adopted_group(optimizer: OptimizerLike, own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group; how states are stored, what the class fixes and `capturable` are this optimizer's own.

    Args:
        own: The optimizer's group. Its overrides stand before the saved ones, setting by setting.

    Raises:
        TypeError, ValueError: for values out of range, and combinations that the class refuses.
    """
    policy, defaults = optimizer._policy, optimizer.defaults
    kept = {key: own[key] for key in (*policy.rule.storage, "target", *policy.fixed) if key in own}
    result = {**saved, **kept}
    if SIDE in kept:  # states are of that side
        result[SIDE] = saved.get(SIDE, "std")
    if "lr" in result:
        result["lr"] = adopted_lr(own, result["lr"])
    mine = own.get("overrides", {})
    theirs = {
        index: {key: value for key, value in settings.items() if key not in APART}
        for index, settings in saved.get("overrides", {}).items()
    }
    if mine or theirs:
        result["overrides"] = {i: {**theirs.get(i, {}), **mine.get(i, {})} for i in sorted({*theirs, *mine})}
    result.update(checked(policy.name, policy.rule, {key: result[key] for key in defaults if key in result}))
    policy.refuse({**defaults, **unscheduled(result, defaults)})
    if "overrides" in result:
        result["overrides"] = policy.of_overrides(result["overrides"], result, len(result["params"]), defaults)
    return result


def _warn_of_reencoding(name: str, rule: Rule, entries: Iterable[tuple[Place, Mapping[str, Any]]]) -> None:
    """Warn that a checkpoint's states are in another form than this optimizer's, if that loses something."""
    found: set[tuple[str, str]] = set()
    for place, entry in entries:
        for state, asked in zip(rule.coded_states, place.codecs, strict=True):
            stored = entry.get(state.name)
            if stored is None or asked.name == "fp32":  # which holds what any other stands for
                continue
            shape = state.shape(place.seen, place.settings) if state.dims else place.own.shape
            if not stored.codec.is_like(asked, shape.numel()):
                found.add((str(stored), str(asked)))
    for before, after in sorted(found):
        warnings.warn(
            f"{name}: this checkpoint stores states as {before}; from the next step on they are stored as {after}",
            StoredAnewWarning,
            stacklevel=_calls_within(),
        )


def _calls_within() -> int:
    """Number of calls up to the one that called an optimizer, for warnings to name its line."""
    frame: FrameType | None = sys._getframe(1)
    count = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("optgen.runtime.", "torch.")):
        frame, count = frame.f_back, count + 1
    return count


# Taking it over


def adopted_states(
    name: str, rule: Rule, entries: Sequence[tuple[Place, Mapping[str, Any]]]
) -> dict[Tensor, CodecRecord]:
    """The states of a checkpoint where this optimizer keeps them, with records of their codecs.

    Raises:
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.
    """
    values = (value for _, saved in entries for value in saved.values())
    wait_for_host(value.codes if isinstance(value, Stored) else value for value in values)
    result = {}
    for place, saved in entries:
        param, settings = place.param, place.settings
        pager = find_pager(name, param, settings) if asks_for_paging(settings, param.numel()) else None
        result[param] = adopt_entry(rule, param, saved, pager)
    return result


def find_pager(name: str, param: Tensor, settings: Mapping[str, Any]) -> Pager | None:
    """Find the pager for the element states of a parameter that asks for paging; None where the target has none."""
    try:
        target = choose_target(name, param.device, settings.get("target"), param.dtype)
    except RuntimeError:
        return None  # the step will say it
    if target != "cuda":
        return None
    from optgen.runtime.engines.cuda_factory import pager_on

    return pager_on(param.device)


def adopt_entry(rule: Rule, param: Tensor, saved: Mapping[str, Any], pager: Pager | None) -> CodecRecord:
    """A parameter's state as saved, on the parameter's device or in paged memory.

    Where no count of steps was saved, it is 1.

    Raises:
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.

    Args:
        pager: Pager of element states, if they are paged.
    """
    result: dict[str, Any] = {}
    codecs: dict[str, Codec] = {}
    key = ""
    try:
        for key, value in saved.items():
            if key == "step":
                result[key] = as_state(float(value))
            elif isinstance(value, Stored):
                codes, codecs[key] = value.codes, value.codec
                result[key] = _copied(codes, param) if pager is None else pager.copy(codes.detach().contiguous())
                if value.scales is not None:
                    result[scale_key(key)] = _copied(value.scales, param)
            elif isinstance(value, Tensor):
                wide = value.dtype is torch.float64 or (key in rule.states and value.is_floating_point())
                result[key] = _copied(value, param, torch.float32 if wide else None)
            else:
                result[key] = value
    except NO_ROOM as error:
        raise no_room(key, param, error) from error
    if lacks_count(rule, saved):
        result["step"] = as_state(1.0)
    return CodecRecord(result, codecs)


def _copied(value: Tensor, param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    plain = value.detach() if value.requires_grad else value
    if plain.device == param.device and dtype in (None, plain.dtype):
        return plain.clone().contiguous()
    return plain.to(device=param.device, dtype=dtype or value.dtype, copy=True).contiguous()
