"""Calls and tables of generated Python that hold strings: what people wrote, in pieces where it is long."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

from optgen.backends.code import Brackets, Code, Labelled, flat
from optgen.backends.layout import WIDTH, import_lines, import_order, python_code
from optgen.backends.quoting import py_string
from optgen.prose import Prose

OF_BLOCKS = frozenset(("Array", "Block", "Exchange", "Flags", "Partial", "Pass", "Refusal", "Settings", "always"))


def rule_imports(names: Collection[str]) -> tuple[list[str], list[str]]:
    """Imports of what a rule's tables are made of: of its blocks, and others."""
    of_blocks, of_rules = ([name for name in names if (name in OF_BLOCKS) is own] for own in (True, False))
    modules = (("optgen.runtime.block", of_blocks), ("optgen.runtime.rule", of_rules))
    of_blocks, of_rules = (import_lines(m, sorted(own, key=import_order)) if own else [] for m, own in modules)
    return of_blocks, of_rules


def tuple_code(items: Sequence[Code]) -> Brackets:
    """A tuple of these."""
    return Brackets("(", tuple(items), ",)" if len(items) == 1 else ")")


def filled(items: Sequence[str], indent: int) -> list[str]:
    """Items with commas behind them, as many a line as fit."""
    lines: list[str] = []
    for item in items:
        if lines and indent + len(lines[-1]) + len(item) + 2 <= WIDTH:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    return lines


def names_code(items: Sequence[str]) -> Brackets:
    """A tuple of names."""
    return tuple_code([f'"{item}"' for item in items])


def table_lines(name: str, lines: Sequence[str], indent: int) -> list[str]:
    """A field that is a tuple, an entry a line."""
    line = f"{name}=({lines[0]}),"
    if len(lines) == 1 and indent + len(line) <= WIDTH:
        return [line]
    return [f"{name}=(", *(f"    {line}" for line in lines), "),"]


def field_lines(fields: Mapping[str, Code], indent: int) -> list[str]:
    """Arguments by keyword, those that are empty left out."""
    return [
        line for key, code in fields.items() if code for line in python_code(Labelled(f"{key}=", code), indent, ",")
    ]


def docs_lines(name: str, docs: Mapping[str, Prose], indent: int) -> list[str]:
    """A field that is a dict of texts."""
    lines = [line for key, doc in docs.items() for line in string_lines(f'"{key}": ', doc.line(), indent + 4)]
    return [f"{name}={{", *(f"    {line}" for line in lines), "},"]


def call_lines(
    call: str, parts: Sequence[Code | Prose], texts: Mapping[str, Prose], indent: int, end: str = ","
) -> list[str]:
    """A call, an argument a line where it does not fit in one.

    Args:
        parts: Arguments; prose is a string.
        texts: Arguments by keyword that are strings, behind the others.
        end: Text behind it.
    """
    shown = [py_string(part) if isinstance(part, Prose) else flat(part) for part in parts]
    shown += [f"{key}={py_string(text)}" for key, text in texts.items()]
    line = f"{call}({', '.join(shown)}){end}"
    if indent + len(line) <= WIDTH:
        return [line]
    lines = []
    for part in parts:
        if isinstance(part, Prose):
            lines += string_lines("", part, indent + 4)
        else:
            lines += python_code(part, indent + 4, ",")
    for key, text in texts.items():
        lines += string_lines(f"{key}=", text, indent + 4)
    return [f"{call}(", *(f"    {line}" for line in lines), f"){end}"]


def string_lines(head: str, text: Prose, indent: int) -> list[str]:
    """A string as an argument or entry, with `head` before it; in several pieces where it is long."""
    line = f"{head}{py_string(text)},"
    if indent + len(line) <= WIDTH:
        return [line]
    inner = 4 if head else 0
    pieces = textwrap.wrap(
        text.raw, WIDTH - indent - inner - 6, drop_whitespace=False, replace_whitespace=False, expand_tabs=False
    )
    strings = [py_string(piece) for piece in pieces]
    if head:
        return [f"{head}(", *(f"    {string}" for string in strings), "),"]
    return [*strings[:-1], f"{strings[-1]},"]
