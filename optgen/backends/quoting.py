"""Renders text that people wrote as comments, docstrings and strings of the target languages, and names as identifiers.

Here alone does `Prose` become a part of a generated file. What a reader could not see, or a compiler could take for the
end of a line, is shown as an escape.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NewType

from optgen.diagnostics import printable
from optgen.prose import Prose

Comment = NewType("Comment", str)
"""A whole line that a compiler passes over."""
Docstring = NewType("Docstring", str)
"""A line between triple double quotes."""
StringLiteral = NewType("StringLiteral", str)
"""A string with its quotes."""
Identifier = NewType("Identifier", str)
"""A name in ASCII."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPLICED = re.compile(r"(\\|\?\?/)$")
_ENCODING = re.compile(r"(coding)([:=])")


def c_comment(text: Prose | str) -> Comment:
    """A comment of C++, which ends with its line: nothing at its end draws the next line into it."""
    line = f"// {_line(text)}".rstrip()
    return Comment(f"{line} (continued)" if _SPLICED.search(line) else line)


def python_comment(text: Prose | str) -> Comment:
    """A comment of Python, which in a file's first lines names no encoding (PEP 263)."""
    return Comment(_ENCODING.sub(r"\1 \2", f"# {_line(text)}".rstrip()))


def docstring(text: Prose | str) -> Docstring:
    """A line that can stand in a docstring: nothing in it ends the docstring or is an escape."""
    line = _line(text)
    body, last = (line[:-1], '\\"') if line.endswith('"') else (line, "")
    return Docstring(body.replace("\\", "\\\\").replace('"""', '\\"\\"\\"') + last)


def py_string(text: Prose | str) -> StringLiteral:
    """A string as Python text, in double quotes unless it holds more of them than of single ones."""
    raw = text.raw if isinstance(text, Prose) else text
    quote = "'" if raw.count('"') > raw.count("'") else '"'
    return StringLiteral(quote + "".join(_character(char, quote) for char in raw) + quote)


@cache
def identifier(name: str) -> Identifier:
    """A name that is one in every target.

    Raises:
        ValueError: for anything else.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not an identifier")
    return Identifier(name)


def _line(text: Prose | str) -> str:
    return printable(text.raw if isinstance(text, Prose) else text)


def _character(char: str, quote: str) -> str:
    if char in "'\"":
        return f"\\{char}" if char == quote else char
    return repr(char)[1:-1]
