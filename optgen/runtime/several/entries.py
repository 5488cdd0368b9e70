"""Entries of an optimizer of several rules: parameters, the class of their rule, and its settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from optgen.runtime.optimizer import Optimizer
from optgen.runtime.settings.keywords import meant
from optgen.runtime.settings.validation import is_number

KEY = "rule"  # of a param group, and of settings: the class of the rule
APART = ("bits", "paged", "lr_scale")  # of settings: what stands for others
WANTED = "a class or the name of one, as 'adamw', or its settings, as {'rule': 'adamw', 'bits': 8}"

Find = Callable[["str | type[Optimizer]"], type[Optimizer]]  # a class by its name, as a package's table has it
Named = tuple[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """Parameters of one rule with the same settings.

    Attributes:
        params: Tensors, or pairs of names and tensors.
        settings: Arguments of the class, as far as they are given.
        others: Keys of the param group beside them.
    """

    cls: type[Optimizer]
    params: Any
    settings: Mapping[str, Any]
    others: Mapping[str, Any] = field(default_factory=dict)


def read_entry(find: Find, given: Any, params: Any, common: Mapping[str, Any]) -> Entry:
    """The entry of parameters whose rule is given by its class, by name or with settings.

    Args:
        common: Settings of all rules, before which an entry's own stand.

    Raises:
        TypeError: for what is neither, and for settings that the class does not take.
        ValueError: for an unknown class, and bits that it does not have.
    """
    own = {KEY: given} if isinstance(given, str | type) else given
    if not isinstance(own, Mapping) or not isinstance(own.get(KEY), str | type):
        raise TypeError(f"a rule is {WANTED}, not {given!r}")
    cls = find(own[KEY])
    known = settings_of(cls)
    for key in {**common, **own}:
        if key not in (*known, *APART, KEY):
            if key not in own:
                told = f"{cls.__name__} takes no {key!r}, which is given for all rules: give it with those that take it"
                raise TypeError(told)
            raise TypeError(f"{cls.__name__} takes no {key!r}; {meant(str(key), known)}")
    return _entry(cls, params, {**common, **own}, {})


def read_group(find: Find, group: Any, common: Mapping[str, Any]) -> Entry:
    """The entry of a param group that names its rule; keys which are no settings of the class stay the user's own.

    Raises:
        TypeError: for what is no group.
        ValueError: without a rule, for an unknown class, and bits that it does not have.
    """
    if not isinstance(group, Mapping):
        raise TypeError(f"a param group is a dict with the keys 'params' and {KEY!r}, not {group!r}")
    for key, wanted in (("params", "its tensors"), (KEY, "its class, as 'adamw'")):
        if key not in group:
            raise ValueError(f"a param group needs the key {key!r}, {wanted}; it has {list(group)}")
    known = (*settings_of(find(group[KEY])), *APART, KEY)
    own = {key: value for key, value in group.items() if key in known}
    others = {key: value for key, value in group.items() if key not in (*known, "params")}
    return replace(read_entry(find, own, group["params"], common), others=others)


def check_names(name: str, classes: Iterable[type[Optimizer]]) -> None:
    """Raise for two classes of one name, since groups and checkpoints tell rules apart by it.

    Raises:
        ValueError: saying where they are.
    """
    known: dict[str, type[Optimizer]] = {}
    for cls in classes:
        other = known.setdefault(cls.__name__, cls)
        if other is not cls:
            raise ValueError(
                f"{name}: two classes have the name {cls.__name__}, of {other.__module__} and of {cls.__module__}"
            )


def settings_of(cls: type[Optimizer]) -> dict[str, Any]:
    """The settings that a class takes, with their defaults."""
    arguments = inspect.signature(cls).parameters
    return {name: value.default for name, value in arguments.items() if name not in ("params", "args")}


def _entry(cls: type[Optimizer], params: Any, given: Mapping[str, Any], others: Mapping[str, Any]) -> Entry:
    """An entry, with bits, paging and the scale of the learning rate as settings of the class."""
    own = {key: value for key, value in given.items() if key not in (*APART, KEY)}
    settings = cls._policy.stored(given.get("bits"), given.get("paged", False), own)
    scale = given.get("lr_scale")
    if scale is not None:
        lr = settings.get("lr", settings_of(cls)["lr"])
        if isinstance(scale, bool) or not is_number(scale) or not 0 < float(scale) < float("inf"):
            raise ValueError(f"{cls.__name__}: lr_scale is a number above 0, not {scale!r}")
        if lr is inspect.Parameter.empty:
            raise TypeError(f"{cls.__name__} has no learning rate that lr_scale={scale} could scale: give lr")
        settings = {**settings, "lr": lr * scale}
    return Entry(cls, params, settings, others)


def grouped(entries: Sequence[Entry]) -> tuple[list[dict[str, Any]], dict[type[Optimizer], dict[str, Any]]]:
    """The param groups of entries, and of each class the settings in which all of its entries agree.

    A group has the settings of its entry in which they do not; those that it lacks are the class's defaults.
    """
    of_class: dict[type[Optimizer], list[Mapping[str, Any]]] = {}
    for entry in entries:
        of_class.setdefault(entry.cls, []).append(entry.settings)
    agreed = {
        cls: {key: value for key, value in own[0].items() if all(_is_in(other, key, value) for other in own)}
        for cls, own in of_class.items()
    }
    groups = [
        {
            "params": entry.params,
            KEY: entry.cls.__name__,
            **{key: value for key, value in entry.settings.items() if key not in agreed[entry.cls]},
            **entry.others,
        }
        for entry in entries
    ]
    return groups, agreed


def _is_in(settings: Mapping[str, Any], key: str, value: Any) -> bool:
    """Check whether settings have this value; a tensor is the same as itself alone."""
    if key not in settings:
        return False
    other = settings[key]
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return value is other
    return type(value) is type(other) and bool(value == other)
