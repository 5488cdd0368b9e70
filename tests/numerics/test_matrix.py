"""Every class of the catalogue, and the rules of tests/specs, against the interpreted equations (numerics/cases.py)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
import torch
from _pytest.mark import ParameterSet
from oracles.declared import WholeRule
from oracles.spec_oracle import SpecOracle
from oracles.storage import DTYPES
from support.catalogue import accepted, rows
from support.pairs import Case
from support.targets import GPU, ready

from numerics.cases import compiled, full, paired, settings_of
from numerics.harness import FEW, FEW_STEPS, NAMES, STEPS, Duel, duel, make_grads

optgen_optim = pytest.importorskip("optgen_optim")

# Of the bounds of a case on a tensor after a step, the share that says something of every element. One that happens to
# be cancelled, and is then divided by what may be 0, leaves the norm of its tensor without a bound for that step, in
# the tensor that starts at zero, one of five, often.
MEANINGFUL = 0.8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {"paired": paired, "compiled": compiled, "anything": full}
    for name, cases in wanted.items():
        if name in metafunc.fixturenames:
            # The full product is thousands of cases: made only where they are asked for.
            skip = name == "anything" and "full" not in (metafunc.config.getoption("markexpr") or "")
            found = {} if skip else cases()
            metafunc.parametrize(name, [param for key, case in found.items() for param in params_of(key, case)])


def params_of(key: str, case: Case) -> Iterator[ParameterSet]:
    """A case; one of the cuda target twice, on the stand-in and on a GPU."""
    yield pytest.param(case, id=key)
    if case["target"] == "cuda":
        yield pytest.param(case | {"target": GPU}, id=key.replace("-cuda-", "-gpu-", 1), marks=pytest.mark.gpu)


def begin(it: Duel) -> None:
    """Bring a rule whose steps are refused at first to where they are not, by its own methods."""
    oracle = it.oracle
    assert isinstance(oracle, SpecOracle)
    for method in (*oracle.rule.methods, None):
        values = {name: float(ball.mid) for name, ball in oracle.group.items()}
        if oracle.row.refusal({}, "step", values) is None:
            return
        assert method is not None, "no method lets it step"
        getattr(it.opt, method)()
        oracle.call(method)


def steps_of(rule: WholeRule) -> int:
    """Steps after which a rule has done everything that it does: STEPS where it counts the steps of its averages."""
    nodes = (node for stage in rule.stages for statement in stage.body for node in ast.walk(statement))
    return STEPS if any(isinstance(node, ast.Name) and node.id == "averaged_steps" for node in nodes) else FEW_STEPS


def run(case: Case) -> None:
    """A few steps, each judged alone (numerics/bounds.py), then every method of the rule."""
    dtype = DTYPES[case["dtype"]]
    grad_dtype = DTYPES[case["dtype"] if case["grad_dtype"] == "same" else case["grad_dtype"]]
    with ready(case["target"]) as target:
        it = duel(case["class"], target, dtype, FEW if target == "torch" else NAMES, **settings_of(case))
        oracle = it.oracle
        assert isinstance(oracle, SpecOracle)
        it.vague = []
        oracle.inputs = {name: case[name] for name in oracle.rule.inputs if case[name] is not None}
        begin(it)
        steps = steps_of(oracle.rule)
        for t in range(1, steps + 1):
            for name, value in oracle.inputs.items():
                setattr(it.opt, name, value)
            # Matrices are left out whole: all of them in one step.
            some = case.get("nonfinite") == "skip" and (oracle.rule.ndim != 2 or t == 2)
            it.step(make_grads(it.params, t, grad_dtype, nonfinite=some))
            it.check_group()
        assert it.opt.engines() == {target: len(it.names)}
        for method in oracle.rule.methods:
            for name, value in oracle.inputs.items():
                setattr(it.opt, name, value)
            refused = oracle.row.refusal(settings_of(case), method)
            if refused is not None and oracle.rule.methods[method].reads_grad:
                with pytest.raises(ValueError, match=re.escape(oracle.row.message(refused, settings_of(case)))):
                    getattr(it.opt, method)()
                continue
            it.call(method, make_grads(it.params, steps + 1, grad_dtype, nonfinite=False))
            it.check_group()
    assert len(it.vague) <= round((1 - MEANINGFUL) * steps * len(it.names)), it.vague[0]


def test_all_pairs(paired: Case) -> None:
    run(paired)


def test_compiled(compiled: Case) -> None:
    run(compiled)


@pytest.mark.full
def test_full_product(anything: Case) -> None:
    run(anything)


def test_the_table_is_the_package() -> None:
    exported = {
        name
        for name in optgen_optim.__all__
        if isinstance(getattr(optgen_optim, name), type)
        and issubclass(getattr(optgen_optim, name), torch.optim.Optimizer)
    }
    assert exported - {"CombinedOptimizer"} == set(rows())  # that joins several rules and is none


def test_every_axis_of_a_class_is_an_argument_of_it() -> None:
    """The classes take exactly what the specs declare: the matrix is made from the one and run on the other."""
    for name, row in rows().items():
        taken = accepted(name).keys() - {"args", "target"}
        compatible = {"optim_bits"} if row.bits is not None else set()  # taken as 32 alone, for positional calls
        assert taken - compatible == set(row.accepted), name
