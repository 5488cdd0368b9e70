"""Vectors of states: `momentum: {count: 3}` declares `momentum_0`, `momentum_1` and `momentum_2`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from optgen.diagnostics import Reporter
from optgen.spec.model import Spec, StageSpec, State
from optgen.spec.nodes import Document
from optgen.spec.nodes import Mapping as MappingNode

Vectors = dict[str, tuple[str, ...]]
Holder = TypeVar("Holder", Spec, StageSpec)


def with_vectors(document: Document, spec: Holder, reporter: Reporter) -> tuple[Document, Holder, Vectors]:
    """A rule with every state of a vector by itself, and their names by the name of the vector."""
    vectors: Vectors = {}
    states: dict[str, State] = {}
    node = document.find("states")
    if not isinstance(node, MappingNode) or all(state.count is None for state in spec.states.values()):
        return document, spec, vectors
    keys, values = dict(node.keys), dict(node.values)
    for name, state in spec.states.items():
        count = _count(name, state, document, spec, reporter)
        if count is None:
            states[name] = state
            continue
        vectors[name] = tuple(f"{name}_{number}" for number in range(count))
        for part in vectors[name]:
            if part in spec.states:
                message = f"`{part}` is a state of its own, and one of the vector `{name}`"
                reporter.error("duplicate-name", message, document.locate_key("states", part), "rename one")
            states[part] = state.model_copy(update={"count": None})
            keys[part], values[part] = node.keys[name], node.values[name]
    root = replace(document.root, values={**document.root.values, "states": replace(node, keys=keys, values=values)})
    return replace(document, root=root), spec.model_copy(update={"states": states}), vectors


def _count(name: str, state: State, document: Document, spec: Spec | StageSpec, reporter: Reporter) -> int | None:
    if not isinstance(state.count, str):
        return state.count
    hyper = spec.hyperparameters.get(state.count)
    if hyper is not None and hyper.names:
        return len(hyper.names)
    message = f"`{state.count}` is not a hyperparameter of several numbers"
    where = document.locate("states", name, "count")
    reporter.error("undefined-name", message, where, "write a number, or the name of one with `names`")
    return 1
