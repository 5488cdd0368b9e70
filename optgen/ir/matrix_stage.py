"""A step on whole matrices: the block `step` of a rule whose states are matrices of shapes of their own.

It takes the gradient that the stage before it leaves, and gives the direction `update`; both have the parameter's
shape. Between them stand matrices of any shape, in products and decompositions of torch.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optgen.diagnostics import Reporter, suggest
from optgen.ir.builder import Builder
from optgen.ir.formula import TRUE, Formula, atom
from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Call, Expr, Input, Kind, Let, Program, Ref, Select, children, refs, walk, with_operands
from optgen.ir.parser import Stage, node_location
from optgen.ir.scope import Scope
from optgen.ir.shapes import LINES, OF_PARAMETER, OWN, MisfitError, Shape, shape_of, shown, size_name
from optgen.ir.values import ERROR, Value
from optgen.operations import OF_STAGES, REDUCTIONS, Operation, Sort
from optgen.spec.loader import LoadedSpec
from optgen.spec.model import Hyperparameter, State

UPDATE = "update"
OVER = "over_"
"""Begins the names of what a reduction is over, among the inputs of a program."""


@dataclass(frozen=True)
class MatrixStage:
    """The step on matrices.

    Attributes:
        program: What it computes: new values of the states, and `update`.
        states: The states that are matrices, by name.
        shapes: The dimensions of each.
        sizes: The hyperparameters that are dimensions.
    """

    program: Program
    states: Mapping[str, Input]
    shapes: Mapping[str, Shape]
    sizes: tuple[str, ...]

    def under(self, answers: Mapping[str, bool], guards: GuardTable) -> MatrixStage:
        """The step under settings that answer the guards so; what the number of the step decides stays open."""
        known = TRUE
        for name, holds in answers.items():
            if guards.guards[name].about != "step":
                known = known & (atom(name) if holds else ~atom(name))

        def chosen(expr: Expr) -> Expr:
            if not isinstance(expr, Select):
                return with_operands(expr, [chosen(child) for child in children(expr)]) if children(expr) else expr
            formula, then, other = expr.formula.given(known), chosen(expr.then), chosen(expr.other)
            if formula.is_true or formula.is_false:
                return then if formula.is_true else other
            return replace(expr, formula=formula, then=then, other=other)

        def settled(let: Let) -> Let:
            expr, arms = chosen(let.expr), [(arm, arm.formula.given(known)) for arm in let.arms]
            left = tuple(replace(arm, formula=f) for arm, f in arms if not (f.is_true or f.is_false))
            joins = let.joins if isinstance(expr, Select) else 0
            return replace(let, expr=expr, path=let.path.given(known), arms=left, joins=joins)

        program = replace(
            self.program,
            lets=tuple(map(settled, self.program.lets)),
            outputs={name: chosen(value) for name, value in self.program.outputs.items()},
            writes={name: live.given(known) for name, live in self.program.writes.items()},
        )
        return replace(self, program=program)

    @property
    def drawn(self) -> frozenset[str]:
        """The states that random numbers are drawn for."""
        nodes = ((let.variable, node) for let in self.program.lets for node in walk(let.expr))
        return frozenset(name for name, node in nodes if isinstance(node, Call) and node.op == "normal_matrix")

    @property
    def reads_param(self) -> bool:
        """True if it reads the parameter beside the gradient."""
        given = {name for name, item in self.program.inputs.items() if item.role == "param"}
        values = (*(let.expr for let in self.program.lets), *self.program.outputs.values())
        return any(not given.isdisjoint(refs(value)) for value in values)


def build_matrix_stage(
    stage: Stage, scope: Scope, states: Mapping[str, Input], shapes: Mapping[str, Shape], reporter: Reporter
) -> MatrixStage:
    """Build the step on matrices; mistakes are reported.

    Args:
        states: The states that are matrices.
        shapes: The dimensions of each.
    """
    given = {n: i for n, i in scope.inputs.items() if i.role != "state" and i.role != "input"}
    own = [name for name in dict.fromkeys(d for shape in shapes.values() for d in shape) if name in scope.hypers]
    sizes = {size_name(d): Input(size_name(d), "fact", Kind.STEP) for d in (*OF_PARAMETER, *own)}
    over = {OVER + name: Input(OVER + name, "fact", Kind.CONST) for name in LINES}
    inputs = {**given, **sizes, **over, **states}
    # What the number of the step decides is decided by the host alone: no step on matrices is recorded.
    scope = replace(scope, inputs=inputs, given=frozenset(), can_record=False)
    builder = _Builder(scope, reporter, {**shapes, "grad": OWN, "param": OWN}, (*OF_PARAMETER, *own))
    program = builder.build([stage], list(states))
    outputs, writes = dict(program.outputs), dict(program.writes)
    update = builder.final.get(UPDATE)
    if update is not None and update.expr != ERROR:
        builder.check_update(update.expr)
        outputs[UPDATE], writes[UPDATE] = update.expr, TRUE
    program = replace(
        program,
        inputs={**program.inputs, UPDATE: Input(UPDATE, "state", Kind.ELEMENT)},
        outputs=outputs,
        writes=writes,
    )
    return MatrixStage(program, states, shapes, tuple(own))


def shape_in(
    name: str, state: State, loaded: LoadedSpec, hypers: Mapping[str, Hyperparameter], reporter: Reporter
) -> Shape:
    """The shape of a state that is a matrix; dimensions that there are not are reported."""
    assert isinstance(state.shape, list)
    whole = [key for key, hyper in hypers.items() if hyper.integer and not hyper.names and not hyper.optional]
    known = (*OF_PARAMETER, "1", *whole)
    for index, dimension in enumerate(map(str, state.shape)):
        if dimension not in known:
            where = loaded.locate("states", name, "shape", index)
            help_text = suggest(dimension, known) or f"one of {', '.join(known)}"
            reporter.error("shape", f"`{dimension}` is no dimension of a matrix", where, help_text)
    rows, cols = map(str, state.shape)
    return rows, cols


class _Builder(Builder):
    """Builds a program whose elements are those of matrices, and infers their shapes.

    Attributes:
        shapes: Of inputs and bindings that are matrices.
        dimensions: Those that there are.
    """

    keeps_whole = False

    def __init__(
        self, scope: Scope, reporter: Reporter, shapes: Mapping[str, Shape], dimensions: Sequence[str]
    ) -> None:
        super().__init__(scope, reporter)
        self.shapes, self.dimensions = dict(shapes), dimensions

    def check_update(self, update: Expr) -> None:
        """Report a direction of another shape than the parameter's."""
        shape = shape_of(update, self.shapes)
        if shape in (None, OWN):
            return
        let = next((let for let in reversed(self.lets) if let.variable == UPDATE), None)
        where = self.text.locate(1, 0) if let is None or let.location is None else let.location
        message = f"`update` is {shown(shape)}, and the parameter {shown(OWN)}"
        self.reporter.error(
            "shape", message, where, "bring it back with `matmul`, `transpose`, `from_tall` or `turned_back`"
        )

    def _bind(self, name: str, expr: Expr, source: str, node: ast.AST | None, variable: str, joins: int) -> Expr:
        bound = super()._bind(name, expr, source, node, variable, joins)
        try:
            shape = shape_of(expr, self.shapes)
        except MisfitError as misfit:  # of the sides of an `if`: operands have been looked at
            where = next((let.location for let in reversed(self.lets[:-1]) if let.variable == variable), None)
            self.reporter.error("shape", f"`{variable}`: {misfit}", where or self.text.locate(1, 0))
            shape = None
        if shape is not None and isinstance(bound, Ref):
            self.shapes[bound.name] = shape
        return bound

    def _may_assign(self, name: str, node: ast.Name) -> bool:
        if name in ("active", "grad"):
            message = f"`{name}` cannot be assigned in a step on matrices"
            self.reporter.error("not-assignable", message, node_location(self.text, node), "use another name")
            return False
        return super()._may_assign(name, node)

    def _fits(self, name: str, state: Input, expr: Expr, node: ast.expr, help_text: str) -> bool:
        if not super()._fits(name, state, expr, node, help_text):
            return False
        shape = shape_of(expr, self.shapes)
        if shape == self.shapes[name]:
            return True
        found = "one number" if shape is None else shown(shape)
        message = f"`{name}` is {shown(self.shapes[name])}, but this is {found}"
        self.reporter.error("shape", message, node_location(self.text, node), "give the state that shape")
        return False

    def _call(
        self,
        node: ast.Call,
        name: str,
        args: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
        env: Mapping[str, Value],
        path: Formula,
    ) -> Expr:
        if name in REDUCTIONS and len(args) == 1:
            return self._lines(node, name, args[0], keywords, env, path)
        row = OF_STAGES.get(name)
        if row is None or keywords or len(args) != row.arity:
            if row is not None:
                message = f"`{name}` takes {row.arity} argument{'s' if row.arity > 1 else ''}, {len(args)} given"
                self.reporter.error("arguments", message, node_location(self.text, node), f"write `{row.signature}`")
                return ERROR
            return super()._call(node, name, args, keywords, env, path)
        return self._operation(row, node, args, env, path)

    def _operation(
        self, row: Operation, node: ast.expr, args: Sequence[ast.expr], env: Mapping[str, Value], path: Formula
    ) -> Expr:
        return self._checked(super()._operation(row, node, args, env, path), node)

    def _checked(self, expr: Expr, node: ast.expr) -> Expr:
        """An expression whose operands fit."""
        if expr == ERROR:
            return ERROR
        try:
            shape_of(expr, self.shapes)
        except MisfitError as misfit:
            self.reporter.error("shape", str(misfit), node_location(self.text, node))
            return ERROR
        return expr.args[0] if isinstance(expr, Call) and expr.op == "size" else expr

    def _argument(self, row: Operation, sort: Sort, node: ast.expr, env: Mapping[str, Value], path: Formula) -> Expr:
        where = node_location(self.text, node)
        if sort == "dimension":
            if isinstance(node, ast.Name) and node.id in self.dimensions:
                return Ref(size_name(node.id))
            name = node.id if isinstance(node, ast.Name) else ""
            help_text = suggest(name, self.dimensions) or f"one of {', '.join(self.dimensions)}"
            self.reporter.error("shape", f"`{row.name}` takes a dimension of a state here", where, help_text)
            return ERROR
        if sort == "matrix":
            number = self._number(node, env, path)
            if number != ERROR and shape_of(number, self.shapes) is None:
                self.reporter.error("shape", f"`{row.name}` takes a matrix, and this is one number", where)
                return ERROR
            return number
        return super()._argument(row, sort, node, env, path)

    def _lines(
        self,
        node: ast.Call,
        name: str,
        arg: ast.expr,
        keywords: Sequence[ast.keyword],
        env: Mapping[str, Value],
        path: Formula,
    ) -> Expr:
        """A reduction of a matrix, to one number or one for each row or column."""
        over, kept = "tensor", name
        if name.startswith(("row_", "col_")):
            over, kept = name[:3], name[4:]
        match keywords:
            case [ast.keyword(arg="over", value=ast.Name(id=given))]:
                over = given
            case []:
                pass
            case _:
                over = ""
        row = OF_STAGES.get(f"{kept}_over")
        if row is None or over not in LINES:
            message = f"`{name}` of a matrix takes `over=` one of {', '.join(LINES)}"
            if row is None:
                message = f"there is no `{name}` of matrices"
            self.reporter.error("arguments", message, node_location(self.text, node))
            return ERROR
        x = self._argument(row, "matrix", arg, env, path)
        return self._checked(ERROR if x == ERROR else Call(row.name, (x, Ref(OVER + over))), node)
