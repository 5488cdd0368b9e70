"""Messages of refusals: text in which `{lr}` stands for a setting, and `{lr!r}` for it as Python writes it.

Nothing else of Python's formats is allowed, so that a message can always be filled in, and shows no more than settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from optgen.diagnostics import Reporter, suggest
from optgen.spec.source import SourceText

_BRACES = re.compile(r"\{\{|\}\}|\{|\}")
_FIELD = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)(!r)?\}")
_NAME = re.compile(r"\{\s*([A-Za-z][A-Za-z0-9_]*)")


def check_message(text: SourceText, known: Iterable[str], reporter: Reporter) -> None:
    """Reports what cannot be filled in.

    Args:
        known: The settings that it may show; `name`, the class, is one always.
    """
    names = {"name", *known}
    for start, end in _braced(text.text):
        part, where = text.text[start:end], text.span(start, end)
        field = _FIELD.fullmatch(part)
        if field is not None and field[1] not in names:
            help_text = suggest(field[1], names) or "`{name}` is the class; settings go by their names"
            reporter.error("undefined-name", f"`{part}` in this message is not a setting", where, help_text)
        elif field is None and part.startswith("{") and part.endswith("}"):
            name = _NAME.match(part)
            shown = name[1] if name is not None and name[1] in names else "name"
            help_text = f"write `{{{shown}}}`, or `{{{shown}!r}}` for text in quotes; a brace itself is written twice"
            reporter.error("message", "in a message, braces hold the name of a setting", where, help_text)
        elif field is None:
            message = f"this `{part[0]}` is not {'closed' if part[0] == '{' else 'opened'}"
            reporter.error("message", message, where, "a brace itself is written twice")


def message_fields(message: str) -> list[str]:
    """The names that a message shows, in its order, each once."""
    fields = (_FIELD.fullmatch(message[start:end]) for start, end in _braced(message))
    return list(dict.fromkeys(field[1] for field in fields if field is not None))


def _braced(message: str) -> Iterable[tuple[int, int]]:
    """Spans of single braces: fields with their contents, and braces without a partner."""
    index = 0
    while (brace := _BRACES.search(message, index)) is not None:
        index = brace.end()
        if brace[0] == "}":
            yield brace.span()
        elif brace[0] == "{":
            index = _closing(message, brace.start())
            yield brace.start(), index


def _closing(message: str, start: int) -> int:
    """The end of a field that begins at `start`; of a brace that is never closed, its own."""
    depth = 0
    for index in range(start, len(message)):
        depth += {"{": 1, "}": -1}.get(message[index], 0)
        if depth == 0:
            return index + 1
    return start + 1
