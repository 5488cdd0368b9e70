"""The torch target: a plan as plain torch operations, one function a pass.

Runs on every device torch has, serves where no compiler is found, and is the oracle of the other targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from optgen.backends.base import Rendering, describe
from optgen.backends.layout import python_lines
from optgen.backends.py_printer import PyPrinter, py_formula, py_name
from optgen.backends.quoting import docstring, python_comment
from optgen.ir.family import Family
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.kinds import kind_of
from optgen.ir.liveness import demands, needed, resolve
from optgen.ir.nodes import Call, Expr, Input, Kind, Program, Reduce, Ref, Select, refs
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import PassPlan, Plan, Reduction, Step, Write

Line = tuple[Formula, str]
Result = tuple[str, Expr, Formula]


@dataclass(frozen=True)
class FunctionText:
    """One pass as a Python function, ready for the template."""

    name: str
    doc: str
    lines: tuple[str, ...]


class TorchBackend:
    """Renders plain torch."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One module a family."""
        functions = [
            _FunctionRenderer(name, plan, item, fewer).render()
            for name, plan in plans.items()
            for fewer in [_fewer(plan.program)]
            for item in plan.passes
        ]
        head = [docstring(line) for line in describe(family)[1:]]
        context = {"title": docstring(family.title), "head": head, "functions": functions}
        return Rendering(f"{family.name}_torch.py", "torch/functions.py.j2", context)


class _FunctionRenderer:
    """Renders one pass. A state's scale for the whole tensor is left out: encoding the state finds it anew."""

    def __init__(self, block: str, plan: Plan, item: PassPlan, fewer: Set[str]) -> None:
        self.block, self.plan, self.item = block, plan, item
        self.last = item is plan.passes[-1]
        self.inputs = plan.program.inputs
        self.kinds = plan.kinds
        self.printer = PyPrinter(plan.kinds, fewer=fewer)
        self.scales = {scale_name(name) for name, i in self.inputs.items() if i.kind is Kind.ELEMENT}
        outputs = [(value, target) for target, value in plan.program.outputs.items() if target not in self.scales]
        roots = [root for value, target in outputs for root in demands(value, self.inputs[target].exists)]
        self.wanted = needed(plan.program.lets, roots)

    def render(self) -> FunctionText:
        position = self.plan.passes.index(self.item) + 1
        what = "writes " + ", ".join(w.input.name for w in self.item.writes) if self.last else "reduces"
        results = list(self._results())
        steps = self._steps(results)
        lines = [*self._inputs(steps, results), *self._bindings(steps)]
        code = [*_guarded(lines), *self._returned(results)]
        if any("f." in line for line in code):
            code.insert(0, "f = t.flags")
        return FunctionText(
            name=f"{self.block}_{self.item.name}",
            doc=f"{self.block}, pass {position} of {len(self.plan.passes)}: {what}.",
            lines=tuple(python_lines(code, 4)),
        )

    def _steps(self, results: Iterable[Result]) -> list[Step]:
        """The bindings that the results need of this pass, each once."""
        names = {
            s.let.name for s in (*self.item.prepare, *self.item.elements, *(self.plan.commit if self.last else ()))
        }
        lets = [let for let in self.plan.program.lets if let.name in names]
        known = TRUE if self.last else self.item.live
        roots = [root for _, value, live in results for root in demands(value, live & known)]
        live = needed(lets, roots)
        return [
            Step(replace(let, expr=resolve(let.expr, live[let.name])), live[let.name].given(known))
            for let in lets
            if let.name in live
        ]

    def _writes(self) -> tuple[Write, ...]:
        if not self.last:
            return ()
        return (*self.item.writes, *(w for w in self.plan.commits if w.input.name not in self.scales))

    def _reductions(self) -> list[Reduction]:
        return [r for r in self.item.reductions if r.name in self.wanted]

    def _inputs(self, steps: Iterable[Step], results: Iterable[Result]) -> Iterator[Line]:
        """What is read, each under the formula under which anything here needs it."""
        live: dict[str, Formula] = {}
        reads = [(step.let.expr, step.live) for step in steps] + [(value, formula) for _, value, formula in results]
        for expr, formula in reads:
            for name, needs in demands(expr, formula):
                live[name] = live.get(name, FALSE) | needs
        yield from ((TRUE, f'{py_name(name)} = t.values["{name}"]') for name in self.plan.values if name in live)
        for name, item in self.inputs.items():
            if name in live and not item.kind.is_host:
                yield self._input(item, live[name])
        made = {step.let.name for step in steps}
        for let in self.plan.program.lets:
            if let.name in live and let.name not in made and not let.kind.is_host:
                yield self._known(live[let.name]), f'{py_name(let.name)} = t.reduced["{let.name}"]'

    def _known(self, live: Formula) -> Formula:
        return live.given(TRUE if self.last else self.item.live)

    def _input(self, item: Input, live: Formula) -> Line:
        match item.role:
            case "param" | "grad" | "step":
                return TRUE, f"{item.role} = t.{item.role}"
            case "fact":
                return TRUE, f"{py_name(item.name)} = t.{item.name}"
        return self._known(live), f'{py_name(item.name)} = t.state("{item.name}")'

    def _bindings(self, steps: Iterable[Step]) -> Iterator[Line]:
        source = ""
        for step in steps:
            let = step.let
            if let.source and let.source != source:
                source = let.source
                yield step.live, python_comment(source)
            yield step.live, f"{py_name(let.name)} = {self._text(let.expr, let.kind)}"

    def _text(self, expr: Expr, kind: Kind) -> str:
        """An expression; among elements stand the numbers of their own rows and columns."""
        if kind is not Kind.ELEMENT:
            return self.printer.print(expr)
        of_lines = {Kind.ROW: "t.own_rows({})", Kind.COL: "t.own_cols({})"}
        names = {n: of_lines[self.kinds[n]].format(py_name(n)) for n in refs(expr) if self.kinds[n] in of_lines}
        return replace(self.printer, names=names).print(expr)

    def _results(self) -> Iterator[Result]:
        for write in self._writes():
            yield write.input.name, resolve(write.value, write.live), write.live
        for r in self._reductions():
            yield r.name, r.reduce, r.live

    def _returned(self, results: list[Result]) -> list[str]:
        """What a pass hands over: nothing under settings that do not need it, 0 where all parameters are summed."""
        summed = {reduction for _, reduction in self.plan.sums.values()}
        always, sometimes = [], []
        for name, value, live in results:
            text = self._text(value, self.kinds[name]) if name in self.inputs else self.printer.print(value)
            if live.is_true:
                always.append(f'    "{name}": {text},')
            elif name in summed:
                always.append(f'    "{name}": {text} if {py_formula(live)} else 0.0,')
            else:
                sometimes.append((live, f'results["{name}"] = {text}'))
        if not sometimes:
            return ["return {", *always, "}"] if always else ["return {}"]
        first = ["results: Results = {", *always, "}"] if always else ["results: Results = {}"]
        return [*first, *_guarded(sometimes), "return results"]


def _fewer(program: Program) -> set[str]:
    """The names that may be fewer numbers in torch than their kind says: one may stand for all elements."""
    fewer = {name for name, item in program.inputs.items() if item.kind < Kind.MATRIX}
    kinds = program.kinds()
    for let in program.lets:
        if let.kind not in _whole(let.expr, fewer, kinds):
            fewer.add(let.name)
    return fewer


def _whole(expr: Expr, fewer: Set[str], kinds: Mapping[str, Kind]) -> Set[Kind]:
    """The kinds of which an expression surely has all numbers: an operand has them, or one has rows and one columns."""
    match expr:
        case Ref(name=name):
            return frozenset() if name in fewer else {kinds[name]}
        case Reduce(over=over):
            return {over}
        case Select(then=then, other=other):
            return _whole(then, fewer, kinds) & _whole(other, fewer, kinds)
        case Call(op="where", args=(condition, then, other)) if kind_of(condition, kinds) <= Kind.STEP:
            return _whole(then, fewer, kinds) & _whole(other, fewer, kinds)
        case Call(args=args):
            found = frozenset().union(*(_whole(arg, fewer, kinds) for arg in args))
            return found | {Kind.ELEMENT} if {Kind.ROW, Kind.COL} <= found else found
    return frozenset()


def _guarded(lines: Iterable[Line]) -> list[str]:
    """Lines, those of one formula that stand together below one `if`."""
    result: list[str] = []
    before = TRUE
    for live, text in lines:
        if live != before and not live.is_true:
            result.append(f"if {py_formula(live)}:")
        before = live
        result.append(text if live.is_true else f"    {text}")
    return result
