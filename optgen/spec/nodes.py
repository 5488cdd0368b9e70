"""YAML with positions: from the bytes of a file to a tree of nodes that know where they stand.

Input: a path. Output: a `Document`, or one diagnostic for what made the file unreadable. The YAML is a plain subset:
no anchors, aliases, tags, merge keys or several documents; keys are strings, each given once; scalars are those of
YAML 1.2's core schema, so `1e-3` is a number and `yes` is not a boolean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import yaml

from optgen.diagnostics import Diagnostic, Location, Reporter
from optgen.spec.source import SourceFile, SourceText

MAX_BYTES = 256_000
MAX_DEPTH = 24
MAX_ITEMS = 1000
Key = str | int

# Controls, line ends that only some programs see, and what turns the direction of text: a reader would see other text.
_FORBIDDEN = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INT_LIMIT = 2**63


@dataclass(frozen=True)
class Scalar:
    """A string, number, boolean or null as written: `text` after YAML's own escapes; `style` as in `SourceText`."""

    source: SourceFile
    start: int
    end: int
    text: str
    style: str


@dataclass(frozen=True)
class Sequence:
    """A list, with its place in the file's text."""

    source: SourceFile
    start: int
    end: int
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Mapping:
    """Keys with their values, in the order of the file, with its place in the file's text."""

    source: SourceFile
    start: int
    end: int
    keys: dict[str, Scalar]
    values: dict[str, Node]


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True)
class Document:
    """A YAML file whose parts are found by path: `("states", "exp_avg", "init")`, `("refusals", 0, "when")`.

    Parts of other files may have been put into it; each node knows its own.
    """

    source: SourceFile
    root: Mapping

    def find(self, *keys: Key) -> Node | None:
        """The node at a path, or None."""
        node: Node | None = self.root
        for key in keys:
            node = child(node, key)
        return node

    def locate(self, *keys: Key) -> Location:
        """Location of the value at a path; if there is none, of the nearest parent's key."""
        node = self.find(*keys)
        return self.locate_key(*keys[:-1]) if node is None else _place(node)

    def locate_key(self, *keys: Key) -> Location:
        """Location of the key at a path, or of the item of a list; if there is none, of the nearest parent's key."""
        return _place(self._nearest(*keys))

    def text(self, *keys: Key) -> SourceText:
        """The scalar at a path with its place. Where there is none: an empty text at the nearest parent's key."""
        node = self.find(*keys)
        if isinstance(node, Scalar):
            return SourceText(node.text, node.source, node.start, node.end, node.style)
        near = self._nearest(*keys)
        return SourceText("", near.source, near.start, near.end)

    def _nearest(self, *keys: Key) -> Node:
        """The key at a path, or the item of a list; if there is none, the nearest parent's key."""
        while keys:
            parent = self.find(*keys[:-1])
            if isinstance(parent, Mapping) and keys[-1] in parent.keys:
                return parent.keys[str(keys[-1])]
            item = self.find(*keys)
            if isinstance(parent, Sequence) and item is not None:
                return item
            keys = keys[:-1]
        return next(iter(self.root.keys.values()), self.root)


def _place(node: Node) -> Location:
    """The place of a node; of a text below a bar, the bar."""
    block = isinstance(node, Scalar) and node.style in ("|", ">")
    return node.source.location(node.start, node.start + 1 if block else node.end)


def child(node: Node | None, key: Key) -> Node | None:
    """The value of a mapping's key or the item of a list; None where there is none."""
    if isinstance(node, Mapping) and isinstance(key, str):
        return node.values.get(key)
    if isinstance(node, Sequence) and isinstance(key, int) and 0 <= key < len(node.items):
        return node.items[key]
    return None


def read_document(path: Path, reporter: Reporter) -> Document | None:
    """Reads a file; whatever it holds, the outcome is a document or an error in `reporter`."""
    source = _read(path, reporter)
    return None if source is None else compose(source, reporter)


def _read(path: Path, reporter: Reporter) -> SourceFile | None:
    name = path.as_posix()

    def refuse(rule: str, message: str, help_text: str = "", line: int = 0, column: int = 1) -> None:
        reporter.error(rule, message, Location(name, line or 1, column), help_text)

    try:
        if not path.is_file():
            missing = "is not a file" if path.exists() else "does not exist"
            reporter.error("no-file", f"`{name}` {missing}", None, "give the path of a spec or of a folder of specs")
            return None
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reporter.error("no-file", f"`{name}` cannot be read: {reason}", None)
        return None
    if len(data) > MAX_BYTES:
        refuse("file-too-large", f"this file is larger than {MAX_BYTES // 1000} kB", "a spec is a few kB of YAML")
        return None
    if b"\0" in data:
        refuse("not-text", "this file is not text: it holds zero bytes", "a spec is YAML in UTF-8")
        return None
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        reporter.add_source(name, data.decode("utf-8", "replace"))
        byte = f"0x{data[error.start]:02x}"
        refuse("not-utf-8", f"the byte {byte} is not UTF-8", "save the file as UTF-8", line, column)
        return None
    source = SourceFile(name, text)
    reporter.add_source(name, text)
    return source


def compose(source: SourceFile, reporter: Reporter) -> Document | None:
    """The tree of a file whose top is a mapping; anything else is reported and gives None."""
    document, diagnostics = _composed(source)
    reporter.add(diagnostics)
    return document


@lru_cache(maxsize=64)
def _composed(source: SourceFile) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """The tree of a file, and the diagnostics of reading it.

    Kept, since a process that loads several specs by themselves reads the files beside them for each of these.
    """
    reporter = Reporter()
    return _compose(source, reporter), reporter.diagnostics


def _compose(source: SourceFile, reporter: Reporter) -> Document | None:
    bad = _FORBIDDEN.search(source.text)
    if bad:
        message = f"the character U+{ord(bad.group()):04X} is not allowed in a spec"
        reporter.error("control-character", message, source.location(bad.start()), "remove it")
        return None
    tab = re.search(r"^ *\t+", source.text, re.MULTILINE)
    if tab:
        where = source.location(tab.end() - 1)
        reporter.error("tab", "a tab is not allowed as indentation", where, "indent with spaces")
        return None
    composer = _Composer(source, reporter)
    try:
        root = composer.document()
    except _StopError:
        return None
    except yaml.MarkedYAMLError as error:
        reporter.error("yaml", *_yaml_message(error, source))
        return None
    except (yaml.YAMLError, ValueError, OverflowError):  # PyYAML passes on what chr() and int() raise
        where = source.location(composer.loader.get_mark().index)
        reporter.error(
            "yaml", "this cannot be read as YAML", where, "does it hold an escape that stands for no character?"
        )
        return None
    if isinstance(root, Mapping):
        return Document(source, root)
    if root is None or is_null(root):
        help_text = "`optgen new NAME` writes a spec to edit"
        reporter.error("empty-file", "this file is empty", source.location(0), help_text)
        return None
    where = source.location(root.start, root.end)
    reporter.error("not-a-mapping", "a spec is a mapping of keys to values", where, "begin with `name: my_rule`")
    return None


def to_data(node: Node, source: SourceFile, reporter: Reporter) -> object:
    """The plain Python value of a node; numbers that are too large are reported."""
    match node:
        case Mapping(values=values):
            return {key: to_data(value, source, reporter) for key, value in values.items()}
        case Sequence(items=items):
            return [to_data(item, source, reporter) for item in items]
        case Scalar():
            return _scalar(node, source, reporter)


def is_number(text: str) -> bool:
    """Check whether the loader reads plain text as a number."""
    return _FLOAT.fullmatch(text) is not None


def is_null(node: Node) -> bool:
    """Tells a value that is left out, or written as null."""
    return isinstance(node, Scalar) and node.style == "" and node.text in ("", "~", "null")


def is_text(node: Node) -> bool:
    """Tells text from numbers, truth values and null."""
    return isinstance(node, Scalar) and bool(node.style or not (node.text in _CONSTANTS or is_number(node.text)))


def _scalar(node: Scalar, source: SourceFile, reporter: Reporter) -> object:
    text = node.text
    if node.style:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not is_number(text):
        return text
    value = int(text) if _INT.fullmatch(text) and len(text) < 32 else float(text)
    if abs(value) >= _INT_LIMIT if isinstance(value, int) else math.isinf(value):
        where = source.location(node.start, node.end)
        reporter.error("number", "this number is too large", where, "write a smaller one, in the form 1e30 if need be")
        return 0
    return value


class _StopError(Exception):
    """Raised when a file cannot be read any further; the reason has been reported."""


class _Composer:
    """Builds nodes from PyYAML's events, which carry positions."""

    def __init__(self, source: SourceFile, reporter: Reporter) -> None:
        self.source = source
        self.reporter = reporter
        self.loader = yaml.SafeLoader(source.text)

    def document(self) -> Node | None:
        events = self._events()
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._stop(event, "several-documents", "a spec is one YAML document", "remove this `---`")
                root = self._node(next(events), events, 0)
        return root

    def _events(self) -> Iterator[yaml.Event]:
        while self.loader.check_event():
            yield self.loader.get_event()  # type: ignore[no-untyped-call]

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Node:
        start, end = _span(event)
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, "alias", "aliases are not allowed in a spec", "write the value out")
        if getattr(event, "anchor", None) is not None:
            self._stop(event, "anchor", "anchors are not allowed in a spec", "write the value out where it is needed")
        if getattr(event, "tag", None) is not None:
            self._stop(event, "tag", "tags are not allowed in a spec", "remove the word with the `!`")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, start, end)
        if depth >= MAX_DEPTH:
            self._stop(event, "too-deep", f"this nests more than {MAX_DEPTH} levels deep", "a spec needs only a few")
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                if len(items) == MAX_ITEMS:
                    self._stop(item, "too-long", f"this list has more than {MAX_ITEMS} items", "shorten it")
                items.append(self._node(item, events, depth + 1))
            return Sequence(self.source, start, _span(item)[1] if event.flow_style else end, tuple(items))
        return self._mapping(event, events, depth)

    def _mapping(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Mapping:
        keys: dict[str, Scalar] = {}
        values: dict[str, Node] = {}
        while not isinstance(key_event := next(events), yaml.MappingEndEvent):
            key = self._node(key_event, events, depth + 1)
            if not isinstance(key, Scalar):
                self._stop(key_event, "key", "a key is a plain name", "quote it if it is text with brackets")
            where = self.source.location(key.start, key.end)
            if key.text == "<<" and key.style == "":
                self._stop(key_event, "merge-key", "merge keys are not allowed in a spec", "write the values out")
            value = self._node(next(events), events, depth + 1)
            if key.text in keys:
                first = self.source.line_of(keys[key.text].start) + 1
                message = f"the key `{key.text}` is given twice"
                self.reporter.error("duplicate-key", message, where, f"first given in line {first}; remove one")
                continue
            keys[key.text], values[key.text] = key, value
        flow = getattr(event, "flow_style", False)
        return Mapping(self.source, _span(event)[0], _span(key_event if flow else event)[1], keys, values)

    def _scalar(self, event: yaml.ScalarEvent, start: int, end: int) -> Scalar:
        bad = _FORBIDDEN.search(event.value)
        if bad:
            message = f"this text holds the character U+{ord(bad.group()):04X}"
            self._stop(event, "control-character", message, "remove the escape that stands for it")
        return Scalar(self.source, start, end, event.value, event.style or "")

    def _stop(self, event: yaml.Event, rule: str, message: str, help_text: str) -> NoReturn:
        where = self.source.location(*_span(event))
        self.reporter.error(rule, message, where, help_text)
        raise _StopError


def _span(event: yaml.Event) -> tuple[int, int]:
    start, end = event.start_mark, event.end_mark
    return (start.index if start else 0), (end.index if end else 0)


def _yaml_message(error: yaml.MarkedYAMLError, source: SourceFile) -> tuple[str, Location, str]:
    """PyYAML's message in plain words, its place, and what would be right."""
    problem = (error.problem or "this cannot be read").strip()
    context = (error.context or "").strip()
    mark, begin = error.problem_mark or error.context_mark, error.context_mark or error.problem_mark
    where = source.location(mark.index if mark else 0)
    if "mapping values are not allowed" in problem:
        return "a `:` is not allowed here", where, "quote text that holds `: `, or check the indentation"
    if "could not find expected ':'" in problem:
        where = source.location(begin.index, len(source.text)) if begin else where
        return "this line has no `key: value`", where, "write `key: value`, or check the indentation"
    if "cannot start any token" in problem:
        char = problem.removeprefix("found character ").split(" that ")[0].strip("'\"")
        return f"a value cannot begin with `{char}`", where, "put the text in quotes"
    if "expected <block end>" in problem:
        return "the indentation does not match the lines above", where, "indent all keys of a mapping equally"
    if problem.startswith("expected ',' or"):
        return f"expected `,` or `{problem[17]}` here", where, "close the bracket, or quote text that holds brackets"
    if "found unexpected end of stream" in problem:
        where = source.location(begin.index) if begin else where
        return "this quote is not closed", where, "add the closing quote"
    return f"this is not YAML: {problem}" + (f" ({context})" if context else ""), where, ""
