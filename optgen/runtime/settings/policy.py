"""Policy of a class of optimizers: its rule, what the class takes and refuses, and what it fixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optgen.runtime.block import Refusal, Settings
from optgen.runtime.rule import Rule
from optgen.runtime.settings.keywords import meant
from optgen.runtime.settings.storage import check_storage, settle_bits
from optgen.runtime.settings.validation import check_fixed, checked, lock_bits, read_args, unscheduled

Check = Callable[[str, Rule, Settings], None]


@dataclass(frozen=True, eq=False)
class Policy:
    """The settings of a class.

    Attributes:
        name: The class's, with which messages begin.
        fixed: Settings that the class fixes.
        bits: Bits that the class stores its states in, or None if the user says.
        given_bits: The `optim_bits` that a class with `bits` of its own takes.
        refusals: Refusals of the class, beside those of its rule.
        checks: Functions that raise for settings that exclude each other: one for each feature.
    """

    name: str
    rule: Rule
    fixed: Mapping[str, Any]
    bits: int | None
    given_bits: int
    refusals: tuple[Refusal, ...]
    checks: tuple[Check, ...] = ()

    @cached_property
    def decisive(self) -> frozenset[str]:
        """Settings that kernels, other groups or what is refused depend on, or that the class fixes."""
        common = [hyper.name for hyper in self.rule.hypers.values() if hyper.scope == "global"]
        return frozenset((*self.fixed, *self.rule.fixed_by, *common))

    def refuse(self, settings: Settings) -> None:
        """Raise for combinations that the rule, the class or a feature refuses."""
        self.rule.refuse(self.name, settings, (*self.refusals, *self.rule.refusals))
        for check in self.checks:
            check(self.name, self.rule, settings)

    def of_constructor(self, settings: dict[str, Any], args: object) -> dict[str, Any]:
        """The settings of an optimizer in their final form.

        Args:
            settings: Every setting of the class by name.
            args: An object whose attributes override settings.

        Raises:
            TypeError: for values of the wrong type.
            ValueError: for values out of range and combinations that are refused.
        """
        if self.bits is not None:
            settings = lock_bits(self.name, self.bits, args, settings, self.given_bits)
        settings = checked(self.name, self.rule, {**read_args(self.name, args, settings), **self.fixed})
        settings = settle_bits(self.name, settings, self.bits)
        self.refuse(settings)
        check_storage(self.name, self.rule, settings)
        return settings

    def added_since(self, cls: type, defaults: Settings) -> dict[str, Any]:
        """Settings that the class has been given since an optimizer with these defaults was pickled, by their own.

        Args:
            cls: The optimizer's class, whose constructors say the defaults.
        """
        known = {*self.rule.hypers, *self.rule.options, *self.rule.storage, "target"}
        added = {key: value for key, value in self.fixed.items() if key not in defaults}
        for owner in cls.__mro__:
            for key, parameter in inspect.signature(owner.__init__).parameters.items():  # type: ignore[misc]
                if key in known and key not in defaults and parameter.default is not parameter.empty:
                    added.setdefault(key, parameter.default)
        return checked(self.name, self.rule, added)

    def stored(self, bits: int | None, paged: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with what `bits` and `paged` stand for in this class.

        Args:
            bits: Bits of the states; None leaves the class's own.
            paged: Whether large states are pageable.

        Raises:
            TypeError: for bits that are given twice, and for `paged` that is neither True nor False.
            ValueError: if the class does not store its states so.
        """
        result = dict(settings)
        if bits is not None:
            if self.bits is not None and self.bits != bits:
                raise ValueError(f"{self.name} stores its states in {self.bits} bits, not {bits}")
            if "optim_bits" in settings:
                raise TypeError("bits and optim_bits mean the same; give one of them")
            if "optim_bits" not in self.rule.storage:
                if bits != 32:
                    raise ValueError(f"{self.name} stores its states in 32 bits alone, not {bits}")
            elif self.bits is None:
                result["optim_bits"] = bits
        if not isinstance(paged, bool):
            raise TypeError(f"paged must be True or False, not {paged!r}")
        if paged and not self.fixed.get("is_paged", False):
            result["is_paged"] = True
        return result

    def of_part(self, settings: Settings, part: str) -> dict[str, Any]:
        """Settings of a group or a parameter (`part`), which may differ from the optimizer's.

        Raises:
            ValueError: for settings that are the class's or the optimizer's alone, and values out of range.
        """
        check_fixed(self.name, self.rule, self.fixed, settings, part)
        return settle_bits(self.name, checked(self.name, self.rule, settings))

    def of_override(self, settings: Settings, defaults: Settings) -> dict[str, Any]:
        """Settings of a single parameter.

        Raises:
            ValueError: if a name is not a setting, or one that cannot differ by parameter, or a value is out of range.
        """
        for key in settings:
            if key not in defaults:
                hint = meant(key, set(defaults) - set(self.fixed))
                raise ValueError(f"{self.name}.override takes no {key!r}; {hint}")
        return self.of_part(settings, "parameter")

    def of_overrides(self, overrides: Any, group: Settings, count: int, defaults: Settings) -> dict[int, Any]:
        """A group's overrides in their final form.

        Args:
            count: Number of parameters in the group.

        Raises:
            TypeError, ValueError: for positions that the group does not have, and settings that do not fit.
        """
        if not isinstance(overrides, Mapping) or not all(isinstance(own, Mapping) for own in overrides.values()):
            raise TypeError(f"{self.name}: overrides is a dict of settings by position in the group, not {overrides!r}")
        result = {}
        for index, own in overrides.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
                raise ValueError(
                    f"{self.name}: overrides has the key {index!r}, and the group positions 0 to {count - 1}"
                )
            result[index] = self.of_override(own, defaults)
            self.refuse({**defaults, **unscheduled(group, defaults), **result[index]})
        return result

    def check_row(self, settings: Settings, defaults: Settings, changed: Collection[str] | None = None) -> None:
        """Raise for settings that were changed in a group to what no kernel can serve.

        Args:
            changed: Those that are not as they were when this raised nothing; by default all.

        Raises:
            TypeError: for values of the wrong type.
            ValueError: for values out of range, settings that the class fixes and combinations that are refused.
        """
        looked_at = defaults if changed is None else changed
        checked(self.name, self.rule, {key: settings[key] for key in looked_at if key in settings})
        if changed is not None and self.decisive.isdisjoint(changed):
            return
        changed = {key: settings[key] for key in self.fixed if key not in self.rule.storage}
        check_fixed(self.name, self.rule, self.fixed, changed, "group")
        asked = {key: settings[key] for key in ("codec", "optim_bits") if key in settings}
        if asked.get("codec", "auto") != "auto" and settle_bits(self.name, asked) != asked:
            raise ValueError(
                f"{self.name}: codec={asked['codec']!r} does not have optim_bits={asked['optim_bits']} bits"
            )
        self.refuse(unscheduled(settings, defaults))
