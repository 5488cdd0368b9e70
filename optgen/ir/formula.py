"""Boolean formulas over named guards, in disjunctive normal form.

A guard is a fact that is fixed before a kernel is compiled: `amsgrad`, `max_unorm > 0`, `ndim >= 2`. A formula says
under which guards a value is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

Literal = tuple[str, bool]
Term = frozenset[Literal]


MAX_TERMS = 256


class FormulaTooLargeError(ValueError):
    """A rule asks more of its settings at once than can be worked out."""


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
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            raise FormulaTooLargeError
        products = (a | b for a in self.terms for b in other.terms)
        return _simplified(frozenset(t for t in products if not _contradicts(t)))

    def __or__(self, other: Formula) -> Formula:
        if len(self.terms) + len(other.terms) > MAX_TERMS:
            raise FormulaTooLargeError
        return _simplified(self.terms | other.terms)

    def __invert__(self) -> Formula:
        return _negated(self)

    def implies(self, other: Formula) -> bool:
        """Whether the other formula holds wherever this one does."""
        return self == other or (self & ~other).is_false

    def given(self, known: Formula) -> Formula:
        """The formula with everything left out that need not be asked where `known` holds.

        It agrees with this formula there, and may differ elsewhere.
        """
        return _given(self, known)

    def holds(self, values: Mapping[str, bool]) -> bool:
        """Whether the formula holds when the guards have these values."""
        return any(all(values[name] == value for name, value in term) for term in self.terms)

    def names(self) -> set[str]:
        """The guards that the formula depends on."""
        return {name for term in self.terms for name, _ in term}

    def ordered(self) -> list[list[Literal]]:
        """The terms in a fixed order, for printing."""
        return sorted((sorted(term) for term in self.terms), key=lambda term: (len(term), term))

    def text(self, spell: Callable[[str, bool], str], both: str, either: str) -> str:
        """A formula that is neither true nor false as an expression: what all terms share comes first.

        Args:
            spell: A literal as text.
            both: The operator between what holds together.
            either: The operator between terms.
        """
        shared = frozenset.intersection(*self.terms)
        parts = [spell(*literal) for literal in sorted(shared)]
        rest = Formula(frozenset(term - shared for term in self.terms))
        if rest.is_true:
            return both.join(parts)
        terms = [both.join(spell(*literal) for literal in term) for term in rest.ordered()]
        whole = either.join(f"({term})" if both in term else term for term in terms)
        return both.join([*parts, f"({whole})"]) if parts else whole


TRUE = Formula(frozenset([frozenset()]))
FALSE = Formula(frozenset())


def atom(name: str) -> Formula:
    """The formula that holds when the guard does."""
    return Formula(frozenset([frozenset([(name, True)])]))


@lru_cache(maxsize=4096)
def _negated(formula: Formula) -> Formula:
    result = TRUE
    for term in sorted(formula.terms, key=sorted):
        result = result & Formula(frozenset(frozenset([(name, not value)]) for name, value in term))
    return result


@lru_cache(maxsize=4096)
def _given(formula: Formula, known: Formula) -> Formula:
    """Drop the literals, then the terms, that are not missed where `known` holds."""
    if known.implies(formula):
        return TRUE
    terms = sorted(formula.terms, key=sorted)
    for index in range(len(terms)):
        for literal in sorted(terms[index]):
            shorter = Formula(frozenset([terms[index] - {literal}]))
            if (shorter & known).implies(formula):
                terms[index] = terms[index] - {literal}
    for term in list(dict.fromkeys(terms)):
        others = Formula(frozenset(terms) - {term})
        if (Formula(frozenset([term])) & known).implies(others):
            terms = [other for other in terms if other != term]
    return _simplified(frozenset(terms))


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
