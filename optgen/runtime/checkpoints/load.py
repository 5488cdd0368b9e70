"""Whether a checkpoint fits an optimizer: everything is looked at before anything is loaded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from optgen.runtime.checkpoints import bitsandbytes_form
from optgen.runtime.checkpoints.adopt import adopt_group
from optgen.runtime.checkpoints.codec_record import Marks, contradicted, read_marks
from optgen.runtime.checkpoints.sharded import places_in, with_own_shards
from optgen.runtime.checkpoints.validate import (
    MARK,
    StoredAnewWarning,
    misfits,
    misgrouped,
    mismarked,
    misset,
    misshapen,
    stored_anew,
    unreadable,
)
from optgen.runtime.core.shards import local_tensor
from optgen.runtime.settings.storage import choose_codecs
from optgen.runtime.settings.validation import check_agreement, checked, unscheduled
from optgen.runtime.step.optimizer_like import OptimizerLike


def fitting(optimizer: OptimizerLike, saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint with its entries in our form and its groups as this optimizer takes them over.

    Raises:
        TypeError, ValueError: if it does not fit, naming every difference.
    """
    policy = optimizer._policy
    name, rule, own = policy.name, policy.rule, optimizer.param_groups
    found = misshapen(own, saved) or mismarked(rule, name, saved)
    found = found or unreadable([*optimizer.defaults, *bitsandbytes_form.GROUP_OF_TWO], saved)
    decoded: bitsandbytes_form.Decoded = {}
    marks: Marks = {}
    if not found:
        marks, found = read_marks(saved.get(MARK, {}).get("codecs"))
        for number, group in enumerate(saved["param_groups"]):
            found += misset(rule, number, group, len(group["params"]))
    if not found:
        saved, decoded, found = bitsandbytes_form.read(name, rule, own, saved)
    if not found:
        for number, group in enumerate(saved["param_groups"]):
            found += misgrouped(rule, policy.fixed, name, number, group)
        places = places_in(optimizer, saved["param_groups"])
        ours, whole = MARK in saved, saved["state"]
        saved, unread = with_own_shards(optimizer, places, saved)
        for number, place in enumerate(places if not unread else ()):
            codecs = place.codecs if place.shard is not None else ()
            entry = saved["state"].get(place.key, {})
            label = f"parameter {number}"
            wrong = misfits(rule, label, place.own, entry, ours, place.lines, codecs)
            shape = place.own.shape if place.shard is None else place.shard.shape
            found += wrong or contradicted(rule, marks, label, shape, whole.get(place.key, {}))
        found += unread
    if found:
        raise ValueError(f"{name}: this checkpoint does not fit: " + "; ".join(found))
    groups = []
    for mine, theirs in zip(own, saved["param_groups"], strict=True):
        group = adopt_group(rule, policy.fixed, mine, theirs)
        group.update(checked(name, rule, {key: group[key] for key in optimizer.defaults if key in group}))
        policy.refuse({**optimizer.defaults, **unscheduled(group, optimizer.defaults)})
        if "overrides" in group:
            group["overrides"] = policy.of_overrides(
                group["overrides"], group, len(group["params"]), optimizer.defaults
            )
        groups.append(group)
    check_agreement(name, rule, groups)
    _say_stored_anew(optimizer, groups, saved, decoded)
    return {"state": saved["state"], "param_groups": groups}


def _say_stored_anew(
    optimizer: OptimizerLike,
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Any],
    decoded: bitsandbytes_form.Decoded,
) -> None:
    """Warn that a checkpoint's states are in another form than this optimizer's, if that loses something."""
    found: set[tuple[str, str]] = set()
    for own, group, theirs in zip(optimizer.param_groups, groups, saved["param_groups"], strict=True):
        overrides = group.get("overrides", {})
        for index, (param, key) in enumerate(zip(own["params"], theirs["params"], strict=True)):
            settings = {**optimizer.defaults, **group, **overrides.get(index, {})}
            codecs = choose_codecs(optimizer._policy.rule, settings, param.numel())
            entry = saved["state"].get(key, {})
            found |= stored_anew(optimizer._policy.rule, codecs, local_tensor(param), entry, decoded.get(key, {}))
    for before, after in sorted(found):
        warnings.warn(
            f"{optimizer._policy.name}: this checkpoint stores states as {before}; from the next step on they are "
            f"stored as {after}",
            StoredAnewWarning,
            stacklevel=_calls_within(),
        )


def _calls_within() -> int:
    """How many calls there are up to the one of whoever has called an optimizer, for warnings to name its line."""
    frame: FrameType | None = sys._getframe(1)
    count = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("optgen.runtime.", "torch.")):
        frame, count = frame.f_back, count + 1
    return count
