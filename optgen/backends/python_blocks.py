"""The blocks of a rule, as the runtime knows them: passes, what they reduce, what they read and leave."""

from __future__ import annotations

from collections.abc import Set

from optgen.backends.c_block import block_text
from optgen.backends.code import Code, Labelled, call
from optgen.backends.py_printer import py_condition
from optgen.backends.python_calls import field_lines, names_code, string_lines, tuple_code
from optgen.ir.family import Family
from optgen.ir.formula import Formula
from optgen.ir.nodes import Kind, Reduce, Ref, refs
from optgen.prose import Prose
from optgen.schedule.plan import PassPlan, Plan, Reduction


def block_lines(name: str, plan: Plan, family: Family) -> list[str]:
    """The fields of a block, but for what it refuses."""
    sums = [names_code((sum_name, op, reduction)) for sum_name, (op, reduction) in plan.sums.items()]
    arrays = [
        call("Array", f'"{n}"', f'"{plan.kinds[n].name.lower()}"', live_code(live)) for n, live in plan.arrays.items()
    ]
    summed = {reduction for _, reduction in plan.sums.values()}
    scalars = block_text(family, name, plan).scalar_count
    passes = [_pass(name, item, summed) for item in plan.passes]
    fields: dict[str, Code] = {
        "passes": tuple_code(passes),
        "scalars": str(scalars) if scalars else "",
        "values": f"_{name}_values" if len(plan.values) > len(plan.host_inputs) else "",
        "commit": f"_{name}_commit" if plan.host_commits else "",
        "sums": tuple_code(sums) if sums else "",
        "arrays": tuple_code(arrays) if arrays else "",
        "grads": "True" if family.reads_gradients(name) else "",
        "line_sums": "True" if _sums_lines(plan) else "",
        "counts": "True" if _reads_index(plan) else "",
    }
    reads = string_lines("reads=", Prose(" ".join(plan.host_inputs)), 4) if plan.host_inputs else []
    return [*reads, *field_lines(fields, 4)]


def live_code(formula: Formula) -> Code:
    """A formula as a function of flags."""
    return "always" if formula.is_true else Labelled("lambda f: ", py_condition(formula))


def _sums_lines(plan: Plan) -> bool:
    """Whether numbers of rows, columns or matrices are summed over the tensor."""
    reductions = [let.expr for let in plan.program.lets if isinstance(let.expr, Reduce)]
    return any(r.over is Kind.TENSOR and isinstance(r.x, Ref) and plan.kinds[r.x.name].is_array for r in reductions)


def _reads_index(plan: Plan) -> bool:
    """Whether anything depends on a parameter's position in its group."""
    positions = {name for name, item in plan.program.inputs.items() if item.role == "fact" and name == "index"}
    values = [*(let.expr for let in plan.program.lets), *plan.program.outputs.values()]
    return any(positions.intersection(refs(value)) for value in values)


def _pass(block: str, item: PassPlan, summed: Set[str]) -> Code:
    parts: list[Code] = [f'"{block}_{item.name}"', live_code(item.live)]
    if item.reductions:
        parts.append(Labelled("partials=", tuple_code([_partial(r, r.name in summed) for r in item.reductions])))
    return call("Pass", *parts)


def _partial(reduction: Reduction, summed: bool) -> Code:
    """A result of a pass; one that is summed over all parameters is there wherever the pass runs."""
    reduce = reduction.reduce
    live = [] if summed or reduction.live.is_true else [live_code(reduction.live)]
    over = [] if reduce.over is Kind.TENSOR else [f'over="{reduce.over.name.lower()}"']
    op = ['op="max"'] if reduce.op == "max" else []
    return call("Partial", f'"{reduction.name}"', *live, *over, *op)
