"""Settings as a step has seen them: equal to those of the next step if nothing was set or written in place between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from optgen.runtime.block import Settings
from optgen.runtime.rule import Rule
from optgen.runtime.settings.validation import is_number, on_device

Seen = tuple[Any, ...]
_PLAIN = frozenset((float, int, bool, str, tuple, type(None)))  # what cannot change in place, but for parts of a tuple


def seen_settings(rule: Rule, keys: Iterable[str], settings: Settings) -> Seen:
    """Values of all settings; of a tensor, which can change in place, its number, of one on a device the tensor."""
    values = tuple(map(settings.get, keys))
    parts = [value for value in map(settings.get, rule.tuples) if type(value) is tuple]
    return values if _PLAIN.issuperset(map(type, chain(values, *parts))) else tuple(map(_seen, values))


def are_plain(rows: Iterable[Seen]) -> bool:
    """Check that settings hold nothing that can change unseen: no tensor on a device and nothing unknown."""
    values = list(chain.from_iterable(rows))
    parts = chain.from_iterable([value for value in values if type(value) is tuple])
    return _PLAIN.issuperset(map(type, chain(values, parts)))


def changed_keys(keys: Iterable[str], before: Seen, now: Seen) -> list[str]:
    """Settings that are not as before."""
    return [key for key, old, new in zip(keys, before, now, strict=False) if old != new]


@dataclass(frozen=True, eq=False)
class _Unread:
    """A tensor on a device: the same as long as it is the same object, whatever its value is."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unread) and self.tensor is other.tensor

    __hash__ = None  # type: ignore[assignment]


def _seen(value: Any) -> Any:
    return tuple(map(_seen_number, value)) if isinstance(value, tuple | list) else _seen_number(value)


def _seen_number(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value) if is_number(value) and not on_device(value) else _Unread(value)
    return value
