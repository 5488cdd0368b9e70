"""Calls of functions written out: the statements of a block in the language's own operations alone.

Input: statements as written, and the functions that they may call. Output: the same, each call replaced by what the
function returns, below the statements that the function takes. Names of a function's own are told from those of the
rule. What comes of a call stands at the call, within the line of the function that it is written in.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from optgen.diagnostics import Reporter, suggest
from optgen.ir.functions import Function, calls, check_arguments, named
from optgen.ir.loops import Vectors, without_loops
from optgen.ir.parser import MAX_DEPTH, Stage, depth, node_location, parse_block, too_deep
from optgen.spec.source import SourceText

Tree = TypeVar("Tree", bound=ast.AST)
Functions = Mapping[str, Function]
MAX_LEVELS = 40
"""Largest nesting depth of calls."""
MAX_NODES = 100_000
"""Largest number of syntax tree nodes that the calls of a block may become."""
IN_EVERY_RULE = frozenset(("param", "grad", "step", "active"))
_PLACE = ("lineno", "col_offset", "end_lineno", "end_col_offset", "within")


class _StopError(Exception):
    """This statement cannot be written out; the reason has been reported."""


@dataclass(frozen=True)
class Library:
    """The functions that one rule may call, and what they may name of it.

    Attributes:
        functions: By name; in the rule's own blocks.
        common: Likewise in shared stages.
        rule: The rule's name.
        given: Its settings, inputs and facts.
        states: Its states, which functions take as arguments.
        used: Every name in its blocks and in shared stages.
        vectors: Its settings of several numbers and its vectors of states, with the names of their parts.
        of_stages: The functions that blocks of each stage on the rule may call.
    """

    functions: Functions = field(default_factory=dict)
    common: Functions = field(default_factory=dict)
    rule: str = ""
    given: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    vectors: Vectors = field(default_factory=dict)
    of_stages: Mapping[str, Functions] = field(default_factory=dict)

    def statements(self, stage: Stage, reporter: Reporter) -> list[ast.stmt]:
        """The statements of a stage without loops and calls; those that cannot be written out are left out."""
        functions = self.common if stage.shared else self.of_stages.get(stage.owner, self.functions)
        body = parse_block(stage.text, reporter)
        if not stage.shared:
            body = self.without_loops(body, stage.text, reporter)
        return _Writer(self, stage.text, functions, reporter).block(body)

    def without_loops(self, body: list[ast.stmt], text: SourceText, reporter: Reporter) -> list[ast.stmt]:
        """The statements of one of the rule's own blocks without loops and indices."""
        taken = {*self.given, *self.states, *self.vectors, *IN_EVERY_RULE}
        return without_loops(body, text, self.vectors, taken, reporter)

    def expression(self, node: ast.expr, text: SourceText, reporter: Reporter) -> ast.expr:
        """An initial value without calls of functions, all of which are expressions."""
        before: list[ast.stmt] = []
        try:
            writer = _Writer(self, text, self.functions, reporter)
            found = writer.expression(node, before, self.functions, self.used)
        except _StopError:
            return node
        if before:
            message = "an initial value is one expression, and this call takes several lines"
            reporter.error("not-in-language", message, node_location(text, node), "write it out")
        elif depth(found) > MAX_DEPTH:
            too_deep(text, node, reporter)
        else:
            return found
        return node


class _Writer:
    """Writes out one block."""

    def __init__(self, library: Library, text: SourceText, functions: Functions, reporter: Reporter) -> None:
        self.library, self.text, self.functions, self.reporter = library, text, functions, reporter
        self.room = MAX_NODES
        self.given_away: set[str] = set()  # names of functions' own in the current statement

    def block(self, body: Iterable[ast.stmt]) -> list[ast.stmt]:
        """The statements of a block written out."""
        return _each(body, self._outermost)

    def _outermost(self, statement: ast.stmt) -> list[ast.stmt]:
        self.given_away.clear()
        try:
            return self._statement(statement, self.functions, self.library.used)
        except _StopError:
            return []

    def _statement(self, statement: ast.stmt, functions: Functions, taken: frozenset[str]) -> list[ast.stmt]:
        """A statement that is no `if`, and before it what its calls take."""
        if depth(statement) > MAX_DEPTH or not any(name in functions for name, _ in calls(statement)):
            return [statement]
        match statement:
            case ast.Assign(targets=[target], value=ast.Call(func=ast.Name(id=name)) as call) if name in functions:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                targets = [part.id for part in parts if isinstance(part, ast.Name)]
                if len(targets) == len(parts):
                    return self._assigned(statement, targets, call, functions, taken)
            case ast.Assign(targets=[ast.Tuple() as several], value=ast.Tuple(elts=parts_of)):
                first: list[ast.stmt] = []
                written = [self.expression(part, first, functions, taken) for part in parts_of]
                return [*first, _placed(ast.Assign([several], ast.Tuple(written, ast.Load())), statement)]
            case ast.Assign(targets=[ast.Name() as target], value=value):
                before: list[ast.stmt] = []
                value = self.expression(value, before, functions, taken)
                return [*before, _placed(ast.Assign([target], value), statement)]
        return [statement]

    def _assigned(
        self, statement: ast.Assign, targets: list[str], call: ast.Call, functions: Functions, taken: frozenset[str]
    ) -> list[ast.stmt]:
        """Names that are given what a function returns."""
        if len(set(targets)) < len(targets):
            self._stop("duplicate-name", "this assigns a name twice", statement.targets[0], "use another name")
        body, results = self._call(call, functions, taken, targets)
        left = [(target, value) for target, value in zip(targets, results, strict=True) if not _is(value, target)]
        reads = [{node.id for node in named(value)} for _, value in left]
        if any(target in names for at, (target, _) in enumerate(left) for names in reads[at + 1 :]):
            kept = [self._fresh(target, _called(call), taken) for target, _ in left]
            body += [_assignment(name, value, statement) for name, (_, value) in zip(kept, left, strict=True)]
            left = [(target, ast.Name(name, ast.Load())) for name, (target, _) in zip(kept, left, strict=True)]
        return [*body, *(_assignment(target, value, statement) for target, value in left)]

    def expression(
        self, node: ast.expr, before: list[ast.stmt], functions: Functions, taken: frozenset[str]
    ) -> ast.expr:
        """An expression written out; the statements that its calls take are added to `before`."""

        def inlined(part: ast.AST) -> ast.AST | None:
            if not isinstance(part, ast.Call) or _called(part) not in functions:
                return None
            body, results = self._call(part, functions, taken)
            before.extend(body)
            words = [_called(part), *(arg.id for arg in part.args if isinstance(arg, ast.Name) and arg.id != "step")]
            results[0].named = "_".join(words)  # type: ignore[attr-defined]
            return results[0]

        return _rebuilt(node, inlined)

    def _call(
        self, call: ast.Call, functions: Functions, taken: frozenset[str], targets: Sequence[str] = ()
    ) -> tuple[list[ast.stmt], list[ast.expr]]:
        """The statements that a call takes, and what it returns.

        Args:
            targets: Names that the results are assigned to. A name of the function's own that is a result becomes that,
                where it can.
        """
        function = functions[_called(call)]
        self._check(function, call, len(targets) or 1)
        body: list[ast.stmt] = []
        args = [self.expression(arg, body, functions, taken) for arg in call.args]
        given = dict(zip(function.params, args, strict=True))
        kept = _kept(function, given)
        names = _targets(function, given, targets, kept, self.library.states | {"param"})
        names |= {name: self._fresh(name, function.name, taken) for name in kept if name not in names}
        values: dict[str, ast.expr] = {**given, **{name: ast.Name(own, ast.Load()) for name, own in names.items()}}
        starts = [(names[param], arg) for param, arg in given.items() if param in kept and not _is(arg, names[param])]
        body += [_assignment(name, arg, call) for name, arg in starts]
        inner = taken | set(names.values())
        own = [self._instance(statement, function, call, values) for statement in function.body]
        body += _each(own, lambda statement: self._statement(statement, function.others, inner))
        results = [self._instance(result, function, call, values) for result in function.results]
        for result in results:
            if depth(result) > MAX_DEPTH:
                too_deep(self.text, result, self.reporter)
                raise _StopError
        return body, [self.expression(result, body, function.others, inner) for result in results]

    def _check(self, function: Function, call: ast.Call, wanted: int) -> None:
        """Stops at a call that cannot be: other arguments, other results, or names that the rule does not have."""
        name = function.name
        if len(getattr(call, "within", ())) >= MAX_LEVELS:
            message, help_text = f"calls nest more than {MAX_LEVELS} levels deep", "let functions call fewer others"
            self._stop("too-deep", message, call, help_text)
        if not function.whole:
            self._stop("undefined-function", f"`{name}` cannot be called: there is a mistake in its definition", call)
        if not check_arguments(call, function, self.text, self.reporter):
            raise _StopError
        if len(function.results) != wanted:
            gives = f"{len(function.results)} values" if len(function.results) > 1 else "one value"
            listed = ", ".join("abcdefghijklmnop"[: len(function.results)])
            self._stop("arguments", f"`{name}` gives {gives}", call, f"write `{listed} = {function.signature}`")
        known = function.own | IN_EVERY_RULE | self.library.given
        missing = {node.id: node for node in reversed(function.reads()) if node.id not in known}
        for read, node in missing.items():
            message = f"`{name}` reads `{read}`, which `{self.library.rule}` does not have"
            help_text = suggest(read, known) or "declare it, or write the lines of the function in its place"
            if read in self.library.states:
                message = f"`{name}` reads `{read}`, a state that is not handed to it"
                help_text = f"make it a parameter of `{name}`"
            where = node_location(self.text, _within(ast.Name(read, ast.Load()), call, function, node))
            self.reporter.error("undefined-name", message, where, help_text)
        if missing:
            raise _StopError

    def _stop(self, rule: str, message: str, node: ast.AST, help_text: str = "") -> NoReturn:
        self.reporter.error(rule, message, node_location(self.text, node), help_text)
        raise _StopError

    def _fresh(self, name: str, function: str, taken: frozenset[str]) -> str:
        """A name of a function's own, as it is where nothing else has that name."""
        found, number = name, 1
        while found in taken or found in self.given_away:
            found = f"{function}_{name}" if number == 1 else f"{function}_{name}_{number}"
            number += 1
        self.given_away.add(found)
        return found

    def _instance(self, node: Tree, function: Function, call: ast.Call, values: Mapping[str, ast.expr]) -> Tree:
        """A part of a function as one call has it: with these values for its names, at the call."""

        def put(part: ast.AST) -> ast.AST | None:
            self.room -= 1
            if self.room < 0:
                message, help_text = "the calls of this block take too many lines", "let functions call fewer others"
                self._stop("block-too-long", message, call, help_text)
            if not isinstance(part, ast.Name) or part.id not in values:
                return None
            value = values[part.id]
            if isinstance(value, ast.Name) and not hasattr(value, "lineno"):  # a name of the function's own
                return _within(ast.Name(value.id, part.ctx), call, function, part)
            return _within(copy(value), value, function, part)

        return _rebuilt(node, put, lambda made, part: _within(made, call, function, part))


def _kept(function: Function, given: Mapping[str, ast.expr]) -> list[str]:
    """The names that a call has of its own: what the function assigns, and parameters that are computed once."""
    assigned = dict.fromkeys(node.id for node in function.assigns())
    reads = Counter(node.id for node in function.reads())
    computed = [
        param for param, arg in given.items() if reads[param] > 1 and not isinstance(arg, ast.Name | ast.Constant)
    ]
    return list(dict.fromkeys((*computed, *assigned)))


def _targets(
    function: Function,
    given: Mapping[str, ast.expr],
    targets: Sequence[str],
    kept: Sequence[str],
    lasting: frozenset[str],
) -> dict[str, str]:
    """The names of the function's own that can be those that its results are assigned to.

    Not where the old value of that is read otherwise; nor, where it is a state, for a value that is changed twice.
    """
    names = [result.id if isinstance(result, ast.Name) else "" for result in function.results]
    writes = Counter(node.id for node in function.assigns())
    free = {node.id for node in function.reads()} - function.own
    found = {}
    for name, target in zip(names, targets, strict=False):
        others = {node.id for param, arg in given.items() if param != name for node in named(arg)}
        times = writes[name] + (name in given and not _is(given[name], target))
        is_own = name in kept and names.count(name) == 1
        if is_own and target not in free | others and (times == 1 or target not in lasting):
            found[name] = target
    return found


def _each(body: Iterable[ast.stmt], write: Callable[[ast.stmt], list[ast.stmt]]) -> list[ast.stmt]:
    """Statements, each of which is rewritten unless it is an `if`."""
    result: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If):
            then, other = _each(statement.body, write), _each(statement.orelse, write)
            result.append(_placed(ast.If(statement.test, then, other), statement))
        else:
            result += write(statement)
    return result


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _assignment(name: str, value: ast.expr, place: ast.AST) -> ast.stmt:
    return _placed(ast.Assign([_placed(ast.Name(name, ast.Store()), place)], value), place)


def _rebuilt(
    node: Tree,
    put: Callable[[ast.AST], ast.AST | None],
    mark: Callable[[ast.AST, ast.AST], ast.AST] = lambda made, part: _placed(made, part),
) -> Tree:
    """A copy of a tree, in which a part is what `put` gives for it, if it gives anything."""
    found = put(node)
    if found is not None:
        return found  # type: ignore[return-value]

    def copied(value: object) -> object:
        if isinstance(value, list):
            return [copied(item) for item in value]
        return _rebuilt(value, put, mark) if isinstance(value, ast.AST) else value

    made = type(node)(**{name: copied(value) for name, value in ast.iter_fields(node)})
    return mark(made, node)  # type: ignore[return-value]


def _placed(node: Tree, place: ast.AST) -> Tree:
    """A new node at the place of another."""
    for name in _PLACE:
        if hasattr(place, name):
            setattr(node, name, getattr(place, name))
    return node


def _within(node: Tree, place: ast.AST, function: Function, part: ast.AST) -> Tree:
    """A new node at a call or a value of it, within that part of the function."""
    _placed(node, place)
    if hasattr(part, "lineno"):
        node.within = (*getattr(place, "within", ()), (function.text, part))  # type: ignore[attr-defined]
    return node
