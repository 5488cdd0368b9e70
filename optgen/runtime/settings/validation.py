"""Checks what users set: types, ranges, choices. Every message names the class, the argument and what is allowed."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.rule import Hyperparameter, Option, Rule

TARGETS = (None, "cuda", "cpu", "torch")
SCHEDULED = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
SETTINGS_OF_ARGS = ("optim_bits", "min_8bit_size", "percentile_clipping", "block_wise", "max_unorm", "skip_zeros")


def settings_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings among the arguments of a constructor, from its `locals()` at the beginning."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__", "params", "args")}


def lock_bits(name: str, bits: int, args: object, settings: Mapping[str, Any], given: int = 32) -> dict[str, Any]:
    """Settings of a class that fixes the bits: it takes `optim_bits` for compatibility only, and only as `given`.

    Raises:
        ValueError: for other bits than the class has, given or asked for by `args`.
    """
    message = f"{name} only supports optim_bits={given} (default value for compatibility)"
    if settings.get("optim_bits", given) != given:
        raise ValueError(message)
    asked = getattr(args, "optim_bits", bits)
    if asked != bits:
        raise ValueError(f"{message}: its states have {bits} bits, which args.optim_bits={asked!r} conflicts with")
    return {**settings, "optim_bits": bits}


def check_fixed(name: str, rule: Rule, fixed: Mapping[str, Any], settings: Mapping[str, Any], part: str) -> None:
    """Raise for settings that a group or a parameter (`part`) cannot have of its own.

    How states are stored can differ by parameter in every class. What is one number for the optimizer may be said of
    every group, if all say the same: `check_agreement`.

    Raises:
        ValueError: if the class fixes a setting to another value, or it is one number for the whole optimizer.
    """
    for key, value in settings.items():
        hyper = rule.hypers.get(key)
        if hyper is not None and hyper.scope == "global" and part != "group":
            raise ValueError(f"{name}: {key} is one number for the optimizer and cannot differ by {part}")
        if key in fixed and key not in rule.storage and value != fixed[key]:
            raise ValueError(f"{name} fixes {key}={fixed[key]!r}: a {part} cannot have {key}={value!r}")


def check_agreement(name: str, rule: Rule, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise where groups differ in what is one number for the optimizer; tensors on a device stay unread.

    Raises:
        ValueError: naming the setting and the values.
    """
    for hyper in rule.hypers.values():
        if hyper.scope == "global":
            check_alike(name, hyper.name, groups)


def check_alike(name: str, key: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise where groups differ in a setting; tensors on a device stay unread.

    Raises:
        ValueError: naming the setting and the values.
    """
    first, *others = (_numbers(group.get(key)) for group in groups)
    for other in others:
        if other != first and None not in (first, other):
            values = " and ".join(_joined(part) for part in (first, other) if part is not None)
            raise ValueError(
                f"{name}: {key} is one number for the optimizer and cannot differ by group, and groups have {values}; "
                f"give all of them the same {key}"
            )


def _numbers(value: Any) -> tuple[float | None, ...] | None:
    """A setting's numbers, or None if one of them lies on a device."""
    parts = value if isinstance(value, tuple | list) else (value,)
    if any(on_device(part) for part in parts):
        return None
    return tuple(None if part is None else float(part) for part in parts)


def _joined(parts: tuple[float | None, ...]) -> str:
    return str(parts[0]) if len(parts) == 1 else str(parts)


def unscheduled(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group to be looked at for what contradicts itself.

    A schedule of torch keeps numbers of its own in a group, and one may have the name of a setting, as `max_lr` of
    OneCycleLR: that is nothing which the user has given without effect.
    """
    if "initial_lr" not in settings:
        return dict(settings)
    return {**settings, **{key: defaults[key] for key in SCHEDULED if key in defaults}}


def read_args(name: str, args: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the attributes of `args` in place of their own.

    Raises:
        TypeError: where `args` has an attribute that the class has no setting for, or can have none.
    """
    if isinstance(args, Mapping | Sequence | Tensor | int | float):
        wanted = "an object with attributes, as SimpleNamespace(block_wise=True)"
        raise TypeError(f"{name}: args is {wanted}, not {args!r}")
    result = dict(settings)
    for key in SETTINGS_OF_ARGS:
        if args is not None and hasattr(args, key):
            if key not in settings:
                raise TypeError(f"{name} takes no {key}, which args.{key}={getattr(args, key)!r} asks for")
            result[key] = getattr(args, key)
    return result


def checked(name: str, rule: Rule, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in their final form. Tensors on a device are taken unread: whether they are in range is not checked.

    Raises:
        TypeError: for a value of the wrong type, and for one on a device that the host must know.
        ValueError: for a value out of range.
    """
    result = dict(settings)
    for key, value in settings.items():
        value = _plain(value)
        declared = rule.hypers.get(key) or rule.options.get(key) or rule.storage.get(key)
        if isinstance(declared, Hyperparameter):
            _check_host(name, rule, declared, value)
            result[key] = _checked_number(name, declared, value)
        elif isinstance(declared, Option):
            result[key] = _checked_option(name, declared, value)
        elif key == "target" and value not in TARGETS:
            raise ValueError(f"{name}: target must be None, 'cuda', 'cpu' or 'torch', not {value!r}")
    return result


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own, which checkpoints can hold; everything else as it is."""
    if isinstance(value, Tensor) or not (hasattr(value, "dtype") and hasattr(value, "item")):
        return value
    return value.item() if getattr(value, "ndim", 1) == 0 else value


def _checked_option(name: str, option: Option, value: Any) -> Any:
    if isinstance(value, torch.dtype):
        value = str(value).removeprefix("torch.")
    if option.choices is None:
        if isinstance(value, bool):
            return value
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise TypeError(f"{name}: {option.name} must be True or False, not {value!r}")
    if value is None or isinstance(value, str | int | float):
        for choice in option.choices:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
    choices = ", ".join(repr(choice) for choice in option.choices)
    raise ValueError(f"{name}: {option.name} must be one of {choices}, not {value!r}")


def _checked_number(name: str, hyper: Hyperparameter, value: Any) -> Any:
    if value is None:
        if hyper.optional:
            return None
        raise TypeError(f"{name}: {hyper.name} must be {_wanted(hyper)}, not None")
    if hyper.parts:
        return _checked_parts(name, hyper, value)
    _check_range(name, hyper, value, value)
    return int(value) if hyper.integer else _stored(value)


def _check_host(name: str, rule: Rule, hyper: Hyperparameter, value: Any) -> None:
    """Raise for a tensor on a device where the host must know the number: it decides kernels or what is refused."""
    parts = value if isinstance(value, tuple | list) else (value,)
    for part in parts:
        if on_device(part) and (hyper.integer or hyper.name in rule.fixed_by):
            raise TypeError(
                f"{name}: {hyper.name} decides which kernels serve, so the host must know it: it is a number or a "
                f"tensor on the CPU, not a tensor on {part.device}"
            )


def _stored(value: Any) -> Any:
    """Tensors stay what they are, since users change them in place; other kinds of numbers become floats."""
    return value if isinstance(value, int | float | Tensor) else float(value)


def _checked_parts(name: str, hyper: Hyperparameter, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise TypeError(f"{name}: {hyper.name} must be {_wanted(hyper)}, not {value!r}") from None
    if not isinstance(value, tuple | list) or len(value) != len(hyper.parts):
        raise TypeError(f"{name}: {hyper.name} must be {_wanted(hyper)}, not {value!r}")
    parts = [_plain(part) for part in value]
    for index, part in enumerate(parts):
        _check_range(name, hyper, part, value, index)
    return tuple([_stored(part) for part in parts])


def _check_range(name: str, hyper: Hyperparameter, number: Any, value: Any, index: int | None = None) -> None:
    """Raise for a number that is out of range: a setting's only one, or that at an index of `value`."""
    if isinstance(number, Tensor) and number.numel() != 1:
        argument, shape = _argument(hyper, index), tuple(number.shape)
        raise ValueError(f"Tensor {argument} must be 1-element ({name}: {argument} has the shape {shape})")
    if isinstance(number, bool) or not is_number(number):
        raise TypeError(f"{name}: {hyper.name} must be {_wanted(hyper)}, not {value!r}")
    if on_device(number):
        return
    real = float(number)
    if not hyper.contains(real) or (hyper.integer and (not math.isfinite(real) or real != int(real))):
        kind = "a whole number " if hyper.integer else ""
        place = "" if index is None else f" at index {index}"
        message = f"Invalid {hyper.label or f'{hyper.name} value'}{place}: {_shown(number)}"
        raise ValueError(f"{message} ({name}: {_argument(hyper, index)} must be {kind}in {hyper})")


def _argument(hyper: Hyperparameter, index: int | None) -> str:
    return hyper.name if index is None else f"{hyper.name}[{index}]"


def on_device(value: Any) -> bool:
    """Check whether the host would have to wait for a value: a tensor that is not on the CPU."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def is_number(value: Any) -> bool:
    """Check whether a value is a real number, or a tensor of one; the number itself is not read."""
    if isinstance(value, Tensor):
        has_value = value.numel() == 1 and value.layout is torch.strided and not value.is_meta
        return has_value and not value.is_complex() and value.dtype is not torch.bool
    if isinstance(value, str | bytes | complex):
        return False
    return hasattr(value, "__float__")


def _wanted(hyper: Hyperparameter) -> str:
    if hyper.parts:
        return f"{len(hyper.parts)} numbers in {hyper}"
    return f"a {'whole ' if hyper.integer else ''}number in {hyper}"


def _shown(value: Any) -> str:
    return str(float(value)) if isinstance(value, Tensor) and is_number(value) and not on_device(value) else str(value)


def refuse_unknown(name: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise for a param group's key that is one letter away from a setting; other keys are the user's own.

    Raises:
        ValueError: naming the setting that was probably meant.
    """
    known = list(known)
    for key in keys:
        if key in known or not isinstance(key, str):
            continue
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if close:
            raise ValueError(f"{name}: a param group has the key {key!r}; did you mean {close[0]!r}?")
