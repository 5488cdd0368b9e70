"""Text with its place in a file: what turns positions in a spec's strings into positions in its YAML."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from optgen.diagnostics import Location

_ESCAPE_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """A file as read: its path as the user gave it, and its text, whose lines end in a line feed."""

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines, without their ends."""
        return self.text.split("\n")

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for line in self.lines:
            starts.append(starts[-1] + len(line) + 1)
        return starts[:-1]

    def line_of(self, index: int) -> int:
        """The line, from 0, that the character at `index` of the text stands in."""
        return bisect_right(self._starts, max(index, 0)) - 1

    def line_start(self, line: int) -> int:
        """The index in the text of the first character of a line, counted from 0; the text's length if past its end."""
        return self._starts[line] if line < len(self._starts) else len(self.text)

    def location(self, start: int, end: int | None = None) -> Location:
        """The place of `text[start:end]`, cut at the end of its first line; one character if no end is given."""
        start = min(max(start, 0), len(self.text))
        line = self.line_of(start)
        column = start - self._starts[line]
        room = len(self.lines[line]) - column
        length = 1 if end is None else min(end - start, room)
        return Location(self.path, line + 1, column + 1, max(length, 1))


@dataclass(frozen=True)
class SourceText:
    """The text of a YAML scalar with its place in the file.

    Attributes:
        text: Value of the scalar, after YAML's escapes, indentation and folding.
        source: The file.
        start: Index in the file's text where the scalar begins: its first character, its quote, or its bar.
        end: Index where it ends.
        style: `""` plain, `"'"`, `'"'`, `"|"` literal or `">"` folded.
    """

    text: str
    source: SourceFile
    start: int
    end: int
    style: str = ""

    @property
    def file(self) -> str:
        """The file's path, as messages show it."""
        return self.source.path

    @property
    def lines_written(self) -> int:
        """Number of lines of the file that the text itself takes."""
        written = self.source.text[self.start : self.end].strip()
        return written.count("\n") + (0 if self.style in ("|", ">") else 1)

    def locate(self, line: int, column: int, length: int = 1) -> Location:
        """The place in the file of a part of the text, given as Python's `ast` gives positions.

        Args:
            line: Counted from 1.
            column: Counted from 0, in bytes of UTF-8.
            length: In bytes of UTF-8; what reaches over the end of the line is cut off.
        """
        index, stop = self._characters(line, column, length)
        places = self._places
        if not places:
            return self.source.location(self.start, self.end if self.style == "" else None)
        if index >= len(places):
            return self.source.location(places[-1] + 1)
        return self.source.location(places[index], places[max(stop - 1, index)] + 1)

    def whole(self) -> Location:
        """The place of the text, or of its first line where it has several."""
        first = len(self.text.split("\n", 1)[0].encode())
        return self.locate(1, 0, max(first, 1))

    def span(self, start: int, end: int) -> Location:
        """The place of `text[start:end]`, which is not empty."""
        return self.source.location(self._places[start], self._places[end - 1] + 1)

    def _characters(self, line: int, column: int, length: int) -> tuple[int, int]:
        """Indices in `text` of a part of a line given in bytes."""
        lines = self._own.lines
        line = min(max(line, 1), len(lines))
        before = self._own.line_start(line - 1)
        encoded = lines[line - 1].encode("utf-8", "surrogatepass")
        column = min(max(column, 0), len(encoded))
        head = len(encoded[:column].decode("utf-8", "ignore"))
        part = len(encoded[column : column + max(length, 1)].decode("utf-8", "ignore"))
        return before + head, before + head + max(part, 1)

    @cached_property
    def _own(self) -> SourceFile:
        """The text's own lines."""
        return SourceFile(self.source.path, self.text)

    @cached_property
    def _places(self) -> list[int]:
        """Index in the file's text of each character of `text`."""
        if self.style == "|":
            return self._literal_places()
        return self._aligned_places()

    def _literal_places(self) -> list[int]:
        """A literal's lines are the file's lines after the bar, each with its indentation cut off."""
        places: list[int] = []
        first = self.source.line_of(self.start) + 1
        for number, text in enumerate(self.text.split("\n"), start=first):
            start = self.source.line_start(number)
            line = self.source.lines[number] if number < len(self.source.lines) else ""
            start += max(len(line) - len(text), 0)
            places.extend(range(start, start + len(text) + 1))
        return places[: len(self.text)]

    def _aligned_places(self) -> list[int]:
        """Pairs the text with the file character by character; only white space differs, where lines are folded."""
        characters = self._source_characters()
        places: list[int] = []
        position, last = 0, self.start
        for wanted in self.text:
            if not wanted.isspace():
                while position < len(characters) and characters[position][0] != wanted:
                    position += 1
            if position < len(characters):
                found, last = characters[position]
                if found == wanted or found.isspace():
                    position += 1
            places.append(last)
        return places

    def _source_characters(self) -> list[tuple[str, int]]:
        """The characters that the scalar is written with, quotes and escapes resolved, and where each stands."""
        source, start, end = self.source.text, self.start, self.end
        if self.style == ">":
            start = self.source.line_start(self.source.line_of(start) + 1)
        elif self.style:
            start, end = start + 1, end - 1
        result: list[tuple[str, int]] = []
        index = start
        while index < end:
            char, width = source[index], 1
            if self.style == "'" and char == "'":
                width = 2
            elif self.style == '"' and char == "\\":
                char, width = _unescape(source, index)
            if char:
                result.append((char, index))
            index += width
        return result


NO_TEXT = SourceText("", SourceFile("", ""), 0, 0)


def _unescape(source: str, index: int) -> tuple[str, int]:
    """The character that an escape of a double-quoted scalar stands for ("" for an escaped line end), its width."""
    letter = source[index + 1 : index + 2]
    if letter == "\n":
        return "", 2
    digits = _ESCAPE_DIGITS.get(letter, 0)
    if digits:
        return chr(int(source[index + 2 : index + 2 + digits], 16)), 2 + digits
    return _ESCAPES.get(letter, letter), 2
