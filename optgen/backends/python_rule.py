"""The tables of a rule's module: settings, states, flags and refusals, each as an expression or statement of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optgen.backends.code import Brackets, Code, Labelled, call, flat, joined, names_in, prefixed
from optgen.backends.layout import python_code
from optgen.backends.py_printer import PyPrinter, py_number
from optgen.backends.python_blocks import live_code
from optgen.backends.python_calls import call_lines, names_code, tuple_code
from optgen.backends.quoting import py_string
from optgen.ir.guards import FIRST, RECORDED, Guard
from optgen.ir.nodes import Call, Const, Kind, Reduce, refs, walk
from optgen.ir.refusals import Refusal
from optgen.ir.rule import WholeRule, given_readers, readers
from optgen.operations import DRAWS
from optgen.prose import Prose
from optgen.spec.model import GivenState, Hyperparameter, Option, State
from optgen.spec.names import FACTS, OF_SHAPE
from optgen.spec.ranges import parse_range

NOTHING = Prose("")
Setting = Hyperparameter | Option


def literal(value: object) -> str:
    """A default or choice as Python text."""
    match value:
        case str() | Prose():
            return py_string(value)
        case float() if value == int(value) and abs(value) < 1e16:
            return repr(value)
        case tuple():
            return flat(tuple_code([literal(item) for item in value]))
        case _:
            return repr(value)


# Settings


def setting_lines(name: str, setting: Setting, decides: bool, doc: Prose, indent: int) -> list[str]:
    """An entry of a table of settings.

    Args:
        decides: Whether it decides flags or what is refused.
        doc: Its documentation, where classes do not give it themselves.
    """
    kind = "Option" if isinstance(setting, Option) else "Hyperparameter"
    parts = _option(name, setting) if isinstance(setting, Option) else _hyper(name, setting, decides)
    return call_lines(kind, parts, {"doc": doc.line()} if doc else {}, indent)


def _hyper(name: str, hyper: Hyperparameter, decides: bool) -> list[Code]:
    parts: list[Code] = [f'"{name}"', f'"{parse_range(hyper.range)}"']
    if hyper.label:
        parts.append(f"label={literal(hyper.label)}")
    if hyper.names:
        parts.append(Labelled("parts=", names_code(hyper.names)))
    if hyper.optional:
        parts.append("optional=True")
    if hyper.integer:
        parts.append("integer=True")
    if hyper.scope != "group":
        parts.append(f'scope="{hyper.scope}"')
    if decides:
        parts.append("decides=True")
    return parts


def _option(name: str, option: Option) -> list[Code]:
    choices = [] if option.choices is None else [tuple_code([literal(c) for c in option.choices])]
    return [f'"{name}"', *choices]


def decisive(rule: WholeRule, refusals: Sequence[Refusal]) -> frozenset[str]:
    """The hyperparameters that decide flags, or what is refused."""
    owners = {part: name for name, h in rule.hypers.items() for part in (h.names or [name])}
    about = ("hyper", "step")
    subjects = {owners.get(g.subject, g.subject) for g in rule.guards.guards.values() if g.about in about}
    named = {owners.get(name, name) for refusal in (*rule.refusals, *refusals) for name in refusal.settings}
    sizes = () if rule.matrices is None else rule.matrices.sizes
    return frozenset(name for name in rule.hypers if name in subjects or name in named or name in sizes)


# States


def state_lines(rule: WholeRule, name: str, state: State, indent: int) -> list[str]:
    """An entry of a table of states."""
    item = rule.state_inputs[name]
    parts: list[Code] = [f'"{name}"']
    if isinstance(state.shape, list):
        parts += ['"shaped"', Labelled("dims=", names_code([str(dimension) for dimension in state.shape]))]
    elif state.shape != "param":
        parts.append(f'"{state.shape}"')
    if not item.signed:
        parts.append("signed=False")
    if item.kind is Kind.ELEMENT:
        if item.codecs != ("fp32",):
            parts.append(Labelled("codecs=", names_code(item.codecs)))
        if state.stored_as is not None:
            parts.append(f'stored_as="{state.stored_as}"')
    if item.window is not None:
        parts.append(f"window={item.window}")
    if not item.exists.is_true:
        parts.append(prefixed("exists=", live_code(item.exists)))
    init = rule.inits[name]
    if rule.matrices is not None and name in rule.matrices.drawn:
        parts.append("draws=True")
    if not isinstance(init, Const):
        parts.append(f"init=_start_{name}")
        if {"param", "grad"}.intersection(refs(init)):
            parts.append("reads_elements=True")
        if any(isinstance(part, Reduce) for part in walk(init)):
            parts.append("reduced=True")
        if any(isinstance(part, Call) and part.op in DRAWS for part in walk(init)):
            parts.append("draws=True")
    elif init.value != 0.0 and item.window is None:
        parts.append(f"init={py_number(float(init.value))}")
    if isinstance(state, GivenState):
        return call_lines("State", parts, {"given": state.doc.line() or Prose(name)}, indent)
    return python_code(call("State", *parts), indent, ",")


@dataclass(frozen=True)
class StartText:
    """A function for an initial value that is not a number.

    Attributes:
        lines: The statement that returns it.
        uses_math: Whether it calls functions of the equation language.
    """

    state: str
    lines: tuple[str, ...]
    uses_math: bool


def start(rule: WholeRule, name: str) -> StartText | None:
    """The function for a state's initial value; None where that is a number."""
    expr = rule.inits[name]
    if isinstance(expr, Const):
        return None
    read = readers(rule.hypers, rule.options, rule.storage)
    names = {n: f"m.number({text.replace('o[', 't.settings[', 1)})" for n, text in read.items()}
    names |= {"param": "t.param", "grad": "t.unscaled_grad"} | {fact: f"t.{fact}" for fact in (*FACTS, *OF_SHAPE)}
    kinds = {n: i.kind for n, i in rule.inputs.items()}
    code = PyPrinter(kinds, names=names).code(expr)
    return StartText(name, tuple(python_code(Labelled("return ", code), 4)), "m" in names_in(code))


# Flags


def flag_texts(rule: WholeRule) -> dict[str, str]:
    """The value of every flag by name."""
    return {name: _flag(rule, guard) for name, guard in rule.guards.guards.items() if guard.about != "step"}


def on_step_texts(rule: WholeRule) -> dict[str, Code]:
    """The value of every flag that depends on the number of the step, by name."""
    read = readers(rule.hypers, rule.options, rule.storage)
    result: dict[str, Code] = {}
    for name, guard in rule.guards.guards.items():
        if guard.about == "step":
            # A number that is out of range is refused later.
            own = f"m.remainder(step, m.number({read[guard.subject]}))" if guard.subject in rule.hypers else ""
            number = "step" if guard.subject == FIRST else own or f"step % {guard.subject}"
            holds = f"{number} == {guard.value}"
            result[name] = joined("or", [read[RECORDED], holds]) if RECORDED in rule.storage else holds
    return result


def _flag(rule: WholeRule, guard: Guard) -> str:
    read = readers(rule.hypers, rule.options, rule.storage)
    match guard.about, guard.op:
        case "option", "true":
            return read[guard.subject]
        case "option", _:
            return f"{read[guard.subject]} {guard.op} {literal(guard.value)}"
        case "hyper", "given":
            return f"{read[guard.subject]} is not None"
        case "input", _:
            return f"{given_readers(rule.given)[guard.subject]} is not None"
        case "hyper", _:
            return f"m.number({read[guard.subject]}) {guard.op} {guard.value}"
        case "fact", _:
            return f"{guard.subject} {guard.op} {guard.value}"
    return f'"{guard.subject}" in tensorwise'


def flag_lines(flags: Mapping[str, Code]) -> list[str]:
    """A function's statement that returns flags."""
    entries = tuple(prefixed(f'"{name}": ', code) for name, code in flags.items())
    return python_code(Brackets("return {", entries, "}"), 4)


# Refusals


def refusal_lines(refusal: Refusal, indent: int) -> list[str]:
    """A refusal as an entry of a table."""
    return call_lines("Refusal", refusal_parts(refusal), {}, indent)


def refusal_parts(refusal: Refusal) -> list[Code | Prose]:
    """Its arguments."""
    error = [] if refusal.exception == "ValueError" else [f"error={refusal.exception}"]
    return [f"lambda o: {refusal.condition}", refusal.message, *error]
