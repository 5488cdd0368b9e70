"""Guards: the facts that are fixed before a kernel is compiled, by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Any, Literal

from optgen.ir.formula import FALSE, TRUE, Formula, FormulaTooLargeError, any_of, atom
from optgen.operations import COMPARISONS

Subject = Literal["option", "hyper", "input", "fact", "codec", "step"]
RECORDED = "capturable"
"""The setting of steps that are recorded."""
FIRST = "9007199254740992"
"""The period of what happens on the first step alone: no count of steps reaches it."""
WORDS = {"==": "is", "!=": "not"}
MACROS = frozenset(
    ("aligned", "export", "f16c", "fp8_avx512", "fp8_instructions", "function", "generic", "grad_codec", "infinity",
     "inline", "inlined", "int8_avx512", "kernels", "lanes", "lanes_avx512", "libm", "method", "nan", "neon_fp16",
     "param_codec", "parts", "scales_avx512", "target", "zen")
)  # fmt: skip
"""Macros OPTGEN_... that the kernels' headers and their builds define."""
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]")
MAX_GUARDS = 128  # of a rule: formulas are as deep


@dataclass(frozen=True)
class Guard:
    """`subject op value`: an option, hyperparameter or fact compared with a constant, or the codec of a state.

    `op` is `true` for a flag, `given` for an optional hyperparameter and for an input, `tensorwise` for a codec,
    `every` for the number of the step: divided by `subject`, a number or a setting, it leaves `value`. Where steps are
    recorded, and repeat at other numbers, `every` holds always.
    """

    name: str
    about: Subject
    subject: str
    op: str
    value: float | str | None = None

    def holds(self, value: Any) -> bool:
        """Compare a value of the guard's subject as the guard does."""
        compare = COMPARISONS[self.op].value
        return compare is not None and bool(compare(value, self.value))

    def text(self, holds: bool) -> str:
        """The guard, or its contrary, as text: `ndim >= 2`, `mode != "a"`, `not amsgrad`, `beta1 is None`."""
        match self.op:
            case "true":
                return self.subject if holds else f"not {self.subject}"
            case "given":
                return f"{self.subject} is {'not ' if holds else ''}None"
            case "tensorwise":
                return f"{'not ' if holds else ''}block_wise"
            case "every" if self.subject == FIRST:
                return f"step {'==' if holds else '!='} 1"
            case "every" if not self.value:
                return f"{'' if holds else 'not '}every({self.subject})"
            case "every":
                return f"step % {self.subject} {'==' if holds else '!='} {self.value}"
        value = f'"{self.value}"' if isinstance(self.value, str) else f"{self.value}"
        return f"{self.subject} {self.op if holds else COMPARISONS[self.op].contrary} {value}"


def describe(formula: Formula, guards: Mapping[str, Guard]) -> str:
    """A formula in the words of a spec, for messages: `ndim < 2 or not amsgrad and beta1 is None`."""
    terms = [" and ".join(guards[name].text(value) for name, value in term) for term in formula.ordered()]
    return " or ".join(term or "True" for term in terms)


def guard_name(subject: str, op: str, value: float | str | None) -> str:
    """A readable name that is an identifier in every target."""
    match op:
        case "true":
            return subject
        case "given" | "tensorwise":
            return f"{subject}_{op}"
        case "every" if subject == FIRST:
            return "first_step"
        case "every":
            return f"every_{subject}{f'_at_{value}' if value else ''}"
        case _:
            text = str(value).replace(".", "p").replace("-", "minus_").replace("+", "")
            return f"{subject}_{WORDS.get(op, COMPARISONS[op].word)}_{re.sub(NOT_IN_A_NAME, '_', text)}"


class GuardTable:
    """Collects the guards of a rule and hands out formulas over them.

    A guard is a constant of the kernels, set by a macro in capitals: no value and no other guard has its name, whatever
    the case.

    Attributes:
        guards: The guards by name.
        names: Their names in lower case.
        taken: Other names in the kernels, in lower case.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.guards: dict[str, Guard] = {}
        self.names: set[str] = set()
        self.taken = {*MACROS, *(name.lower() for name in taken)}
        self._known: dict[tuple[Subject, str, str, float | str | None], str] = {}

    def copy(self) -> GuardTable:
        """A table of the same guards, to which others can be added without adding them here."""
        table = GuardTable()
        table.guards, table.names, table.taken = dict(self.guards), set(self.names), set(self.taken)
        table._known = dict(self._known)
        return table

    def formula(self, about: Subject, subject: str, op: str, value: float | str | None = None) -> Formula:
        """The formula for a comparison; the complement of a known guard is that guard negated.

        Raises:
            FormulaTooLargeError: a rule has no room for one more.
        """
        contrary = COMPARISONS[op].contrary if op in COMPARISONS else ""
        if (about, subject, contrary, value) in self._known:
            return ~atom(self._known[about, subject, contrary, value])
        if op == "==" and not isinstance(value, str):
            return ~self.formula(about, subject, "!=", value)
        key = (about, subject, op, value)
        if key not in self._known:
            if len(self.guards) == MAX_GUARDS:
                raise FormulaTooLargeError
            name = guard_name(subject, op, value)
            while name.lower() in self.taken or name.lower() in self.names:
                name += "_"
            self.names.add(name.lower())
            self._known[key] = name
            self.guards[name] = Guard(name, about, subject, op, value)
        return atom(self._known[key])

    def knows(self, about: Subject, subject: str, op: str, value: float | str | None) -> bool:
        """Check whether there is a guard for a comparison."""
        return (about, subject, op, value) in self._known


def feasible(formula: Formula, guards: Mapping[str, Guard], choices: Mapping[str, Iterable[str | int | None]]) -> bool:
    """Check whether some setting satisfies the formula."""
    asked = [guards[name] for name in sorted(formula.names)]
    return not (formula & _settings(asked, choices)).is_false


def _numbers_around(guards: Iterable[Guard]) -> set[float]:
    """Whole numbers that a fact can be, of which one is like any other to these guards."""
    values = [guard.value for guard in guards if isinstance(guard.value, int | float)]
    return {number for value in values for by in (-1, 0, 1) if (number := math.floor(value) + by) >= 0}


def _at(guards: Iterable[Guard], number: float) -> Formula:
    """Formula that says what these guards are where their fact is a number."""
    result = TRUE
    for guard in guards:
        result = result & (atom(guard.name) if guard.holds(number) else ~atom(guard.name))
    return result


def _steps(guards: Sequence[Guard], recorded: Sequence[Guard]) -> Formula:
    """Formula over conditions on the step: a number has one rest, but where steps are recorded all of them count."""
    always, one = TRUE, TRUE
    rests: dict[str, list[Formula]] = {}
    for guard in guards:
        always = always & atom(guard.name)
        rests.setdefault(guard.subject, []).append(atom(guard.name))
    for period, several in rests.items():
        for first, second in combinations(several, 2):
            one = one & ~(first & second)
        if f"{len(several)}" == period:
            one = one & any_of(several)
    if not recorded:
        return one
    records = atom(recorded[0].name)
    return (records & always) | (~records & one)


def _settings(guards: Iterable[Guard], choices: Mapping[str, Iterable[str | int | None]]) -> Formula:
    """Formula over these guards that holds under every setting.

    An enumeration has exactly one of its choices; an optional hyperparameter that is not given compares as NaN does.
    """
    result = TRUE
    by_subject: dict[str, list[Guard]] = {}
    asked = list(guards)
    for guard in asked:
        by_subject.setdefault(guard.subject, []).append(guard)
    for option, values in choices.items():
        chosen = {guard.value: atom(guard.name) for guard in by_subject.get(option, ()) if guard.op == "=="}
        for first, second in combinations(chosen.values(), 2):
            result = result & ~(first & second)
        if chosen.keys() >= set(values):
            result = result & reduce(or_, chosen.values(), FALSE)
    result = result & _steps([guard for guard in asked if guard.about == "step"], by_subject.get(RECORDED, ()))
    for several in by_subject.values():
        if several[0].about == "fact":
            result = result & any_of(_at(several, number) for number in _numbers_around(several))
        given = next((atom(guard.name) for guard in several if guard.op == "given"), TRUE)
        for guard in several:
            if guard.op != "given":
                result = result & (given | (atom(guard.name) if guard.op == "!=" else ~atom(guard.name)))
    return result
