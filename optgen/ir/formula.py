"""Boolean formulas over named guards, as decision diagrams.

A guard is a fact that is fixed before a kernel is compiled: `amsgrad`, `max_unorm > 0`, `ndim >= 2`. A formula says
under which guards a value is needed.

A formula that is neither true nor false asks for one guard, and goes on with another formula whichever way that is
answered. Guards are asked for in the order of their names, none to no effect, and the same question is one object
(Bryant 1986): formulas are equal whenever they mean the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

Literal = tuple[str, bool]
Term = frozenset[Literal]

MAX_CASES = 4096
LAST = "~"  # after all names


class FormulaTooLargeError(ValueError):
    """A rule asks more of its settings at once than can be worked out."""


class Formula:
    """A question with a formula for each answer; TRUE and FALSE ask nothing.

    Attributes:
        guard: The guard that is asked for.
        then: Formula that remains where it holds.
        other: Formula that remains where it does not.
        cases: The number of ways through all questions.
    """

    __slots__ = ("cases", "guard", "other", "then")

    def __init__(self, guard: str = LAST, then: Formula | None = None, other: Formula | None = None) -> None:
        self.guard = guard
        self.then, self.other = then or self, other or self
        self.cases: int = then.cases + other.cases if then and other else 1
        if self.cases > MAX_CASES:
            raise FormulaTooLargeError

    def __repr__(self) -> str:
        if self.is_true or self.is_false:
            return str(self.is_true)
        terms = (" and ".join(name if value else f"not {name}" for name, value in term) for term in self.ordered())
        return " or ".join(terms)

    def __reduce__(self) -> str | tuple[object, ...]:
        """A copy is the same object."""
        if self.guard is LAST:
            return str(self.is_true).upper()
        return _question, (self.guard, self.then, self.other)

    @property
    def is_true(self) -> bool:
        """True if the formula holds under all settings."""
        return self is TRUE

    @property
    def is_false(self) -> bool:
        """True if the formula holds under no settings."""
        return self is FALSE

    def __and__(self, other: Formula) -> Formula:
        return _choice(self, other, FALSE)

    def __or__(self, other: Formula) -> Formula:
        return _choice(self, TRUE, other)

    def __invert__(self) -> Formula:
        return _choice(self, FALSE, TRUE)

    def implies(self, other: Formula) -> bool:
        """Check whether the other formula holds wherever this one does."""
        return _choice(self, other, TRUE) is TRUE

    def given(self, known: Formula) -> Formula:
        """The formula with everything left out that need not be asked where `known` holds.

        It agrees with this formula there, and may differ elsewhere.
        """
        return _given(self, known)

    def holds(self, values: Mapping[str, bool]) -> bool:
        """Check whether the formula holds for these values of its guards."""
        formula = self
        while formula.guard is not LAST:
            formula = formula.then if values[formula.guard] else formula.other
        return formula.is_true

    @property
    def names(self) -> frozenset[str]:
        """The guards that the formula depends on."""
        return _names(self)

    def ordered(self) -> list[list[Literal]]:
        """Terms of which one at least holds where the formula does, in a fixed order, for printing."""
        return sorted((sorted(term) for term in _terms(self)), key=lambda term: (len(term), term))

    def expression(self) -> Part:
        """A formula that is neither true nor false, in few literals: what several terms share stands there once."""
        return _shortest(self)


TRUE = Formula()
FALSE = Formula()


def atom(name: str) -> Formula:
    """The formula that holds when the guard does."""
    return _question(name, TRUE, FALSE)


_questions: dict[tuple[str, Formula, Formula], Formula] = {}


def _question(guard: str, then: Formula, other: Formula) -> Formula:
    """The formula that asks for this guard first: one object, from whatever thread it is made."""
    key = (guard, then, other)
    if then is other:
        return then
    return _questions.get(key) or _questions.setdefault(key, Formula(guard, then, other))


@lru_cache(maxsize=4096)
def _names(formula: Formula) -> frozenset[str]:
    return frozenset() if formula.guard is LAST else _names(formula.then) | _names(formula.other) | {formula.guard}


@lru_cache(maxsize=1 << 20)
def _choice(question: Formula, then: Formula, other: Formula) -> Formula:
    """`then` where the question holds, else `other`."""
    if question is TRUE or then is other:
        return then
    if question is FALSE:
        return other
    if then is TRUE and other is FALSE:
        return question
    guard = min(question.guard, then.guard, other.guard)
    q1, q0 = (question.then, question.other) if question.guard == guard else (question, question)
    t1, t0 = (then.then, then.other) if then.guard == guard else (then, then)
    o1, o0 = (other.then, other.other) if other.guard == guard else (other, other)
    return _question(guard, _choice(q1, t1, o1), _choice(q0, t0, o0))


def _answers(formula: Formula, guard: str) -> tuple[Formula, Formula]:
    """Split a formula by its answer to `guard`, if it asks for it first: what remains where it holds, and where it does
    not."""
    return (formula.then, formula.other) if formula.guard == guard else (formula, formula)


@lru_cache(maxsize=1 << 20)
def _sum(least: Formula, most: Formula) -> tuple[Formula, tuple[Term, ...]]:
    """Terms of which none can be left out, with their disjunction: it holds where `least` does, and only where `most`.

    By S. Minato, Fast generation of prime-irredundant covers from binary decision diagrams, 1993.
    """
    if least is FALSE:
        return FALSE, ()
    if most is TRUE:
        return TRUE, (frozenset(),)
    guard = min(least.guard, most.guard)
    (least1, least0), (most1, most0) = _answers(least, guard), _answers(most, guard)
    with_it, terms1 = _sum(least1 & ~most0, most1)
    without, terms0 = _sum(least0 & ~most1, most0)
    either, terms = _sum((least1 & ~with_it) | (least0 & ~without), most1 & most0)
    terms1 = tuple(term | {(guard, True)} for term in terms1)
    terms0 = tuple(term | {(guard, False)} for term in terms0)
    return _question(guard, with_it | either, without | either), (*terms1, *terms0, *terms)


def _terms(formula: Formula) -> tuple[Term, ...]:
    return _sum(formula, formula)[1]


@lru_cache(maxsize=4096)
def _given(formula: Formula, known: Formula) -> Formula:
    if known.implies(formula):
        return TRUE
    if known.implies(~formula):
        return FALSE
    if not formula.names & known.names:
        return formula
    shorter, _ = _sum(formula & known, formula | ~known)
    contrary, _ = _sum(~formula & known, ~formula | ~known)
    return min(formula, shorter, ~contrary, key=lambda it: _size(_shortest(it)))


# Printing


@dataclass(frozen=True)
class Group:
    """Literals and groups that hold all, or at least one of which holds."""

    both: bool
    parts: tuple[Part, ...]
    literals: tuple[Literal, ...]


Part = Literal | Group


@lru_cache(maxsize=4096)
def _shortest(formula: Formula) -> Part:
    """The terms of a formula, or the contrary of its contrary's: whichever takes fewer literals."""
    return min(_factored(_terms(formula)), _negated(_factored(_terms(~formula))), key=_size)


def _factored(terms: tuple[Term, ...]) -> Part:
    """A sum of terms; what several share is taken out."""
    shared = frozenset.intersection(*terms)
    if shared or len(terms) == 1:
        rest = [_factored(tuple(term - shared for term in terms))] if len(terms) > 1 else []
        return _group(True, [*sorted(shared), *rest])
    often, count = max(sorted(Counter(literal for term in terms for literal in term).items()), key=lambda item: item[1])
    if count == 1:
        return _group(False, [_factored((term,)) for term in terms])
    having, others = ([term for term in terms if (often in term) is there] for there in (True, False))
    return _group(False, [_factored(tuple(having)), _factored(tuple(others))])


def _group(both: bool, parts: Iterable[Part]) -> Part:
    """The parts as one, the shorter first."""
    flat = [p for part in parts for p in (part.parts if isinstance(part, Group) and part.both is both else [part])]
    if len(flat) == 1:
        return flat[0]
    flat.sort(key=lambda part: (_size(part), _literals(part)))
    return Group(both, tuple(flat), tuple(literal for part in flat for literal in _literals(part)))


def _negated(part: Part) -> Part:
    if isinstance(part, tuple):
        name, value = part
        return name, not value
    return _group(not part.both, map(_negated, part.parts))


def _literals(part: Part) -> tuple[Literal, ...]:
    return part.literals if isinstance(part, Group) else (part,)


def _size(part: Part) -> int:
    return len(part.literals) if isinstance(part, Group) else 1


def any_of(formulas: Iterable[Formula]) -> Formula:
    """The formula that holds where any of these does."""
    result = FALSE
    for formula in formulas:
        result = result | formula
    return result
