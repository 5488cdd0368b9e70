"""Random blocks of equations that are well typed: over all kinds, guards, functions and reductions.

What is written is what docs/language.md allows; that the compiler takes it is part of the test.

Every value has a bound of its size, by which what would leave float32's range is squeezed: the oracle's float64 would
not notice. Most divisors and arguments of roots are kept off 0, since the oracle knows nothing of a quotient whose
divisor may be 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from oracles.expressions import Kind, join

LIMIT = 1e4  # the largest size of a value, and of what is kept between steps
KEPT = 50.0
FEW, MOST = 3, 9  # statements of a block
ROWS = "ndim >= 2"
CONDITIONS: dict[str, Kind] = {
    "flag": Kind.GROUP,
    'mode == "b"': Kind.GROUP,
    "given is not None": Kind.GROUP,
    "third > 0": Kind.GROUP,
    ROWS: Kind.STEP,
    "ndim >= 3": Kind.STEP,
    "ndim >= 4": Kind.STEP,
    "numel > 30": Kind.STEP,
    "index == 1": Kind.STEP,
    "every(2)": Kind.STEP,
    "step % 3 != 1": Kind.STEP,
}
OF_FACTS = tuple(test for test, kind in CONDITIONS.items() if kind is Kind.STEP)
"""Conditions that ask for no settings of a rule."""
OF_STEPS = ("every(2)", "step % 3 != 1")
"""Conditions that differ between steps: no state exists under them, and no window takes a value."""
DIMENSIONS = {kind.name.lower(): kind for kind in (Kind.CHANNEL, Kind.LAST, Kind.LAST2, Kind.LAST3, Kind.LAST4)}
SHAPES = {"param": Kind.ELEMENT, "row": Kind.ROW, "col": Kind.COL, "matrix": Kind.MATRIX, **DIMENSIONS}
SHAPES |= {"tensor": Kind.TENSOR}
SHAPES |= {"group": Kind.GROUP, "global": Kind.GLOBAL}
LINES = (Kind.ROW, Kind.COL, Kind.MATRIX, *DIMENSIONS.values())
RANKS = {Kind.LAST3: "ndim >= 3", Kind.LAST4: "ndim >= 4"}
EXTREMES = ("absmax", "max", "min")
SPREAD = "where({several}, std({{}}{over}), 1)"  # of one number it is NaN
CODECS = ("fp32", "bf16", "fp16", "int8", "int4", "normal4", "fp8", "companded8")


@dataclass(frozen=True)
class Term:
    """An expression: its text, its kind, the largest it can be."""

    text: str
    kind: Kind
    size: float


@dataclass(frozen=True)
class Name:
    """Name with the value that it stands for.

    Attributes:
        needs: Conditions below which alone it may be read.
        is_truth: Whether it is a condition on values.
    """

    kind: Kind
    size: float
    needs: frozenset[str] = frozenset()
    is_truth: bool = False
    is_window: bool = False
    is_pushed: bool = False


@dataclass(frozen=True)
class State:
    """A state of a rule, as it is declared."""

    name: str
    shape: str
    signed: bool
    when: frozenset[str]
    window: bool


def takes(whole: Kind, part: Kind) -> bool:
    """Check whether there is one of `part` for each of `whole`."""
    return join(whole, part) is whole


class Writer:
    """Writes the statements of a block, or an expression.

    Attributes:
        conditions: Those that an `if` may ask for.
    """

    conditions: tuple[str, ...] = tuple(CONDITIONS)

    def __init__(self, rng: random.Random, names: Mapping[str, Name], has_grad: bool = True, at_once: bool = False):
        self.rng, self.names, self.at_once = rng, dict(names), at_once
        self.path: frozenset[str] = frozenset()
        self.below_tests: frozenset[str] = frozenset()  # all that is asked around, also where it says nothing
        self.decided = Kind.GLOBAL  # for what the `if`s around can differ
        self.depth = 0  # of reductions in one another
        self.made = 0
        if has_grad:
            self.names["grad"] = Name(Kind.ELEMENT, 5.0)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    # Numbers

    def readable(self, kind: Kind, exact: bool = False) -> list[Term]:
        """The names that a value of a kind may be made of."""
        return [
            Term(text, name.kind, name.size)
            for text, name in self.names.items()
            if not name.is_truth
            and not name.is_window
            and name.needs <= self.path
            and (name.kind is kind if exact else takes(kind, name.kind))
        ]

    def leaf(self, kind: Kind) -> Term:
        names = self.readable(kind)
        own = [term for term in names if term.kind is kind]
        made = [term for term in names if term.text[0] == "v"]
        if made and self.chance(0.4):
            return self.rng.choice(made)
        if own and self.chance(0.5):
            return self.rng.choice(own)
        if names and self.chance(0.8):
            return self.rng.choice(names)
        value = self.rng.choice([0.0, 1.0, 2.0, 0.5, 0.1, 3.0, -1.0, 0.9, -0.25])
        return Term(f"{value:g}", Kind.CONST, abs(value))

    def number(self, kind: Kind, deep: int = 3) -> Term:
        """A number that a value of a kind may be."""
        if self.at_once and kind is Kind.ELEMENT and "param" in self.names and self.chance(0.15):
            return self.rng.choice([Term("uniform()", kind, 1.0), Term("normal()", kind, 7.0)])
        if deep <= 0 or self.chance(0.12):
            return self.leaf(kind)
        often = Kind.TENSOR <= kind < Kind.ELEMENT
        if self.depth < 2 and kind >= Kind.GLOBAL and self.chance(0.5 if often else 0.25):
            reduced = self.reduced(kind, deep)
            if reduced is not None:
                return reduced
        term = self.rng.choice(self._operations())(kind, deep - 1)
        return Term(f"tanh({term.text})", term.kind, 1.0) if term.size > LIMIT else term

    def exact(self, kind: Kind, deep: int) -> Term:
        """A number of a kind itself: in lines and reductions a smaller one would not do."""
        term = self.number(kind, deep)
        if term.kind is kind:
            return term
        own = self.readable(kind, exact=True)
        if not own:
            element = self.rng.choice(self.readable(Kind.ELEMENT, exact=True))
            own = [Term(f"rms({element.text}, over={kind.name.lower()})", kind, element.size)]
        made = self.rng.choice(own)
        return Term(f"({term.text} * {made.text})", kind, term.size * made.size)

    def _operations(self) -> list[Callable[[Kind, int], Term]]:
        return [
            *[self._sum] * 4,
            *[self._product] * 4,
            *[self._quotient] * 2,
            *[self._function] * 4,
            *[self._power] * 2,
            self._extreme,
            self._remainder,
            self._choice,
            self._percentile,
            self._rounded,
        ]

    def _sum(self, kind: Kind, deep: int) -> Term:
        a, b = self.number(kind, deep), self.number(kind, deep)
        return Term(f"({a.text} {self.rng.choice('+-')} {b.text})", join(a.kind, b.kind), a.size + b.size)

    def _product(self, kind: Kind, deep: int) -> Term:
        a, b = self.number(kind, deep), self.number(kind, deep)
        return Term(f"({a.text} * {b.text})", join(a.kind, b.kind), a.size * b.size)

    def _quotient(self, kind: Kind, deep: int) -> Term:
        a, b, off = self.number(kind, deep), self.number(kind, deep), self.rng.choice([0.5, 1.0, 2.0])
        if self.chance(0.05):
            return Term(f"tanh({a.text} / {b.text})", join(a.kind, b.kind), 1.0)
        return Term(f"({a.text} / (abs({b.text}) + {off}))", join(a.kind, b.kind), a.size / off)

    def _function(self, kind: Kind, deep: int) -> Term:
        a = self.number(kind, deep)
        forms = {
            "sqrt(abs({}))": a.size**0.5,
            "sqrt({0} * {0} + 0.1)": a.size + 0.4,
            "rsqrt(abs({}) + 0.5)": 1.5,
            "exp(-abs({}))": 1.0,
            "exp(min({}, 2))": 8.0,
            "log(abs({}) + 0.5)": a.size + 1,
            "tanh({})": 1.0,
            "sigmoid({})": 1.0,
            "softplus({})": a.size + 1,
            "clamp({}, -1, 2)": 2.0,
            "abs({})": a.size,
            "(-{})": a.size,
            "sign({})": 1.0,
            "floor({})": a.size + 1,
        }
        form, size = self.rng.choice(list(forms.items()))
        return Term(form.format(a.text), a.kind, size)

    def _power(self, kind: Kind, deep: int) -> Term:
        a = self.number(kind, deep)
        if self.chance(0.4):
            return Term(f"{a.text} ** 2" if a.text.isidentifier() else f"({a.text}) ** 2", a.kind, a.size**2)
        b, most = self.rng.choice([("0.5", 0.5), ("(-1)", 1.0), ("1.5", 1.5), ("second", 1.0), ("(-0.5)", 0.5)])
        if b == "second" and ("second" not in self.names or not takes(kind, Kind.GROUP)):
            b = "0.5"
        whole = join(a.kind, Kind.GROUP) if b == "second" else a.kind
        return Term(f"(abs({a.text}) + 0.5) ** {b}", whole, (a.size + 2) ** most)

    def _extreme(self, kind: Kind, deep: int) -> Term:
        terms = [self.number(kind, deep) for _ in range(self.rng.choice([2, 2, 3]))]
        name = self.rng.choice(["min", "max"])
        result = terms[0]
        for term in terms[1:]:
            result = Term("", join(result.kind, term.kind), max(result.size, term.size))
        return replace(result, text=f"{name}({', '.join(term.text for term in terms)})")

    def _remainder(self, kind: Kind, deep: int) -> Term:
        """A rest: of the step, which is exact, or of a value by a number beyond it, which is not near a jump."""
        if takes(kind, Kind.STEP) and "step" in self.names and self.chance(0.7):
            return Term(f"(step % {self.rng.choice([2, 3, 5])})", Kind.STEP, 5.0)
        a = self.number(kind, deep)
        least = float(f"{2 * a.size + 1:.3g}")
        return Term(f"(abs({a.text}) % {least:g})", a.kind, a.size)

    def _choice(self, kind: Kind, deep: int) -> Term:
        test, a, b = self.truth(kind, deep), self.number(kind, deep), self.number(kind, deep)
        whole = join(join(test.kind, a.kind), b.kind)
        return Term(f"where({test.text}, {a.text}, {b.text})", whole, max(a.size, b.size))

    def _percentile(self, kind: Kind, deep: int) -> Term:
        windows = [name for name, item in self.names.items() if item.is_window and item.needs <= self.path]
        if not windows or not takes(kind, Kind.TENSOR):
            return self.number(kind, deep)
        q = self.rng.choice(["50", "5", "95", "100 * second"])
        return Term(f"min(percentile({self.rng.choice(windows)}, {q}), {KEPT:g})", Kind.TENSOR, KEPT)

    def _rounded(self, kind: Kind, deep: int) -> Term:
        if kind is not Kind.ELEMENT:
            return self.number(kind, deep)
        term = self.exact(kind, deep)
        return Term(f"rounded({term.text})", kind, term.size * 1.01)

    # Reductions

    def reduced(self, kind: Kind, deep: int) -> Term | None:
        """A reduction that a value of a kind may be made of."""
        rows = ROWS in self.path
        over: list[tuple[str, Kind, Kind, float]] = []
        if takes(kind, Kind.TENSOR):
            over += [
                (f"{name}({{}})", Kind.TENSOR, Kind.ELEMENT, 700.0)
                for name in ("sum", "mean", "norm", "rms", *EXTREMES)
            ]
            over.append((SPREAD.format(several="numel > 1", over=""), Kind.TENSOR, Kind.ELEMENT, 700.0))
            if rows:
                for lines in LINES:
                    if RANKS.get(lines, ROWS) not in self.path:
                        continue
                    names = ("sum", "mean", "norm", "rms", *EXTREMES)
                    over += [(f"{name}({{}})", Kind.TENSOR, lines, 100.0) for name in names]
        if rows and takes(kind, Kind.MATRIX):
            whole = self.rng.choice([Kind.ELEMENT, Kind.ROW, Kind.COL])
            names = ("sum", "mean", "norm", "rms", *EXTREMES)
            over += [(f"{name}({{}}, over=matrix)", Kind.MATRIX, whole, 700.0) for name in names]
            over.append(
                (SPREAD.format(several="rows > 1 and cols > 1", over=", over=matrix"), Kind.MATRIX, whole, 700.0)
            )
        if rows and takes(kind, Kind.ROW):
            over += [(f"{name}({{}})", Kind.ROW, Kind.ELEMENT, 40.0) for name in ("row_sum", "row_mean")] * 2
            names = ("norm", "rms", *EXTREMES)
            over += [(f"{name}({{}}, over=row)", Kind.ROW, Kind.ELEMENT, 40.0) for name in names]
            over.append((SPREAD.format(several="cols > 1", over=", over=row"), Kind.ROW, Kind.ELEMENT, 40.0))
        if rows and takes(kind, Kind.COL):
            over += [(f"{name}({{}})", Kind.COL, Kind.ELEMENT, 40.0) for name in ("col_sum", "col_mean")] * 2
            names = ("norm", "rms", *EXTREMES)
            over += [(f"{name}({{}}, over=col)", Kind.COL, Kind.ELEMENT, 40.0) for name in names]
            over.append((SPREAD.format(several="rows > 1", over=", over=col"), Kind.COL, Kind.ELEMENT, 40.0))
        for part in DIMENSIONS.values():
            if takes(kind, part) and rows and RANKS.get(part, ROWS) in self.path:
                own = [lines for lines in (Kind.ROW, Kind.COL, Kind.MATRIX) if takes(lines, part)]
                whole = self.rng.choice([Kind.ELEMENT, Kind.ELEMENT, *own])
                names = ("sum", "mean", "rms", *EXTREMES)
                over += [(f"{name}({{}}, over={part.name.lower()})", part, whole, 700.0) for name in names]
        for word, several in (("all", Kind.GLOBAL), ("group", Kind.GROUP)):
            if takes(kind, several) and not self.at_once and (kind <= Kind.GROUP or self.chance(0.2)):
                names = ("sum", "norm", "absmax")
                over += [(f"{name}({{}}, over={word})", several, Kind.ELEMENT, 2000.0) for name in names]
        if not over:
            return None
        form, result, of, most = self.rng.choice(over)
        self.depth += 1
        inner = self.exact(of, min(deep - 1, 2))
        self.depth -= 1
        size = inner.size * (1.0 if any(word in form for word in ("mean", "max", "min", "rms")) else most)
        text = form.format(inner.text)
        return Term(text, result, size) if size <= LIMIT else Term(f"tanh({text} / {size / 3:g})", result, 1.0)

    # Conditions on values

    def truth(self, kind: Kind, deep: int = 2) -> Term:
        """A condition that a value of a kind may depend on."""
        named = [
            Term(text, name.kind, 0.0)
            for text, name in self.names.items()
            if name.is_truth and name.needs <= self.path and takes(kind, name.kind)
        ]
        if named and self.chance(0.3):
            return self.rng.choice(named)
        if deep > 0 and self.chance(0.3):
            a, b = self.truth(kind, deep - 1), self.truth(kind, deep - 1)
            return Term(f"({a.text} {self.rng.choice(['and', 'or'])} {b.text})", join(a.kind, b.kind), 0.0)
        if deep > 0 and self.chance(0.15):
            inner = self.truth(kind, deep - 1)
            return replace(inner, text=f"(not {inner.text})")
        if self.chance(0.1):
            inner = self.number(kind, deep)
            return Term(f"isfinite({inner.text})", inner.kind, 0.0)
        a, b = self.number(kind, deep - 1), self.number(kind, deep - 1)
        sign = self.rng.choice(["<", "<=", ">", ">=", "<", ">", "==", "!="])
        return Term(f"({a.text} {sign} {b.text})", join(a.kind, b.kind), 0.0)

    # Statements

    def squeezed(self, term: Term, most: float, signed: bool = True) -> Term:
        """A value that is no larger, and not negative unless it may be."""
        text = term.text if signed else f"abs({term.text})"
        if term.size > most:
            text = f"min(max({text}, {-most:g}), {most:g})" if signed else f"min({text}, {most:g})"
        return Term(text, term.kind, min(term.size, most))

    def assign(self, name: str, term: Term, is_truth: bool = False) -> str:
        needs = frozenset[str]() if name in self.names else self.path
        self.names[name] = Name(term.kind, term.size, needs, is_truth)
        return f"{name} = {term.text}"

    def local(self) -> str:
        """Assigns a name of its own, new or known."""
        if self.chance(0.15):
            self.made += 1
            return self.assign(f"c{self.made}", self.truth(self.some_kind()), is_truth=True)
        known = [name for name in self.names if name.startswith("v")]
        if known and self.chance(0.25):
            name = self.rng.choice(known)
        else:
            self.made += 1
            name = f"v{self.made}"
        return self.assign(name, self.number(self.some_kind()))

    def loop(self) -> Iterator[str]:
        """A name that changes in each round of a loop."""
        self.made += 1
        name, term = f"v{self.made}", self.number(self.some_kind())
        yield self.assign(name, term)
        yield "for i, share in enumerate((0.5, 0.25)):"
        yield f"    {name} = share * {name} + i"
        self.names[name] = replace(self.names[name], size=term.size + 1)

    def some_kind(self) -> Kind:
        kinds = [Kind.ELEMENT] * 6 + [Kind.TENSOR] * 3 + [Kind.STEP, Kind.GROUP]
        if ROWS in self.path:
            kinds += [Kind.ROW, Kind.COL, Kind.MATRIX] * 3
        return self.rng.choice(kinds)

    def state(self, states: Mapping[str, State]) -> str | None:
        """Assigns a state that may be assigned here."""
        name = self.rng.choice([name for name in states if takes(SHAPES[states[name].shape], self.decided)] or [""])
        if not name:
            return None
        state, kind = states[name], SHAPES[states[name].shape]
        old = self.names[name]
        if state.window:
            of_steps = any(test.removeprefix("not ") in OF_STEPS for test in self.below_tests)
            if old.is_pushed or of_steps or not old.needs <= self.path:
                return None
            value = self.squeezed(self.number(Kind.TENSOR), KEPT)
            self.names[name] = replace(old, is_pushed=True)
            return f"{name} = push({name}, {value.text})"
        term = self.number(kind, self.rng.choice([0, 2, 3, 3]))
        return self.assign(name, self.squeezed(term, KEPT, state.signed))

    def exchange(self, states: Mapping[str, State]) -> str | None:
        """Gives two states the values of each other."""
        there = [
            name
            for name, state in states.items()
            if SHAPES[state.shape] is Kind.ELEMENT and not state.window and self.names[name].needs <= self.path
        ]
        pairs = [(a, b) for a in there for b in there if a < b and states[a].signed == states[b].signed]
        if not pairs:
            return None
        a, b = self.rng.choice(pairs)
        first, second = self.names[a], self.names[b]
        self.names |= {a: replace(second, needs=first.needs), b: replace(first, needs=second.needs)}
        return f"{a}, {b} = {b}, {a}"

    def statement(self, states: Mapping[str, State], deep: int) -> Iterator[str]:
        """A statement, as lines."""
        turn = self.rng.random()
        if turn < 0.2 and deep > 0:
            yield from self.branch(states, deep)
        elif turn < 0.55:
            line = (self.exchange(states) if self.chance(0.3) else None) or self.state(states)
            if line is not None:
                yield line
        elif turn < 0.6 and "grad" in self.names:
            yield self.assign("grad", self.squeezed(self.exact(Kind.ELEMENT, 2), KEPT))
        elif turn < 0.64:
            yield f"active = active and {self.truth(self.rng.choice([Kind.ELEMENT, Kind.ELEMENT, Kind.TENSOR])).text}"
        elif turn < 0.72:
            yield self.moved()
        elif turn < 0.76:
            yield from self.loop()
        else:
            yield self.local()

    def moved(self) -> str:
        """Changes the parameter, by as little as keeps it small."""
        return f"param = param - lr * {self.squeezed(self.number(Kind.ELEMENT), 5.0).text}"

    def block(self, states: Mapping[str, State], deep: int = 2, count: int | None = None) -> list[str]:
        """Statements; at least one."""
        count = self.rng.randint(FEW, MOST) if count is None else count
        lines = [line for _ in range(count) for line in self.statement(states, deep)]
        return lines or [self.local()]

    # Branches

    @contextmanager
    def below(self, conditions: frozenset[str], kind: Kind, tests: Iterable[str]) -> Iterator[None]:
        before = self.path, self.decided, self.below_tests
        self.path, self.decided = self.path | conditions, max(self.decided, kind)
        self.below_tests |= frozenset(tests)
        yield
        self.path, self.decided, self.below_tests = before

    def branch(self, states: Mapping[str, State], deep: int) -> Iterator[str]:
        """An `if` over what is known before the step, with what holds in each of its branches."""
        tests = [test for test in self.conditions if test not in self.path and f"not {test}" not in self.path]
        if not tests:
            return
        chosen = self.rng.sample(tests, min(len(tests), self.rng.choice([1, 1, 1, 2])))
        if ROWS in tests and self.chance(0.4):
            chosen[0] = ROWS
        chosen = list(dict.fromkeys(chosen))
        joined = self.rng.choice([" and ", " and ", " or "])
        kind = max(CONDITIONS[test] for test in chosen)
        then = frozenset(chosen) if joined == " and " or len(chosen) == 1 else frozenset[str]()
        other = frozenset([f"not {chosen[0]}"]) if len(chosen) == 1 else frozenset[str]()
        before = dict(self.names)
        yield f"if {joined.join(chosen)}:"
        with self.below(then, kind, chosen):
            yield from (f"    {line}" for line in self.block(states, deep - 1, self.rng.randint(1, 4)))
        first, self.names = self.names, dict(before)
        if self.chance(0.5):
            yield "else:"
            with self.below(other, kind, chosen):
                yield from (f"    {line}" for line in self.block(states, deep - 1, self.rng.randint(1, 3)))
        second, self.names = self.names, {}
        for name in {**first, **second}:
            merged = self._merged(before.get(name), first.get(name), second.get(name), kind, then, other)
            if merged is not None:
                self.names[name] = merged

    def _merged(
        self,
        before: Name | None,
        a: Name | None,
        b: Name | None,
        kind: Kind,
        then: frozenset[str],
        other: frozenset[str],
    ) -> Name | None:
        """Merge the values of a name after an `if`."""
        if a == b:
            return a
        if before is not None and a is not None and b is not None:
            a = replace(a, is_pushed=a.is_pushed or b.is_pushed)
            return replace(a, kind=join(join(a.kind, b.kind), kind), size=max(a.size, b.size), needs=before.needs)
        if a is not None and b is not None:
            needs = (a.needs - then) | (b.needs - other)
            return replace(a, kind=join(join(a.kind, b.kind), kind), size=max(a.size, b.size), needs=needs)
        if a is not None:
            return replace(a, needs=a.needs | then) if then else None
        assert b is not None
        return replace(b, needs=b.needs | other) if other else None
