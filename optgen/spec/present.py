"""Keys that files had before: read as what they are called now, so that older specs go on compiling."""

from __future__ import annotations

from dataclasses import replace

from optgen.diagnostics import Reporter
from optgen.spec.nodes import Document, Mapping, Node

FORMER = {"rules": "refusals", "rejects": "refusals", "variants": "classes"}
FORMER_OF_CLASSES = {"family": "rule", "rejects": "refusals"}
FORMER_TABLE = "variants.yaml"


def with_present_keys(document: Document, reporter: Reporter) -> Document:
    """The document with the keys of today; a key that is there under both names is reported."""
    root = _renamed(document.root, FORMER, document, reporter)
    classes = root.values.get("classes")
    if isinstance(classes, Mapping):
        rows = {name: _row(row, document, reporter) for name, row in classes.values.items()}
        root = replace(root, values={**root.values, "classes": replace(classes, values=rows)})
    return replace(document, root=root)


def _row(row: Node, document: Document, reporter: Reporter) -> Node:
    return _renamed(row, FORMER_OF_CLASSES, document, reporter) if isinstance(row, Mapping) else row


def _renamed(node: Mapping, former: dict[str, str], document: Document, reporter: Reporter) -> Mapping:
    keys, values = {}, {}
    for name, key in node.keys.items():
        present = former.get(name, name)
        if present != name and (present in node.keys or present in keys):
            message = f"`{name}` is called `{present}` now, and the file has both"
            reporter.error("duplicate-key", message, document.source.location(key.start, key.end), "keep one of them")
            continue
        keys[present], values[present] = key, node.values[name]
    return replace(node, keys=keys, values=values)
