"""Long lines of generated code, broken where a reader would break them.

Python is laid out as ruff and black do it; C++ is filled, broken before operators and after commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from optgen.backends.code import Brackets, Chain, Code, Labelled, flat, prefixed
from optgen.backends.quoting import c_comment

WIDTH = 120
OPENING, CLOSING = "([{", ")]}"
COMPARISONS = (" < ", " <= ", " > ", " >= ", " == ", " != ")
PYTHON_OPERATORS = ((" if ", " else "), (" or ",), (" and ",), COMPARISONS, (" + ", " - "), (" * ", " / "))
C_OPERATORS = ((" ? ", " : "), (" || ",), (" && ",), (" + ", " - "), (" * ", " / "))


def python_code(code: Code, indent: int, end: str = "") -> list[str]:
    """Python as lines that fit when they are indented by `indent`; `end` follows on the last: a comma, or a colon."""
    if indent + len(flat(code)) + len(end) <= WIDTH:
        return [flat(code) + end]
    match code:
        case Labelled(label, value):
            return _labelled(label, value, indent, end)
        case Brackets(head, items, close, groups) if items:
            comma = "" if groups else ","
            inner = (line for item in items for line in python_code(item, indent + 4, comma))
            return [head, *_inner(inner), close.removeprefix(",") + end]
        case Chain(first, rest):
            *parts, last = (first, *(prefixed(f"{operator} ", operand) for operator, operand in rest))
            return [*(line for part in parts for line in python_code(part, indent)), *python_code(last, indent, end)]
    return [flat(code) + end]


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


def c_code(code: Code, indent: int, end: str = ";") -> list[str]:
    """A statement of C++ as lines that fit when they are indented by `indent`: filled, broken before operators."""
    whole = flat(code) + end
    if indent + len(whole) <= WIDTH:
        return [whole]
    match code:
        case Labelled(label, value) if label.endswith("= ") and indent + 4 + len(flat(value) + end) <= WIDTH:
            return [label.rstrip(), f"    {flat(value)}{end}"]
    lines = [""]
    _fill(code, lines, 4, end, WIDTH - indent)
    return lines


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
        case Chain(first, rest):
            _fill(first, lines, margin + 4 * (rest[0][0] == "?"), "", width)
            for number, (operator, operand) in enumerate(rest, 1):
                after = end if number == len(rest) else ""
                text = f" {operator} {flat(operand)}{after}"
                if operator not in "?:" and len(lines[-1] + text) <= width:
                    lines[-1] += text
                    continue
                lines.append(f"{' ' * margin}{operator} ")
                _fill(operand, lines, margin + 4, after, width)
        case Brackets(head, items, close):
            lines[-1] += head
            for number, item in enumerate(items, 1):
                after = "," if number < len(items) else close + end
                if number > 1:
                    fits = len(f"{lines[-1]} {flat(item)}{after}") <= width
                    lines[-1:] = [f"{lines[-1]} "] if fits else [lines[-1], " " * margin]
                _fill(item, lines, margin, after, width)


def python_lines(lines: Iterable[str], indent: int) -> list[str]:
    """Statements as lines that fit when they are indented by `indent`; each may be indented further on its own."""
    return [short for line in lines for short in _python(line, indent)]


def c_lines(lines: Iterable[str], indent: int) -> list[str]:
    """Statements of C++ as lines that fit when they are indented by `indent`."""
    return [short for line in lines for short in _c(line, indent)]


def import_lines(module: str, names: Iterable[str], indent: int = 0) -> list[str]:
    """An import, a name a line where they do not fit in one after `indent` spaces."""
    line = f"from {module} import {', '.join(names)}"
    if indent + len(line) <= WIDTH:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def import_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Where a name stands among others: constants, classes, functions, each by its words and numbers."""
    rank = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.findall(r"(\d+)|(\D+)", name)
    return rank, [(int(number) if number else -1, word) for number, word in parts]


# Python


def _python(line: str, indent: int) -> list[str]:
    own = len(line) - len(line.lstrip(" "))
    text = line.lstrip(" ")
    if indent + len(line) <= WIDTH or text.startswith("#"):
        return [line]
    return [" " * own + part for part in _statement(text, indent + own)]


def _statement(text: str, indent: int) -> list[str]:
    if text.startswith("if ") and text.endswith(":"):
        return _condition(text[3:-1], indent)
    target = re.match(r"(return |\w+(\[[^]]*\])? = )", text)
    if target is None:
        return _element(text, indent)
    head, value = target.group(), text[target.end() :]
    if _bracket(value) is not None:
        return _element(text, indent)
    return _at_an_end(head, value, indent) or [f"{head}(", *_inner(_operands(value, indent + 4)), ")"]


def _at_an_end(head: str, value: str, indent: int) -> list[str]:
    """`x = a / f(...)` and `x = (...) / a` break inside of the brackets, where it is one operation with them."""
    for operators in PYTHON_OPERATORS:
        parts = list(_split(value, operators, keep=True))
        if len(parts) == 2:
            operator, last = parts[1].split(" ", 1)
            place = _bracket(last)
            if place is None and _in_parentheses(parts[0]):
                return [f"{head}(", *_inner(_operands(parts[0][1:-1], indent + 4)), f") {operator} {last}"]
            if place is None:
                return []
            items = last[place + 1 : -1]
            inner = [items] if indent + 4 + len(items) <= WIDTH else _element(last, indent)[1:-1]
            return [f"{head}{parts[0]} {operator} {last[: place + 1]}", *_inner(inner), last[-1]]
        if len(parts) > 1:
            break
    return []


def _condition(text: str, indent: int) -> list[str]:
    for operators in PYTHON_OPERATORS:
        parts = list(_split(text, operators, keep=True))
        if len(parts) == 2 and _in_parentheses(parts[1]):
            first, operator, last = parts[0], *parts[1].split(" ", 1)
            after = ["(", *_inner(_operands(last[1:-1], indent + 4)), "):"]
            if indent + len(f"if {first} {operator} (") <= WIDTH:
                return [f"if {first} {operator} {after[0]}", *after[1:]]
            if _in_parentheses(first):
                after = [f"{last}:"] if indent + len(f") {operator} {last}:") <= WIDTH else after
                return ["if (", *_inner(_operands(first[1:-1], indent + 4)), f") {operator} {after[0]}", *after[1:]]
        if len(parts) > 1:
            break
    return ["if (", *_inner(_operands(text, indent + 4)), "):"]


def _in_parentheses(part: str) -> bool:
    """Whether an operand, with its operator before it if it is not the first, is in parentheses."""
    place = part.find("(")
    value = part[place:]
    opened = place == 0 or (0 < place < 5 and part[place - 1] == " ")
    return opened and next((at for at, depth in _depths(value) if depth == 0 and value[at] == ")"), 0) == len(value) - 1


def _element(text: str, indent: int) -> list[str]:
    """A call, tuple or function of flags, one item a line; what has no brackets to break stays whole."""
    comma = "," if text.endswith(",") else ""
    body = text.removesuffix(",")
    if indent + len(text) <= WIDTH:
        return [text]
    function = re.match(r"(\w+=)?lambda \w+: ", body)
    if function is not None:
        return [f"{function.group()}(", *_inner(_operands(body[function.end() :], indent + 4)), f"){comma}"]
    place = _bracket(body)
    if place is None:
        return [text]
    items = [item for item in _split(body[place + 1 : -1], (", ", ",")) if item]
    lines = [line for item in items for line in _element(f"{item},", indent + 4)]
    return [body[: place + 1], *_inner(lines), f"{body[-1]}{comma}"]


def _bracket(text: str) -> int | None:
    """Where the bracket opens that ends a call or a tuple, if the text is one."""
    if not text or text[-1] not in CLOSING:
        return None
    places = [place for place, depth in _depths(text) if depth == 0 and text[place] in OPENING]
    if not places:
        return None
    place = places[-1]
    head = re.fullmatch(r"(return |[\w.]+ = )?(\"\w+\": |\w+=|\w+: [\w. |\[\],]+ = )?[\w.]*", text[:place])
    call = place > 0 and (text[place - 1].isalnum() or text[place - 1] == "_")
    tuple_like = text[place] != "(" or len(list(_split(text[place + 1 : -1], (",",)))) > 1
    return place if head is not None and (call or tuple_like) else None


def _operands(text: str, indent: int) -> list[str]:
    """An expression in parentheses: one line, or an operand a line with its operator before it."""
    if indent + len(text) <= WIDTH:
        return [text]
    for operators in PYTHON_OPERATORS:
        parts = list(_split(text, operators, keep=True))
        if len(parts) > 1:
            return [line for part in parts for line in _operand(part, indent)]
    return _element(text, indent)


def _operand(part: str, indent: int) -> list[str]:
    if indent + len(part) <= WIDTH or not _in_parentheses(part):
        return _element(part, indent)
    start = part.index("(") + 1
    return [part[:start], *_inner(_operands(part[start:-1], indent + 4)), ")"]


def _inner(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


# C++


def _c(line: str, indent: int) -> list[str]:
    own = len(line) - len(line.lstrip(" "))
    text = line.lstrip(" ")
    if indent + len(line) <= WIDTH:
        return [line]
    if text.startswith("//"):
        return [" " * own + part for part in _comment(text, WIDTH - indent - own)]
    if text.startswith("#"):
        return _directive(text)
    if text.startswith(("if (", "if constexpr (")) and not text.endswith((")", "{")):
        end = next(place for place, depth in _depths(text) if depth == 0 and text[place] == ")") + 1
        head, body = " " * own + text[:end], " " * (own + 2) + text[end + 1 :]
        return [*_c(head, indent), *_c(body, indent)]
    start = text.find(" = ") + 2
    if start > 2 and indent + own + 4 + len(text) - start <= WIDTH:
        return [" " * own + text[:start].rstrip(), " " * (own + 4) + text[start:].lstrip()]
    result, extra = [], 0
    while indent + own + extra + len(text) > WIDTH:
        place = _break(text, WIDTH - indent - own - extra)
        if place is None:
            break
        result.append(" " * (own + extra) + text[:place].rstrip())
        text, extra = text[place:].lstrip(), 4
    return [*result, " " * (own + extra) + text]


def _break(text: str, width: int) -> int | None:
    """The last of the best places to break: outside of most brackets, at the loosest operator."""
    best: tuple[int, int, int] | None = None
    place = None
    for at, depth in _depths(text):
        if at > width:
            break
        if text[at] not in ", ":
            continue
        for rank, operators in enumerate(((", ",), *C_OPERATORS, (" = ",))):
            operator = next((o for o in operators if text.startswith(o, at)), None)
            if operator is None:
                continue
            end = at + 1 if operator == ", " else at + 2 if operator == " = " else at
            key = (-depth, -rank, end)
            if 0 < end <= width and end > 20 and (best is None or key > best):
                best, place = key, end
    return place


def _directive(text: str) -> list[str]:
    """A directive, broken before its clauses and after commas."""
    lines = [""]
    for word in re.split(r" (?=reduction)|(?<=,) ", text):
        clause = word.startswith("reduction")
        if lines[-1] and (clause or len(lines[-1]) + len(word) + 3 > WIDTH):
            lines.append("   " if clause else "       ")
        lines[-1] += f" {word}" if lines[-1] else word
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _comment(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.removeprefix("// ").split(" "):
        if lines[-1] and len(lines[-1]) + len(word) + 4 > width:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return [c_comment(line) for line in lines]


# Both


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """Every place outside of strings, with the number of brackets around it."""
    depth, quote, escaped = 0, "", False
    for place, char in enumerate(text):
        if quote:
            if not escaped and char == quote:
                quote = ""
            escaped = char == "\\" and not escaped
            continue
        if char in "\"'":
            quote = char
            continue
        if char in CLOSING:
            depth -= 1
        yield place, depth
        if char in OPENING:
            depth += 1


def _split(text: str, separators: Iterable[str], keep: bool = False) -> Iterator[str]:
    """The parts between separators outside of brackets; with `keep`, each after the first begins with its own."""
    start = 0
    for place, depth in list(_depths(text)):
        if depth or place < start:
            continue
        found = next((s for s in separators if text.startswith(s, place)), None)
        if found is None:
            continue
        yield text[start:place].strip()
        start = place if keep else place + len(found)
        if keep:
            start = place + 1
    yield text[start:].strip()
