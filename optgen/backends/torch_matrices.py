"""The step on matrices of a rule as a function of torch, the same for all targets.

It is given the gradient and reads the states as matrices in float32; it returns their new values, and the direction.
"""

from __future__ import annotations

from optgen.backends.assignments import Part
from optgen.backends.code import Labelled
from optgen.backends.layout import python_code
from optgen.backends.py_printer import PyPrinter, py_condition, py_name
from optgen.backends.py_statements import PyStatements, below
from optgen.backends.statements import If, values_in, walk_statements
from optgen.backends.torch_function import FunctionText
from optgen.backends.torch_in_place import InPlace
from optgen.ir.formula import Formula
from optgen.ir.guards import GuardTable
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import demands, needed, resolve
from optgen.ir.matrix_stage import OVER, MatrixStage
from optgen.ir.nodes import MATRICES, Kind, Program, Select, walk
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
    in_place = InPlace(program, stage.shapes, own, code)
    statements = PyStatements(lambda statement: in_place.printer(statement, printer), code.loose)
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
