"""The settings under which a rule's plans are looked at."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from optgen.ir.formula import TRUE, atom
from optgen.ir.guards import feasible
from optgen.ir.rule import WholeRule

MOST = 80

# Rules with sums over all parameters of their own, which have one place under all settings (settings differ between
# parameters): what some settings could take in the same pass is then taken in another one.
SUMS_OVER_ALL = ("prodigy",)


def settings(rule: WholeRule, most: int = MOST) -> Iterator[dict[str, bool]]:
    """Every feasible setting of a rule's guards, or a sample where there are more than `most` settings."""
    guards = rule.guards.guards
    choices = {name: option.choices for name, option in rule.options.items() if option.choices is not None}
    rows: Iterator[tuple[bool, ...]] = itertools.product((False, True), repeat=len(guards))
    if 2 ** len(guards) > most:
        source = random.Random(5)
        rows = iter({tuple(source.random() < 0.5 for _ in guards) for _ in range(most)})
    for row in rows:
        truth = dict(zip(guards, row, strict=True))
        term = TRUE
        for name, value in truth.items():
            term = term & (atom(name) if value else ~atom(name))
        if feasible(term, guards, choices):
            yield truth
