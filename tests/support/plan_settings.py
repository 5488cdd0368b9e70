"""The settings under which a rule's plans are looked at."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from optgen.ir.formula import TRUE, atom
from optgen.ir.guards import Guard, feasible
from optgen.ir.rule import WholeRule

MOST = 80
DRAWS = 50  # for each setting of a sample: few are feasible where one guard of several holds at a time

# Rules with sums over all parameters of their own, or in a method that takes such a sum for other groups alone. It has
# one place under all settings (settings differ between parameters): what some settings could take in the same pass is
# then taken in another one.
SUMS_OVER_ALL = ("prodigy", "sgd")


def settings(rule: WholeRule, most: int = MOST) -> Iterator[dict[str, bool]]:
    """Every feasible setting of a rule's guards, or a sample of `most` where there are more than `most` settings."""
    guards = rule.guards.guards
    choices = {name: option.choices for name, option in rule.options.items() if option.choices is not None}
    rows: Iterator[tuple[bool, ...]] = itertools.product((False, True), repeat=len(guards))
    if 2 ** len(guards) > most:
        source = random.Random(5)
        rows = iter(dict.fromkeys(tuple(source.random() < 0.5 for _ in guards) for _ in range(DRAWS * most)))
    truths = (dict(zip(guards, row, strict=True)) for row in rows)
    return itertools.islice((truth for truth in truths if _is_feasible(truth, guards, choices)), most)


def _is_feasible(
    truth: Mapping[str, bool], guards: Mapping[str, Guard], choices: Mapping[str, Sequence[str | int]]
) -> bool:
    term = TRUE
    for name, value in truth.items():
        term = term & (atom(name) if value else ~atom(name))
    return feasible(term, guards, choices)
