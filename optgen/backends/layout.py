"""Long lines of generated code, broken where a reader would break them.

Python is laid out as ruff and black do it; C++ is filled, broken before operators and after commas.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from optgen.backends.code import Brackets, Chain, Code, Guarded, Labelled, Lambda, Names, flat, prefixed

WIDTH = 120


def python_code(code: Code, indent: int, end: str = "") -> list[str]:
    """Python as lines that fit when they are indented by `indent`; `end` follows on the last: a comma, or a colon."""
    if indent + len(flat(code)) + len(end) <= WIDTH:
        return [flat(code) + end]
    match code:
        case Labelled(label, Names() as names):
            return [f"{label}(", *_inner(python_code(names, indent + 4)), f"){end}"]
        case Labelled(label, value):
            return _labelled(label, value, indent, end)
        case Names(names):
            return _pieces(names, indent, end)
        case Brackets(head, items, close, groups) if items:
            comma = "" if groups else ","
            inner = (line for item in items for line in python_code(item, indent + 4, comma))
            return [head, *_inner(inner), close.removeprefix(",") + end]
        case Chain(first, rest):
            *parts, last = (first, *(prefixed(f"{operator} ", operand) for operator, operand in rest))
            return [*(line for part in parts for line in python_code(part, indent)), *python_code(last, indent, end)]
    return [flat(code) + end]


def _pieces(names: Iterable[str], indent: int, end: str) -> list[str]:
    """Strings that follow each other and are one: all but the last end in a space."""
    *lines, last = textwrap.wrap(" ".join(names), WIDTH - indent - 3 - len(end))
    return [*(f'"{line} "' for line in lines), f'"{last}"{end}']


def _labelled(label: str, value: Code, indent: int, end: str) -> list[str]:
    """`x = a / f(...)` and `x = (...) / a` break inside of the brackets, where it is one operation with them."""
    is_item = label.endswith(("=", '": '))  # an argument or an entry, which gets no parentheses
    if is_item or isinstance(value, str | Labelled | Brackets):
        return python_code(prefixed(label, value), indent, end)
    is_function = label.endswith(": ")  # what it gives is in parentheses of its own
    if isinstance(value, Chain) and len(value.rest) == 1 and not is_function:
        if broken := _in_last(label, value, indent, end):
            return broken
        first, after = _first(value)
        if first is not None and (first.groups or _last(value)[1] is not None):
            text = f"{first.close} {flat(after)}{end}"
            ending = [text] if indent + len(text) <= WIDTH else _in_last(f"{first.close} ", after, indent, end)
            if ending:
                return [label + first.head, *_inside(first, indent), *ending]
    return [f"{label}(", *_inner(python_code(value, indent + 4)), f"){end}"]


def _in_last(label: str, value: Code, indent: int, end: str) -> list[str]:
    """A value broken inside of the brackets that it ends in; nothing where it ends in none, or does not fit so."""
    before, last = _last(value)
    if last is None or not last.items or indent + len(label + before + last.head) > WIDTH:
        return []
    return [label + before + last.head, *_inside(last, indent), last.close + end]


def _last(code: Code) -> tuple[str, Brackets | None]:
    """The brackets that code ends in, if any, and the text before them."""
    match code:
        case Brackets():
            return "", code
        case Chain(first, rest):
            text, last = _last(rest[-1][1])
            return f"{flat(Chain(first, rest[:-1]))} {rest[-1][0]} {text}", last
    return "", None


def _first(code: Code) -> tuple[Brackets | None, Code]:
    """The brackets that code begins with, if any, and the code after them."""
    match code:
        case Chain(Brackets() as first, ((operator, operand),)):
            return first, prefixed(f"{operator} ", operand)
        case Chain(Brackets() as first, ((operator, operand), *rest)):
            return first, Chain(prefixed(f"{operator} ", operand), tuple(rest))
        case Chain(first, rest):
            inner, after = _first(first)
            return inner, Chain(after, rest)
    return None, code


def _inside(brackets: Brackets, indent: int) -> list[str]:
    """The items in one line, or an item a line."""
    one = ", ".join(map(flat, brackets.items))
    if indent + 4 + len(one) <= WIDTH:
        return [f"    {one}"]
    comma = "" if brackets.groups else ","
    return _inner(line for item in brackets.items for line in python_code(item, indent + 4, comma))


def _inner(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def c_lines(statements: Iterable[Code], indent: int) -> list[str]:
    """Statements of C++, without their semicolons, as lines that fit when they are indented by `indent`."""
    return [line for statement in statements for line in c_code(statement, indent)]


def c_code(code: Code, indent: int, end: str = ";") -> list[str]:
    """A statement of C++ as lines that fit when they are indented by `indent`: filled, broken before operators."""
    whole = flat(code) + end
    if indent + len(whole) <= WIDTH:
        return [whole]
    match code:
        case Labelled(label, value) if label.endswith("= ") and indent + 4 + len(flat(value) + end) <= WIDTH:
            return [label.rstrip(), f"    {flat(value)}{end}"]
        case Labelled(label, Chain(first) as value) if label.endswith("= "):
            if indent + len(label + flat(first)) > WIDTH >= indent + 4 + len(flat(first)):
                lines = [label.rstrip(), "    "]
                _fill(value, lines, 4, end, WIDTH - indent)
                return lines
        case Lambda(start, statement, close):
            return [start, *(f"  {line}" for line in c_code(statement, indent + 2)), close + end]
        case Guarded(condition, statement):
            head = Brackets("if constexpr (", (condition,))
            return [*c_code(head, indent, ""), *(f"  {line}" for line in c_code(statement, indent + 2, end))]
    lines = [""]
    _fill(code, lines, 4, end, WIDTH - indent)
    return lines


def struct_lines(name: str, members: Sequence[str]) -> list[str]:
    """A struct of C++ with these lines, in one line where it fits."""
    one = f"struct {name} {{{''.join(f' {line}' for line in members)}{' ' if members else ''}}};"
    if len(members) < 2 and len(one) <= WIDTH:
        return [one]
    return [f"struct {name} {{", *(f"  {line}" for line in members), "};"]


def c_pragma(pragma: str, clauses: Iterable[Code]) -> list[str]:
    """A directive with its clauses, each on a line of its own where they do not fit on one."""
    clauses = list(clauses)
    one = " ".join([pragma, *map(flat, clauses)])
    if len(one) <= WIDTH:
        return [one]
    lines = [pragma, *(f"    {line}" for clause in clauses for line in c_code(clause, 6, ""))]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _fill(code: Code, lines: list[str], margin: int, end: str, width: int) -> None:
    """Go on with code on the last line, and where it does not fit on lines of their own, indented by `margin`."""
    if len(lines[-1] + flat(code) + end) <= width:
        lines[-1] += flat(code) + end
        return
    match code:
        case str():
            lines[-1] += code + end
        case Labelled(label, value):
            lines[-1] += label
            _fill(value, lines, margin, end, width)
        case Guarded() | Lambda() | Names():
            raise TypeError("a whole statement cannot be part of another")
        case Chain(first, rest):
            _fill(first, lines, margin + 4 * (rest[0][0] == "?"), "", width)
            for number, (operator, operand) in enumerate(rest, 1):
                after = end if number == len(rest) else ""
                text = f" {operator} {flat(operand)}{after}"
                if operator != "?" and len(lines[-1] + text) <= width:
                    lines[-1] += text
                    continue
                lines.append(f"{' ' * margin}{operator} ")
                _fill(operand, lines, margin + 4, after, width)
        case Brackets(head, items, close):
            lines[-1] += head
            for number, item in enumerate(items, 1):
                after = "," if number < len(items) else close + end
                space = " " if number > 1 else ""
                fits = len(f"{lines[-1]}{space}{flat(item)}{after}") <= width
                begins = number == 1 and not isinstance(item, str) and len(lines[-1] + _beginning(item)) <= width
                if fits or begins:
                    lines[-1] += space
                else:
                    lines.append(" " * margin)
                _fill(item, lines, margin, after, width)


def _beginning(code: Code) -> str:
    """Part of code that stands in one line in any case: all before the first place where that may end."""
    match code:
        case Chain(first):
            return _beginning(first)
        case Brackets(head, (Brackets() | Chain() as first, *_)):
            return head + _beginning(first)
        case Brackets(head, (_, *_)):
            return head
    return flat(code)


def function_head(name: str, parameters: Sequence[str], returns: str) -> list[str]:
    """The first lines of a function in Python."""
    joined = ", ".join(parameters)
    line = f"def {name}({joined}) -> {returns}:"
    if len(line) <= WIDTH:
        return [line]
    inner = [joined] if 4 + len(joined) <= WIDTH else [f"{parameter}," for parameter in parameters]
    return [f"def {name}(", *(f"    {text}" for text in inner), f") -> {returns}:"]


def import_lines(module: str, names: Iterable[str], indent: int = 0) -> list[str]:
    """An import, a name a line where they do not fit in one after `indent` spaces."""
    line = f"from {module} import {', '.join(names)}"
    if indent + len(line) <= WIDTH:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def import_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key of an imported name: constants, classes, functions, each by its words, in any case, and numbers."""
    rank, parts = listing_order(name)
    return rank, [(number, word.lower()) for number, word in parts]


def listing_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key of a name in `__all__`: the same, with capitals before small letters."""
    rank = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.findall(r"(\d+)|(\D+)", name)
    return rank, [(int(number) if number else -1, word) for number, word in parts]
