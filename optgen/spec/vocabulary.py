"""Words that rules share: a spec that names one need not say again what it means.

`lr: 1e-3` is a hyperparameter with the range, the label and the documentation that `vocabulary.yaml` has for `lr`; what
a spec says itself comes before that. The short forms are written out in the document's tree, so that every part has
its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from optgen.diagnostics import Reporter, suggest
from optgen.spec.model import (
    Hyperparameter,
    NumberWord,
    Option,
    OptionWord,
    Shared,
    Spec,
    StageSpec,
    State,
    Vocabulary,
)
from optgen.spec.nodes import Document, Node, Scalar, Sequence, is_null, is_text
from optgen.spec.nodes import Mapping as MappingNode
from optgen.spec.ranges import parse_range
from optgen.spec.validation import validate

Word = NumberWord | OptionWord | State
Declared = TypeVar("Declared", Hyperparameter, Option, State)
Holder = TypeVar("Holder", Spec, StageSpec, Shared)
LONG = {
    "hyperparameters": '{name}: {{default: {text}, range: "[0, inf)", doc: ...}}',
    "options": "{name}: {{default: {text}, doc: ...}}",
}


@dataclass(frozen=True)
class Words:
    """The words that a build knows, by section and name."""

    sections: Mapping[str, Mapping[str, Word]]

    @staticmethod
    def of(*vocabularies: Vocabulary) -> Words:
        """The words of several files, of which later ones come before earlier ones."""
        words = Words({name: {} for name in (*Vocabulary.model_fields, "inputs")})
        for vocabulary in vocabularies:
            words = words.with_words(vocabulary)
        return words

    def with_words(self, vocabulary: Vocabulary) -> Words:
        """These, and before them those of a vocabulary."""
        more = {name: getattr(vocabulary, name) for name in Vocabulary.model_fields}
        return Words({name: {**words, **more.get(name, {})} for name, words in self.sections.items()})

    def read(self, document: Document, model: type[Holder], reporter: Reporter) -> tuple[Document, Holder | None]:
        """The document with its short forms written out, and the model that it is; None if it is none."""
        long = self._written_out(document, reporter)
        holder = validate(long, model, reporter)
        return long, None if holder is None else self._completed(holder, document)

    def _written_out(self, document: Document, reporter: Reporter) -> Document:
        """The document with mappings for short forms; one of what is no word is reported."""
        values = dict(document.root.values)
        for section, words in self.sections.items():
            node = values.get(section)
            if isinstance(node, MappingNode):
                items = node.values.items()
                long = {name: _long(section, name, part, words, document, reporter) for name, part in items}
                values[section] = replace(node, values=long)
        return replace(document, root=replace(document.root, values=values))

    def _completed(self, holder: Holder, written: Document) -> Holder:
        """A model whose declarations have what the vocabulary says of their names, where they say nothing themselves.

        A state that is written as a mapping stands by itself: how it is stored is said in its own file alone.
        """
        words = self.sections
        states = words["states"].items()
        short = {name: word for name, word in states if not isinstance(written.find("states", name), MappingNode)}
        sections = {
            "hyperparameters": _completed(holder.hyperparameters, words["hyperparameters"]),
            "options": _completed(holder.options, words["options"]),
            "states": _completed(holder.states, short),
        }
        return holder.model_copy(update={name: declared for name, declared in sections.items() if declared})


def _completed(declared: Mapping[str, Declared], words: Mapping[str, Word]) -> dict[str, Declared]:
    """Declarations with all that words say and they do not."""
    found = {}
    for name, own in declared.items():
        word = words.get(name)
        more = word.model_fields_set - own.model_fields_set if word is not None else ()
        found[name] = own.model_copy(update={key: getattr(word, key) for key in more})
    return found


def _long(
    section: str, name: str, node: Node, words: Mapping[str, Word], document: Document, reporter: Reporter
) -> Node:
    """A declaration as a mapping; what is neither short nor a mapping stays as it is."""
    if isinstance(node, MappingNode) or (is_null(node) and name not in words):
        return node
    if section in ("states", "inputs"):
        empty = MappingNode(node.source, node.start, node.end, {}, {})
        return _mapping(node, "doc") if is_text(node) else empty if is_null(node) else node
    if name not in words:
        if is_text(node) if section == "hyperparameters" else isinstance(node, Sequence):
            return node
        text = document.source.text[node.start : node.end]
        written = LONG[section].format(name=name, text=text if len(text) <= 40 and "\n" not in text else "...")
        close = suggest(name, words)
        message = f"`{name}` is not in the vocabulary, so its default alone does not describe it"
        help_text = f"{close.removesuffix('?')}, or write `{written}`" if close else f"write `{written}`"
        reporter.error("vocabulary", message, document.source.location(node.start, node.end), help_text)
    return _mapping(node, "default")


def _mapping(node: Scalar | Sequence, key: str) -> MappingNode:
    """A value as the only one of a mapping, which stands where the value does."""
    where = node.source, node.start, node.end
    return MappingNode(*where, {key: Scalar(*where, key, "")}, {key: node})


def check_vocabulary(vocabulary: Vocabulary, document: Document, reporter: Reporter) -> None:
    """Checks what no rule need use: that ranges can be read, and that enumerations have choices."""
    for name, number in vocabulary.hyperparameters.items():
        try:
            parse_range(number.range)
        except ValueError as error:
            where = document.locate("hyperparameters", name, "range")
            reporter.error("range", str(error), where, 'write two numbers as "[0, 1)", "(0, inf)" or "[1, 8]"')
    for name, option in vocabulary.options.items():
        if option.choices is not None and not option.choices:
            where = document.locate("options", name, "choices")
            reporter.error("choices", f"`{name}` has no choice", where, "list at least one")
