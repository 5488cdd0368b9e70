"""The public classes: `classes.yaml` and the `classes` of rules, checked against the rules they name."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from optgen.codecs import CODECS, OF_BITS
from optgen.diagnostics import Location, Reporter, suggest
from optgen.spec.checks import Setting, as_written, check_refusal, parts_of, settings_of, value_error
from optgen.spec.model import ClassEntry, ClassRow, ClassTable, Hyperparameter, Option, RefusalEntry, Shared, Spec
from optgen.spec.names import OF_BLOCKS, OF_CLASSES
from optgen.spec.nodes import Document, Key

ARGS = "args"
_NEEDS = {
    "update": "it needs an `update` stage: a rule whose `step` names `update`, and an `apply` block",
    "codec": "it needs a state with a codec other than fp32",
    "matrix": "it needs a rule with `ndim: 2`",
    "iteration": "it needs a rule with `ndim: 2` and no states of other shapes than the parameter's",
    "turned": "it needs a state of the shape `[kept, ...]` or `[..., reduced]`",
    "quantized": "it needs a state that can be quantized: one whose `codecs` name int8 or another such",
}
_FIXES = {"bits": "optim_bits", "paged": "is_paged", "block_wise": "block_wise"}


@dataclass(frozen=True)
class Declared:
    """A class as a row declares it.

    Attributes:
        document: File of the row.
        path: The row's path there.
        places: Below it, the paths of those of its values that the row has in lists.
        keeps: The arguments that stay although the class fixes what they say.
    """

    name: str
    entry: ClassEntry
    document: Document
    path: tuple[Key, ...]
    places: Mapping[str, tuple[Key, ...]]
    keeps: tuple[str, ...]

    def at(self, key: str, *keys: Key) -> tuple[Key, ...]:
        """The path of a value."""
        return (*self.path, *self.places.get(key, (key,)), *keys)


def classes_of(name: str, row: ClassRow, document: Document, path: tuple[Key, ...]) -> list[Declared]:
    """The classes of a row: of lists, each of `paged` with each of `bits`, in their order."""
    own = {field: getattr(row, field) for field in ClassEntry.model_fields}
    found = []
    for (paged_place, paged), (bits_place, bits) in product(_listed("paged", row.paged), _listed("bits", row.bits)):
        prefix = "Paged" if paged is True and paged_place else ""
        suffix = f"{bits}bit" if bits is not None and bits_place else ""
        entry = ClassEntry.model_construct(**{**own, "bits": bits, "paged": paged})
        places = {"bits": bits_place, "paged": paged_place}
        given = {key: place for key, place in places.items() if place}
        found.append(Declared(f"{prefix}{name}{suffix}", entry, document, path, given, tuple(row.keeps)))
    return found


def _listed(key: str, value: object) -> list[tuple[tuple[Key, ...], Any]]:
    """The values that a row has for classes, each with its place in the row if they are a list; `any` is None."""
    if isinstance(value, list):
        return [((key, at), None if item == "any" else item) for at, item in enumerate(value)]
    return [((), None if value == "any" else value)]


@dataclass(frozen=True)
class _Class:
    """A class being checked: as declared, its rule, and what its constructor may take."""

    declared: Declared
    spec: Spec
    settings: Mapping[str, Setting]
    parts: Mapping[str, str]

    @property
    def entry(self) -> ClassEntry:
        return self.declared.entry

    def locate(self, key: str, *keys: Key) -> Location:
        """The place of a value."""
        return self.declared.document.locate(*self.declared.at(key, *keys))

    def locate_key(self, key: str, *keys: Key) -> Location:
        """The place of a key."""
        return self.declared.document.locate_key(*self.declared.at(key, *keys))


@dataclass(frozen=True)
class ClassChecker:
    """Checks classes.

    Attributes:
        table_document: File of the table, if there is one.
        complete: Whether all files could be read. If not, a rule that is missing is no error of the table.
    """

    rules: Mapping[str, Spec]
    shared: Shared
    table: ClassTable
    table_document: Document | None
    complete: bool
    reporter: Reporter

    def check_table(self) -> None:
        """Checks what no row refers to: that signatures and refusals name settings of some rule."""
        document = self.table_document
        if document is None or not self.complete:
            return
        known = {ARGS, *self.shared.storage}
        for spec in self.rules.values():
            known |= set(settings_of(spec, self.shared)) | set(parts_of(spec, self.shared))
        rows = self.table.classes.values()
        used = {row.signature if isinstance(row.signature, str) else row.rule for row in rows}
        for name, entries in self.table.signatures.items():
            if name in used:
                continue
            for index, entry in enumerate(entries):
                if entry not in known:
                    where = document.locate("signatures", name, index)
                    self.reporter.error("undefined-name", f"no rule has `{entry}`", where, suggest(entry, known))
        named = {entry for v in self.table.classes.values() for entry in v.refusals if isinstance(entry, str)}
        for name, refused in self.table.refusals.items():
            if name not in named:
                check_refusal(refused, document, ("refusals", name), known, self.reporter)

    def check_lists(self, name: str, row: ClassRow, document: Document, path: tuple[Key, ...]) -> bool:
        """Looks at a row's lists; false, and reported, where they do not make classes, each of another name."""
        before = self.reporter.error_count
        for key in ("bits", "paged"):
            values = getattr(row, key)
            if values == []:
                message, help_text = f"`{name}` has no `{key}`", "list at least one, or leave it out"
                self.reporter.error("value", message, document.locate(*path, key), help_text)
            for at, value in enumerate(values if isinstance(values, list) else ()):
                if any(value == other and type(value) is type(other) for other in values[:at]):
                    message = f"`{as_written(value)}` is in this list twice"
                    self.reporter.error("duplicate-name", message, document.locate(*path, key, at), "remove one")
        return self.reporter.error_count == before

    def resolve(self, declared: Declared) -> ClassEntry | None:
        """Checks a class; returns it with its rule and with its signature as a list, or None if that is unknown."""
        name, where = declared.name, declared.document.locate_key(*declared.path)
        if keyword.iskeyword(name):
            self.reporter.error("reserved-name", f"`{name}` is a keyword of Python", where, "use another name")
        elif name in OF_CLASSES:
            message = f"`{name}` has a meaning in Python or in generated packages"
            self.reporter.error("reserved-name", message, where, "use another name, in capitals as `MyRule`")
        spec = self._rule(declared)
        if spec is None:
            return None
        row = _Class(declared, spec, settings_of(spec, self.shared), parts_of(spec, self.shared))
        signature = self._signature(row)
        self._fixed(row)
        self._defaults(row)
        self._refusals(row)
        return declared.entry.model_copy(update={"rule": spec.name, "signature": signature})

    def _rule(self, declared: Declared) -> Spec | None:
        document, rule = declared.document, declared.entry.rule
        if rule is None:
            message, where = f"the class `{declared.name}` has no `rule`", document.locate_key(*declared.path)
            self.reporter.error("missing-key", message, where, "add `rule:`, its name")
            return None
        inside = document.find("blocks") is not None
        own, where = document.find("name"), document.locate(*declared.at("rule"))
        if inside and own is not None and getattr(own, "text", "") != rule:
            self.reporter.error("rule", "a class in a rule's own file is of that rule", where, "remove `rule`")
            return None
        spec = self.rules.get(rule)
        if spec is None and self.complete:
            help_text = suggest(rule, self.rules) or f"the rules are {', '.join(sorted(self.rules))}"
            self.reporter.error("undefined-name", f"there is no rule `{rule}`", where, help_text)
        return spec

    def _signature(self, row: _Class) -> list[str]:
        """The signature as names.

        Without one, that of `signatures` which has the rule's name, less what the class fixes; without that the rule's
        hyperparameters in order, those without default first.
        """
        given, entry = row.entry.signature, row.entry
        if given is None and row.spec.name in self.table.signatures:
            entries = self.table.signatures[row.spec.name]
            self._entries(entries, ("signatures", row.spec.name), row, self.table_document)
            return [name for name in entries if name not in self._left_out(row)]
        if given is None:
            own = row.spec.hyperparameters
            return sorted(own, key=lambda name: not _is_required(name, own[name], entry))
        path = row.declared.at("signature")
        if isinstance(given, list):
            self._entries(given, path, row, row.declared.document)
            return list(given)
        entries = self.table.signatures.get(given, [])
        if given not in self.table.signatures:
            known = self.table.signatures
            help_text = suggest(given, known) or f"the signatures are {', '.join(known) or 'none'}"
            where = row.locate("signature")
            self.reporter.error("undefined-name", f"there is no signature `{given}`", where, help_text)
        self._entries(entries, ("signatures", given), row, self.table_document)
        return list(entries)

    def _left_out(self, row: _Class) -> set[str]:
        """The arguments that a class fixes, so that its constructor does not take them."""
        fixed = {_FIXES[key] for key in ("bits", "paged") if getattr(row.entry, key) is not None}
        return (fixed | set(row.entry.set)) - set(row.declared.keeps)

    def _entries(self, entries: list[str], path: tuple[Key, ...], row: _Class, document: Document | None) -> None:
        optional_before = ""
        for index, entry in enumerate(entries):
            where = document.locate(*path, index) if document is not None else None
            setting = row.settings.get(entry)
            if entry in entries[:index]:
                self.reporter.error("duplicate-name", f"`{entry}` is in this signature twice", where, "remove one")
            if setting is None and entry != ARGS:
                self.reporter.error("undefined-name", _unknown(entry, row), where, self._help(entry, row))
                continue
            if isinstance(setting, Hyperparameter) and _is_required(entry, setting, row.entry):
                if optional_before:
                    message = f"`{entry}` has no default and stands after `{optional_before}`, which has one"
                    self.reporter.error("signature-order", message, where, "move it to the front")
            else:
                optional_before = optional_before or entry

    def _fixed(self, row: _Class) -> None:
        name, entry = row.declared.name, row.entry
        options = {key: setting for key, setting in row.settings.items() if isinstance(setting, Option)}
        for key, value in entry.set.items():
            if key not in options:
                if key in row.settings:
                    message, help_text = f"`{key}` is not an option", "`set` fixes options; use `defaults` for numbers"
                else:
                    message, help_text = _unknown(key, row), self._help(key, row)
                self.reporter.error("undefined-name", message, row.locate_key("set", key), help_text)
                continue
            self._value(key, options[key], value, row.locate("set", key), row)
        for key, setting_name in _FIXES.items():
            value = getattr(entry, key)
            setting = self.shared.storage.get(setting_name)
            if value is None:
                continue
            if setting is not None and setting_name not in row.settings:
                message, help_text = _unknown(setting_name, row), self._help(setting_name, row)
                self.reporter.error("undefined-name", message, row.locate_key(key), help_text)
            elif setting is None:
                message = f"`{key}` of `{name}` fixes `{setting_name}`, which shared.yaml does not declare"
                self.reporter.error("undefined-name", message, row.locate_key(key))
            elif self._value(key, setting, value, row.locate(key), row) and key == "bits":
                self._bits(name, value, row)

    def _bits(self, name: str, bits: int, row: _Class) -> None:
        """A class cannot be made if none of its states has the bits that it fixes."""
        codec = OF_BITS.get(bits, "fp32")
        taken = {CODECS[each].bits for state in row.spec.states.values() for each in state.choice if each in CODECS}
        if codec != "fp32" and bits not in taken:
            message = f"`{name}` fixes {bits} bits, in which no state of `{row.spec.name}` can be stored"
            help_text = f"it needs one whose `codecs` name {codec}"
            self.reporter.error("conflict", message, row.locate("bits"), help_text)

    def _defaults(self, row: _Class) -> None:
        entry = row.entry
        for key, value in entry.defaults.items():
            where = row.locate_key("defaults", key)
            if key not in row.settings:
                self.reporter.error("undefined-name", _unknown(key, row), where, self._help(key, row))
            else:
                self._value(key, row.settings[key], value, row.locate("defaults", key), row)
            if key in entry.set or key in entry.required:
                other = "fixed by `set`" if key in entry.set else "`required`"
                message = f"`{key}` has a default and is {other}"
                self.reporter.error("conflict", message, where, "remove one")
        for index, key in enumerate(entry.required):
            where = row.locate("required", index)
            if key not in row.settings:
                self.reporter.error("undefined-name", _unknown(key, row), where, self._help(key, row))
            elif not isinstance(row.settings[key], Hyperparameter):
                self.reporter.error("conflict", f"`{key}` is an option, which has a default", where, "remove it")

    def _refusals(self, row: _Class) -> None:
        names = {*row.settings, *row.parts}
        for index, entry in enumerate(row.entry.refusals):
            if isinstance(entry, RefusalEntry):
                check_refusal(entry, row.declared.document, row.declared.at("refusals", index), names, self.reporter)
            elif entry not in self.table.refusals:
                known = self.table.refusals
                help_text = suggest(entry, known) or f"`refusals` declares {', '.join(known) or 'none'}"
                where = row.locate("refusals", index)
                self.reporter.error("undefined-name", f"there is no refusal `{entry}`", where, help_text)
            elif self.table_document is not None:
                refused = self.table.refusals[entry]
                check_refusal(refused, self.table_document, ("refusals", entry), names, self.reporter)

    def _value(self, key: str, setting: Setting, value: object, where: Location, row: _Class) -> bool:
        wrong = value_error(setting, value)
        if wrong:
            message = f"{as_written(value)} is not a value for `{key}` of `{row.spec.name}`"
            self.reporter.error("value", message, where, wrong)
        return not wrong

    def _help(self, name: str, row: _Class) -> str:
        if name in row.parts:
            return f"write `{row.parts[name]}`, of which it is a part"
        shared = {**self.shared.hyperparameters, **self.shared.options, **self.shared.storage}
        if name in shared:
            needs = shared[name].needs
            return _NEEDS["update"] + _choices(needs) if isinstance(needs, dict) else _NEEDS.get(needs or "", "")
        if name in OF_BLOCKS or name in row.spec.states:
            return "a constructor takes hyperparameters, options and storage"
        return suggest(name, [*row.settings, ARGS]) or f"it has {', '.join(row.settings)}"


def _unknown(name: str, row: _Class) -> str:
    return f"`{name}` is not a hyperparameter or option of `{row.spec.name}`"


def _is_required(name: str, hyper: Hyperparameter, entry: ClassEntry) -> bool:
    return name in entry.required or (hyper.required and name not in entry.defaults)


def _choices(needs: Mapping[str, object]) -> str:
    """Text of the choices of options that a setting needs besides."""
    return ", and " + " and ".join(f"the choice `{choice}` of `{name}`" for name, choice in needs.items())
