"""Boolean formulas over named guards, in disjunctive normal form.

A guard is a fact that is fixed before a kernel is compiled: `amsgrad`, `max_unorm > 0`, `ndim >= 2`. A formula says
under which guards a value is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

Literal = tuple[str, bool]
Term = frozenset[Literal]


MAX_TERMS = 256
MAX_PRODUCTS = 4096  # of the terms of two formulas, most of which fall together


class FormulaTooLargeError(ValueError):
    """A rule asks more of its settings at once than can be worked out."""


@dataclass(frozen=True)
class Formula:
    """A disjunction of conjunctions of literals. No term at all is false; an empty term is true."""

    terms: frozenset[Term]

    @property
    def is_true(self) -> bool:
        """Whether it holds whatever the settings are."""
        return frozenset() in self.terms

    @property
    def is_false(self) -> bool:
        """Whether it holds for no settings."""
        return not self.terms

    def __and__(self, other: Formula) -> Formula:
        if self.is_true or other.is_false or self == other:
            return other
        if other.is_true or self.is_false or self.terms <= other.terms:
            return self
        return other if other.terms <= self.terms else _both(self, other)

    def __or__(self, other: Formula) -> Formula:
        if self.is_false or other.is_true or self == other:
            return other
        if other.is_false or self.is_true or other.terms <= self.terms:
            return self
        return other if self.terms <= other.terms else _either(self, other)

    def __invert__(self) -> Formula:
        return _negated(self)

    def implies(self, other: Formula) -> bool:
        """Whether the other formula holds wherever this one does."""
        return self == other or all(_covers(other.terms, term) for term in self.terms)

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


@lru_cache(maxsize=65536)
def _both(first: Formula, second: Formula) -> Formula:
    if len(first.terms) * len(second.terms) > MAX_PRODUCTS:
        raise FormulaTooLargeError
    products = (a | b for a in first.terms for b in second.terms)
    result = _simplified(frozenset(t for t in products if not _contradicts(t)))
    if len(result.terms) > MAX_TERMS:
        raise FormulaTooLargeError
    return result


@lru_cache(maxsize=65536)
def _either(first: Formula, second: Formula) -> Formula:
    if len(first.terms) + len(second.terms) > MAX_TERMS:
        raise FormulaTooLargeError
    return _simplified(first.terms | second.terms)


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


@lru_cache(maxsize=65536)
def _covers(terms: frozenset[Term], known: Term) -> bool:
    """Whether at least one of some terms holds wherever all of `known` does: guard by guard, both ways."""
    left = frozenset(term - known for term in terms if not any((name, not value) in known for name, value in term))
    if not left or frozenset() in left:
        return bool(left)
    name = min(min(term)[0] for term in left)
    return all(_covers(left, frozenset([(name, value)])) for value in (True, False))


def _contradicts(term: Term) -> bool:
    return any((name, not value) in term for name, value in term)


def _simplified(terms: frozenset[Term]) -> Formula:
    """Merge `a & b | a & !b` to `a`, `a | !a & b` to `a | b`, and drop terms that another term covers."""
    if len(terms) == 1:
        return Formula(terms)
    current = _least(terms)
    changed = True
    while changed:
        changed = False
        having: dict[Literal, list[Term]] = {}
        for term in current:
            for literal in term:
                having.setdefault(literal, []).append(term)
        for term in sorted(current, key=sorted):
            for name, value in sorted(term):
                opposite = (name, not value)
                rest = term - {(name, value)}
                if any(other - {opposite} <= rest for other in having.get(opposite, ())):
                    current = _least(current - {term} | {rest})
                    changed = True
                    break
            if changed:
                break
    return Formula(frozenset(current))


def _least(terms: Iterable[Term]) -> set[Term]:
    """Terms that no shorter term covers."""
    kept: set[Term] = set()
    holding: dict[Literal, list[Term]] = {}  # what is kept, by one of its literals: whoever it covers has that one too
    for term in sorted(set(terms), key=len):
        if not term:
            return {term}
        if not any(other <= term for literal in term for other in holding.get(literal, ())):
            kept.add(term)
            holding.setdefault(next(iter(term)), []).append(term)
    return kept
