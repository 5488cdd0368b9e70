"""The step on matrices of a rule as a function of torch, the same for all targets.

It is given the gradient and reads the states as matrices in float32; it returns their new values, and the direction.
"""

from __future__ import annotations

from collections.abc import Iterator

from optgen.backends.assignments import Assignments, Part
from optgen.backends.code import Code, Labelled, call
from optgen.backends.layout import python_code
from optgen.backends.py_printer import PyPrinter, py_condition, py_name
from optgen.backends.py_statements import PyStatements, below
from optgen.backends.statements import Assign, If, Statement, values_in, walk_statements
from optgen.backends.torch_function import FunctionText
from optgen.ir.formula import Formula
from optgen.ir.guards import GuardTable
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import demands, needed, resolve
from optgen.ir.matrix_stage import OVER, UPDATE, MatrixStage
from optgen.ir.nodes import MATRICES, Call, Expr, Kind, Program, Ref, Select, refs, walk
from optgen.passes.drop_unused import drop_unused
from optgen.passes.fold import fold
from optgen.passes.forward import forward
from optgen.passes.rename import rename
from optgen.passes.resolve_choices import resolve_choices
from optgen.passes.rewrite import replaced


def settled_program(stage: MatrixStage, guards: GuardTable) -> Program:
    """The program of a step on matrices as it is printed; scalars stay where they are written."""
    program = drop_unused(forward(fold(resolve_choices(stage.program))))
    return rename(program, guards)


def matrix_function(stage: MatrixStage, guards: GuardTable) -> FunctionText:
    """The step on matrices as a function of a view and the gradient."""
    program = settled_program(stage, guards)
    inputs, writes = program.inputs, program.writes
    roots = [root for n, value in program.outputs.items() for root in demands(value, writes[n])]
    live = needed(program.lets, roots)
    booleans = boolean_names(program)
    own = {name: _text(program, name) for name in inputs}
    part = Part(
        program.lets,
        live,
        outside=lambda name: name,
        sort=lambda let: (let.kind is Kind.ELEMENT, let.name in booleans),
        given={text: name for name, text in own.items()},
    )
    code = part.code(asked=roots)
    kinds = {variable: program.kind(name) for name, variable in code.holders.items()}
    kinds |= {variable: let.kind for variable, let in code.types.items()}
    texts = {text: text for text in own.values()}
    kinds |= {text: inputs[name].kind for name, text in own.items()}
    printer = PyPrinter(kinds, names=texts)
    direction = _LeavesDirection(kinds, names=texts)
    last = _product_that_ends(code)
    statements = PyStatements(lambda statement: direction if statement is last else printer, code.loose)
    lines = statements.lines(code.body, 4)
    always: list[str] = []
    sometimes: dict[Formula, list[str]] = {}
    for name, output in program.outputs.items():
        value = printer.code(replaced(resolve(output, writes[name]), code.values))
        if writes[name].is_true:
            always += below(python_code(Labelled(f'"{name}": ', value), 8, ","))
        else:
            sometimes.setdefault(writes[name], []).extend(python_code(Labelled(f'results["{name}"] = ', value), 8))
    result = ["{", *always, "}"]
    if sometimes:
        lines += [f"results: Results = {result[0]}", *result[1:]]
        for formula, stored in sometimes.items():
            lines += [*python_code(Labelled("if ", py_condition(formula)), 4, ":"), *below(stored)]
        lines.append("return results")
    else:
        lines += [f"return {result[0]}", *result[1:]]
    values = (*values_in(code.body), *code.values.values())
    asks = any(isinstance(s, If) for s in walk_statements(code.body)) or bool(sometimes)
    asks = asks or any(isinstance(node, Select) for value in values for node in walk(value))
    used = {name.partition(".")[0] for name in code.read if "." in name}
    known = {"f": "t.flags", "v": "t.settings_now", "s": "t.states"}
    heads = [name for name in known if name in used or (name == "f" and asks)]
    head = [f"{', '.join(heads)} = {', '.join(known[name] for name in heads)}"] if heads else []
    return FunctionText(
        name=MATRICES,
        head=(f"def {MATRICES}(t: View, grad: Any) -> Results:",),
        doc="New states of a matrix, and its direction `update`.",
        lines=(*head, *lines),
        types=frozenset({"Any", "Results"}),
    )


class _LeavesDirection(PyPrinter):
    """Prints a direction that is a product, which is left in the memory that the caller has for it."""

    def code(self, expr: Expr) -> Code:
        """The expression as Python that knows where its lines may end."""
        factor = PyPrinter(self.kinds, names=self.names).code
        match expr:
            case Call(op="from_tall", args=(Call(op="matmul", args=(a, b)),)):
                return call("t.from_tall", call("m.product", factor(a), factor(b), "m.tall(t.out)"))
            case Call(op="matmul", args=(a, b)):
                return call("m.product", factor(a), factor(b), "t.out")
        return factor(expr)


def _product_that_ends(code: Assignments) -> Statement | None:
    """The last statement, if it makes the direction by a product, and the gradient is not read in it or after it."""
    views, last = {"grad"}, code.body[-1]
    for statement in walk_statements(code.body):
        if isinstance(statement, Assign) and not views.isdisjoint(_seen(statement.value)):
            views.add(statement.variable)
    if not isinstance(last, Assign) or last.variable != UPDATE:
        return None
    read = {name for value in (last.value, *code.values.values()) for name in refs(value)}
    return last if views.isdisjoint(read) else None


def _seen(expr: Expr) -> Iterator[str]:
    """The variables in whose memory a value may lie."""
    match expr:
        case Ref(name=name):
            yield name
        case Call(op="tall" | "from_tall" | "transpose", args=(x,)):
            yield from _seen(x)
        case Select(then=then, other=other):
            yield from _seen(then)
            yield from _seen(other)


def _text(program: Program, name: str) -> str:
    item = program.inputs[name]
    if name.startswith(OVER) and item.role == "fact":
        return f'"{name.removeprefix(OVER)}"'
    match item.role:
        case "grad":
            return "grad"
        case "param" | "step" | "fact":
            dimension = name.removeprefix("size_of_")
            return f"t.{name}" if dimension == name else f't.size_of("{dimension}")'
        case "state":
            return f"s.{name}"
    return f"v.{py_name(name)}"
