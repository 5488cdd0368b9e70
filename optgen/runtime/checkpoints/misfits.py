"""Misfits of a checkpoint and an optimizer, in words: of its form, its groups, its states."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, COMPENSATION, WHOLE_TENSOR, Codec
from optgen.runtime.block import always
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.settings.validation import checked, is_number
from optgen.runtime.states.checks import check_compensation, why_unreadable
from optgen.runtime.states.step_counts import count_shown, is_count
from optgen.runtime.states.store import stored_shape, stored_shapes
from optgen.runtime.states.stored import Stored, has_form, recognised, scale_key, stored_shown
from optgen.runtime.step.last_norm import KEY as LAST_NORM

MARK = "optgen"  # the key under which a checkpoint says what it is of
VERSION = 1  # of a checkpoint's form; checkpoints without MARK are older, or another library's


class StoredAnewWarning(UserWarning):
    """A checkpoint's states have another codec or block size than the optimizer's: they are rounded again.

    Nothing is loaded if this warning is an error: `warnings.filterwarnings("error", category=StoredAnewWarning)`.
    """


def mark_errors(rule: Rule, name: str, saved: Mapping[str, Any]) -> list[str]:
    """Misfits of the marks of a checkpoint, in words; other libraries' checkpoints and older ones have no marks."""
    mark = saved.get(MARK)
    if mark is None:
        return []
    if isinstance(mark, Mapping) and isinstance(mark.get("rules"), Mapping):
        return [f"it is of several rules in one optimizer ({', '.join(map(str, mark['rules']))})"]
    if not isinstance(mark, Mapping) or not isinstance(mark.get("version"), int) or "rule" not in mark:
        return [f"its {MARK!r} is {mark!r}, which has no version and rule"]
    if mark["version"] > VERSION:
        return [f"it has version {mark['version']}, and this optgen reads up to {VERSION}: update optgen"]
    if mark["rule"] != rule.name:
        return [f"it is of {mark.get('class', '')} (rule {mark['rule']}), and {name} has the rule {rule.name}"]
    return []


def structure_errors(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> list[str]:
    """Misfits of the form of a checkpoint to these groups, in words."""
    found = form_errors(groups, saved)
    if found:
        return found
    known = {key for group in saved["param_groups"] for key in group["params"]}
    strangers = [str(key) for key in saved["state"] if key not in known]
    return [f"it has states of {', '.join(strangers)}, which no group holds"] if strangers else []


def form_errors(groups: Sequence[Mapping[str, Any]], saved: Any) -> list[str]:
    """Reasons why the states of these groups' parameters cannot be looked up in a checkpoint, in words."""
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
        found += [f"parameter {number}: {wrong}" for wrong in _unreadable(saved["state"].get(key, {}))]
    return list(dict.fromkeys(found))  # a setting may be asked for twice, and be several numbers


def _unreadable(entry: Mapping[str, Any]) -> Iterator[str]:
    for name, value in entry.items():
        if isinstance(value, Tensor):
            wrong = why_unreadable(value)
            if wrong:
                yield f"{name} is {wrong}"
        elif isinstance(value, Mapping):
            yield from _unreadable(value)


def setting_errors(rule: Rule, number: int, saved: Mapping[str, Any], count: int) -> list[str]:
    """Misfits of a saved group's storage settings, in words: those that this version does not know.

    Args:
        count: Number of parameters in the group.
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


def group_errors(rule: Rule, fixed: Mapping[str, Any], name: str, number: int, saved: Mapping[str, Any]) -> list[str]:
    """Contradictions of a saved group to the class, in words."""
    apart = {*rule.storage, "target"}  # how states are stored is this optimizer's own
    found = [
        f"group {number} has {key}={saved[key]!r}, and {name} is {key}={value!r}"
        for key, value in fixed.items()
        if key not in apart and key in saved and saved[key] != value
    ]
    for name in (*(state.name for state in rule.shared_states), LAST_NORM):
        value = saved.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            found.append(f"group {number}: {name} is a {type(value).__name__}, not a number")
    return found


Said = Mapping[str, Sequence[Codec]]  # the codecs that a checkpoint says it has, by state


def read_said(saved: Mapping[str, Any]) -> tuple[Said, list[str]]:
    """The codecs that a checkpoint says it has (checkpoints/save.py), and those that this version does not know."""
    said = saved.get(MARK, {}).get("codecs", {})
    if not isinstance(said, Mapping) or not all(isinstance(each, list | tuple) for each in said.values()):
        return {}, [f"its record of codecs is {said!r}, not a dict of lists"]
    result: dict[str, list[Codec]] = {}
    found = []
    for name, each in said.items():
        for pair in each:
            codec = _read_pair(pair)
            if codec is None:
                found.append(
                    f"it stores {name} as {_pair_shown(pair)}, which this optgen does not know (its codecs are "
                    f"{', '.join(CODECS)}, their blocks {', '.join(map(str, BLOCK_SIZES))}): update optgen"
                )
            else:
                result.setdefault(name, []).append(codec)
    return result, found


def _read_pair(pair: Any) -> Codec | None:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] not in CODECS:
        return None
    codec = CODECS[pair[0]]
    blocks = (*BLOCK_SIZES, WHOLE_TENSOR) if codec.scaled else (0,)
    return codec.with_block(pair[1]) if pair[1] in blocks else None


def _pair_shown(pair: Any) -> str:
    if isinstance(pair, list | tuple) and len(pair) == 2:
        return f"{pair[0]} in blocks of {pair[1]}" if pair[1] else str(pair[0])
    return repr(pair)


def read_entry(
    rule: Rule,
    label: str,
    param: Tensor,
    saved: Mapping[str, Any],
    said: Said,
    ours: bool = False,
    lines: torch.Size | None = None,
    first: tuple[Codec, ...] = (),
    shape_of: Callable[[State], torch.Size] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """A saved state in one form, element states as `Stored` and nothing that is None; and what does not fit, in words.

    Args:
        ours: Whether the checkpoint is known to be of this rule: states that it does not have are then the user's own.
        lines: The shape that numbers of rows and columns belong to, if it is not the parameter's.
        first: For every state, the codec that comes before others where shapes could leave it in doubt.
        shape_of: The shape of a state that has codecs, if it is not the parameter's.
    """
    found = _name_errors(rule, label, saved, ours)
    entry = {key: value for key, value in saved.items() if value is not None}
    for position, state in enumerate(rule.coded_states):
        codes, scales = entry.get(state.name), entry.get(scale_key(state.name))
        if codes is None:
            if scales is not None:
                scale = scale_key(state.name)
                found.append(f"{label}: there is {scale}, but no {state.name}, whose scales these are")
            continue
        try:
            order = first[position : position + 1]
            own = param.shape if shape_of is None else shape_of(state)
            entry[state.name] = read_elements(state, own, codes, scales, said.get(state.name, ()), order)
        except (TypeError, ValueError) as error:
            found.append(f"{label}: {error}")
        entry.pop(scale_key(state.name), None)
    for state in rule.tensor_states:
        value = entry.get(state.name)
        if value is None:
            continue
        shape = stored_shape(state, param.shape if lines is None else lines)
        if not isinstance(value, Tensor):
            found.append(f"{label}: {state.name} is a {type(value).__name__}, not a tensor")
        elif tuple(value.shape) != shape:
            found.append(f"{label}: {state.name} has shape {tuple(value.shape)}, not {shape}")
        elif not value.is_floating_point():
            found.append(f"{label}: {state.name} has dtype {dtype_name(value.dtype)}")
    if saved.get(COMPENSATION) is not None:
        try:
            check_compensation(saved[COMPENSATION], param)
        except (TypeError, ValueError) as error:
            found.append(f"{label}: {error}")
    return entry, found


def _name_errors(rule: Rule, label: str, saved: Mapping[str, Any], ours: bool) -> list[str]:
    """States that a rule does not have, or lacks, and counts that are none, in words."""
    found = []
    known, required = _keys_of(rule)
    strangers = [] if ours else [str(key) for key, value in saved.items() if key not in known and value is not None]
    if strangers:
        found.append(f"{label}: {rule.name} has no state {', '.join(strangers)}")
    missing = [name for name in required if saved and name not in saved]
    if missing:
        found.append(f"{label}: {', '.join(missing)} missing, there is {', '.join(map(str, saved))}")
    if lacks_count(rule, saved) and not rule.first_step_only:
        found.append(f"{label}: step missing, there is {', '.join(map(str, saved))}")
    if not is_count(saved.get("step", 0.0)):
        found.append(f"{label}: step is {count_shown(saved['step'])}, and must be a number of steps")
    return found


@lru_cache
def _keys_of(rule: Rule) -> tuple[frozenset[str], tuple[str, ...]]:
    """The keys that a parameter's saved state may have, and the states that it has under all settings."""
    known = frozenset(("step", COMPENSATION, *rule.states, *map(scale_key, rule.states)))
    return known, tuple(state.name for state in rule.coded_states if state.exists is always)


def read_elements(
    state: State, shape: torch.Size, codes: Any, scales: Any, said: Sequence[Codec], first: Sequence[Codec] = ()
) -> Stored:
    """A state with a number an element as a checkpoint has it.

    Args:
        shape: Of the state.
        said: The codecs that the checkpoint says the state has, in one parameter or another.
        first: Codecs that come before others where shapes could leave it in doubt.

    Raises:
        TypeError, ValueError: for what is none, and for one in another form than the checkpoint says.
    """
    if isinstance(codes, Stored):
        recognised(state, codes.codes, codes.scales, shape, (codes.codec,))
        return codes
    if not isinstance(codes, Tensor):
        raise TypeError(f"{state.name} is a {type(codes).__name__}, not a tensor")
    if scales is not None and not (isinstance(scales, Tensor) and scales.dtype is torch.float32):
        raise ValueError(f"{scale_key(state.name)} is not a float32 tensor")
    if scales is None and codes.dtype is torch.float64:
        codes = codes.to(torch.float32)
    count = 0 if scales is None else scales.numel()
    for codec in said:
        if has_form(codec, codes, shape, count):
            return Stored(codec, codes, scales)
    if tuple(codes.shape) not in stored_shapes(state, shape):
        others = sorted(stored_shapes(state, shape) - {tuple(shape)})
        packed = "".join(f", or {other} where codes share a byte" for other in others)
        raise ValueError(f"{state.name} has shape {tuple(codes.shape)}, not {tuple(shape)}{packed}")
    codec = recognised(state, codes, scales, shape, first)
    # Numbers without scales speak for themselves, also where somebody has brought them to another float type.
    if not said or (not codec.scaled and not all(each.scaled for each in said)):
        return Stored(codec, codes, scales)
    forms = " or ".join(f"{each} ({_form_shown(each, shape)})" for each in said)
    raise ValueError(
        f"the checkpoint says that it stores {state.name} as {forms}, and it is {stored_shown(codes, scales)}"
    )


def _form_shown(codec: Codec, shape: torch.Size) -> str:
    scales = f" with {codec.scales(shape.numel())} scales" if codec.scaled else ""
    return f"{codec.storage} of shape {codec.codes_shape(shape)}{scales}"


def lacks_count(rule: Rule, saved: Mapping[str, Any]) -> bool:
    """Check whether states were saved without a count of steps, as by torch.optim.SGD: the first step is then over."""
    return "step" not in saved and any(saved.get(name) is not None for name in rule.states)
