"""Rules evaluated in float64: against the oracle, which reads equations by itself; derivatives; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numerics.programs import case_of, rule_of
from numerics.test_random_programs import class_name, has_too_many_cases
from oracles.declared import Row, load_spec
from oracles.spec_oracle import SpecOracle
from support.catalogue import OWN, OWN_SPECS, computed_rows, own_rows, rows, shapes_of
from torch import Tensor

import optgen
from optgen.evaluation import Reference, reference
from optgen.spec.names import STORAGE

SHAPES = ((6, 5), (7,), (), (2, 3, 4))
EVERYTHING = {
    "max_grad_norm": 1.0, "percentile_clipping": 50, "skip_zeros": True, "nonfinite": "skip", "cautious": True,
    "trust_ratio": "lamb", "max_unorm": 0.5, "maximize": True, "weight_decay": 0.1,
}  # fmt: skip
ROUNDINGS = (
    64  # of float32 on the way to a number of the oracle, which it follows and a float64 evaluation does not have
)
ONE_A_RULE = {row.rule.name: name for name, row in reversed(computed_rows().items()) if name in rows()}


def needed(row: Row) -> dict[str, Any]:
    """Settings that a class cannot do without."""
    least = {name: 1.0 for name in row.accepted if row.needed(name)}
    plain = {name: "float32" for name in row.accepted if name.endswith("_dtype") and name not in STORAGE}
    return least | plain | ({"momentum": 0.9} if row.rule.name == "lars" else {})


def follow(it: Reference, row: Row, settings: dict[str, Any], shapes: Any, steps: int = 3) -> None:
    """Hold steps against the oracle's."""
    generator = torch.Generator().manual_seed(3)
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    oracle = SpecOracle(row, params, settings, [torch.float32] * len(params))
    now, state = [param.double() for param in params], None
    for _ in range(steps):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        oracle.step(grads)
        now, state = it.step(now, [grad.double() for grad in grads], state)
        for index, (param, ball) in enumerate(zip(now, oracle.balls, strict=True)):
            within(param, ball, f"parameter {index}")
            for name, kept in oracle.state_balls[index].items():
                within(state.params[index][name], kept, name)
        for name, kept in oracle.group.items():
            within(state.group[name], kept, name)


def within(value: Any, ball: Any, what: str) -> None:
    found = np.asarray(value, dtype=np.float64).reshape(np.shape(ball.mid))
    with np.errstate(invalid="ignore"):
        room = ball.rad + ROUNDINGS * 2.0**-23 * np.maximum(np.abs(ball.mid), np.abs(ball.mid).max(initial=0) / 64)
        good = (np.abs(found - ball.mid) <= room) | (found == ball.mid) | (np.isnan(found) & np.isnan(ball.mid))
    assert (good | ~np.isfinite(ball.rad)).all(), f"{what}: {found[~good]} for {ball.mid[~good]}"


@pytest.mark.parametrize("options", ["none", "all"])
@pytest.mark.parametrize("rule", ONE_A_RULE)
def test_steps_are_those_of_the_oracle(rule: str, options: str) -> None:
    name = ONE_A_RULE[rule]
    row = rows()[name]
    settings = needed(row)
    if options == "all":
        without = {"trust_ratio"} if "min_trust_ratio" not in row.accepted else set()
        settings |= {key: value for key, value in EVERYTHING.items() if key in row.accepted.keys() - without}
    follow(reference("specs", name, **settings), row, settings, shapes_of(name, SHAPES))


@pytest.mark.parametrize("name", own_rows())
def test_steps_of_rules_of_ones_own(name: str) -> None:
    row = own_rows()[name]
    it = reference(OWN_SPECS / f"{row.rule.name}.yaml", name.removeprefix(OWN), **needed(row))
    follow(it, row, needed(row), SHAPES)


@pytest.mark.parametrize("seed", range(6000, 6012))
def test_random_rules(seed: int, tmp_path: Path) -> None:
    rule = rule_of(seed)
    path = tmp_path / f"{rule.name}.yaml"
    path.write_text(rule.text)
    if has_too_many_cases(path):
        pytest.skip("the rule tests more settings at once than a plan can")
    row = load_spec(path)[class_name(rule)]
    case = case_of(seed, row, most=4)
    settings = {k: v for k, v in case.settings.items() if k in row.accepted and k not in STORAGE}
    follow(reference(path, **settings), row, settings, case.shapes)


RULE = """\
name: sums
hyperparameters: {lr: 0.5, betas: [0.9, 0.99]}
options: {flag: {default: false, doc: Either.}}
states:
  exp_avg: {}
  rows_of: {shape: row, when: ndim >= 2}
  total: {shape: global}
blocks:
  step: |
    if flag and grad_scale_of is not None:
        grad = grad / grad_scale_of
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    size = norm(exp_avg, over=all)
    total = total + size
    if ndim >= 2:
        rows_of = row_mean(exp_avg)
        exp_avg = exp_avg * rows_of
    param = param - lr * exp_avg / (size + beta2)
inputs: {grad_scale_of: {doc: What grad is divided by.}}
methods:
  back: {block: param = param - lr}
"""


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.yaml"
    path.write_text(RULE)
    return path


def test_derivatives_are_those_of_the_equations(sums: Path) -> None:
    """Of parameters, gradients, states and hyperparameters, by finite differences."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    def two_steps(param: Tensor, other: Tensor, grad: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        it = reference(sums, lr=lr)
        now, state = it.step([param, other], [grad, other * 2])
        now, state = it.step(now, [grad * grad, other], state)
        return (*now, state.params[0]["exp_avg"], state.group["total"])

    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (draw(2, 3), draw(4), draw(2, 3), lr))


def test_results_by_hand(sums: Path) -> None:
    param, grad = torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [5.0, 1.0]])
    (new,), state = reference(sums).step([param], [grad])
    average = 0.1 * grad.double()
    size = average.norm()
    means = average.mean(1)
    torch.testing.assert_close(state.params[0]["rows_of"], means)
    torch.testing.assert_close(state.group["total"], size)
    torch.testing.assert_close(new, -0.5 * average * means[:, None] / (size + 0.99))
    assert state.params[0]["step"] == 1
    assert not param.any()


def test_parameters_without_a_gradient_are_left_as_they_are(sums: Path) -> None:
    params = [torch.ones(3), torch.ones(2)]
    now, state = reference(sums).step(params, [None, torch.ones(2)])
    assert torch.equal(now[0], params[0].double())
    assert not state.params[0]
    _, state = reference(sums).step(now, [torch.ones(3), None], state)
    assert [float(each["step"]) for each in state.params] == [1, 1]


def test_every_value_of_a_step_in_order(sums: Path) -> None:
    traced = reference(sums).trace([torch.zeros(2)], [torch.ones(2)])
    assert [(each.index, each.name, each.kind) for each in traced] == [
        (0, "exp_avg", "element"), (0, "exp_avg_squares_1", "tensor"), (0, "size", "global"),
        (0, "total", "global"), (0, "param", "element"),
    ]  # fmt: skip
    assert traced[0].source == "exp_avg = beta1 * exp_avg + (1 - beta1) * grad"
    torch.testing.assert_close(traced[2].value, torch.tensor(0.1 * 2**0.5, dtype=torch.float64))


def test_inputs_and_methods(sums: Path) -> None:
    it = reference(sums, flag=True)
    (new,), state = it.step([torch.zeros(1)], [torch.ones(1)], grad_scale_of=4.0)
    assert float(state.params[0]["exp_avg"]) == pytest.approx(0.025, abs=1e-16)
    (turned,), _ = it.call("back", [new], state=state)
    assert torch.equal(turned, new - 0.5)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (TypeError, "Sums has no setting `lrr`: did you mean `lr`", lambda spec: reference(spec, lrr=1)),
        (TypeError, "Sums has no setting `codec`", lambda spec: reference(spec, codec="int8")),
        (ValueError, "Sums: flag is 'x', and must be one of False, True", lambda spec: reference(spec, flag="x")),
        (ValueError, "has no class Adam; its classes: Sums", lambda spec: reference(spec, "Adam")),
        (ValueError, "Sums has no method `train`; its methods: back", lambda spec: reference(spec).call("train", [])),
        (ValueError, "1 parameters have 0 gradients", lambda spec: reference(spec).step([torch.ones(1)], [])),
        (TypeError, "Sums has no input `scale`", lambda spec: reference(spec).step([], [], scale=2)),
        (optgen.SpecError, "no-file|not exist|no such", lambda spec: reference(spec.with_name("none.yaml"))),
    ],
)  # fmt: skip
def test_what_is_refused(sums: Path, error: type[Exception], said: str, call: Any) -> None:
    with pytest.raises(error, match=said):
        call(sums)


def test_the_package_has_it() -> None:
    assert optgen.reference is reference
    assert isinstance(optgen.reference("specs", "AdamW"), Reference)
