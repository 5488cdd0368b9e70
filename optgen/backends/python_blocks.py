"""The blocks of a rule, as the runtime knows them: passes, what they reduce, what they read and leave."""

from __future__ import annotations

from collections.abc import Collection

from optgen.backends.c_block import block_text
from optgen.backends.code import Brackets, Code, Labelled, Names, call
from optgen.backends.py_printer import py_condition, py_number
from optgen.backends.python_calls import field_lines, names_code, tuple_code
from optgen.ir.exchanges import Exchange
from optgen.ir.formula import Formula
from optgen.ir.liveness import changes
from optgen.ir.nodes import MATRICES, Const, Expr, Kind, MatrixCall, Reduce, Ref, refs
from optgen.ir.rule import WholeRule
from optgen.schedule.plan import PassPlan, Plan
from optgen.schedule.sums import ElementSum, element_sums
from optgen.schedule.visits import goes_by_rows


def block_lines(name: str, plan: Plan, rule: WholeRule) -> list[str]:
    """The fields of a block, but for what it refuses."""
    sums = [names_code((sum_name, op, reduction)) for sum_name, (op, reduction) in plan.sums.items()]
    of_groups = tuple(sum_name for sum_name in plan.sums if plan.kinds[sum_name] is Kind.GROUP)
    arrays = [
        call("Array", f'"{n}"', f'"{plan.kinds[n].name.lower()}"', live_code(live)) for n, live in plan.arrays.items()
    ]
    scalars = block_text(rule, name, plan).scalar_count
    reads_param = rule.matrices is not None and rule.matrices.reads_param
    partials = [_partial(item, plan, reads_param) for item in element_sums(plan).all]
    exchanged = rule.blocks[name].exchanges
    fields: dict[str, Code] = {
        "reads": Names(tuple(plan.host_inputs)) if plan.host_inputs else "",
        "passes": tuple_code([_pass(name, item) for item in plan.passes]),
        "partials": tuple_code(partials) if partials else "",
        "scalars": str(scalars) if scalars else "",
        "values": f"_{name}_values" if len(plan.values) > len(plan.host_inputs) else "",
        "commit": f"_{name}_commit" if plan.host_commits else "",
        "sums": tuple_code(sums) if sums else "",
        "group_sums": Names(of_groups) if of_groups else "",
        "arrays": tuple_code(arrays) if arrays else "",
        "grads": "True" if rule.reads_gradients(name) else "",
        "line_sums": "True" if _sums_lines(plan, (Kind.TENSOR, Kind.LAST, Kind.LAST2, Kind.LAST3, Kind.LAST4)) else "",
        "channel_sums": "True" if _sums_lines(plan, (Kind.CHANNEL,)) else "",
        "counts": "True" if _reads_index(plan) else "",
        "exchanges": tuple_code(list(map(_exchange, exchanged))) if exchanged else "",
        "by_rows": "" if goes_by_rows(plan).is_false else "True",
    }
    return field_lines(fields, 4)


def uses_always(plan: Plan) -> bool:
    """Check whether the fields of a block say of anything that it is there under all settings."""
    waiting = [formulas for item in element_sums(plan).all if (formulas := _waiting(item)) is not None]
    return any(f.is_true for f in (*plan.arrays.values(), *(f for formulas in waiting for f in formulas.values())))


def live_code(formula: Formula) -> Code:
    """A formula as a function of flags."""
    return "always" if formula.is_true else Labelled("lambda f: ", py_condition(formula))


def _sums_lines(plan: Plan, over: Collection[Kind]) -> bool:
    """Check whether numbers of rows, columns or matrices are reduced to some of these kinds."""
    reductions = [let.expr for let in plan.program.lets if isinstance(let.expr, Reduce)]
    return any(r.over in over and isinstance(r.x, Ref) and plan.kinds[r.x.name].is_array for r in reductions)


def _reads_index(plan: Plan) -> bool:
    """Check whether anything depends on a parameter's position in its group."""
    positions = {name for name, item in plan.program.inputs.items() if item.role == "fact" and name == "index"}
    values = [*(let.expr for let in plan.program.lets), *plan.program.outputs.values()]
    return any(positions.intersection(refs(value)) for value in values)


def _pass(block: str, item: PassPlan) -> Code:
    names = tuple(reduction.name for reduction in item.reductions)
    return call("Pass", f'"{block}_{item.name}"', *([Names(names)] if names else []))


def _partial(item: ElementSum, plan: Plan, reads_param: bool) -> Code:
    """A result of a pass.

    Args:
        reads_param: Whether the rule's own step on matrices reads the parameter.
    """
    reduce = item.reduce
    live = [] if item.live.is_true else [live_code(item.live)]
    over = [] if reduce.over is Kind.TENSOR else [f'over="{reduce.over.name.lower()}"']
    match reduce:
        case Reduce():
            more: list[Code] = ['op="max"'] if reduce.is_maximum else []
        case MatrixCall(op=op, settings=settings):
            more = [f'op="{op}"']
            if settings:
                more.append(Labelled("settings=", tuple_code(list(map(_setting, settings)))))
            if op == MATRICES and reads_param:
                more.append("reads_param=True")
            as_it_is = ~changes(plan.program.lets, "grad", reduce.x)
            if op == MATRICES and not as_it_is.is_false:
                more.append(Labelled("takes_grad=", live_code(as_it_is)))
    return call("Partial", f'"{item.name}"', *live, *_before(item), *over, *more)


def _exchange(one: Exchange) -> Code:
    """Two states whose memory changes places."""
    live = [] if one.live.is_true else [live_code(one.live)]
    return call("Exchange", *(f'"{name}"' for name in one.names), *live)


def _setting(setting: Expr) -> Code:
    """A setting of a function of matrices: a number, or the name of one of the host's values."""
    match setting:
        case Ref(name=name):
            return f'"{name}"'
        case Const(value=value):
            return py_number(float(value))
    raise TypeError(setting)


def _before(item: ElementSum) -> list[Code]:
    """The results that wait for it."""
    formulas = _waiting(item)
    if formulas is not None:
        entries: list[Code] = [Labelled(f'"{name}": ', live_code(formula)) for name, formula in formulas.items()]
        return [Brackets("before={", tuple(entries), "}")]
    names = tuple(name for name, _ in item.waiting if name is not None)
    return [Labelled("before=", Names(names))] if names and item.fixed is None else []


def _waiting(item: ElementSum) -> dict[str, Formula] | None:
    """Conditions under which results wait for a sum; None if they always wait, or if the sum has a pass of its own."""
    waiting = {name: formula for name, formula in item.waiting if name is not None}
    simple = item.fixed is not None or all(formula.is_true for formula in waiting.values())
    return None if simple else waiting
