"""Sums over elements: the inputs of each, and the results that wait for it.

A sum is taken in the pass before the first that needs it. Which that is depends on settings; here it is said as the
relation between sums from which it follows, in place of a case for each setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from optgen.ir.formula import FALSE, TRUE, Formula, any_of
from optgen.ir.liveness import demands, needed, written
from optgen.ir.nodes import Kind, MatrixCall, OfAllElements
from optgen.schedule.plan import Plan, stored_roots

Demands = Mapping[str, Formula]


@dataclass(frozen=True)
class ElementSum:
    """A reduction of elements.

    Attributes:
        live: Under which settings it is taken.
        fixed: The pass in which it is taken, where that is the same under all settings: sums over all parameters.
        waiting: The sums that need its result, each with the formula under which it does; None is the last pass.
        reads: The stored elements and the arrays that its elements are computed from, each with its formula.
    """

    name: str
    reduce: OfAllElements
    live: Formula
    fixed: int | None
    waiting: tuple[tuple[str | None, Formula], ...]
    reads: Demands

    @property
    def is_largest(self) -> bool:
        """True if it takes the largest of the elements rather than their sum."""
        return self.reduce.is_maximum

    @property
    def is_matrix(self) -> bool:
        """True if it is a function of matrices, with a number for each element."""
        return isinstance(self.reduce, MatrixCall)


@dataclass(frozen=True)
class Sums:
    """The sums over elements of a block, and what its last pass reads."""

    all: tuple[ElementSum, ...]
    last_reads: Demands

    def over(self, kind: Kind) -> tuple[ElementSum, ...]:
        """Sums with one number for each of a kind."""
        return tuple(item for item in self.all if item.reduce.over is kind)


@lru_cache(maxsize=128)
def element_sums(plan: Plan) -> Sums:
    """The sums of a plan, in the order of its passes, those of one in the order of the program.

    One that another waits for under any settings stands before it.
    """
    lets = plan.program.lets
    places: dict[str, dict[int, Formula]] = {}
    reduces: dict[str, OfAllElements] = {}
    for item in plan.passes:
        for r in item.reductions:
            places.setdefault(r.name, {})[item.slot] = r.live & item.live
            reduces[r.name] = r.reduce
    live = {name: any_of(found.values()) for name, found in places.items()}
    matrices = {name for name, reduce in reduces.items() if isinstance(reduce, MatrixCall)}
    names = [let.name for let in lets if let.name in places]

    def waited(roots: Iterable[tuple[str, Formula]]) -> Demands:
        found = needed(lets, roots, stop=lambda let: let.name in places)
        return {name: formula for name, formula in found.items() if name in places}

    def read(roots: Iterable[tuple[str, Formula]]) -> Demands:
        found = needed(lets, roots, stop=lambda let: let.kind is not Kind.ELEMENT or let.name in places)
        stored = [n for n, i in plan.program.inputs.items() if i.kind is Kind.ELEMENT]
        return {n: found[n] for n in found if n in stored or n in matrices or plan.kinds[n].is_array}

    terms = {name: list(demands(reduces[name].x, live[name])) for name in names}
    needs: dict[str | None, Demands] = {name: waited(terms[name]) for name in names}
    first = {name: min(found) for name, found in places.items()}
    for name in reversed(names):
        first |= {other: min(first[other], first[name]) for other in needs[name]}
    names.sort(key=first.__getitem__)
    needs = {name: needs[name] for name in names}
    needs[None] = waited(written(plan.program))
    over_all = {reduction for _, reduction in plan.sums.values()}
    return Sums(
        tuple(
            ElementSum(
                name=name,
                reduce=reduces[name],
                live=live[name],
                fixed=min(places[name]) if name in over_all else None,
                waiting=tuple(
                    (waiting, formula)
                    for waiting, found in needs.items()
                    if not (
                        formula := _known(found.get(name, FALSE), live[name], live.get(waiting or "", TRUE))
                    ).is_false
                ),
                reads={n: formula.given(live[name]) for n, formula in read(terms[name]).items()},
            )
            for name in names
        ),
        read(stored_roots(plan.program, plan.passes[-1].writes)),
    )


def _known(formula: Formula, *known: Formula) -> Formula:
    """Simplify a formula under conditions that are known to hold; FALSE if it contradicts them."""
    both = TRUE
    for other in known:
        both = both & other
    return FALSE if (formula & both).is_false else formula.given(both)
