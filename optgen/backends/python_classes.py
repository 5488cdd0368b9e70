"""The classes of a rule: signatures, documentation, and what one class inherits of another.

A class whose constructor takes the same arguments as another's, which leaves the bits of its states open, is derived
from it; where several of fixed bits have one constructor, that stands in a class of its own before them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby, takewhile

from optgen.backends.code import Brackets, Code, flat, joined, names_in
from optgen.backends.layout import python_code
from optgen.backends.python_calls import filled, tuple_code
from optgen.backends.python_rule import literal
from optgen.backends.quoting import Docstring, Identifier, docstring, identifier
from optgen.ir.refusals import Refusal
from optgen.ir.rule import WholeRule
from optgen.prose import Prose
from optgen.spec.model import ClassEntry, Hyperparameter, Option
from optgen.spec.ranges import parse_range

WIDTH = 112  # of documentation, without its indentation
NOTHING = Prose("")
TARGET_TYPE = joined("|", [Brackets("Literal[", ('"cuda"', '"cpu"', '"torch"'), "]"), "None"])
TARGET_DOC = (
    'Where to compute: "cuda" (kernels for NVIDIA GPUs), "cpu" (compiled C++), "torch" (plain operations, any device), '
    "None for the fastest there is."
)
ARGS_DOC = (
    "An object whose attributes optim_bits, min_8bit_size, percentile_clipping, block_wise, max_unorm and skip_zeros "
    "take the place of those arguments."
)
BITS_DOC = "Taken for compatibility; the states of this class have {bits} bits."


@dataclass(frozen=True)
class ClassSpec:
    """A public class: its row of the table, and what it refuses."""

    name: str
    entry: ClassEntry
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Argument:
    """An argument of a class's constructor."""

    name: str
    annotation: Code
    default: str | None
    doc: Prose

    @property
    def text(self) -> str:
        """Text of the argument in a signature."""
        return f"{self.name}: {flat(self.annotation)}" + ("" if self.default is None else f" = {self.default}")


@dataclass(frozen=True)
class Constructor:
    """The arguments of a constructor, beside `params`: first those that can be given by position."""

    positional: tuple[Argument, ...]
    keyword: tuple[Argument, ...]

    @property
    def texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The arguments as they stand in the signature."""
        return tuple(a.text for a in self.positional), tuple(a.text for a in self.keyword)


@dataclass(frozen=True)
class ConstructorText:
    """A constructor, ready for the template.

    Attributes:
        positional: Lines of arguments that can be given by position.
        keyword: Lines of those that are given by keyword only.
        types: Names in the types of arguments.
    """

    doc: tuple[Docstring, ...]
    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    call: str
    types: frozenset[str]


@dataclass(frozen=True)
class ClassText:
    """A class, ready for the template.

    Attributes:
        attributes: Statements that set attributes, by their names, where they differ from its base's.
        constructor: Its own, if it inherits none.
    """

    name: Identifier
    base: Identifier
    doc: tuple[Docstring, ...]
    attributes: Mapping[str, str]
    constructor: ConstructorText | None


def render_classes(rule: WholeRule, classes: Sequence[ClassSpec], constants: Mapping[Refusal, str]) -> list[ClassText]:
    """The classes of a rule's module in their order, each behind the one that it is derived from.

    Args:
        constants: Names of the constants with the classes' refusals.
    """
    alike: dict[object, list[ClassSpec]] = {}
    for spec in classes:
        alike.setdefault((constructor(rule, spec.entry).texts, _fixed(spec.entry)), []).append(spec)
    result: list[ClassText] = []
    for specs in alike.values():
        attributes = {spec.name: _attributes(spec, constants) for spec in specs}
        general = next((spec for spec in specs if spec.entry.bits is None), None)
        first = general or specs[0]
        name, title, own = first.name, _title(rule, first.entry), attributes[first.name]
        if general is None and len(specs) > 1:
            name = _base_name([*attributes], {text.name for text in result})
            title = Prose(f"Base class of {' and '.join(f'`{each}`' for each in attributes)}.")
            own = {k: text for k, text in own.items() if all(of.get(k) == text for of in attributes.values())}
        doc = _docstring([title, *_about(rule, first.entry)])
        made = _constructor_text(rule, first)
        result.append(ClassText(identifier(name), identifier("Optimizer"), doc, own, made))
        for spec in (spec for spec in specs if spec.name != name):
            about = _about(rule, spec.entry)
            lines = [_title(rule, spec.entry), *(about if about != _about(rule, first.entry) else [])]
            differs = {"refusals": "refusals = ()"} if "refusals" in own else {}
            differs |= attributes[spec.name]
            changed = {key: text for key, text in differs.items() if own.get(key) != text}
            result.append(ClassText(identifier(spec.name), identifier(name), _docstring(lines), changed, None))
    return result


def _base_name(names: Sequence[str], taken: Set[str]) -> str:
    """The class before several that fix the bits of their states: `_LAMBBase` before `LAMB8bit` and `LAMB32bit`."""
    common = "".join(chars[0] for chars in takewhile(lambda chars: len(set(chars)) == 1, zip(*names, strict=False)))
    name = f"_{common.rstrip('0123456789_') or names[0]}Base"
    while name in taken:
        name += "_"
    return name


def _fixed(entry: ClassEntry) -> tuple[str, ...]:
    """Settings that a class fixes, beside the bits of its states, as items of a dict."""
    fixed: dict[str, object] = dict(entry.set)
    if entry.paged is not None:
        fixed["is_paged"] = entry.paged
    if entry.target is not None:
        fixed["target"] = entry.target
    return tuple(f'"{key}": {literal(value)}' for key, value in fixed.items())


def _attributes(spec: ClassSpec, constants: Mapping[Refusal, str]) -> dict[str, str]:
    """The statements of a class that set its attributes, by name."""
    entry, fixed = spec.entry, _fixed(spec.entry)
    result = {"rule": "rule = RULE"}
    if fixed:
        lines = python_code(Brackets("fixed: ClassVar[Mapping[str, Any]] = {", fixed, "}"), 4)
        result["fixed"] = "\n    ".join(lines)
    if entry.bits is not None:
        result["bits"] = f"bits = {entry.bits}"
        if "optim_bits" in entry.defaults:
            result["given_bits"] = f"given_bits = {literal(entry.defaults['optim_bits'])}"
    if spec.refusals:
        result["refusals"] = f"refusals = {flat(tuple_code([constants[refusal] for refusal in spec.refusals]))}"
    return result


# Constructors


def constructor(rule: WholeRule, entry: ClassEntry) -> Constructor:
    """A class's constructor."""
    arguments = class_arguments(rule, entry)
    signature = list(entry.signature or [])
    keyword = tuple(a for name, a in arguments.items() if name not in signature and name != "args")
    return Constructor(tuple(arguments[name] for name in signature), keyword)


def _constructor_text(rule: WholeRule, spec: ClassSpec) -> ConstructorText:
    made = constructor(rule, spec.entry)
    own = {*rule.spec.hyperparameters, *rule.spec.options}
    more = f"These are its own arguments; `help({spec.name})` describes those too that all rules take."
    lines = [rule.title + ".", NOTHING, *Prose(more).filled(WIDTH - 4), NOTHING, Prose("Args:")]
    lines.append(Prose("    params: Tensors, named tensors or param groups."))
    for argument in (*made.positional, *made.keyword):
        if argument.name in own:
            text = f"{argument.name}: " + _with_range(rule, argument)
            lines += text.filled(WIDTH - 4, " " * 4, " " * 8)
    args = ", args" if "args" in (spec.entry.signature or []) else ""
    call = f"super().__init__(params, settings_in(locals()){args})"
    types = frozenset(name for a in (*made.positional, *made.keyword) for name in names_in(a.annotation))
    return ConstructorText(_docstring(lines), _lines(made.positional, own), _lines(made.keyword, ()), call, types)


def _lines(arguments: Iterable[Argument], own: Collection[str]) -> tuple[str, ...]:
    """Arguments of a signature: a rule's own on a line each, those that all rules have close together."""
    result: list[str] = []
    for is_own, group in groupby(arguments, key=lambda argument: argument.name in own):
        texts = [argument.text for argument in group]
        result += [f"{text}," for text in texts] if is_own else filled(texts, 8)
    return tuple(result)


def class_arguments(rule: WholeRule, entry: ClassEntry) -> dict[str, Argument]:
    """All arguments of a class by name, those it fixes left out."""
    fixed = set(entry.set) | ({"is_paged"} if entry.paged is not None else set())
    signature = list(entry.signature or [])
    result = {}
    for name, hyper in rule.hypers.items():
        if name not in fixed:
            result[name] = Argument(name, _hyper_type(name, hyper), _hyper_default(name, hyper, entry), hyper.doc)
    for name, option in rule.options.items():
        if name not in fixed:
            default = entry.defaults.get(name, option.default)
            result[name] = Argument(name, _option_type(option), literal(default), option.doc)
    for name, item in rule.storage.items():
        if name in fixed or (name == "optim_bits" and entry.bits is not None and name not in signature):
            continue
        own = {"block_wise": entry.block_wise}.get(name)
        default = own if own is not None else entry.defaults.get(name, item.default)
        doc = item.doc
        if name == "optim_bits" and entry.bits is not None:
            doc = Prose(BITS_DOC.format(bits=entry.bits))
        kind = _option_type(item) if isinstance(item, Option) else _hyper_type(name, item)
        result[name] = Argument(name, kind, literal(default), doc)
    if "args" in signature:
        result["args"] = Argument("args", "object", "None", Prose(ARGS_DOC))
    if entry.target is None:
        result["target"] = Argument("target", TARGET_TYPE, "None", Prose(TARGET_DOC))
    return result


def _hyper_default(name: str, hyper: Hyperparameter, entry: ClassEntry) -> str | None:
    if name in entry.required or (hyper.required and name not in entry.defaults):
        return None
    default = entry.defaults.get(name, hyper.default)
    return literal(tuple(default) if isinstance(default, list) else default)


def _hyper_type(name: str, hyper: Hyperparameter) -> Code:
    types: list[Code] = ["int" if hyper.integer else "float"]
    if hyper.names:
        types = [Brackets("tuple[", ("float",) * len(hyper.names), "]"), "str"]
    elif name == "lr":
        types.append("Tensor")
    return joined("|", [*types, *(["None"] if hyper.optional else [])])


def _option_type(option: Option) -> Code:
    if option.choices is None:
        return "bool"
    if all(choice is None or isinstance(choice, bool) for choice in option.choices):
        return joined("|", ["bool", "None"])
    if all(isinstance(choice, int) for choice in option.choices):
        return "int"
    return Brackets("Literal[", tuple(literal(choice) for choice in option.choices), "]")


# Documentation


def _docstring(lines: Sequence[Prose]) -> tuple[Docstring, ...]:
    return tuple(docstring(line) for line in lines)


def _title(rule: WholeRule, entry: ClassEntry) -> Prose:
    bits = 32 if "optim_bits" not in rule.storage else entry.bits
    kept = f"states in {'`optim_bits`' if bits is None else bits} bits"
    return rule.title + f": {kept}{', paged' if entry.paged else ''}."


def _about(rule: WholeRule, entry: ClassEntry) -> list[Prose]:
    """Docstring of a class below its title: the class's own text, then its rule's."""
    lines: list[Prose] = []
    for text in (entry.doc, rule.spec.doc):
        if text:
            lines += [NOTHING, *text.filled(WIDTH)]
    return lines


def _with_range(rule: WholeRule, argument: Argument) -> Prose:
    hyper = rule.hypers.get(argument.name)
    where = f" In {parse_range(hyper.range)}." if hyper is not None else ""
    default = "" if argument.default is None else f" Default: {argument.default}."
    return argument.doc + where + default
