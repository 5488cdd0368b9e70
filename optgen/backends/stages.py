"""The stages that all rules have, as functions of their own.

A rule gets them from `shared.yaml` with its own settings and states; nearly always the same statements come of it. So a
stage is a function, which stands once for all rules in which it is the same, and else beside the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

from optgen.ir.nodes import Let, refs

Text = TypeVar("Text", bound="Named")
ALWAYS = ("param", "grad", "active")


@dataclass(frozen=True)
class StageCall:
    """A stage among the bindings that a function computes.

    Attributes:
        name: The stage's.
        lets: The bindings that it computes.
        parameters: The value that each of its parameters has at its start.
        results: The value that each of its results has at its end; one that is a parameter too is changed.
    """

    name: str
    lets: tuple[Let, ...]
    parameters: Mapping[str, str]
    results: Mapping[str, str]


def stage_calls(
    lets: Sequence[Let], is_given: Callable[[str], bool], read: Collection[str], inputs: Collection[str]
) -> Mapping[str, StageCall]:
    """The stages among these bindings, by the name of their first.

    Args:
        is_given: Whether a value that none of a stage's bindings computes has to be handed to it.
        read: The names that are read after the last binding.
        inputs: Values before the first stage: new values of them are handed over, read or not.
    """
    runs: dict[str, tuple[int, tuple[Let, ...]]] = {}
    at = 0
    for name, run in groupby(lets, key=lambda let: let.stage):
        own = tuple(run)
        if name and len(own) >= len(runs.get(name, (0, ()))[1]):
            runs[name] = at, own
        at += len(own)
    result = {}
    for name, (start, own) in sorted(runs.items(), key=lambda item: item[1][0]):
        after = {*read, *(n for let in lets[start + len(own) :] for n in refs(let.expr))}
        found = _call(name, own, is_given, after, inputs, {let.name: let for let in lets})
        if found is not None:
            result[own[0].name] = found
    return result


def _call(
    name: str,
    lets: tuple[Let, ...],
    is_given: Callable[[str], bool],
    after: Collection[str],
    inputs: Collection[str],
    by_name: Mapping[str, Let],
) -> StageCall | None:
    """The stage of these bindings; None where two values of one variable are handed over, or arrays are filled."""
    if any(let.kind.is_array for let in lets):
        return None
    own = {let.name for let in lets}
    last = {let.variable: let.name for let in lets if let.variable in inputs}
    results = [let for let in lets if let.name in after or last.get(let.variable) == let.name]
    results.sort(key=lambda let: let.variable != name)
    given = dict.fromkeys(n for let in lets for n in refs(let.expr) if n not in own and is_given(n))
    variables = {let.variable for let in lets}
    parameters = {n: by_name[n].variable or n if n in by_name else n for n in given}
    for n, variable in parameters.items():
        if n in by_name and variable not in (*variables, *ALWAYS) and name not in parameters.values():
            parameters[n] = name  # a rule that calls it otherwise
    named = [*parameters.values()], [let.variable for let in results]
    if any(len(set(names)) < len(names) or "" in names for names in named):
        return None
    return StageCall(
        name,
        lets,
        {variable: n for n, variable in parameters.items()},
        {let.variable: let.name for let in results},
    )


class Named(Hashable, Protocol):
    """A stage's text in a language."""

    @property
    def name(self) -> str:
        """Name of the stage."""


def most_common(texts: Iterable[Text]) -> dict[str, Text]:
    """Most common text of each stage, by its name; the first of those that equally many rules have."""
    counts = Counter(texts)
    result: dict[str, Text] = {}
    for text, count in counts.items():
        if text.name not in result or count > counts[result[text.name]]:
            result[text.name] = text
    return result
