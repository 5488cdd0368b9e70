"""The torch target: a plan as plain torch operations, one function a pass.

Runs on every device torch has, serves where no compiler is found, and is the oracle of the other targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optgen.backends.base import Rendering, describe
from optgen.backends.py_printer import PyPrinter, py_formula, py_name
from optgen.ir.family import Family
from optgen.ir.formula import FALSE, Formula
from optgen.ir.nodes import Input, Kind, refs
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import PassPlan, Plan, Write


@dataclass(frozen=True)
class FunctionText:
    """One pass as a Python function, ready for the template."""

    name: str
    doc: str
    lines: tuple[str, ...]
    results: tuple[str, ...]


class TorchBackend:
    """Renders plain torch."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One module a family."""
        functions = [
            _FunctionRenderer(name, plan, item).render() for name, plan in plans.items() for item in plan.passes
        ]
        context = {"title": family.title, "head": describe(family)[1:], "functions": functions}
        return Rendering(f"{family.name}_torch.py", "torch/functions.py.j2", context)


class _FunctionRenderer:
    def __init__(self, block: str, plan: Plan, item: PassPlan) -> None:
        self.block, self.plan, self.item = block, plan, item
        self.last = item is plan.passes[-1]
        self.inputs = plan.program.inputs
        self.printer = PyPrinter(plan.kinds)
        self.scales = {scale_name(name) for name, i in self.inputs.items() if i.kind is Kind.ELEMENT}

    def render(self) -> FunctionText:
        live = self._live()
        position = self.plan.passes.index(self.item) + 1
        what = "writes " + ", ".join(w.input.name for w in self.item.writes) if self.last else "reduces"
        lines = [*self._inputs(live), *self._bindings(live)]
        return FunctionText(
            name=f"{self.block}_{self.item.name}",
            doc=f"{self.block}, pass {position} of {len(self.plan.passes)}: {what}.",
            lines=tuple(lines),
            results=tuple(self._results()),
        )

    def _live(self) -> dict[str, Formula]:
        """The bindings that this pass computes, with their formulas."""
        steps = [*self.item.prepare, *self.item.elements]
        if self.last:
            steps += self.plan.commit
        result: dict[str, Formula] = {}
        for step in steps:
            result[step.let.name] = result.get(step.let.name, FALSE) | step.live
        return result

    def _used(self, live: Mapping[str, Formula]) -> set[str]:
        used: set[str] = set()
        for let in self.plan.program.lets:
            if let.name in live:
                used.update(refs(let.expr))
        for write in (*self.item.writes, *(self._commits() if self.last else ())):
            used.update(refs(write.value))
        for reduction in self.item.reductions:
            used.update(refs(reduction.reduce.x))
        return used

    def _commits(self) -> list[Write]:
        return [write for write in self.plan.commits if write.input.name not in self.scales]

    def _inputs(self, live: Mapping[str, Formula]) -> list[str]:
        used = self._used(live)
        lines = ["f = t.flags"]
        lines += [f'{py_name(name)} = t.values["{name}"]' for name in self.plan.values if name in used]
        for name, item in self.inputs.items():
            if name in used and not item.kind.is_host:
                lines.append(f"{py_name(name)} = {self._input(item)}")
        for let in self.plan.program.lets:
            if let.name in used and let.name not in live and not let.kind.is_host:
                lines.append(f'{py_name(let.name)} = t.reduced.get("{let.name}")')
        return lines

    def _input(self, item: Input) -> str:
        match item.role:
            case "param" | "grad" | "step":
                return f"t.{item.role}"
            case "fact":
                return f"t.{item.name}"
        text = f't.state("{item.name}")'
        return text if item.exists.is_true else f"{text} if {py_formula(item.exists)} else None"

    def _bindings(self, live: Mapping[str, Formula]) -> list[str]:
        lines, source = [], ""
        for let in self.plan.program.lets:
            formula = live.get(let.name)
            if formula is None:
                continue
            if let.source and let.source != source:
                source = let.source
                lines.append(f"# {source}")
            text = self.printer.print(let.expr)
            guard = "" if formula.is_true else f" if {py_formula(formula)} else None"
            if guard and " if " in text:
                text = f"({text})"
            lines.append(f"{py_name(let.name)} = {text}{guard}")
        return lines

    def _results(self) -> list[str]:
        if self.last:
            writes = (*self.item.writes, *self._commits())
            return [self._result(w.input.name, self.printer.print(w.value), w.live) for w in writes]
        return [self._result(r.name, self.printer.print(r.reduce), r.live) for r in self.item.reductions]

    def _result(self, name: str, text: str, live: Formula) -> str:
        if live.is_true:
            return f'"{name}": {text},'
        if " if " in text:
            text = f"({text})"
        return f'"{name}": {text} if {py_formula(live)} else None,'
