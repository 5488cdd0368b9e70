"""Shared module of a package: settings with their documentation, states, flags and refusals of several rules.

A setting of `shared.yaml` is offered to the rules that have what it needs, as an update of elements. The settings with
one need are a group, which all of those rules have in full. Flags and refusals go to a group whose rules all have them
alike; what fits none stands with each rule.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from optgen.backends.base import Rendering
from optgen.backends.code import names_in
from optgen.backends.python_calls import docs_lines, rule_imports, table_lines
from optgen.backends.python_classes import ARGS_DOC, BITS_DOC, TARGET_DOC
from optgen.backends.python_rule import (
    Setting,
    decisive,
    flag_lines,
    flag_texts,
    refusal_lines,
    setting_lines,
    state_lines,
)
from optgen.backends.quoting import Comment, python_comment
from optgen.ir.nodes import Const
from optgen.ir.refusals import Refusal
from optgen.ir.rule import WholeRule
from optgen.prose import Prose
from optgen.spec.checks import is_offered
from optgen.spec.model import Needs, Shared
from optgen.spec.names import SHARED_MODULE

EVERY = "EVERY"
OF = {
    EVERY: "Of every rule.",
    "UPDATE": "Of rules with an `update`, which an `apply` block follows.",
    "CODEC": "Of rules with states that can be stored in several ways.",
    "MATRIX": "Of rules that take matrices alone.",
    "QUANTIZED": "Of rules with states that can have 8 or 4 bits.",
}
NOT_IN_A_NAME = re.compile(r"\W+", re.ASCII)
Entry = TypeVar("Entry", bound=Hashable)


@dataclass
class Group:
    """Settings, states and flags of rules that meet one need.

    Attributes:
        name: The constant that it is in the module.
        about: Whose it is, as a comment.
        rules: The names of those rules.
        states: Entries of the table, as lines.
        arguments: Documentation of arguments that are not settings.
        flags: Their values by name.
    """

    name: str
    about: str
    rules: frozenset[str]
    settings: dict[str, Setting] = field(default_factory=dict)
    storage: dict[str, Setting] = field(default_factory=dict)
    states: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: dict[str, Prose] = field(default_factory=dict)
    arguments: dict[str, Prose] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """True if there is anything in it."""
        parts = (self.settings, self.storage, self.states, self.inputs, self.arguments, self.flags, self.refusals)
        return any(parts)


@dataclass(frozen=True)
class GroupText:
    """A group, ready for the template."""

    name: str
    about: Comment
    flags_name: str
    flags: tuple[str, ...]
    fields: tuple[str, ...]


class SharedParts:
    """Parts that the rules of a package share.

    Args:
        rules: All of them.
        refusals: Refusals of the classes of each, by its name.
    """

    def __init__(self, rules: Sequence[WholeRule], refusals: Mapping[str, Sequence[Refusal]]) -> None:
        self.rules = rules
        self.common = rules[0].shared if rules else Shared()
        self.decisive = {name for f in rules for name in decisive(f, refusals.get(f.name, ()))}
        every = frozenset(rule.name for rule in rules)
        self._groups: dict[Hashable, Group] = {None: Group(EVERY, OF[EVERY], every)}
        self._add_settings()
        self._groups[None].inputs |= {name: given.doc for name, given in self.common.inputs.items()}
        self._groups[None].arguments |= {"args": Prose(ARGS_DOC), "target": Prose(TARGET_DOC)}
        if "optim_bits" in self.common.storage:
            self._groups[None].arguments["optim_bits"] = Prose(BITS_DOC)
        self._add_states()
        self._add_flags()
        self._add_refusals()

    def of(self, rule: WholeRule) -> list[Group]:
        """The groups that a rule has."""
        return [group for group in self.groups if rule.name in group.rules]

    @cached_property
    def groups(self) -> list[Group]:
        """All groups that hold something, in the order of their first settings."""
        return [group for group in self._groups.values() if group.holds]

    # Placement in groups

    def _add_settings(self) -> None:
        common = self.common
        settings: dict[str, Setting] = {**common.hyperparameters, **common.options}
        for name, setting in settings.items():
            self._group(setting).settings[name] = setting
        for name, setting in common.storage.items():
            self._group(setting).storage[name] = setting

    def _group(self, setting: Setting) -> Group:
        key = _key(setting.needs)
        if key not in self._groups:
            rules = frozenset(f.name for f in self.rules if is_offered(setting, f.spec, self.common))
            name, about = _named(setting.needs)
            while any(group.name == name for group in self._groups.values()):
                name += "_"
            self._groups[key] = Group(name, about, rules)
        return self._groups[key]

    def _add_states(self) -> None:
        found: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        for rule in self.rules:
            for name, state in self.common.states.items():
                if name not in rule.spec.states and isinstance(rule.inits[name], Const):
                    found.setdefault((name, tuple(state_lines(rule, name, state, 8))), set()).add(rule.name)
        for (name, lines), group in self._placed(found, {}):
            group.states[name] = lines

    def _add_flags(self) -> None:
        found: dict[tuple[str, str], set[str]] = {}
        needs: dict[tuple[str, str], Hashable] = {}
        settings: dict[str, Setting] = {**self.common.hyperparameters, **self.common.options}
        common = {*settings, *self.common.inputs}
        owners = {part: name for name, hyper in self.common.hyperparameters.items() for part in hyper.names}
        for rule in self.rules:
            for name, text in flag_texts(rule).items():
                guard = rule.guards.guards[name]
                owner = owners.get(guard.subject, guard.subject)
                choices = getattr(settings.get(owner), "choices", None) or (guard.value,)
                if guard.about in ("option", "hyper", "input") and owner in common and guard.value in choices:
                    found.setdefault((name, text), set()).add(rule.name)
                    needs[name, text] = _key(settings[owner].needs) if owner in settings else None
        for (name, text), group in self._placed(found, needs):
            group.flags[name] = text

    def _add_refusals(self) -> None:
        found: dict[Refusal, set[str]] = {}
        needs: dict[Refusal, Hashable] = {}
        common = self.common
        settings: dict[str, Setting] = {**common.hyperparameters, **common.options, **common.storage}
        settings |= {part: hyper for hyper in common.hyperparameters.values() for part in hyper.names}
        for rule in self.rules:
            for refusal in rule.refusals[len(rule.spec.refusals) :]:
                if refusal.on != "construct":
                    continue
                found.setdefault(refusal, set()).add(rule.name)
                keys = [_key(settings[n].needs) for n in refusal.settings if n in settings]
                needs[refusal] = max(keys, key=_narrowness, default=None)
        for refusal, group in self._placed(found, needs):
            group.refusals.append(refusal)

    def _placed(
        self, found: Mapping[Entry, set[str]], needs: Mapping[Entry, Hashable]
    ) -> Iterator[tuple[Entry, Group]]:
        """Each entry with the group that it goes to: that of what it needs, else the largest whose rules have it."""
        by_size = sorted(self._groups.values(), key=lambda group: len(group.rules), reverse=True)
        for entry, rules in found.items():
            first = self._groups[needs.get(entry)]
            group = next((g for g in (first, *by_size) if g.rules and g.rules <= rules), None)
            if group is not None:
                yield entry, group

    # Its module

    def render(self) -> Rendering:
        """The module."""
        groups = [self._text(group) for group in self.groups]
        used = {"Shared"}
        for group in self.groups:
            used |= {type(setting).__name__ for setting in (*group.settings.values(), *group.storage.values())}
            used |= ({"State"} if group.states else set()) | ({"Refusal"} if group.refusals else set())
            used |= {"Settings"} if group.flags else set()
        context = {
            "imports": [line for lines in rule_imports(used) for line in lines],
            "numbers": any("m" in names_in(text) for group in self.groups for text in group.flags.values()),
            "groups": groups,
        }
        return Rendering(f"{SHARED_MODULE}.py", "python/shared.py.j2", context)

    def _text(self, group: Group) -> GroupText:
        flags_name = f"_{group.name.lower()}_flags"
        tables = {
            "settings": self._settings(group.settings),
            "storage": self._settings(group.storage),
            "states": [line for lines in group.states.values() for line in lines],
            "refusals": [line for refusal in group.refusals for line in refusal_lines(refusal, 8)],
        }
        fields = [line for name, lines in tables.items() if lines for line in table_lines(name, lines, 4)]
        fields += docs_lines("inputs", group.inputs, 4) if group.inputs else []
        fields += docs_lines("arguments", group.arguments, 4) if group.arguments else []
        fields += [f"flags={flags_name},"] if group.flags else []
        flags = flag_lines(group.flags) if group.flags else []
        return GroupText(group.name, python_comment(group.about), flags_name, tuple(flags), tuple(fields))

    def _settings(self, settings: Mapping[str, Setting]) -> list[str]:
        lines: list[str] = []
        for name, setting in settings.items():
            lines += setting_lines(name, setting, name in self.decisive, setting.doc, 8)
        return lines


def _key(needs: Needs | None) -> Hashable:
    return tuple(needs.items()) if isinstance(needs, dict) else needs


def _narrowness(key: Hashable) -> int:
    """Rank of a need by how much it asks for: a choice of options is narrower than a kind of rule."""
    return 0 if key is None else 1 if isinstance(key, str) else 2


def _named(needs: Needs | None) -> tuple[str, str]:
    """The constant of a group, and whose it is."""
    if not isinstance(needs, dict) or not needs:
        name = str(needs or "update").upper()
        return name, OF.get(name, f"Of rules that need `{needs}`.")
    name = "_".join(f"{option}_{choice}" for option, choice in needs.items())
    choices = " and ".join(f"`{option}` can be `{choice}`" for option, choice in needs.items())
    return NOT_IN_A_NAME.sub("_", name).upper(), f"Of rules whose {choices}."
