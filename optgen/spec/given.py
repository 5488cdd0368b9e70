"""Inputs of parameters: `inputs: {max_logits: {shape: matrix}}` is kept with a parameter until a step takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from optgen.diagnostics import Reporter
from optgen.spec.model import GivenState, Spec, StageSpec, State
from optgen.spec.nodes import Document
from optgen.spec.nodes import Mapping as MappingNode

Holder = TypeVar("Holder", Spec, StageSpec)


def with_given(document: Document, spec: Holder, reporter: Reporter) -> tuple[Document, Holder]:
    """A rule whose inputs of parameters stand among its states."""
    node = document.find("inputs")
    shaped = {name: given for name, given in spec.inputs.items() if given.shape is not None}
    if not isinstance(node, MappingNode) or not shaped:
        return document, spec
    states: dict[str, State] = dict(spec.states)
    of_states = document.find("states")
    keys, values = dict(node.keys), dict(node.values)
    known = of_states if isinstance(of_states, MappingNode) else replace(node, keys={}, values={})
    for name, given in shaped.items():
        if name in states:
            message = f"`{name}` is a state and an input"
            reporter.error("duplicate-name", message, document.locate_key("inputs", name), "rename one")
            continue
        assert given.shape is not None
        states[name] = GivenState(shape=given.shape, init=given.default).model_copy(update={"doc": given.doc})
    known = replace(
        known,
        keys={**known.keys, **{name: keys[name] for name in shaped}},
        values={**known.values, **{name: values[name] for name in shaped}},
    )
    root = replace(
        document.root,
        keys={"states": document.root.keys["inputs"], **document.root.keys},
        values={**document.root.values, "states": known},
    )
    inputs = {name: given for name, given in spec.inputs.items() if name not in shaped}
    return replace(document, root=root), spec.model_copy(update={"states": states, "inputs": inputs})


def given_states(states: Mapping[str, State]) -> dict[str, float]:
    """The inputs of parameters among states, with the numbers that there are where none are given."""
    return {name: float(state.init) for name, state in states.items() if isinstance(state, GivenState)}
