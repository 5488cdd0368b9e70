"""The public classes: `variants.yaml` and the `variants` of rules, checked against the rules they name."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass

from optgen.codecs import OF_BITS
from optgen.diagnostics import Reporter, suggest
from optgen.spec.checks import Setting, as_written, check_rule, parts_of, settings_of, value_error
from optgen.spec.model import Hyperparameter, Option, Rule, Shared, Spec, Variant, VariantTable
from optgen.spec.names import OF_BLOCKS, OF_CLASSES
from optgen.spec.nodes import Document, Key

ARGS = "args"
_NEEDS = {
    "update": "it needs an `update` stage: a rule whose `step` names `update`, and an `apply` block",
    "codec": "it needs a state that can be stored otherwise than in fp32",
    "quantized": "it needs a state that can be quantized: one whose `codecs` name int8 or another such",
}
_FIXES = {"bits": "optim_bits", "paged": "is_paged", "block_wise": "block_wise"}


@dataclass(frozen=True)
class _Row:
    """A class being checked: where it stands, and what its constructor may take."""

    document: Document
    path: tuple[Key, ...]
    spec: Spec
    settings: Mapping[str, Setting]
    parts: Mapping[str, str]


@dataclass(frozen=True)
class VariantChecker:
    """Checks classes.

    Attributes:
        table_document: Where the table stands, if it is a file.
        complete: Whether all files could be read. If not, a family that is missing is no error of the table.
    """

    families: Mapping[str, Spec]
    shared: Shared
    table: VariantTable
    table_document: Document | None
    complete: bool
    reporter: Reporter

    def check_table(self) -> None:
        """Checks what no row refers to: that signatures and rejections name settings of some family."""
        document = self.table_document
        if document is None or not self.complete:
            return
        known = {ARGS, *self.shared.storage}
        for spec in self.families.values():
            known |= set(settings_of(spec, self.shared)) | set(parts_of(spec, self.shared))
        used = {v.signature for v in self.table.variants.values() if isinstance(v.signature, str)}
        for name, entries in self.table.signatures.items():
            if name in used:
                continue
            for index, entry in enumerate(entries):
                if entry not in known:
                    where = document.locate("signatures", name, index)
                    self.reporter.error("undefined-name", f"no rule has `{entry}`", where, suggest(entry, known))
        rejected = {entry for v in self.table.variants.values() for entry in v.rejects if isinstance(entry, str)}
        for name, rule in self.table.rejects.items():
            if name not in rejected:
                check_rule(rule, document, ("rejects", name), known, self.reporter)

    def resolve(self, name: str, variant: Variant, document: Document, path: tuple[Key, ...]) -> Variant | None:
        """Checks a class; returns it with its family and with its signature as a list, or None if that is unknown."""
        if keyword.iskeyword(name):
            where = document.locate_key(*path)
            self.reporter.error("reserved-name", f"`{name}` is a keyword of Python", where, "use another name")
        elif name in OF_CLASSES:
            where, message = (
                document.locate_key(*path),
                f"`{name}` has a meaning of its own in Python or beside classes",
            )
            self.reporter.error("reserved-name", message, where, "use another name, in capitals as `MyRule`")
        family = self._family(name, variant, document, path)
        if family is None:
            return None
        row = _Row(document, path, family, settings_of(family, self.shared), parts_of(family, self.shared))
        signature = self._signature(variant, row)
        self._fixed(name, variant, row)
        self._defaults(variant, row)
        self._rejects(variant, row)
        return variant.model_copy(update={"family": family.name, "signature": signature})

    def _family(self, name: str, variant: Variant, document: Document, path: tuple[Key, ...]) -> Spec | None:
        if variant.family is None:
            message, where = f"the class `{name}` has no `family`", document.locate_key(*path)
            self.reporter.error("missing-key", message, where, "add `family:`, a rule's name")
            return None
        inside = document.find("blocks") is not None
        own = document.find("name")
        if inside and own is not None and getattr(own, "text", "") != variant.family:
            where = document.locate(*path, "family")
            self.reporter.error("family", "a class in a rule's own file is of that rule", where, "remove `family`")
            return None
        spec = self.families.get(variant.family)
        if spec is None and self.complete:
            help_text = suggest(variant.family, self.families) or f"the rules are {', '.join(sorted(self.families))}"
            where = document.locate(*path, "family")
            self.reporter.error("undefined-name", f"there is no rule `{variant.family}`", where, help_text)
        return spec

    def _signature(self, variant: Variant, row: _Row) -> list[str]:
        """The signature as names; without any: the rule's hyperparameters in order, those without default first."""
        given = variant.signature
        if given is None:
            own = row.spec.hyperparameters
            return sorted(own, key=lambda name: not _is_required(name, own[name], variant))
        document, path = row.document, (*row.path, "signature")
        if isinstance(given, str):
            entries = self.table.signatures.get(given)
            if entries is None:
                known = self.table.signatures
                help_text = suggest(given, known) or f"the signatures are {', '.join(known) or 'none'}"
                where = document.locate(*path)
                self.reporter.error("undefined-name", f"there is no signature `{given}`", where, help_text)
                return []
            if document.find("signatures") is not None:
                path = ("signatures", given)
        else:
            entries = given
        self._entries(entries, path, variant, row)
        return list(entries)

    def _entries(self, entries: list[str], path: tuple[Key, ...], variant: Variant, row: _Row) -> None:
        optional_before = ""
        for index, entry in enumerate(entries):
            where = row.document.locate(*path, index)
            setting = row.settings.get(entry)
            if entry in entries[:index]:
                self.reporter.error("duplicate-name", f"`{entry}` is in this signature twice", where, "remove one")
            if setting is None and entry != ARGS:
                self.reporter.error("undefined-name", _unknown(entry, row), where, self._help(entry, row))
                continue
            if isinstance(setting, Hyperparameter) and _is_required(entry, setting, variant):
                if optional_before:
                    message = f"`{entry}` has no default and stands after `{optional_before}`, which has one"
                    self.reporter.error("signature-order", message, where, "move it to the front")
            else:
                optional_before = optional_before or entry

    def _fixed(self, name: str, variant: Variant, row: _Row) -> None:
        options = {key: setting for key, setting in row.settings.items() if isinstance(setting, Option)}
        for key, value in variant.set.items():
            path = (*row.path, "set", key)
            if key not in options:
                if key in row.settings:
                    message, help_text = f"`{key}` is not an option", "`set` fixes options; use `defaults` for numbers"
                else:
                    message, help_text = _unknown(key, row), self._help(key, row)
                self.reporter.error("undefined-name", message, row.document.locate_key(*path), help_text)
                continue
            self._value(key, options[key], value, path, row)
        for key, setting_name in _FIXES.items():
            value = getattr(variant, key)
            setting = self.shared.storage.get(setting_name)
            if value is None:
                continue
            if setting is not None and setting_name not in row.settings:
                message, help_text = _unknown(setting_name, row), self._help(setting_name, row)
                self.reporter.error("undefined-name", message, row.document.locate_key(*row.path, key), help_text)
            elif setting is None:
                message = f"`{key}` of `{name}` fixes `{setting_name}`, which shared.yaml does not declare"
                self.reporter.error("undefined-name", message, row.document.locate_key(*row.path, key))
            elif self._value(key, setting, value, (*row.path, key), row) and key == "bits":
                self._bits(name, value, row)

    def _bits(self, name: str, bits: int, row: _Row) -> None:
        """A class cannot be made if none of its states has the bits that it fixes."""
        codec = OF_BITS.get(bits, "fp32")
        if codec != "fp32" and not any(codec in state.choice for state in row.spec.states.values()):
            message = f"`{name}` fixes {bits} bits, in which no state of `{row.spec.name}` can be stored"
            help_text = f"it needs one whose `codecs` name {codec}"
            self.reporter.error("conflict", message, row.document.locate(*row.path, "bits"), help_text)

    def _defaults(self, variant: Variant, row: _Row) -> None:
        for key, value in variant.defaults.items():
            path = (*row.path, "defaults", key)
            if key not in row.settings:
                where = row.document.locate_key(*path)
                self.reporter.error("undefined-name", _unknown(key, row), where, self._help(key, row))
            else:
                self._value(key, row.settings[key], value, path, row)
            if key in variant.set or key in variant.required:
                other = "fixed by `set`" if key in variant.set else "`required`"
                message = f"`{key}` has a default and is {other}"
                self.reporter.error("conflict", message, row.document.locate_key(*path), "remove one")
        for index, key in enumerate(variant.required):
            where = row.document.locate(*row.path, "required", index)
            if key not in row.settings:
                self.reporter.error("undefined-name", _unknown(key, row), where, self._help(key, row))
            elif not isinstance(row.settings[key], Hyperparameter):
                self.reporter.error("conflict", f"`{key}` is an option, which has a default", where, "remove it")

    def _rejects(self, variant: Variant, row: _Row) -> None:
        names = {*row.settings, *row.parts}
        for index, entry in enumerate(variant.rejects):
            path = (*row.path, "rejects", index)
            if isinstance(entry, Rule):
                check_rule(entry, row.document, path, names, self.reporter)
            elif entry not in self.table.rejects:
                known = self.table.rejects
                help_text = suggest(entry, known) or f"`rejects` declares {', '.join(known) or 'none'}"
                where = row.document.locate(*path)
                self.reporter.error("undefined-name", f"there is no rejection `{entry}`", where, help_text)
            elif self.table_document is not None:
                check_rule(self.table.rejects[entry], self.table_document, ("rejects", entry), names, self.reporter)

    def _value(self, key: str, setting: Setting, value: object, path: tuple[Key, ...], row: _Row) -> bool:
        wrong = value_error(setting, value)
        if wrong:
            message = f"{as_written(value)} is no value for `{key}` of `{row.spec.name}`"
            self.reporter.error("value", message, row.document.locate(*path), wrong)
        return not wrong

    def _help(self, name: str, row: _Row) -> str:
        if name in row.parts:
            return f"write `{row.parts[name]}`, of which it is a part"
        shared = {**self.shared.hyperparameters, **self.shared.options, **self.shared.storage}
        if name in shared:
            needs = shared[name].needs
            return _NEEDS["update"] + _choices(needs) if isinstance(needs, dict) else _NEEDS.get(needs or "", "")
        if name in OF_BLOCKS or name in row.spec.states:
            return "a constructor takes hyperparameters, options and storage"
        return suggest(name, [*row.settings, ARGS]) or f"it has {', '.join(row.settings)}"


def _unknown(name: str, row: _Row) -> str:
    return f"`{name}` is not a hyperparameter or option of `{row.spec.name}`"


def _is_required(name: str, hyper: Hyperparameter, variant: Variant) -> bool:
    return name in variant.required or (hyper.required and name not in variant.defaults)


def _choices(needs: Mapping[str, object]) -> str:
    """What else a setting needs that belongs to choices of options."""
    return ", and " + " and ".join(f"the choice `{choice}` of `{name}`" for name, choice in needs.items())
