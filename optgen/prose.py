"""Text that people write in specs, and the names of their files: shown and never run."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn


@dataclass(frozen=True)
class Prose:
    """A title, a documentation, a message, an equation as it is shown, or a path.

    It is no `str`, and f-strings, templates and joins refuse it, so that it comes into a generated file in one way
    only: as a comment, a docstring or a string of its language, by `optgen.backends.quoting`.

    Attributes:
        raw: The text as written, for what quotes by itself, as JSON and HTML do.
    """

    raw: str

    def __str__(self) -> NoReturn:
        raise TypeError("text that people wrote is not code: make it a comment, a docstring or a string")

    def __format__(self, spec: str) -> NoReturn:
        self.__str__()

    def __bool__(self) -> bool:
        return bool(self.raw.strip())

    def __add__(self, other: Prose | str) -> Prose:
        return Prose(self.raw + (other.raw if isinstance(other, Prose) else other))

    def __radd__(self, other: str) -> Prose:
        return Prose(other + self.raw)

    def lines(self) -> list[Prose]:
        """Its lines, without spaces at their ends."""
        return [Prose(line.rstrip()) for line in self.raw.rstrip().split("\n")]

    def filled(self, width: int, first: str = "", rest: str = "") -> list[Prose]:
        """Its words in lines of at most `width` characters.

        Args:
            first: Indentation of the first line.
            rest: Indentation of all others.
        """
        return [Prose(line) for line in _filled(" ".join(self.raw.split()), width, first, rest)]

    def line(self) -> Prose:
        """Its words in one line."""
        return Prose(" ".join(self.raw.split()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """In a spec it is text, of which a file holds no more than this."""
        from pydantic_core import core_schema

        text = core_schema.str_schema(max_length=65536, strict=True)
        written = core_schema.plain_serializer_function_ser_schema(lambda prose: prose.raw)
        return core_schema.no_info_after_validator_function(cls, text, serialization=written)


@lru_cache(maxsize=4096)  # arguments are documented in every class that has them
def _filled(words: str, width: int, first: str, rest: str) -> tuple[str, ...]:
    return tuple(textwrap.wrap(words, width, initial_indent=first, subsequent_indent=rest))
