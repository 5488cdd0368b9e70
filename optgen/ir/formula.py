"""Boolean formulas over named guards, in disjunctive normal form.

A guard is a fact that is fixed before a kernel is compiled: `amsgrad`, `max_unorm > 0`, `ndim >= 2`. A formula says
under which guards a value is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Literal = tuple[str, bool]
Term = frozenset[Literal]


@dataclass(frozen=True)
class Formula:
    """A disjunction of conjunctions of literals. No term at all is false; an empty term is true."""

    terms: frozenset[Term]

    @property
    def is_true(self) -> bool:
        return frozenset() in self.terms

    @property
    def is_false(self) -> bool:
        return not self.terms

    def __and__(self, other: Formula) -> Formula:
        products = (a | b for a in self.terms for b in other.terms)
        return _simplified(frozenset(t for t in products if not _contradicts(t)))

    def __or__(self, other: Formula) -> Formula:
        return _simplified(self.terms | other.terms)

    def __invert__(self) -> Formula:
        result = TRUE
        for term in sorted(self.terms, key=sorted):
            result = result & Formula(frozenset(frozenset([(name, not value)]) for name, value in term))
        return result

    def holds(self, values: Mapping[str, bool]) -> bool:
        """Whether the formula holds when the guards have these values."""
        return any(all(values[name] == value for name, value in term) for term in self.terms)

    def names(self) -> set[str]:
        """The guards that the formula depends on."""
        return {name for term in self.terms for name, _ in term}

    def ordered(self) -> list[list[Literal]]:
        """The terms in a fixed order, for printing."""
        return sorted((sorted(term) for term in self.terms), key=lambda term: (len(term), term))


TRUE = Formula(frozenset([frozenset()]))
FALSE = Formula(frozenset())


def atom(name: str) -> Formula:
    """The formula that holds when the guard does."""
    return Formula(frozenset([frozenset([(name, True)])]))


def _contradicts(term: Term) -> bool:
    return any((name, not value) in term for name, value in term)


def _simplified(terms: frozenset[Term]) -> Formula:
    """Merge `a & b | a & !b` to `a`, `a | !a & b` to `a | b`, and drop terms that another term covers."""
    current = set(terms)
    changed = True
    while changed:
        changed = False
        for term in sorted(current, key=sorted):
            for name, value in sorted(term):
                rest = term - {(name, value)}
                flipped = rest | {(name, not value)}
                if any(other <= flipped and (name, not value) in other for other in current):
                    current.discard(term)
                    current.add(rest)
                    changed = True
                    break
            if changed:
                break
    return Formula(frozenset(t for t in current if not any(other < t for other in current)))
