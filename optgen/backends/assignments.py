"""Conversion of bindings to statements.

A program is in single assignment form. Code that people read assigns to variables as the equations do, and asks for
settings with `if` as they do: here bindings become assignments to the variable that the equations name, and a choice
between the two sides of an `if` becomes what each side has assigned. A value that is needed after its variable has got
another one is kept in a variable of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from optgen.backends.declarations import declared
from optgen.backends.stages import StageCall, stage_calls
from optgen.backends.statements import Assign, Block, Fill, If, Invoke, Statement, Take, names_of, reads, reads_first
from optgen.ir.formula import FALSE, TRUE, Formula, any_of
from optgen.ir.nodes import Call, Const, Expr, Let, MatrixCall, OfAllElements, Reduce, Ref, Select, refs
from optgen.passes.rewrite import unused_name


@dataclass(frozen=True)
class Output:
    """Variable with its value at the end: the new value of an input, or a number that others read."""

    variable: str
    value: Expr
    live: Formula


@dataclass(frozen=True)
class Assignments:
    """A part of a program as statements.

    Attributes:
        values: Text at the end for each name that is asked for.
        types: A binding of each variable.
        holders: The variable of each binding.
        loose: Variables that are read, where nothing follows from it, under settings that do not assign them.
        stages: The stages that are called.
        given: Variables that hold a value at the start.
        left: Variables whose values at the end are read elsewhere.
        reached: Names that are read, and that no variable of the function holds.
        asked: The formula under which each of `values` is read.
    """

    body: Block
    values: Mapping[str, Expr]
    types: Mapping[str, Let]
    holders: Mapping[str, str]
    loose: frozenset[str]
    stages: Mapping[str, StageCode]
    given: frozenset[str]
    left: frozenset[str]
    reached: frozenset[str]
    asked: Mapping[str, Formula]

    @cached_property
    def read(self) -> set[str]:
        """The names that statements and the values after them read."""
        return reads(self.body).union(*(refs(value) for value in self.values.values()))


@dataclass(frozen=True)
class StageCode:
    """A stage as a function: what it is given, what it leaves, and its statements."""

    call: StageCall
    code: Assignments


class Part:
    """The bindings of a program that one function computes.

    Attributes:
        lets: Those bindings, in order.
        live: Under which settings each of them is needed.
        given: The variables that hold a value at the start, with the name of that value.
        variables: The variable of a binding, where it is not the one that its statement names.
        stored: Variables in which values are left where they are computed, by the names of these.
        takes: Reductions of which an element's term is taken here, with the names of the terms.
        arrays: Names of arrays, which no variable holds.
        outside: Text of a name that is none of these.
        taken: Names that no variable gets.
        inlined: Bindings that are written where they are read.
        sort: Property that two bindings which share a variable must have in common.
        calls_stages: Whether the stages that all rules have are functions of their own.
    """

    def __init__(
        self,
        lets: Sequence[Let],
        live: Mapping[str, Formula],
        outside: Callable[[str], str],
        sort: Callable[[Let], object],
        given: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        stored: Mapping[str, str] | None = None,
        takes: Mapping[str, str] | None = None,
        arrays: Collection[str] = (),
        taken: Collection[str] = (),
        inlined: Collection[str] = (),
        calls_stages: bool = False,
    ) -> None:
        self.lets, self.live, self.outside, self.sort = lets, live, outside, sort
        self.given, self.variables, self.stored = dict(given or {}), dict(variables or {}), dict(stored or {})
        self.takes, self.arrays, self.taken = dict(takes or {}), frozenset(arrays), frozenset(taken)
        self.by_name = {let.name: let for let in lets}
        self.kept: dict[str, str] = {}
        self.chosen: dict[str, str] = {}
        self.inlined = frozenset(inlined)
        self.calls_stages = calls_stages
        self.calls: Mapping[str, StageCall] = {}

    def code(self, outputs: Iterable[Output] = (), asked: Iterable[tuple[str, Formula]] = ()) -> Assignments:
        """The statements; those that leave `outputs` in their variables stand last.

        Args:
            asked: Names whose values are read after the last statement, each with the formula under which it is.
        """
        outputs, asked = tuple(outputs), tuple(asked)
        self.inlined |= self._used_once(outputs, asked)
        if self.calls_stages:
            read = {name for output in outputs for name in refs(output.value)} | {name for name, _ in asked}
            self.calls = stage_calls(self.lets, self._is_given, read, set(self.given.values()))
            handed = {n for call in self.calls.values() for n in (*call.parameters.values(), *call.results.values())}
            self.inlined -= handed
        while True:
            before = dict(self.kept)
            self.env: dict[str, dict[str, Formula]] = {name: {value: TRUE} for name, value in self.given.items()}
            self.loose: set[str] = set()
            self.reached: set[str] = set()
            self.path = TRUE
            body = [self._keep(value) for value in dict.fromkeys(self.given.values()) if value in self.kept]
            body += self._block(self.lets, 0, TRUE)
            for output in outputs:
                held = isinstance(output.value, Ref) and output.value.name in self.env.get(output.variable, ())
                if not held:
                    body.append(Assign(output.variable, self._expr(output.value, output.live)))
            values = {}
            for name, live in asked:
                self.path = live
                values[name] = self._expr(Ref(name), live)
            if self.kept == before:
                break
        left = {output.variable for output in outputs}.union(self.variables.values(), self.stored.values())
        own = left | self.given.keys()
        ends = {name for value in values.values() for name in refs(value)}
        return Assignments(
            tuple(declared(body, own, ends)),
            values,
            self._types(),
            {**self.chosen, **self.kept},
            frozenset(self.loose),
            {call.name: StageCode(call, self._stage(call)) for call in self.calls.values()},
            frozenset(self.given),
            frozenset(left),
            frozenset(self.reached),
            dict(asked),
        )

    def _stage(self, call: StageCall) -> Assignments:
        """The statements of a stage, in variables of its own."""
        part = Part(
            call.lets,
            self.live,
            self.outside,
            self.sort,
            given={**call.parameters, **self._reached},
            takes=self.takes,
            arrays=self.arrays,
            taken=self.taken,
        )
        code = part.code([Output(variable, Ref(name), self.live[name]) for variable, name in call.results.items()])
        always = {
            variable
            for variable, name in call.results.items()
            if TRUE.implies(any_of(part.env.get(variable, {name: TRUE}).values()))
        }
        return replace(code, loose=code.loose | (call.results.keys() - always))

    def _types(self) -> dict[str, Let]:
        result = {}
        for name, variable in (*self.chosen.items(), *self.kept.items()):
            if name in self.by_name:
                result[variable] = self.by_name[name]
        return result

    def _used_once(self, outputs: Sequence[Output], asked: Sequence[tuple[str, Formula]]) -> frozenset[str]:
        """Parts of statements that are read in one place: they are written there, but for what an array reads.

        Arrays are computed in another precision than what is one number for a tensor.
        """
        counts: dict[str, int] = {}
        for expr in (*(let.expr for let in self.lets), *(output.value for output in outputs)):
            for name in refs(expr):
                counts[name] = counts.get(name, 0) + 1
        for name, _ in asked:
            counts[name] = counts.get(name, 0) + 1
        of_arrays = {name for let in self.lets if let.name in self.arrays for name in refs(let.expr)}
        return frozenset(
            let.name
            for let in self.lets
            if not let.variable
            and let.name not in of_arrays
            and counts.get(let.name) == 1
            and let.name not in self.takes
            and let.name not in self.arrays
            and let.name not in self.variables
            and let.name not in self.stored
            and not let.joins
        )

    # Statements

    def _block(self, lets: Sequence[Let], depth: int, path: Formula) -> list[Statement]:
        result: list[Statement] = []
        at = 0
        while at < len(lets):
            let = lets[at]
            if let.name in self.calls:
                result += self._invoke(self.calls[let.name])
                at += len(self.calls[let.name].lets)
                continue
            branch = let.arms[depth].branch if len(let.arms) > depth else self._joined(let)
            if not branch:
                result += self._statement(let, path)
                at += 1
                continue
            end = at
            while end < len(lets) and len(lets[end].arms) > depth and lets[end].arms[depth].branch == branch:
                end += 1
            last = end
            while last < len(lets) and self._joined(lets[last]) == branch:
                last += 1
            result += self._branch(lets[at:end], lets[end:last], depth, path)
            at = last
        return _together(result)

    def _statement(self, let: Let, path: Formula) -> list[Statement]:
        live, self.path = self.live[let.name] & path, path
        if let.name in self.inlined:
            return []
        if let.name in self.takes:
            assert isinstance(let.expr, OfAllElements)
            return [Take(self.takes[let.name], self._expr(let.expr.x, live))]
        if let.name in self.arrays:
            return [Fill(replace(let, expr=self._expr(let.expr, live)), live)]
        value = self._expr(let.expr, live)
        variable = self._variable(let)
        self.env[variable] = {let.name: TRUE}
        return [Assign(variable, value), *self._after(let)]

    def _after(self, let: Let) -> Iterator[Statement]:
        """Further statements about a value that its variable now holds."""
        if let.name in self.stored:
            yield Assign(self.stored[let.name], Ref(self._use(let.name, self.live[let.name])))
        if let.name in self.kept:
            yield self._keep(let.name)

    def _invoke(self, call: StageCall) -> list[Statement]:
        """A stage; a variable that it changes holds what it is given."""
        self.path = TRUE
        result: list[Statement] = []
        variables = {variable: self._variable(self.by_name[name]) for variable, name in call.results.items()}
        arguments = {}
        for parameter, name in call.parameters.items():
            held = self._use(name, self.live.get(name, TRUE))
            arguments[parameter] = variables.get(parameter, held)
            if arguments[parameter] != held:
                result.append(Assign(arguments[parameter], Ref(held)))
        result.append(Invoke(call.name, arguments, variables))
        for variable, name in call.results.items():
            self.env[variables[variable]] = {name: TRUE}
        return result + [self._keep(name) for name in call.results.values() if name in self.kept]

    def _keep(self, name: str) -> Statement:
        """A value that is read after its variable has got another one."""
        variable = self.kept[name]
        held = next(v for v, values in self.env.items() if name in values and v != variable)
        self.env[variable] = {name: TRUE}
        return Assign(variable, Ref(held))

    def _branch(self, inner: Sequence[Let], joins: Sequence[Let], depth: int, path: Formula) -> list[Statement]:
        formula = inner[0].arms[depth].formula if inner else self._asked(joins)
        before, sides, envs = self.env, [], []
        for holds, own in ((True, formula), (False, ~formula)):
            self.env = {variable: dict(values) for variable, values in before.items()}
            body = self._block([let for let in inner if let.arms[depth].holds is holds], depth + 1, path & own)
            body += self._ends(joins, path & own)
            sides.append(tuple(body))
            envs.append(self.env)
        result = _choices(formula, *sides)
        match result:
            case [Assign(value=Ref(name=variable)), If()] if variable in before:  # now read before the `if`
                self.env, self.path = before, path
                self._look(variable)
        self.env = _merged(formula, *envs)
        for let in joins:  # where nothing asks for it, a side may leave the variable as it was
            self.env[self._variable(let)] = {let.name: self.live[let.name]}
        self.path = path
        return result + [statement for let in joins for statement in self._after(let)]

    def _asked(self, joins: Sequence[Let]) -> Formula:
        """The condition of an `if` of which choices are left, each with as much of it as decides where it is needed."""
        formulas = {_choice(let).formula for let in joins}
        if len(formulas) == 1:
            return formulas.pop()
        known, holds = FALSE, FALSE
        for let in joins:
            live = self.live[let.name]
            known, holds = known | live, holds | (_choice(let).formula & live)
        return holds.given(known)

    def _ends(self, joins: Sequence[Let], path: Formula) -> Iterator[Statement]:
        """Assignments at the end of one side of an `if`, to the variables that both sides assign.

        Where all that reads a variable is on one side, its choice may be the one that is within that side.
        """
        for let in joins:
            live = self.live[let.name] & path
            value = _chosen(_choice(let), live)
            variable, self.path = self._variable(let), path
            if live.is_false or (isinstance(value, Ref) and live.implies(self._held(variable, value.name))):
                continue
            yield Assign(variable, self._expr(value, live))
            self.env[variable] = {value.name: TRUE} if isinstance(value, Ref) else {}

    def _joined(self, let: Let) -> int:
        """The `if` between whose sides a variable chooses; an array is computed like any other."""
        return let.joins if isinstance(let.expr, Select) and let.name not in self.arrays else 0

    # Values

    def _expr(self, expr: Expr, live: Formula) -> Expr:
        """An expression over variables, at this place."""
        match expr:
            case Const():
                return expr
            case Ref(name=name):
                return self._expr(self.by_name[name].expr, live) if name in self.inlined else Ref(self._use(name, live))
            case Call(args=args):
                return replace(expr, args=tuple(self._expr(arg, live) for arg in args))
            case Reduce(x=x):
                return replace(expr, x=self._expr(x, live))
            case MatrixCall(x=x, settings=settings):
                of_group = tuple(self._expr(setting, live) for setting in settings)
                return replace(expr, x=self._expr(x, live), settings=of_group)
            case Select(formula=formula, then=then, other=other):
                parts = self._expr(then, live & formula), self._expr(other, live & ~formula)
                return replace(expr, then=parts[0], other=parts[1])

    def _held(self, variable: str, name: str) -> Formula:
        """Formula of the settings under which a variable holds a value."""
        return self.env.get(variable, {}).get(name, FALSE)

    def _use(self, name: str, live: Formula) -> str:
        if self._is_outside(name):
            text = self.outside(name)
            self.reached.add(text)
            return text
        own = self.chosen.get(name)
        holders = [own] if own is not None else []
        others = [variable for variable in self.env if name in self.env[variable] and variable != own]
        holders += sorted(others, key=lambda variable: "." in variable)
        for variable in holders:
            if live.implies(self._held(variable, name)):
                self._look(variable)
                return variable
        if name not in self.kept:
            let = self.by_name.get(name)
            stem = (let.variable if let is not None else "") or name
            stem = f"{'stage' if let is not None and let.stage else 'earlier'}_{stem}"
            taken = {*self.chosen.values(), *self.kept.values(), *self.given, *self.taken}
            self.kept[name] = unused_name(stem, taken)
        if (kept := self.kept[name]) in self.env:
            self._look(kept)
        return kept

    def _is_outside(self, name: str) -> bool:
        """Check whether no variable of this function holds a value."""
        return (
            name not in self.by_name or name in self.arrays or name in self.takes
        ) and name not in self.given.values()

    def _is_given(self, name: str) -> bool:
        """Check whether a stage gets a value as an argument: one that it reads and that not every function reaches."""
        return not self._is_outside(name) and name not in self._reached.values()

    @cached_property
    def _reached(self) -> Mapping[str, str]:
        """Values that every function reads in place and no variable holds."""
        held = {value for holder, value in self.given.items() if "." not in holder}
        return {holder: value for holder, value in self.given.items() if "." in holder and value not in held}

    def _look(self, variable: str) -> None:
        """Note a variable that is read here under settings that have not assigned it."""
        if not self.path.implies(any_of(self.env[variable].values())):
            self.loose.add(variable)

    def _variable(self, let: Let) -> str:
        """The variable of a binding: the one that its statement names, if what that holds is of the same sort."""
        if let.name in self.variables:
            return self.variables[let.name]
        if let.name not in self.chosen:
            stem = let.variable or let.name
            name, count = stem, 1
            while name in self.taken or not self._fits(name, let):
                count += 1
                name = f"{stem}_{count}"
            self.chosen[let.name] = name
        return self.chosen[let.name]

    def _fits(self, variable: str, let: Let) -> bool:
        others = [self.by_name[n] for n, v in self.chosen.items() if v == variable]
        return variable not in self.kept.values() and all(self.sort(let) == self.sort(other) for other in others)


def _choice(let: Let) -> Select:
    assert isinstance(let.expr, Select)
    return let.expr


def _chosen(choice: Select, live: Formula) -> Expr:
    """The side of a choice that is taken under these settings, or the choice itself where they leave it open."""
    if live.implies(choice.formula):
        return choice.then
    return choice.other if live.implies(~choice.formula) else choice


def _merged(
    formula: Formula, then: Mapping[str, dict[str, Formula]], other: Mapping[str, dict[str, Formula]]
) -> dict[str, dict[str, Formula]]:
    """Merge the contents of variables after the two sides of an `if`: by variable, the values it holds and when."""
    result: dict[str, dict[str, Formula]] = {}
    for variable in {**then, **other}:
        first, second = then.get(variable, {}), other.get(variable, {})
        if first == second:
            result[variable] = dict(first)
            continue
        held = {
            name: (first.get(name, FALSE) & formula) | (second.get(name, FALSE) & ~formula)
            for name in {**first, **second}
        }
        result[variable] = {name: live for name, live in held.items() if not live.is_false}
    return result


def _together(statements: Iterable[Statement]) -> list[Statement]:
    """Statements in which one `if` follows another of the same condition, as one."""
    result: list[Statement] = []
    for statement in statements:
        match result[-1:], statement:
            case [If(formula=before, then=a, other=b)], If(formula=formula, then=c, other=d) if before == formula:
                result[-1] = If(formula, tuple(_together((*a, *c))), tuple(_together((*b, *d))))
            case _:
                result.append(statement)
    return result


def _choices(formula: Formula, then: Block, other: Block) -> list[Statement]:
    """An `if` with these sides; one that only chooses between two values is one assignment."""
    match then, other:
        case (), ():
            return []
        case (), _:
            return [If(~formula, other, ())]
        case (Assign(variable=a, value=Ref() | Const() as x),), (Assign(variable=b, value=Ref() | Const() as y),):
            if a == b:
                return [Assign(a, Select(formula, x, y))]
        case _, (Assign(variable=variable, value=Ref() | Const()) as default,):
            if variable in names_of(then) and not reads_first(then, variable):
                return [default, If(formula, then, ())]
        case (Assign(variable=variable, value=Ref() | Const()) as default,), _:
            if variable in names_of(other) and not reads_first(other, variable):
                return [default, If(~formula, other, ())]
    return [If(formula, then, other)]
