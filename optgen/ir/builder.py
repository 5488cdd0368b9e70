"""Conversion of statements to a program: names are resolved, every assignment becomes a binding of its own.

Input: the statements of a block's stages in order. Output: a `Program` in single assignment form with inferred kinds.
All mistakes are reported; the builder goes on after each, so that one run shows them all.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optgen.diagnostics import Reporter, suggest
from optgen.ir import whole_matrices
from optgen.ir.bindings import Bindings
from optgen.ir.exchanges import Exchange, Pair, exchanged, paired
from optgen.ir.facts import NAMED, fact
from optgen.ir.fits import Mistake, fits, fits_below, why_not_assigned, why_not_drawn, why_not_taken, why_unknown
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.guards import describe
from optgen.ir.habits import instead_of_call
from optgen.ir.kinds import is_boolean, is_pushed, kind_of, unit_of, window_name
from optgen.ir.liveness import changes
from optgen.ir.nodes import MATRICES, Call, Const, Expr, Input, Kind, MatrixCall, Program, Ref
from optgen.ir.parser import MAX_DEPTH, Stage, depth, node_location, refuse, stored_names, too_deep
from optgen.ir.reductions import lowered, over_of, refused
from optgen.ir.scope import Scope
from optgen.ir.steps import asks_step, sides_of
from optgen.ir.values import ERROR, Value, also, call, finite, merged
from optgen.operations import BY_SYNTAX, CALLED, DRAWS, REDUCTIONS, MatrixFunction, Operation, Reduction, Sort
from optgen.spec.names import OF_BLOCKS, OF_SHAPE
from optgen.spec.source import NO_TEXT, SourceText


class Builder(Bindings):
    """Builds the program of one block, or an initial value.

    Attributes:
        draws: The number of random draws so far.
        keeps_whole: Whether a step leaves a matrix as it was where functions of matrices give nothing finite.
    """

    keeps_whole = True

    def __init__(self, scope: Scope, reporter: Reporter, at_once: bool = False, draws: int = 0) -> None:
        super().__init__(scope, at_once)
        self.draws = draws
        self.reporter = reporter
        self.target = "value"
        self.writable: tuple[str, ...] = ()
        self.visible: frozenset[str] = frozenset()
        self.final: Mapping[str, Value] = {}
        self.block = Stage(NO_TEXT)
        self.assigned: set[str] = set()
        self.unread = False
        self.exchanged: list[Exchange] = []

    def build(self, stages: Sequence[Stage], writable: Sequence[str]) -> Program:
        """The program of these stages; `writable` names the inputs that they may assign."""
        env = self._given()
        env["active"] = Value(Const(True))
        own: dict[tuple[bool, str], dict[str, Value]] = {}  # names that the blocks of one owner alone know
        grads = env.get("grad")
        for block in stages:
            self.text, self.block, self.stage = block.text, block, block.name if block.shared else ""
            if block.of_matrices:
                self.source, self.path, self.target = "update = matrices(grad)", TRUE, "update"
                skip = whole_matrices.skips(self.scope)
                env |= self.under(skip, whole_matrices.taken(env, self.scope), env, "")
                x = env["grad"].expr if isinstance(env["grad"].expr, Ref) else self.bind_part("grad", env["grad"].expr)
                x = self.bind_part("update_matrix", MatrixCall(MATRICES, x))
                env["update"] = Value(self.bind("update", x, self.source))
                env |= self.under(TRUE, whole_matrices.left(env), env, self.source)
                continue
            names = own.setdefault((block.shared, block.owner), {})
            self.visible = frozenset(self.scope.common if block.shared else self._names()).union(OF_BLOCKS)
            own_states = self.scope.of_stages.get(block.owner, self.visible)
            self.writable = tuple(name for name in writable if name == "param" or name in own_states)
            seen = {name: value for name, value in env.items() if name in self.visible} | names
            if block.keeps_grad and grads is not None:
                seen["grad"] = grads
            before, body = self.reporter.error_count, self.scope.library.statements(block, self.reporter)
            self.unread = self.unread or self.reporter.error_count > before
            self.assigned = {name for statement in body for name in stored_names(statement)}
            whole = self.keeps_whole and whole_matrices.calls_matrices(body)
            if whole:
                skip = whole_matrices.skips(self.scope)
                seen |= self.under(skip, whole_matrices.taken(seen, self.scope), seen, "")
            for name, value in self._statements(body, seen, TRUE).items():
                if name not in self.visible:
                    names[name] = value
                elif name != "grad" or not block.keeps_grad:
                    env[name] = value
            if block.name == "grad":
                grads = env.get("grad")
            if whole:
                env |= self.under(skip, whole_matrices.left(env), env, "")
                states = [self.scope.inputs[name] for name in self.writable]
                env |= self.under(skip, whole_matrices.kept(env, states), env, "")
        self.final = env
        writes = {name: self._writes(name, env[name].expr) for name in writable}
        outputs = {name: env[name].expr for name, live in writes.items() if not live.is_false}
        return Program(dict(self.scope.inputs), tuple(self.lets), outputs, {name: writes[name] for name in outputs})

    def _writes(self, name: str, value: Expr) -> Formula:
        """Formula of the settings under which an input gets a new value; inputs of the host always get one."""
        changed = changes(self.lets, name, value)
        item = self.scope.inputs[name]
        return item.exists & (changed if changed.is_false or not item.kind.is_host else TRUE)

    def _names(self) -> set[str]:
        return {*self.scope.inputs, *self.scope.options, *self.scope.hypers}

    def initial(self, text: SourceText, node: ast.expr, name: str, state: Input) -> Expr:
        """The expression of a state's initial value."""
        self.text, self.source = text, text.text
        expr = self._number(node, self._given(), state.exists)
        self._fits(name, state, expr, node, "give the state that shape, or begin with another value")
        return expr

    def _given(self) -> dict[str, Value]:
        """Values before the block; some states and optional hyperparameters are missing under some settings."""
        result = {}
        for name, item in self.scope.inputs.items():
            if name in OF_SHAPE:
                continue  # it is written `shape[i]`
            missing = ~item.exists if item.role == "state" else FALSE
            if self.scope.hypers.get(name):
                missing = ~self.scope.guards.formula("hyper", name, "given")
            if item.role == "input":
                missing = ~self.scope.guards.formula("input", name, "given")
            result[name] = Value(Ref(name), missing)
        return result

    # Statements

    def _statements(self, body: Sequence[ast.stmt], env: dict[str, Value], path: Formula) -> dict[str, Value]:
        for statement in body:
            if depth(statement.test if isinstance(statement, ast.If) else statement) > MAX_DEPTH:
                too_deep(self.text, statement, self.reporter)
                env = self._unknown(statement, env)
                continue
            match statement:
                case ast.Assign(targets=[ast.Name(id=name) as target], value=value):
                    self._assign(statement, name, target, value, env, path)
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if pairs := paired(
                    names, values
                ):
                    self._assign_together(statement, pairs, env, path)
                case ast.If(test=test, body=then, orelse=other):
                    before = self.reporter.error_count
                    condition = self.scope.condition(test, self.text, self.reporter, bool(self.stage), env)
                    if self.reporter.error_count > before:
                        # Both branches are read for their own mistakes, under settings that there are not.
                        env = self._statements(other, self._statements(then, env, FALSE), FALSE)
                    else:
                        env = self._branch(condition, then, other, env, path)
                case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
                    pass
                case _:
                    refuse(self.text, statement, self.reporter)
                    env = self._unknown(statement, env)
        return env

    def _unknown(self, statement: ast.stmt, env: dict[str, Value]) -> dict[str, Value]:
        """After a statement that was refused: the names that it would have assigned stand for anything."""
        return env | {name: Value(ERROR) for name in stored_names(statement) - self._names()}

    def _assign_together(self, node: ast.Assign, pairs: Sequence[Pair], env: dict[str, Value], path: Formula) -> None:
        """Several names at once, whose new values follow from the old ones of all; two states may be exchanged so."""
        before = dict(env)
        for target, value in pairs:
            self._assign(node, target.id, target, value, env, path, before)
        self.exchanged += exchanged(pairs, path)

    def _assign(
        self,
        node: ast.Assign,
        name: str,
        target: ast.Name,
        value: ast.expr,
        env: dict[str, Value],
        path: Formula,
        given: Mapping[str, Value] | None = None,
    ) -> None:
        """A name; its value follows from `given`, or else from what names are at the moment."""
        if not self._may_assign(name, target):
            env |= self._unknown(node, {})
            return
        self.source, self.path, self.target = ast.unparse(node), path, name
        expr = self._expression(value, env if given is None else given, path)
        if expr == ERROR:
            env[name] = Value(ERROR)
            return
        state = self.scope.inputs.get(name) if name in self.visible else None
        if state is not None and is_boolean(expr, self.by_name):
            message = f"`{name}` is a number, but this is a condition"
            self.reporter.error("type", message, node_location(self.text, value), "use `where(condition, 1, 0)`")
            return
        if name == "active" and not is_boolean(expr, self.by_name):
            message = "`active` must be a condition"
            self.reporter.error("kind", message, node_location(self.text, value), "write `active = active and ...`")
            return
        if state is not None and name != "grad":
            help_text = "reduce it, with `sum`, `mean`, `norm` ..., or give the state that shape"
            if not self._fits(name, state, expr, value, help_text):
                return
            decided = self.scope.condition_kind(path)
            if not fits_below(name, state, decided, node_location(self.text, node), self.reporter):
                return
        if isinstance(expr, Const) and state is None:
            env[name] = Value(expr)
            return
        if name == "active":
            expr = also(env[name].expr, expr)
        env[name] = Value(self.bind(name, expr, self.source, node))

    def _fits(self, name: str, state: Input, expr: Expr, node: ast.expr, help_text: str) -> bool:
        kind, past, where = kind_of(expr, self.kinds), self._past(expr), node_location(self.text, node)
        return expr != ERROR and fits(name, state, kind, past, help_text, where, self.reporter)

    def _may_assign(self, name: str, node: ast.Name) -> bool:
        given = {n: "an option" if n in self.scope.options else "given from outside" for n in self._names()}
        own = {n: item for n, item in self.scope.inputs.items() if n not in self.scope.of_params}
        given |= {n: "a state of the rule" for n, item in own.items() if item.role == "state"}
        known = {n: what for n, what in given.items() if n in self.visible}
        return not self._is_wrong(why_not_assigned(name, known, self.writable, self.block, "grad" in given), node)

    def _is_wrong(self, wrong: Mistake | None, node: ast.AST) -> bool:
        """Report a mistake, if there is one."""
        if wrong is not None:
            self.reporter.error(wrong.rule, wrong.message, node_location(self.text, node), wrong.help_text)
        return wrong is not None

    def _branch(
        self,
        condition: Formula,
        then: Sequence[ast.stmt],
        other: Sequence[ast.stmt],
        env: dict[str, Value],
        path: Formula,
    ) -> dict[str, Value]:
        if condition.is_true:
            return self._statements(then, env, path)
        if condition.is_false:
            return self._statements(other, env, path)
        sides, arms = sides_of(condition, self.scope, self.branches, bool(other)), self.arms
        here, there, self.branches = sides.here.live, sides.there.live, sides.joins
        self.arms = (*arms, sides.here.arm)
        first = self._statements(then, dict(env), path & here)
        self.arms = (*arms, sides.there.arm)
        second = self._statements(other, dict(env), path & there)
        self.arms = arms

        def joined(name: str, a: Expr, b: Expr) -> Expr:
            return self.bind(name, sides.chosen(a, b), "", joins=sides.joins)

        return merged((here, first), (there, second), self._sort, joined)

    def _sort(self, value: Value) -> tuple[bool, bool, str | None]:
        return value.mixed, is_boolean(value.expr, self.by_name), self._past(value.expr)

    def _past(self, expr: Expr) -> str | None:
        return window_name(expr, self.scope.inputs, self.by_name)

    # Expressions

    def _expression(self, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        expr = self._unnamed(node, env, path)
        named = getattr(node, "named", "")
        return replace(expr, named=named) if named and isinstance(expr, Call) else expr

    def _unnamed(self, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        match node:
            case ast.Constant(value=bool() as value):
                return Const(value)
            case ast.Constant(value=int() | float() as value):
                if (number := finite(value)) is not None:
                    return Const(number)
                self.reporter.error("number", "this number is too large", node_location(self.text, node))
                return ERROR
            case ast.Name(id=name) if name in env or name not in NAMED:
                return self._name(node, name, env, path)
            case ast.Name() | ast.Subscript(value=ast.Name(id="shape")):
                return self._fact(node, path)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BY_SYNTAX:
                return self._operation(BY_SYNTAX[type(op)], node, (left, right), env, path)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._number(operand, env, path)
                return Const(-inner.value) if isinstance(inner, Const) and inner != ERROR else call("neg", inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._number(operand, env, path)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in BY_SYNTAX:
                return self._operation(BY_SYNTAX[type(op)], node, (operand,), env, path)
            case ast.BoolOp(op=op, values=values):
                return self._operation(BY_SYNTAX[type(op)], node, values, env, path)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in BY_SYNTAX:
                return self._operation(BY_SYNTAX[type(op)], node, (left, right), env, path)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                return self._call(node, name, args, keywords, env, path)
        refuse(self.text, node, self.reporter)
        return ERROR

    def _name(self, node: ast.expr, name: str, env: Mapping[str, Value], path: Formula) -> Expr:
        value = env.get(name)
        if self.unread and (value is None or not value.missing.is_false):
            return ERROR  # what could not be read may have assigned it
        if value is None:
            self._is_wrong(why_unknown(name, self.scope, env, self.block, name in self.assigned), node)
            return ERROR
        if self.scope.possible(value.missing & path):
            self.reporter.error(
                "maybe-undefined",
                f"`{name}` does not exist under every setting that reaches this line",
                node_location(self.text, node),
                f"it is missing with `{describe(value.missing & path, self.scope.guards.guards)}`",
            )
        if value.mixed:
            message = f"`{name}` is a number on one path to this line, and a condition or a window on another"
            self.reporter.error("type", message, node_location(self.text, node), "give each a name of its own")
        return value.expr

    def _fact(self, node: ast.expr, path: Formula) -> Expr:
        """A fact that is written as `shape[i]`, or follows from others."""
        found = fact(node, lambda least: self.scope.has_rank(path, least), self.at_once)
        if isinstance(found, Expr):
            return found
        self.reporter.error(found.rule, found.message, node_location(self.text, node), found.help_text)
        return ERROR

    def _number(self, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        expr = self._expression(node, env, path)
        if is_boolean(expr, self.by_name):
            message = "a number is needed here, but this is a condition"
            self.reporter.error("type", message, node_location(self.text, node), "use `where(condition, 1, 0)`")
            return ERROR
        return self._no_window(expr, node)

    def _no_window(self, expr: Expr, node: ast.expr) -> Expr:
        if self._past(expr) is None:
            return expr
        where = node_location(self.text, node)
        self.reporter.error("type", "a window is not a number", where, "use `percentile(window, q)`")
        return ERROR

    def _condition(self, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        expr = self._expression(node, env, path)
        if not is_boolean(expr, self.by_name) and expr != ERROR:
            message = "a condition is needed here, but this is a number"
            self.reporter.error("type", message, node_location(self.text, node), "compare it, as in `x > 0`")
            return ERROR
        return expr

    def _call(
        self,
        node: ast.Call,
        name: str,
        args: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
        env: Mapping[str, Value],
        path: Formula,
    ) -> Expr:
        where = node_location(self.text, node)
        of_one = REDUCTIONS.get(name) if len(args) == 1 else None  # `max(x)`, but `max(x, y)`
        match of_one or CALLED.get(name):
            case Reduction() as row:
                return self._reduction(node, row, args, keywords, env, path)
            case MatrixFunction() as matrix if not keywords and len(args) == matrix.arity:
                return self._matrix_function(node, matrix, args, env, path)
            case None:
                message = f"there is no function `{name}`"
                known = [*CALLED, *self.scope.library.functions]
                help_text = instead_of_call(node, name) or suggest(name, known) or ", ".join(known)
                self.reporter.error("undefined-function", message, where, help_text)
                return ERROR
            case Operation() if name in DRAWS and self._is_wrong(why_not_drawn(name, self.at_once, self.scope), node):
                return ERROR
            case Operation(endless=endless) as row if not keywords and (
                len(args) == row.arity or (endless and len(args) > row.arity)
            ):
                return self._operation(row, node, args, env, path)
            case Operation(arity=wanted) | MatrixFunction(arity=wanted):
                given = "named ones" if keywords else f"{len(args)}"
                message = f"`{name}` takes {wanted} argument{'s' if wanted > 1 else ''}, {given} given"
                self.reporter.error("arguments", message, where, instead_of_call(node, name))
                return ERROR

    def _operation(
        self, row: Operation, node: ast.expr, args: Sequence[ast.expr], env: Mapping[str, Value], path: Formula
    ) -> Expr:
        """An operation on its arguments; of more than it takes, on its result and the next one."""
        sorts = [sort for _, sort in row.takes] + [row.takes[-1][1] for _ in args[row.arity :]]
        values = [self._argument(row, sort, arg, env, path) for sort, arg in zip(sorts, args, strict=True)]
        alike = [value for value, sort in zip(values, sorts, strict=True) if sort == "value"]
        if ERROR not in alike and len({is_boolean(value, self.by_name) for value in alike}) > 1:
            message = f"both values of `{row.name}` are numbers, or both conditions"
            self.reporter.error("type", message, node_location(self.text, node))
            return ERROR
        result = call(row.name, *values[: row.arity], *map(Ref, row.beside))
        if row.name in DRAWS:
            self.draws += 1
            return call(row.name, *map(Ref, row.beside), Const(float(self.draws)))
        for value in values[row.arity :]:
            result = call(row.name, result, value)
        return result

    def _argument(self, row: Operation, sort: Sort, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        match sort:
            case "condition":
                return self._condition(node, env, path)
            case "window":
                return self._window(row, node, env, path)
            case "value":
                return self._no_window(self._expression(node, env, path), node)
        number = self._number(node, env, path)
        kind, wrong, help_text = kind_of(number, self.kinds), "", ""
        if sort == "elements" and kind is not Kind.ELEMENT:
            wrong, help_text = f"`{row.name}` takes one number per element", "leave it out"
        if sort == "tensor" and kind > Kind.TENSOR:
            wrong, help_text = f"`{row.name}` takes one number per tensor", "reduce it, with `norm(x)`"
        if not wrong or number == ERROR:
            return number
        message = f"{wrong}, this is one per {unit_of(kind)}"
        self.reporter.error("kind", message, node_location(self.text, node), help_text)
        return ERROR

    def _window(self, row: Operation, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        window, wrong = self._expression(node, env, path), ""
        if self._past(window) is None:
            wrong = f"`{row.name}` takes a state with `window:` first"
        elif row.gives == "window" and (is_pushed(window, self.by_name) or asks_step(self.path, self.scope)):
            wrong = "a window takes one value a step, in every step"
        if wrong and window != ERROR:
            self.reporter.error("type", wrong, node_location(self.text, node))
        return ERROR if wrong else window

    def _reduction(
        self,
        node: ast.Call,
        row: Reduction,
        args: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
        env: Mapping[str, Value],
        path: Formula,
    ) -> Expr:
        name, where, over = row.name, node_location(self.text, node), over_of(row, keywords)
        if len(args) != 1 or over is None:
            others = f", and `over=` one of {', '.join(row.over)}" if len(row.over) > 1 else ""
            message = f"`{name}` takes one value{others}"
            self.reporter.error("arguments", message, where, instead_of_call(node, name))
            return ERROR
        expr = self._number(args[0], env, path)
        kind = kind_of(expr, self.kinds)
        if expr == ERROR:
            return ERROR
        wrong = refused(row, over, kind, self.at_once, lambda least: self.scope.has_rank(path, least))
        if wrong is not None:
            at = args[0] if wrong.of_argument else node
            self.reporter.error(wrong.rule, wrong.message, node_location(self.text, at), wrong.help_text)
            return ERROR
        if not isinstance(expr, Ref):
            expr = self.bind_part(self.target, expr, node)
        return lowered(row, over, kind, expr, self._stem(expr), self.bind_part)

    def _matrix_function(
        self, node: ast.Call, row: MatrixFunction, args: Sequence[ast.expr], env: Mapping[str, Value], path: Formula
    ) -> Expr:
        """A function of the matrix that the elements are; what it gives has a name of its own."""
        x, *settings = (self._number(arg, env, path) for arg in args)
        if ERROR in (x, *settings):
            return ERROR
        kinds = [kind_of(arg, self.kinds) for arg in (x, *settings)]
        wrong, at = why_not_taken(row, kinds, self.scope.has_rank(path, 2), self.at_once)
        if self._is_wrong(wrong, node if at is None else args[at]):
            return ERROR
        x = x if isinstance(x, Ref) else self.bind_part(self.target, x, node)
        return self.bind_part(f"{self.target}_matrix", MatrixCall(row.name, x, tuple(settings)), node)

    def _stem(self, x: Expr) -> str:
        """Stem of the name of a value that is reduced."""
        if not isinstance(x, Ref):
            return self.target
        return self.by_name[x.name].variable or self.target if x.name in self.by_name else x.name
