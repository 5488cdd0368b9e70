"""The torch target: a block as plain torch operations, one function.

Runs on every device torch has, serves where no compiler is found, and is the oracle of the other targets. A pass calls
the same function, which returns where the sums of the pass are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from optgen.backends.assignments import Assignments, Part, StageCode
from optgen.backends.base import Rendering
from optgen.backends.code import Brackets, Chain, Labelled, Operand, call
from optgen.backends.declarations import declared
from optgen.backends.layout import import_lines, python_code
from optgen.backends.py_printer import REDUCTION, PyPrinter, py_condition, py_name, whole_kinds
from optgen.backends.py_statements import PyStatements, below
from optgen.backends.quoting import docstring
from optgen.backends.stages import most_common
from optgen.backends.statements import If, Invoke, Take, assigned, takes_sums, values_in, walk_statements
from optgen.backends.torch_function import FunctionText
from optgen.backends.torch_matrices import matrix_function
from optgen.ir.formula import Formula
from optgen.ir.kinds import boolean_names, window_name
from optgen.ir.liveness import demands, needed, resolve
from optgen.ir.nodes import MATRICES, Expr, Kind, Let, MatrixCall, Program, Reduce, Ref, Select, refs, walk
from optgen.ir.rule import WholeRule
from optgen.passes.mask_writes import masked
from optgen.passes.rewrite import replaced
from optgen.passes.scale_tensorwise import scale_name
from optgen.prose import Prose
from optgen.schedule.plan import Plan
from optgen.schedule.sums import element_sums
from optgen.spec.names import SHARED_MODULE

OWN = {Kind.ROW: "rows", Kind.LAST2: "rows", Kind.COL: "cols", Kind.LAST: "cols", Kind.CHANNEL: "channels"}
"""Of what a process has numbers for the whole tensor, and an element reads those of this process's part."""


@dataclass(frozen=True)
class _OfElements(PyPrinter):
    """Prints what is computed for each element: among them stand numbers of their own rows and columns."""

    def operand(self, expr: Expr) -> Operand:
        """The expression, to be an operand of another."""
        whole = PyPrinter(self.kinds, self.flags, self.names, self.fewer)
        match expr:
            case Ref(name=name):
                own = OWN.get(self.kinds.get(name, Kind.ELEMENT))
            case Reduce(over=over):
                own = OWN.get(over)
            case _:
                return super().operand(expr)
        return whole.operand(expr) if own is None else Operand(call(f"t.own_{own}", whole.code(expr)))


class CommonTorchStages:
    """The stages that rules of a package have alike, as functions: of each the one that most of them have.

    Attributes:
        functions: The functions by the stage's name.
    """

    def __init__(self, plans: Iterable[tuple[str, Plan]]) -> None:
        self.functions = most_common(stage for name, plan in plans for stage in function_text(name, plan).stages)

    def holds(self, function: FunctionText) -> bool:
        """Check whether the module of shared stages has this function with this text."""
        return self.functions.get(function.name) == function

    def renderings(self) -> list[Rendering]:
        """Their module, if there are any."""
        functions = [*self.functions.values()]
        title = docstring("The stages that all rules have, in plain torch operations.")
        context = {"head": [f'"""{title}"""'], "imports": _imports(functions, []), "functions": functions}
        return [Rendering(f"{SHARED_MODULE}_torch.py", "torch/functions.py.j2", context)] if functions else []


class TorchBackend:
    """Renders plain torch."""

    def __init__(self, common: CommonTorchStages) -> None:
        self.common = common

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """One module a rule."""
        blocks = [function_text(name, plan) for name, plan in plans.items()]
        stages = dict.fromkeys(stage for block in blocks for stage in block.stages)
        if len({stage.name for stage in stages}) < len(stages):  # blocks differ: each has its own
            blocks = [function_text(name, plan, f"_of_{name}") for name, plan in plans.items()]
            stages = dict.fromkeys(stage for block in blocks for stage in block.stages)
        common = sorted(stage.name for stage in stages if self.common.holds(stage))
        own = [stage for stage in stages if not self.common.holds(stage)]
        functions = [*own, *blocks]
        if rule.matrices is not None:
            functions.append(matrix_function(rule.matrices, rule.guards))
        context = {"head": _head(rule), "imports": _imports(functions, common), "functions": functions}
        return Rendering(f"{rule.name}_torch.py", "torch/functions.py.j2", context)


def _imports(functions: Sequence[FunctionText], stages: Sequence[str]) -> list[str]:
    """The import lines of a module of these functions, which calls these common stages."""
    types = frozenset[str]().union(*(function.types for function in functions))
    names = ["Results", "View"] if "Results" in types else ["View"]
    return [
        *(["from typing import Any", ""] if "Any" in types else []),
        "from optgen.runtime import torch_math as m",
        f"from optgen.runtime.engines.torch_engine import {', '.join(names)}",
        *(["", *import_lines(f".{SHARED_MODULE}_torch", stages)] if stages else []),
    ]


def _head(rule: WholeRule) -> list[str]:
    first = f'"""{docstring(rule.title)}, in plain torch operations.'
    if not rule.spec.reference:
        return [f'{first}"""']
    return [first, *(docstring(line) for line in (Prose(""), *rule.spec.reference.filled(110))), '"""']


@lru_cache(maxsize=128)
def function_text(block: str, plan: Plan, ending: str = "") -> FunctionText:
    """A block's function, with those of its stages, whose names end so."""
    return _FunctionRenderer(block, plan, ending).render()


class TorchBlock:
    """A block in plain torch. A state's scale for the whole tensor is left out: encoding the state computes it.

    Attributes:
        outputs: The new values that it stores, by the names of inputs.
        fewer: Names that may be fewer numbers than their kind says.
        masked: Values that the last statements write where elements are active, in place of names of their own.
    """

    def __init__(self, block: str, plan: Plan) -> None:
        self.block, self.plan, self.program = block, plan, plan.program
        self.inputs, self.kinds = plan.program.inputs, plan.kinds
        self.by_name = {let.name: let for let in plan.program.lets}
        self.booleans, self.fewer = boolean_names(plan.program), fewer_numbers(plan.program)
        scales = {scale_name(name) for name, item in self.inputs.items() if item.kind is Kind.ELEMENT}
        written = plan.program.outputs.items()
        self.outputs = {n: value for n, value in written if n not in scales and not self.inputs[n].kind.is_host}
        values = {name for value in self.outputs.values() for name in refs(value) if name in self.by_name}
        self.masked = [name for name in values if masked(self.by_name[name]) in self.outputs]

    def sort(self, let: Let) -> object:
        """Property that bindings of one variable have in common."""
        return let.kind, let.name in self.booleans, window_name(let.expr, self.inputs, self.by_name)


class _FunctionRenderer(TorchBlock):
    """Renders a block as a function of a view, and its stages as others."""

    def __init__(self, block: str, plan: Plan, ending: str) -> None:
        super().__init__(block, plan)
        self.ending, self.writes = ending, plan.program.writes
        roots = [root for n, value in self.outputs.items() for root in demands(value, self.writes[n])]
        over_all = {reduction for _, reduction in plan.sums.values()}
        sums = {item.name: item for item in element_sums(plan).all}
        roots += [(name, sums[name].live) for name in over_all if name in sums]
        self.live = needed(plan.program.lets, roots)
        self.lets = [
            replace(let, expr=resolve(let.expr, self.live[let.name]))
            for let in plan.program.lets
            if let.name in self.live and not let.kind.is_host
        ]
        self.sums = {name for name in sums if name in self.live}

    def render(self) -> FunctionText:
        given = {self._input(name): name for name, item in self.inputs.items() if not item.kind.is_host}
        part = Part(
            self.lets,
            self.live,
            outside=self._outside,
            sort=self.sort,
            given=given,
            takes={name: name for name in self.sums},
            inlined=self.masked,
            calls_stages=True,
        )
        asked = [root for name, value in self.outputs.items() for root in demands(value, self.writes[name])]
        code = part.code(asked=asked)
        self.read = code.read
        self.ended_by = {name for name, stage in code.stages.items() if takes_sums(stage.code.body)}
        what = "Update" if self.block == "step" else f"Run `{self.block}` for"
        statements = self._statements(code, "t.taken")
        lines = [*self._heads(code), *statements.lines(code.body, 4), *self._results(code)]
        return FunctionText(
            name=self.block,
            head=(f"def {self.block}(t: View) -> Results:",),
            doc=f"{what} a parameter{'; or return the sums that a pass takes' if self.sums else ''}.",
            lines=tuple(lines),
            types=frozenset({"Results", *(["Any"] if statements.has_types(code.body) else [])}),
            stages=tuple(self._stage(name, stage) for name, stage in code.stages.items()),
        )

    def _stage(self, name: str, stage: StageCode) -> FunctionText:
        """A stage that all rules have; None is returned where a pass ends in it."""
        code, results = stage.code, stage.call.results
        new = results.keys() - stage.call.parameters.keys()
        body = tuple(declared(code.body, assigned(code.body) - new, results))
        parameters = ("t: View", *(f"{py_name(variable)}: Any" for variable in stage.call.parameters))
        lines = [*self._heads(code), *self._statements(code, "None").lines(body, 4)]
        returned = ", ".join(py_name(variable) for variable in results)
        ends = "; None where a pass ends in it" if name in self.ended_by else ""
        return FunctionText(
            name=f"{name}_stage{self.ending}",
            head=tuple(python_code(Brackets(f"def {name}_stage{self.ending}(", parameters, ") -> Any:"), 0)),
            doc=f"Run the stage `{name}`{ends}.",
            lines=(*lines, f"return {returned}"),
            types=frozenset({"Any"}),
        )

    # Names

    def _input(self, name: str) -> str:
        item = self.inputs[name]
        match item.role:
            case "param" | "grad" | "step" | "fact":
                return f"t.{name}"
        return f"s.{name}"

    def _outside(self, name: str) -> str:
        if name in self.sums:
            return f"sums.{name}"
        return f"v.{name}"

    def _printer(self, code: Assignments) -> PyPrinter:
        kinds = {variable: self.kinds[name] for name, variable in code.holders.items()}
        kinds |= {variable: let.kind for variable, let in code.types.items()}
        texts = {}
        fewer = {variable for name, variable in code.holders.items() if name in self.fewer}
        for name in code.read:
            head, _, own = name.partition(".")
            if head in ("v", "s", "sums", "t") and own:
                texts[name] = name
                kinds[name] = self.kinds[own]
                if own in self.fewer:
                    fewer.add(name)
            elif name not in kinds:
                kinds[name] = self.kinds[name]
        return PyPrinter(kinds, names=texts, fewer=fewer)

    # Statements

    def _heads(self, code: Assignments) -> Iterator[str]:
        """Short names for what the function reads."""
        used = {name.partition(".")[0] for name in code.read if "." in name}
        flags = any(isinstance(s, If) for s in walk_statements(code.body)) or _chooses(code)
        flags = flags or any(not self.writes[name].is_true for name in self.outputs)
        known = {"f": "t.flags", "v": "t.values", "s": "t.states", "sums": "t.sums"}
        names = [name for name in known if name in used or (name == "f" and flags)]
        if names:
            yield f"{', '.join(names)} = {', '.join(known[name] for name in names)}"

    def _statements(self, code: Assignments, at_end: str) -> PyStatements:
        """A printer of statements.

        Args:
            at_end: The value that is returned where a pass ends.
        """
        printer = self._printer(code)
        return PyStatements(
            lambda statement: self._among(printer.kinds[statement.variable], printer),
            code.loose,
            take=lambda statement, indent: self._take(statement, printer, at_end, indent),
            invoke=self._invoke,
        )

    def _take(self, statement: Take, printer: PyPrinter, at_end: str, indent: int) -> list[str]:
        """A sum where its values are at hand; a pass that wants no other ends here."""
        name, result = statement.name, self.by_name[statement.name].expr
        terms = self._among(Kind.ELEMENT, printer).spread(statement.value)
        match result:
            case Reduce(op=op, over=over):
                taken = call(f"m.{REDUCTION[over, op]}", terms)
            case MatrixCall(op=op) if op == MATRICES:
                taken = call(f"t.run_{MATRICES}", terms)
            case MatrixCall(op=op, settings=settings):
                names = {n: f"t.values.{py_name(n)}" for setting in settings for n in refs(setting)}
                taken = call("t.on_matrices", f"m.{op}", terms, *map(replace(printer, names=names).code, settings))
            case _:
                raise TypeError(result)
        asked = Chain(f'"{name}" in t.wanted', (("and", call("t.ends", Labelled(f"{name}=", taken))),))
        return [*python_code(Labelled("if ", asked), indent, ":"), f"    return {at_end}"]

    def _invoke(self, statement: Invoke, indent: int) -> list[str]:
        called = call(f"{statement.stage}_stage{self.ending}", "t", *map(py_name, statement.arguments.values()))
        left = ", ".join(py_name(name) if name in self.read else "_" for name in statement.results.values())
        if statement.stage not in self.ended_by:
            return python_code(Labelled(f"{left} = ", called), indent)
        walrus = replace(called, head=f"(left := {called.head}", close="))")
        ended = python_code(Labelled("if ", Chain(walrus, (("is", "None"),))), indent, ":")
        return [*ended, "    return t.taken", f"{left} = left"]

    @staticmethod
    def _among(kind: Kind, printer: PyPrinter) -> PyPrinter:
        """A printer for what is computed for each of a kind: among elements stand their own rows and columns."""
        if kind is not Kind.ELEMENT:
            return printer
        return _OfElements(printer.kinds, printer.flags, printer.names, printer.fewer)

    def _results(self, code: Assignments) -> list[str]:
        """Statements that return the results of the last pass, without those that these settings do not write."""
        printer = self._printer(code)
        lines = ["if t.wanted:", "    return t.taken"] if self.sums else []
        always: list[str] = []
        sometimes: dict[Formula, list[str]] = {}
        for name, output in self.outputs.items():
            written = self.writes[name]
            value = replaced(resolve(output, written), code.values)
            text = self._among(self.kinds[name], printer).code(value)
            if written.is_true:
                always += below(python_code(Labelled(f'"{name}": ', text), 8, ","))
            else:
                sometimes.setdefault(written, []).extend(python_code(Labelled(f'results["{name}"] = ', text), 8))
        whole = ["{", *always, "}"] if always else ["{}"]
        if not sometimes:
            return [*lines, f"return {whole[0]}", *whole[1:]]
        lines += [f"results: Results = {whole[0]}", *whole[1:]]
        for formula, stored in sometimes.items():
            lines += [*python_code(Labelled("if ", py_condition(formula)), 4, ":"), *below(stored)]
        return [*lines, "return results"]


def _chooses(code: Assignments) -> bool:
    values = (*values_in(code.body), *code.values.values())
    return any(isinstance(node, Select) for value in values for node in walk(value))


def fewer_numbers(program: Program) -> set[str]:
    """The names that may be fewer numbers in torch than their kind says: one may stand for all elements."""
    fewer = {name for name, item in program.inputs.items() if item.kind <= Kind.TENSOR}
    kinds = program.kinds()
    for let in program.lets:
        if let.kind not in whole_kinds(let.expr, fewer, kinds):
            fewer.add(let.name)
    return fewer
