"""Code as a tree, which knows where its lines may end: what printers make, and `optgen.backends.layout` lays out.

A leaf is text that stays whole, as a name or a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from optgen.ir.formula import Formula, Part
from optgen.operations import Binds

_NAME = re.compile(r"[-!(]*([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class Brackets:
    """Items between brackets: the arguments of a call, a tuple, or an operand in parentheses.

    Attributes:
        head: Text before the items, with the opening bracket: `f(`.
        groups: Whether the brackets only hold together one operand.
    """

    head: str
    items: tuple[Code, ...]
    close: str = ")"
    groups: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """Operands with the operators between them, all of which bind alike: `a + b - c`, `a ? b : c`."""

    first: Code
    rest: tuple[tuple[str, Code], ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A value after what it is for: `x = a + b`, `key=a`, `return a`, `if a`."""

    label: str
    value: Code


@dataclass(frozen=True, slots=True)
class Guarded:
    """A statement of C++ under a condition that is fixed before it is compiled."""

    condition: Code
    statement: Code


@dataclass(frozen=True, slots=True)
class Lambda:
    """A call of C++ that is given a function of one statement: `each(n, [&](int64_t k) { x[k] = a; })`.

    Attributes:
        head: All before the statement, with the opening brace.
    """

    head: str
    statement: Code
    close: str = "})"


@dataclass(frozen=True, slots=True)
class Names:
    """A string of Python that holds names with spaces between them, in several pieces where it is long."""

    names: tuple[str, ...]


Code = str | Brackets | Chain | Labelled | Guarded | Lambda | Names


@dataclass(frozen=True, slots=True)
class Operand:
    """Code with how tightly it binds."""

    code: Code
    binds: int = Binds.ATOM

    def within(self, wanted: int) -> Code:
        """The code where operands bind as tightly as `wanted`: in parentheses if it does not."""
        return self.code if self.binds >= wanted else Brackets("(", (self.code,), groups=True)


ALWAYS, NEVER = Operand("true"), Operand("false")
"""Conditions of C++ that ask nothing."""


def call(function: str, *arguments: Code) -> Brackets:
    """A call of a function."""
    return Brackets(f"{function}(", arguments)


def declared(kind: str, names: Sequence[Code]) -> Brackets:
    """Several variables of a type, each with its value or without: `float a, b`."""
    return Brackets(f"{kind} ", tuple(names), "")


def choice(condition: Operand, then: Code, other: Code) -> Code:
    """One of two values in C++: `condition ? a : b`."""
    if condition in (ALWAYS, NEVER):
        return then if condition == ALWAYS else other
    return Chain(condition.within(Binds.OR), (("?", then), (":", other)))


def negated(condition: Operand) -> Operand:
    """The contrary of a condition of C++."""
    if condition in (ALWAYS, NEVER):
        return NEVER if condition == ALWAYS else ALWAYS
    match condition.code:
        case Chain(first, (("==", second),)):
            return Operand(Chain(first, (("!=", second),)), condition.binds)
    return Operand(prefixed("!", condition.within(Binds.NOT)), Binds.NOT)


def guarded(condition: Operand, statement: Code) -> list[Code]:
    """A statement where a condition of C++ holds; no more of it than what is left to ask."""
    if condition == NEVER:
        return []
    return [statement if condition == ALWAYS else Guarded(condition.code, statement)]


def both(*conditions: Operand) -> Operand:
    """Conditions of C++ that hold together."""
    if NEVER in conditions:
        return NEVER
    first, *rest = [condition for condition in conditions if condition != ALWAYS] or [ALWAYS]
    for condition in rest:
        first = chained(Binds.AND, first, "&&", condition, (Binds.AND, Binds.AND))
    return first


def either(first: Operand, second: Operand) -> Operand:
    """Conditions of C++ of which one holds."""
    if ALWAYS in (first, second):
        return ALWAYS
    if NEVER in (first, second):
        return second if first == NEVER else first
    return Operand(joined("||", [first.within(Binds.NOT), second.within(Binds.NOT)]), Binds.OR)


def prefixed(text: str, code: Code) -> Code:
    """Code with text right before it, on one line with its first part."""
    match code:
        case str():
            return text + code
        case Brackets(head=head):
            return replace(code, head=text + head)
        case Chain(first=first):
            return replace(code, first=prefixed(text, first))
        case Labelled(label=label):
            return replace(code, label=text + label)
        case Guarded() | Lambda() | Names():
            raise TypeError("nothing stands before a whole statement")


def chained(binds: int, first: Operand, operator: str, second: Operand, wants: tuple[int, int]) -> Operand:
    """Two operands with an operator between them, one chain with those of them that bind like it."""
    left, right = first.within(wants[0]), second.within(wants[1])
    rest: tuple[tuple[str, Code], ...] = ((operator, right),)
    if isinstance(right, Chain) and second.binds == binds:
        rest = ((operator, right.first), *right.rest)
    if isinstance(left, Chain) and first.binds == binds:
        return Operand(Chain(left.first, (*left.rest, *rest)), binds)
    return Operand(Chain(left, rest), binds)


def joined(operator: str, codes: Sequence[Code]) -> Code:
    """Operands with one operator between them all."""
    return codes[0] if len(codes) == 1 else Chain(codes[0], tuple((operator, code) for code in codes[1:]))


def formula_code(formula: Formula, literal: Callable[[str, bool], str], both: str, either: str) -> Operand:
    """A formula that is neither true nor false as an expression.

    Args:
        literal: A guard, or its contrary, as text.
        both: The operator between what holds together.
        either: The operator between what may hold by itself.
    """

    def operand(part: Part) -> Operand:
        if isinstance(part, tuple):
            return Operand(literal(*part))
        parts = [operand(inner).within(Binds.NOT) for inner in part.parts]
        return Operand(joined(both, parts), Binds.AND) if part.both else Operand(joined(either, parts), Binds.OR)

    return operand(formula.expression())


def names_in(code: Code) -> Iterator[str]:
    """The names with which parts of code begin: `m` of `m.sqrt(x)`."""
    match code:
        case str():
            if name := _NAME.match(code):
                yield name[1]
        case Brackets(head, items):
            yield from names_in(head)
            for item in items:
                yield from names_in(item)
        case Chain(first, rest):
            yield from names_in(first)
            for _, item in rest:
                yield from names_in(item)
        case Labelled(value=value):
            yield from names_in(value)
        case Guarded(condition, statement):
            yield from (*names_in(condition), *names_in(statement))
        case Lambda(statement=statement):
            yield from names_in(statement)


def flat(code: Code) -> str:
    """The code in one line."""
    match code:
        case str():
            return code
        case Brackets(head, items, close):
            return f"{head}{', '.join(map(flat, items))}{close}"
        case Chain(first, rest):
            return flat(first) + "".join(f" {operator} {flat(item)}" for operator, item in rest)
        case Labelled(label, value):
            return label + flat(value)
        case Guarded(condition, statement):
            return f"if constexpr ({flat(condition)}) {flat(statement)}"
        case Names(names):
            return f'"{" ".join(names)}"'
        case Lambda(head, statement, close):
            return f"{head} {flat(statement)}; {close}"
