"""Every pass on small programs: what it leaves, and that it means the same."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from support.compiling import PROBE, stock_rules
from support.interpreter import run
from support.plan_settings import SUMS_OVER_ALL, settings

from optgen.codecs import SMALLEST_ABSMAX
from optgen.diagnostics import Reporter
from optgen.ir.formula import FALSE, TRUE, atom
from optgen.ir.guards import GuardTable
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Const, Expr, Input, Kind, Let, Program, Reduce, Ref, Select, refs, walk
from optgen.ir.rule import WholeRule, build_rule
from optgen.ir.verifier import Stage, VerificationError, verify
from optgen.passes.drop_unused import drop_unused
from optgen.passes.fold import fold
from optgen.passes.forward import forward
from optgen.passes.hoist import hoist, readable_name
from optgen.passes.mask_writes import mask_writes
from optgen.passes.multiply_reciprocal import multiply_reciprocal
from optgen.passes.pipeline import run_passes, steps
from optgen.passes.resolve_choices import resolve_choices
from optgen.passes.scale_tensorwise import scale_tensorwise
from optgen.passes.settle import settle
from optgen.schedule.planner import plan
from optgen.spec.loader import load_specs

INPUTS = {
    "param": Input("param", "param", Kind.ELEMENT),
    "grad": Input("grad", "grad", Kind.ELEMENT),
    "lr": Input("lr", "hyper", Kind.GROUP),
    "beta": Input("beta", "hyper", Kind.GROUP),
    "moment": Input("moment", "state", Kind.ELEMENT, codecs=("fp32", "int8")),
    "size": Input("size", "state", Kind.TENSOR),
    "largest": Input("largest", "state", Kind.ELEMENT, exists=atom("amsgrad")),
}
RANDOM = np.random.default_rng(3)
VALUES = {name: RANDOM.normal(size=(3, 4)) for name in ("param", "grad", "moment", "largest")} | {
    "lr": 0.1, "beta": 0.9, "size": 2.0, "moment_absmax": 0.0,
}  # fmt: skip
GUARDS = [dict(zip(("amsgrad", "moment_tensorwise"), row, strict=True)) for row in itertools.product((0, 1), repeat=2)]


def call(op: str, *args: Expr | str | float) -> Call:
    parts = tuple(Ref(a) if isinstance(a, str) else Const(float(a)) if isinstance(a, int | float) else a for a in args)
    return Call(op, parts)


def program(lets: Mapping[str, Expr], **outputs: Expr) -> Program:
    kinds = {name: item.kind for name, item in INPUTS.items()}
    made = []
    for name, expr in lets.items():
        kinds[name] = kind_of(expr, kinds)
        made.append(Let(name, expr, kinds[name], f"{name} = ..."))
    result = Program(dict(INPUTS), tuple(made), outputs, {name: INPUTS[name].exists for name in outputs})
    verify(result)
    return result


def means_the_same(before: Program, after: Program, rtol: float = 1e-12) -> None:
    verify(after)
    for guards in GUARDS:
        expected, found = run(before, VALUES, guards), run(after, VALUES, guards)
        for name, value in expected.items():
            np.testing.assert_allclose(
                np.broadcast_to(found[name], np.shape(value)), value, rtol=rtol, atol=0, err_msg=name
            )


def expressions(it: Program) -> dict[str, Expr]:
    return {let.name: let.expr for let in it.lets}


def test_mask_writes_keeps_what_is_not_active() -> None:
    it = program({"active_1": call(">", "grad", 0.0), "new": call("-", "param", "grad")}, param=Ref("new"))
    masked = mask_writes(it, Ref("active_1"), GuardTable())
    verify(masked)
    assert masked.outputs == {"param": Ref("param_kept")}
    assert expressions(masked)["param_kept"] == call("where", "active_1", "new", "param")
    written = run(masked, VALUES, GUARDS[0])["param"]
    np.testing.assert_array_equal(written[VALUES["grad"] <= 0], VALUES["param"][VALUES["grad"] <= 0])


def test_mask_writes_leaves_alone_what_is_always_active_and_what_is_no_element() -> None:
    it = program({"new": Reduce("sum", Kind.TENSOR, Ref("grad"))}, size=Ref("new"))
    assert mask_writes(it, Const(True), GuardTable()) is it
    assert mask_writes(it, call(">", "grad", 0.0), GuardTable()).outputs == it.outputs


def test_scale_tensorwise_makes_the_scale_a_state_of_the_tensor() -> None:
    table = GuardTable()
    it = program({"moment_1": call("+", "moment", "grad")}, moment=Ref("moment_1"))
    scaled = scale_tensorwise(it, table)
    verify(scaled)
    assert scaled.inputs["moment_absmax"].exists == atom("moment_tensorwise")
    assert scaled.outputs["moment_absmax"] == Ref("new_moment_absmax")
    found = run(scaled, VALUES, {"amsgrad": False, "moment_tensorwise": True})["moment_absmax"]
    assert found == np.abs(VALUES["moment"] + VALUES["grad"]).max()
    assert [name for name in scaled.inputs if name.endswith("absmax")] == ["moment_absmax"]


@pytest.mark.parametrize(("factor", "expected"), [(0.0, 0.0), (1e-39, 0.0), (np.nan, 0.0)])
def test_a_scale_is_never_tiny_nor_not_finite(factor: float, expected: float) -> None:
    it = program({"moment_1": call("*", "grad", factor)}, moment=Ref("moment_1"))
    values = VALUES | {"grad": np.ones((2, 2))}
    found = run(scale_tensorwise(it, GuardTable()), values, {"amsgrad": False, "moment_tensorwise": True})
    assert found["moment_absmax"] == expected
    assert SMALLEST_ABSMAX > 1e-39


def test_multiply_reciprocal_divides_elements_by_one_number_once() -> None:
    it = program({"new": call("/", "grad", "lr"), "root": call("/", 1.0, "lr"), "both": call("/", "grad", "moment")},
                 param=call("+", call("+", "new", "root"), "both"))  # fmt: skip
    after = multiply_reciprocal(it)
    assert expressions(after)["new"] == call("*", "grad", call("/", 1.0, "lr"))
    assert expressions(after)["root"] == expressions(it)["root"]
    assert expressions(after)["both"] == expressions(it)["both"]
    means_the_same(it, after)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (call("+", 1.0, 2.0), Const(3.0)),
        (call("*", 0.1, 0.2), Const(0.1 * 0.2)),
        (call("**", 2.0, 0.5), Const(2.0**0.5)),
        (call("/", 1.0, 0.0), call("/", 1.0, 0.0)),
        (call("**", -1.0, 0.5), call("**", -1.0, 0.5)),
        (call("**", 10.0, 999.0), call("**", 10.0, 999.0)),
        (call("*", 1.0, "grad"), Ref("grad")),
        (call("*", "grad", 1.0), Ref("grad")),
        (call("/", "grad", 1.0), Ref("grad")),
        (call("+", "grad", 0.0), call("+", "grad", 0.0)),  # -0.0 + 0.0 is 0.0
        (call("*", "grad", 0.0), call("*", "grad", 0.0)),  # inf * 0.0 is NaN
        (call("neg", 2.0), Const(-2.0)),
        (call("sqrt", 4.0), Const(2.0)),
        (call("sqrt", -4.0), call("sqrt", -4.0)),
        (Call("and", (Const(True), call(">", "grad", 0.0))), call(">", "grad", 0.0)),
        (Call("or", (Const(False), call(">", "grad", 0.0))), call(">", "grad", 0.0)),
        (Call("where", (Const(True), Ref("grad"), Ref("lr"))), Ref("grad")),
        (Select(atom("amsgrad"), Ref("grad"), Ref("grad")), Ref("grad")),
    ],
)
def test_fold(expr: Expr, expected: Expr) -> None:
    it = Program(dict(INPUTS), (), {"param": expr}, {"param": TRUE})
    assert fold(it).outputs["param"] == expected


def test_forward_replaces_names_of_names_and_of_numbers() -> None:
    it = program({"a": Ref("grad"), "b": Const(2.0), "c": call("*", "a", "b")}, param=call("+", "a", "c"))
    after = forward(it)
    assert expressions(after) == {"c": call("*", "grad", 2.0)}
    means_the_same(it, after)


def test_hoist_computes_every_value_at_its_own_kind_once() -> None:
    share = call("-", 1.0, "beta")
    squares = Reduce("sum", Kind.TENSOR, call("*", "grad", "grad"))
    it = program(
        {
            "moment_1": call("+", call("*", "beta", "moment"), call("*", share, "grad")),
            "new": call("*", call("*", share, call("sqrt", squares)), "grad"),
        },
        moment=Ref("moment_1"),
        param=Ref("new"),
    )  # fmt: skip
    after = hoist(it, GuardTable())
    kinds = after.kinds()
    made = expressions(after)
    assert made["one_minus_beta"] == share
    assert kinds["one_minus_beta"] is Kind.GROUP
    assert sum(expr == share for expr in made.values()) == 1
    assert all(isinstance(e.x, Ref) for e in made.values() if isinstance(e, Reduce))
    for let in after.lets:
        for part in walk(let.expr):
            if isinstance(part, Reduce):
                assert part is let.expr
    means_the_same(it, after)


@pytest.mark.parametrize("names", [("mean", "total"), ("total", "mean")], ids=" ".join)
def test_a_statement_that_is_a_reduction_shares_it(names: tuple[str, str]) -> None:
    """A row's mean and its sum are one sum, whichever is asked for first."""
    total = Reduce("sum", Kind.ROW, Ref("grad"))
    values = {"mean": call("/", total, 4.0), "total": total}
    own = {name: values[name] for name in names}
    it = program({**own, "new": call("*", call("*", "mean", "total"), "grad")}, param=Ref("new"))
    after = hoist(it, GuardTable())
    verify(after, Stage.HOISTED)
    assert [let.expr for let in after.lets].count(total) == 1


def test_names_of_hoisted_values_say_what_they_are() -> None:
    assert readable_name(call("-", 1.0, "beta1")) == "one_minus_beta1"
    assert readable_name(call("/", 1.0, "lr")) == "inverse_lr"
    assert readable_name(call("*", "lr", -1.5e-3)) == "lr_times_cm0p0015"
    assert readable_name(Reduce("sum", Kind.ROW, Ref("x"))) == "row_sum_x"


def test_a_hoisted_value_of_many_words_is_called_by_what_it_serves() -> None:
    factor = call(
        "+", call("*", call("+", "lr", "beta"), call("-", "lr", "beta")), call("/", "lr", call("+", "beta", 7.0))
    )
    after = hoist(program({"change": call("*", "grad", factor)}, param=Ref("change")), GuardTable())
    assert list(expressions(after)) == ["change_factor", "change"]


def test_resolve_choices_makes_those_that_are_known() -> None:
    chosen = Select(atom("amsgrad"), Ref("grad"), Ref("moment"))
    it = program({"new": chosen, "used": chosen}, largest=Ref("new"), param=Ref("used"))
    after = resolve_choices(it)
    assert expressions(after) == {"new": Ref("grad"), "used": chosen}
    means_the_same(it, after)


def test_drop_unused() -> None:
    it = program({"a": call("*", "grad", 2.0), "b": call("*", "a", 2.0), "c": call("*", "a", 3.0)}, param=Ref("c"))
    after = drop_unused(it)
    assert list(expressions(after)) == ["a", "c"]
    means_the_same(it, after)


@pytest.mark.parametrize(
    ("exprs", "outputs", "stage", "message"),
    [
        ([Ref("b")], {}, Stage.BUILT, "a reads b, which is not bound before it"),
        ([], {"param": Ref("b")}, Stage.BUILT, "param reads b, which is not bound"),
        ([Let("lr", Ref("grad"), Kind.ELEMENT, "")], {}, Stage.BUILT, "lr is bound twice"),
        ([Let("a", Ref("grad"), Kind.GROUP, "")], {}, Stage.BUILT, "a is of kind GROUP, its value is not"),
        ([], {"nothing": Ref("grad")}, Stage.BUILT, "nothing is written but is no input"),
        ([], {"size": Ref("grad")}, Stage.BUILT, "size cannot take a value of kind ELEMENT"),
        ([call("sin", "grad")], {}, Stage.BUILT, "a: `sin` is no operation"),
        ([call("sqrt", "grad", "lr")], {}, Stage.BUILT, "a: `sqrt` has 2 operands"),
        ([call("push", "window", "lr")], {}, Stage.BUILT, "a: `push` has 2 operands"),
        ([call("and", "grad", call("<", "grad", 0.0))], {}, Stage.BUILT, "a: `and` takes a condition, not a number"),
        ([call("+", "grad", call("<", "grad", 0.0))], {}, Stage.BUILT, r"a: `\+` takes a number, not a condition"),
        ([call("percentile", "size", "lr")], {}, Stage.BUILT, "a: `percentile` takes a window, not a number"),
        (
            [call("where", call("<", "grad", 0.0), "grad", Const(True))],
            {},
            Stage.BUILT,
            "`where` takes a value, not a ",
        ),
        ([Select(atom("amsgrad"), Ref("grad"), Const(True))], {}, Stage.BUILT, "a chooses between a number and a cond"),
        ([Reduce("sum", Kind.TENSOR, call("<", "grad", 0.0))], {}, Stage.BUILT, "a reduces a condition"),
        ([], {"moment": call("<", "grad", 0.0)}, Stage.BUILT, "moment is a number and cannot take a condition"),
        ([], {"window": Ref("size")}, Stage.BUILT, "window is a window and cannot take a number"),
        ([Reduce("sum", Kind.TENSOR, Ref("size"))], {}, Stage.BUILT, "a reduces TENSOR over TENSOR"),
        ([Reduce("sum", Kind.ROW, Reduce("sum", Kind.COL, Ref("grad")))], {}, Stage.BUILT, "a reduces COL over ROW"),
        ([Select(FALSE, Ref("grad"), Ref("moment"))], {}, Stage.BUILT, "a has a choice that is decided"),
        ([call("*", "grad", call("-", 1.0, "lr"))], {}, Stage.HOISTED, "a computes a GROUP among ELEMENT"),
        ([call("+", 1.0, Reduce("sum", Kind.TENSOR, Ref("grad")))], {}, Stage.HOISTED, "a has a reduction within"),
        ([], {"size": Reduce("sum", Kind.TENSOR, Ref("grad"))}, Stage.HOISTED, "size has a reduction within"),
        ([Reduce("sum", Kind.TENSOR, call("*", "grad", 2.0))], {}, Stage.HOISTED, "a reduces what has no name"),
        ([call("*", "grad", 2.0)], {"param": Ref("grad")}, Stage.READY, "nothing needs a"),
    ],
)
def test_the_verifier_names_what_is_broken(
    exprs: list[Expr | Let], outputs: dict[str, Expr], stage: Stage, message: str
) -> None:
    """From the stage from which it must hold, and not before."""
    inputs = {**INPUTS, "window": Input("window", "state", Kind.TENSOR, window=3)}
    kinds = {name: item.kind for name, item in inputs.items()}
    lets = [x if isinstance(x, Let) else Let("a", x, _kind(x, kinds), "") for x in exprs]
    it = Program(inputs, tuple(lets), outputs, dict.fromkeys(outputs, TRUE))
    if stage > Stage.BUILT:
        verify(it, Stage(stage - 1))
    for later in range(stage, Stage.READY + 1):
        with pytest.raises(VerificationError, match=message):
            verify(it, Stage(later))


def _kind(expr: Expr, kinds: Mapping[str, Kind]) -> Kind:
    return kind_of(expr, kinds) if set(refs(expr)) <= kinds.keys() else Kind.ELEMENT


STEP = """blocks:
  step: |
    squared = grad * grad
    if amsgrad:
        kept = max(kept, squared)
        second = kept
    else:
        second = squared
    if mode == "a":
        change = grad / (sqrt(second) + 1e-8) / (1 - lr)
    elif mode == "b":
        change = grad / norm(grad)
    else:
        change = grad * min(1, 2 / rms(grad))
    if ndim >= 2:
        rows_of = row_mean(squared)
        change = change * sqrt(rows_of / mean(rows_of))
    size = norm(change)
    active = active and grad < 1
    update = where(size > 1, change / size, change) + 0.1 * exp_avg
    exp_avg = update
  apply: |
    param = param * (1 - lr * lr) - lr * update
"""


def whole_rule(folder: Path, text: str) -> WholeRule:
    path = folder / "probe.yaml"
    path.write_text(text, encoding="utf-8")
    reporter = Reporter()
    specs = load_specs([path], reporter)
    rule = build_rule(specs.rules["probe"], specs.shared, {}, reporter)
    reporter.raise_if_any()
    assert rule is not None
    return rule


# Shares of 2000 settings: of what follows from a fault in one setting, few are enough to see it.
SHARES = [slice(0, 250), pytest.param(slice(250, None), marks=pytest.mark.slow)]


@pytest.mark.parametrize("share", SHARES, ids=["some", "others"])
def test_all_passes_together_mean_what_was_written(tmp_path: Path, share: slice) -> None:
    rule = whole_rule(tmp_path, PROBE + STEP)
    block = rule.blocks["step"]
    masked = mask_writes(block.program, block.active, rule.guards)
    after = run_passes(block.program, block.active, rule.guards)
    values = {
        "param": VALUES["param"], "grad": VALUES["grad"], "exp_avg": VALUES["moment"], "kept": VALUES["largest"] ** 2,
        "size": 1.0, "past": None, "rows_of": np.ones((3, 1)), "total": 0.0, "gnorm_vec": None, "lr": 0.1, "beta1": 0.9,
        "step": 3.0, "ndim": 2.0, "numel": 12.0, "index": 0.0, "rows": 3.0, "cols": 4.0, "matrices": 1.0,
        "total_numel": 12.0, "percentile_clipping": 100.0, "max_unorm": 0.5, "grad_scale": 8.0,
        "max_grad_norm": 0.5, "min_trust_ratio": 0.1, "max_trust_ratio": 2.0,
    }  # fmt: skip
    checked = 0
    for truth in list(settings(rule, 2000))[share]:
        if truth["percentile_clipping_below_100"]:
            continue
        expected = run(masked, values, truth)
        known = {**values, "exp_avg_absmax": 0.0, "kept_absmax": 0.0}
        found, settled = run(after, known, truth), run(settle(after, truth), known, {})
        for name, value in expected.items():
            if name not in ("past", "gnorm_vec"):
                np.testing.assert_allclose(np.broadcast_to(found[name], np.shape(value)), value, rtol=1e-9)
        for name, value in settled.items():
            np.testing.assert_array_equal(value, found[name], err_msg=f"{name} under {truth}")
        checked += 1
    assert checked > 50


def test_every_pass_leaves_programs_of_all_rules_valid() -> None:
    for planned in stock_rules().values():
        for block in planned.rule.blocks.values():
            it = block.program
            verify(it)
            for step, stage in steps(block.active, planned.rule.guards):
                it = step(it)
                verify(it, stage)
            assert FALSE not in [let.expr.formula for let in it.lets if isinstance(let.expr, Select)]


def test_settle_leaves_nothing_to_choose() -> None:
    chosen = Select(atom("amsgrad"), Ref("most"), Ref("average"))
    it = program(
        {
            "active": Select(atom("moment_tensorwise"), Call(">", (Ref("grad"), Const(0.0))), Const(True)),
            "average": call("+", "moment", "grad"),
            "most": call("max", "largest", "average"),
            "rate": Select(atom("moment_tensorwise"), call("*", "lr", "size"), Ref("lr")),
            "moved": call("-", "param", call("*", "rate", chosen)),
            "kept": call("where", "active", "moved", "param"),
        },
        param=Ref("kept"),
        largest=Ref("most"),
    )
    settled = settle(it, {"amsgrad": False, "moment_tensorwise": False})
    assert "largest" not in settled.inputs
    assert list(settled.outputs) == ["param"]
    assert [(let.name, let.expr) for let in settled.lets] == [
        ("average", call("+", "moment", "grad")),
        ("moved", call("-", "param", call("*", "lr", "average"))),
    ]
    whole = settle(it, {"amsgrad": True, "moment_tensorwise": True})
    assert [let.name for let in whole.lets] == ["active", "average", "most", "rate", "moved", "kept"]
    assert whole.kind("rate") is Kind.TENSOR


def test_a_settled_sum_over_all_is_given_where_others_take_it() -> None:
    taken = Let("total", Reduce("sum", Kind.GLOBAL, Ref("grad")), Kind.GLOBAL, "", path=atom("amsgrad"))
    moved = Let("moved", call("-", "param", "total"), Kind.ELEMENT, "")
    it = Program(INPUTS, (taken, moved), {"param": Ref("moved")}, {"param": TRUE})
    assert [let.name for let in settle(it, GUARDS[-1]).lets] == ["total", "moved"]
    alone = settle(it, GUARDS[0])
    assert [let.name for let in alone.lets] == ["moved"]
    assert alone.kind("total") is Kind.GLOBAL


def test_rules_are_settled_to_as_many_passes_as_they_run() -> None:
    for planned in stock_rules().values():
        for block in planned.plans.values():
            for truth in settings(planned.rule, 12):
                settled = plan(settle(block.program, truth))
                longer = len(block.live_passes(truth)) - len(settled.passes)
                for_others = bool(block.sums) and planned.rule.name in SUMS_OVER_ALL
                assert longer in ((0, 1) if for_others else (0,)), f"{planned.rule.name} under {truth}"
                assert not any(isinstance(part, Select) for let in settled.program.lets for part in walk(let.expr))
