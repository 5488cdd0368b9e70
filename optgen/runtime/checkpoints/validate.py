"""What of a checkpoint does not fit an optimizer, in words: its form, its groups, its states."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import COMPENSATION, Codec
from optgen.runtime.block import always
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.settings.validation import checked, is_number
from optgen.runtime.states.checks import check_compensation, why_unreadable
from optgen.runtime.states.step_counts import count_shown, is_count
from optgen.runtime.states.store import stored_shape, stored_shapes
from optgen.runtime.states.stored import recognised, scale_key

MARK = "optgen"  # the key under which a checkpoint says what it is of
VERSION = 1  # of a checkpoint's form; checkpoints without MARK are older, or another library's


class StoredAnewWarning(UserWarning):
    """A checkpoint's states have another codec or block size than the optimizer's: they are rounded anew.

    Nothing is loaded if this warning is an error: `warnings.filterwarnings("error", category=StoredAnewWarning)`.
    """


def marked(
    rule: Rule, name: str, state_dict: dict[str, Any], codecs: Mapping[str, Sequence[Sequence[Any]]] | None = None
) -> dict[str, Any]:
    """A checkpoint that says what it is of: the version of its form, the rule, the class `name`, and its codecs."""
    mark = {"version": VERSION, "rule": rule.name, "class": name}
    return {**state_dict, MARK: {**mark, "codecs": codecs} if codecs else mark}


def mismarked(rule: Rule, name: str, saved: Mapping[str, Any]) -> list[str]:
    """What a checkpoint says of itself that does not fit, in words; other libraries' and older ones say nothing."""
    mark = saved.get(MARK)
    if mark is None:
        return []
    if not isinstance(mark, Mapping) or not isinstance(mark.get("version"), int) or "rule" not in mark:
        return [f"its {MARK!r} is {mark!r}, which has no version and rule"]
    if mark["version"] > VERSION:
        return [f"it has version {mark['version']}, and this optgen reads up to {VERSION}: update optgen"]
    if mark["rule"] != rule.name:
        return [f"it is of {mark.get('class', '')} (rule {mark['rule']}), and {name} has the rule {rule.name}"]
    return []


def misshapen(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> list[str]:
    """What of a checkpoint does not have the form of one of these groups, in words."""
    found = misformed(groups, saved)
    if found:
        return found
    known = {key for group in saved["param_groups"] for key in group["params"]}
    strangers = [str(key) for key in saved["state"] if key not in known]
    return [f"it has states of {', '.join(strangers)}, which no group holds"] if strangers else []


def misformed(groups: Sequence[Mapping[str, Any]], saved: Any) -> list[str]:
    """Why the states of these groups' parameters cannot be looked up in a checkpoint, in words."""
    if not isinstance(saved, Mapping):
        return [f"it is a {type(saved).__name__}, not a dict"]
    missing = [key for key in ("state", "param_groups") if key not in saved]
    if missing:
        return [f"it has no {' and no '.join(map(repr, missing))}, only {list(saved)[:5]}"]
    entries, theirs = saved["state"], saved["param_groups"]
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        return ["its 'state' is not a dict of dicts"]
    if not isinstance(theirs, list | tuple) or not all(isinstance(group, Mapping) for group in theirs):
        return ["its 'param_groups' is not a list of dicts"]
    if len(theirs) != len(groups):
        return [f"it has {len(theirs)} param groups, not {len(groups)}"]
    found = [f"group {i} has no 'params'" for i, group in enumerate(theirs) if "params" not in group]
    if found:
        return found
    for i, group in enumerate(theirs):
        keys = group["params"]
        if not isinstance(keys, list | tuple) or not all(isinstance(key, Hashable) for key in keys):
            found.append(f"group {i}: its 'params' is not a list of keys")
    if found:
        return found
    counts = [(len(a["params"]), len(b["params"])) for a, b in zip(theirs, groups, strict=True)]
    return [f"group {i} has {a} parameters, not {b}" for i, (a, b) in enumerate(counts) if a != b]


def unreadable(settings: Iterable[str], saved: Mapping[str, Any]) -> list[str]:
    """Tensors of a checkpoint that have no numbers to read, in words: nothing is computed with any before this.

    Args:
        settings: Keys of groups that are settings; others are the user's own.
    """
    found = []
    for number, group in enumerate(saved["param_groups"]):
        for key in settings:
            value = group.get(key)
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, Tensor) and (why_unreadable(part) or not is_number(part)):
                    shown = why_unreadable(part) or f"a tensor of shape {tuple(part.shape)} and {part.dtype}"
                    found.append(f"group {number}: {key} is {shown}, not a number")
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    for number, key in enumerate(keys):
        entry = saved["state"].get(key, {})
        inner = [(name, value) for part in entry.values() if isinstance(part, Mapping) for name, value in part.items()]
        for name, value in (*entry.items(), *inner):
            wrong = why_unreadable(value) if isinstance(value, Tensor) else ""
            if wrong:
                found.append(f"parameter {number}: {name} is {wrong}")
    return list(dict.fromkeys(found))  # a setting may be asked for twice, and be several numbers


def misset(rule: Rule, number: int, saved: Mapping[str, Any], count: int) -> list[str]:
    """What a saved group says of how states are stored that this version does not know, in words.

    Args:
        count: How many parameters the group has.
    """
    overrides = saved.get("overrides", {})
    if not isinstance(overrides, Mapping) or not all(isinstance(own, Mapping) for own in overrides.values()):
        return [f"group {number}: overrides is a dict of settings by position in the group, not {overrides!r}"]
    found = [
        f"group {number}: overrides has the key {index!r}, and the group positions 0 to {count - 1}"
        for index in overrides
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count
    ]
    parts = [(f"group {number}", saved)]
    parts += [(f"overrides of parameter {index} of group {number}", own) for index, own in overrides.items()]
    for label, settings in parts:
        for key in rule.storage:
            try:
                checked(label, rule, {key: settings[key]} if key in settings else {})
            except (TypeError, ValueError) as error:
                found.append(str(error))
    return found


def misgrouped(rule: Rule, fixed: Mapping[str, Any], name: str, number: int, saved: Mapping[str, Any]) -> list[str]:
    """What of a saved group contradicts the class, in words."""
    apart = {*rule.storage, "target"}  # how states are stored is this optimizer's own
    found = [
        f"group {number} has {key}={saved[key]!r}, and {name} is {key}={value!r}"
        for key, value in fixed.items()
        if key not in apart and key in saved and saved[key] != value
    ]
    for state in rule.shared_states:
        value = saved.get(state.name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            found.append(f"group {number}: {state.name} is a {type(value).__name__}, not a number")
    return found


def misfits(
    rule: Rule,
    label: str,
    param: Tensor,
    saved: Mapping[str, Any],
    ours: bool = False,
    lines: torch.Size | None = None,
    codecs: tuple[Codec, ...] = (),
) -> list[str]:
    """What of a saved state does not fit a parameter, in words.

    Args:
        ours: Whether the checkpoint is known to be of this rule: states that it does not have are then the user's own.
        lines: The shape that numbers of rows and columns belong to, if it is not the parameter's.
        codecs: Of element states, where shapes alone could leave them in doubt.
    """
    wanted = dict(zip((state.name for state in rule.element_states), codecs, strict=False))
    found = []
    known = {"step", COMPENSATION, *rule.states, *map(scale_key, rule.states)}
    strangers = [str(key) for key, value in saved.items() if key not in known and value is not None]
    if strangers and not ours:
        found.append(f"{label}: {rule.name} has no state {', '.join(strangers)}")
    required = [state.name for state in rule.states.values() if state.kind == "element" and state.exists is always]
    missing = [name for name in required if saved and name not in saved]
    if missing:
        found.append(f"{label}: {', '.join(missing)} missing, there is {', '.join(map(str, saved))}")
    if lacks_count(rule, saved) and not rule.first_step_only:
        found.append(f"{label}: step missing, there is {', '.join(map(str, saved))}")
    if not is_count(saved.get("step", 0.0)):
        found.append(f"{label}: step is {count_shown(saved['step'])}, and must be a number of steps")
    for state in rule.element_states:
        if saved.get(scale_key(state.name)) is not None and saved.get(state.name) is None:
            found.append(f"{label}: there is {scale_key(state.name)}, but no {state.name}, whose scales these are")
    for state in (*rule.element_states, *rule.tensor_states):
        value = saved.get(state.name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            found.append(f"{label}: {state.name} is a {type(value).__name__}, not a tensor")
            continue
        shape = param.shape if state.kind == "element" or lines is None else lines
        found += _misstored(state, label, shape, value, saved.get(scale_key(state.name)), wanted.get(state.name))
    if saved.get(COMPENSATION) is not None:
        try:
            check_compensation(saved[COMPENSATION], param)
        except (TypeError, ValueError) as error:
            found.append(f"{label}: {error}")
    return found


def _misstored(
    state: State, label: str, shape: torch.Size, value: Tensor, scales: Any, wanted: Codec | None
) -> list[str]:
    """What of a saved state's codes, and of their scales, does not fit, in words."""
    if tuple(value.shape) not in stored_shapes(state, shape):
        others = sorted(stored_shapes(state, shape) - {stored_shape(state, shape)})
        packed = "".join(f", or {other} where codes share a byte" for other in others)
        return [f"{label}: {state.name} has shape {tuple(value.shape)}, not {stored_shape(state, shape)}{packed}"]
    if state.kind != "element" or value.dtype is torch.float64:
        return [] if value.is_floating_point() else [f"{label}: {state.name} has dtype {dtype_name(value.dtype)}"]
    if scales is not None and not (isinstance(scales, Tensor) and scales.dtype is torch.float32):
        return [f"{label}: {scale_key(state.name)} is not a float32 tensor"]
    try:
        recognised(state, value, scales, shape, () if wanted is None else (wanted,))
    except ValueError as error:
        return [f"{label}: {error}"]
    return []


def stored_anew(
    rule: Rule,
    codecs: tuple[Codec, ...],
    param: Tensor,
    saved: Mapping[str, Any],
    decoded: Mapping[str, str],
) -> set[tuple[str, str]]:
    """How states are stored, and will be, where that loses something: (before, after).

    Args:
        decoded: How states were stored that reading the checkpoint has decoded.
    """
    found = set()
    for state, asked in zip(rule.element_states, codecs, strict=True):
        value = saved.get(state.name)
        if value is None or value.dtype is torch.float64:
            continue
        present = recognised(state, value, saved.get(scale_key(state.name)), param.shape, (asked,))
        if present != asked and asked.name != "fp32":  # which holds what any other stands for
            found.add((decoded.get(state.name, str(present)), str(asked)))
    return found


def lacks_count(rule: Rule, saved: Mapping[str, Any]) -> bool:
    """Whether states were saved without a count of steps, as torch.optim.SGD has it: the first step is then over."""
    return "step" not in saved and any(saved.get(name) is not None for name in rule.states)
