"""Functions of equations: named pieces that rules share, as `bias_correction(beta1)`, read here and checked once.

Input: the text of `functions:`, `def`s in Python's syntax. Output: `Function`s by name. A function has parameters and
names of its own, and returns values in its last line; beside them it may name settings, facts, `param`, `grad` and
`step` of the rule that calls it. `expansion.py` writes calls out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from optgen.diagnostics import Location, Reporter, suggest
from optgen.ir.habits import instead_of_call
from optgen.ir.parser import MAX_DEPTH, depth, node_location, parse_block, refuse, too_deep
from optgen.operations import CALLED
from optgen.spec.source import SourceText

BUILT_IN = frozenset(CALLED)
MAX_BRIEF = 110
FORM = "write `def name(x):`, below it statements and, last, `return` with a value"


@dataclass(frozen=True)
class Function:
    """A function as written.

    Attributes:
        body: Its statements, without its documentation and its last line.
        results: Values that it returns.
        text: The text that it stands in.
        others: The functions that it may call.
        whole: Whether it can be called: its definition has no mistake.
    """

    name: str
    params: tuple[str, ...]
    body: tuple[ast.stmt, ...]
    results: tuple[ast.expr, ...]
    text: SourceText
    node: ast.FunctionDef
    others: Mapping[str, Function]
    whole: bool = True

    @property
    def signature(self) -> str:
        """Call with the names of its parameters: `rectified(length, longest)`."""
        return f"{self.name}({', '.join(self.params)})"

    @property
    def written(self) -> str:
        """Its lines, as a text of their own."""
        return "\n".join(self.text.text.split("\n")[self.node.lineno - 1 : self.node.end_lineno])

    @property
    def brief(self) -> list[str]:
        """Its lines without its documentation; of one that only returns, one line."""
        lines, above = self.written.split("\n"), self.node.lineno
        first = self.body[0] if self.body else self.node.body[-1]
        lines = [*lines[: self.node.body[0].lineno - above], *lines[first.lineno - above :]]
        short = " ".join(line.strip() for line in lines)
        return [short] if len(lines) == 2 and len(short) <= MAX_BRIEF else lines

    def reads(self) -> list[ast.Name]:
        """Places where the function reads a name."""
        return [node for node in self._names if isinstance(node.ctx, ast.Load)]

    def assigns(self) -> list[ast.Name]:
        """Places where the function assigns a name."""
        return [node for node in self._names if isinstance(node.ctx, ast.Store)]

    @cached_property
    def own(self) -> frozenset[str]:
        """Its parameters and the names that it assigns."""
        return frozenset((*self.params, *(node.id for node in self.assigns())))

    @cached_property
    def _names(self) -> list[ast.Name]:
        return [name for part in (*self.body, *self.results) for name in named(part)]


def named(tree: ast.AST) -> list[ast.Name]:
    """The names in a tree. A function's is none of them, nor the word of `over=`: a value may have the same."""
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    called |= {id(node.value) for node in nodes if isinstance(node, ast.keyword)}
    return [node for node in nodes if isinstance(node, ast.Name) and id(node) not in called]


def calls(*trees: ast.AST) -> list[tuple[str, ast.Call]]:
    """The calls in trees by plain names, with these."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [(node.func.id, node) for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]


def reached(functions: Mapping[str, Function], *trees: ast.AST) -> list[Function]:
    """The functions that trees call, and those that these call."""
    found = [functions[name] for name, _ in calls(*trees) if name in functions]
    for function in found:
        inner = (function.others.get(name) for name, _ in calls(*function.body, *function.results))
        found += [other for other in inner if other is not None and all(other.node is not one.node for one in found)]
    return [one for at, one in enumerate(found) if all(one.node is not other.node for other in found[:at])]


def parse_functions(text: SourceText, outer: Mapping[str, Function], reporter: Reporter) -> dict[str, Function]:
    """The functions of a text by name; mistakes are reported, and what has one is not `whole`.

    Args:
        outer: Functions that these may call too, where none of theirs has that name.
    """
    own: dict[str, Function] = {}
    others = dict(outer)
    for statement in parse_block(text, reporter):
        if not isinstance(statement, ast.FunctionDef):
            reporter.error(
                "not-in-language", "only functions may be defined here", node_location(text, statement), FORM
            )
        elif statement.name in own:
            message = f"the function `{statement.name}` is defined twice"
            reporter.error("duplicate-name", message, _head(statement, text), "rename one")
        else:
            function = _Definition(statement, text, others, reporter).function()
            if statement.name not in BUILT_IN:
                own[statement.name] = others[statement.name] = function
    inner = {id(function.node): _called_by(function) for function in others.values()}
    for name, function in own.items():
        before = reporter.error_count
        if function.whole:
            _check_calls(function, reporter)
            _check_recursion(function, inner, reporter)
        if reporter.error_count > before:
            own[name] = others[name] = replace(function, whole=False)
    return own


def check_arguments(call: ast.Call, function: Function, text: SourceText, reporter: Reporter) -> bool:
    """Compares a call's values with what the function takes; false, and reported, where they are not as many."""
    if not call.keywords and len(call.args) == len(function.params):
        return True
    given = "named ones" if call.keywords else f"{len(call.args)}"
    count = f"{len(function.params)} argument{'s' if len(function.params) != 1 else ''}"
    message = f"`{function.name}` takes {count}, {given} given"
    reporter.error("arguments", message, node_location(text, call), f"write `{function.signature}`")
    return False


def _head(node: ast.FunctionDef, text: SourceText) -> Location:
    return text.locate(node.lineno, node.col_offset + len("def "), len(node.name.encode()))


class _Definition:
    """A definition being checked by itself."""

    def __init__(
        self, node: ast.FunctionDef, text: SourceText, others: Mapping[str, Function], reporter: Reporter
    ) -> None:
        self.node, self.text, self.others, self.reporter = node, text, others, reporter

    def function(self) -> Function:
        before = self.reporter.error_count
        self._name()
        params = self._params()
        body = list(self.node.body)
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]  # its documentation
        results = self._results(body.pop() if body else None)
        for result in results:
            self._depth(result)
        for statement in body:
            self._statement(statement)
        function = Function(self.node.name, params, tuple(body), results, self.text, self.node, self.others)
        if self.reporter.error_count == before:
            self._use(function)
        return replace(function, whole=self.reporter.error_count == before)

    def _error(self, rule: str, message: str, node: ast.AST, help_text: str = "") -> None:
        self.reporter.error(rule, message, node_location(self.text, node), help_text)

    def _name(self) -> None:
        name = self.node.name
        if name in BUILT_IN or name.startswith("_"):
            self.reporter.error("reserved-name", f"`{name}` is reserved", _head(self.node, self.text), "rename it")

    def _params(self) -> tuple[str, ...]:
        taken, found = self.node.args, list(self.node.args.args)
        others = (taken.vararg, taken.kwarg, *taken.kwonlyargs, *taken.posonlyargs, *taken.defaults)
        more = next((part for part in others if part is not None), None)
        noted = next((arg.annotation for arg in found if arg.annotation is not None), self.node.returns)
        if self.node.decorator_list:
            self._error(
                "not-in-language", "a function cannot have decorators", self.node.decorator_list[0], "remove it"
            )
        elif more is not None or noted is not None:
            message = "parameters of a function cannot have defaults, annotations or stars"
            self._error("not-in-language", message, more or noted or self.node, "write only their names")
        for index, arg in enumerate(found):
            if arg.arg in {other.arg for other in found[:index]}:
                self._error("duplicate-name", f"`{arg.arg}` is a parameter twice", arg, "rename one")
            self._own(arg.arg, arg)
        return tuple(arg.arg for arg in found)

    def _own(self, name: str, node: ast.AST) -> None:
        if name in BUILT_IN or name.startswith("_"):
            self._error("reserved-name", f"`{name}` is reserved", node, "use another name")

    def _results(self, last: ast.stmt | None) -> tuple[ast.expr, ...]:
        match last:
            case ast.Return(value=ast.Tuple(elts=values)) if values:
                return tuple(values)
            case ast.Return(value=ast.expr() as value):
                return (value,)
        message = f"`{self.node.name}` does not end with `return`"
        self._error("no-return", message, last or self.node, "write `return` and a value in its last line")
        return ()

    def _statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name) as target]):
                self._own(name, target)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call()) if all(
                isinstance(target, ast.Name) for target in targets
            ):
                for part in targets:
                    self._own(getattr(part, "id", ""), part)
            case ast.If(body=then, orelse=other):
                for inner in (*then, *other):
                    self._statement(inner)
            case ast.Pass():
                pass
            case ast.Return():
                message = "a function returns once, in its last line"
                self._error("no-return", message, statement, "assign a name here, and return that at the end")
            case _:
                refuse(self.text, statement, self.reporter)
        self._depth(statement.test if isinstance(statement, ast.If) else statement)

    def _depth(self, node: ast.AST) -> None:
        if depth(node) > MAX_DEPTH:
            too_deep(self.text, node, self.reporter)

    def _use(self, function: Function) -> None:
        """Parameters and values that nothing reads."""
        read = {node.id for node in function.reads()}
        for arg in self.node.args.args:
            if arg.arg not in read:
                self._error("unused", f"nothing reads `{arg.arg}`", arg, "use it, or remove it")
        for node in function.assigns():
            if node.id not in read and node.id not in function.params:
                self._error("unused", f"nothing reads `{node.id}`", node, "use it below, or remove the line")


def _check_calls(function: Function, reporter: Reporter) -> None:
    """Calls of what there is not, and of functions with other arguments."""
    for name, call in calls(*function.body, *function.results):
        other = function.others.get(name)
        if other is not None and other.whole:
            check_arguments(call, other, function.text, reporter)
        elif other is None and name not in BUILT_IN:
            known = [*BUILT_IN, *function.others]
            help_text = instead_of_call(call, name) or suggest(name, known) or ", ".join(sorted(known))
            where = node_location(function.text, call)
            reporter.error("undefined-function", f"there is no function `{name}`", where, help_text)


Inner = Mapping[int, Sequence[tuple[ast.Call, Function]]]


def _called_by(function: Function) -> list[tuple[ast.Call, Function]]:
    """The functions that a function calls, by the call."""
    found = ((call, function.others.get(name)) for name, call in calls(*function.body, *function.results))
    return [(call, other) for call, other in found if other is not None]


def _check_recursion(function: Function, inner: Inner, reporter: Reporter) -> None:
    """A function that comes back to itself would never end."""
    found = _way_back(function, inner)
    if found is not None:
        call, between = found
        by = f", through {' and '.join(f'`{name}`' for name in between)}" if between else ""
        message, where = f"`{function.name}` calls itself{by}", node_location(function.text, call)
        reporter.error("recursion", message, where, "functions cannot be recursive; a state keeps values between steps")


def _way_back(start: Function, inner: Inner) -> tuple[ast.Call, tuple[str, ...]] | None:
    """The first call on a way from a function back to itself, and the functions between."""
    seen: set[int] = set()
    waiting: list[tuple[Function, ast.Call | None, tuple[str, ...]]] = [(start, None, ())]
    while waiting:
        function, first, passed = waiting.pop()
        for call, other in inner.get(id(function.node), ()):
            if other.node is start.node:
                return first or call, passed
            if id(other.node) not in seen:
                seen.add(id(other.node))
                waiting.append((other, first or call, (*passed, other.name)))
    return None
