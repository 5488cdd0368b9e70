"""Results of one pass reach every later one, on each target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compiling import write_spec

import optgen

CLIPPED = """\
name: clipped
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
  limit: {default: 0.0, range: "[0, inf)"}
states:
  seen: {shape: tensor}
blocks:
  step: |
    size = norm(grad)
    if limit > 0:
        grad = grad * min(1, limit / size)
    seen = size
    other = norm(grad)
    param = param - lr * grad / other
"""
SUMMED = """\
name: summed
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
states:
  share: {}
  total: {shape: global}
blocks:
  step: |
    total = sum(abs(grad), over=all)
    share = grad / total
    param = param - lr * share
"""
REDUCED = """\
name: reduced
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
states:
  seen: {}
blocks:
  step: |
    seen = (absmax(grad) + sum(grad)) * grad
    if ndim >= 2:
        seen = seen + row_sum(grad) + col_sum(grad)
    param = param - lr * seen
"""
STORED = """\
name: stored
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
states:
  kept: {shape: row, when: ndim >= 2}
  first: {shape: tensor, when: ndim >= 2}
  second: {shape: tensor, when: ndim >= 2}
  third: {shape: tensor, when: ndim >= 2}
blocks:
  step: |
    if ndim >= 2:
        kept = row_sum(grad)
        first = sum(kept * kept)
        across = 2 * col_sum(grad)
        second = sum(across * across)
        whole = sum(grad, over=matrix)
        third = sum(whole * whole)
    param = param - lr * grad
"""
SHARED_SUM = """\
name: shared_sum
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
states:
  seen: {shape: tensor, when: numel > 30}
  rows_of: {shape: tensor, when: ndim >= 2}
blocks:
  step: |
    seen = sum(grad, over=all)
    if ndim >= 2:
        rows_of = sum(grad, over=all)
    param = param - lr * grad
"""
SPREAD = """\
name: spread
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
options:
  flag: {default: false}
states:
  all_of: {shape: tensor}
  lines: {shape: tensor, when: ndim >= 2}
  half: {shape: tensor}
blocks:
  step: |
    value = grad
    line = grad
    if flag:
        value = 2
    all_of = sum(value)
    half = sum(where(lr > 3, grad, rounded(0 * value + 0.5)))
    if ndim >= 2:
        line = row_sum(line)
    if ndim >= 2:
        kept = col_sum(grad)
        if flag:
            kept = 1
        lines = sum(line) + sum(kept)
    param = param - lr * grad
"""
SOMETIMES = """\
name: sometimes
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
options:
  flag: {default: false}
states:
  kept: {}
  other: {}
blocks:
  step: |
    param = param - lr * grad
methods:
  turn:
    block: |
      before = kept
      kept = 3
      if flag:
          kept = before + other
          other = sum(other) + kept
      else:
          other = 2
      param = param + sum(kept)
"""
EITHER = """\
name: either
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
options:
  flag: {default: false}
  other: {default: false}
states:
  first: {shape: tensor, when: flag}
  second: {shape: tensor, when: other}
blocks:
  step: |
    size = absmax(grad)
    first = size
    second = size
    param = param - lr * grad
"""
ASIDE = """\
name: aside
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
options:
  flag: {default: false}
states:
  kept: {}
  size: {shape: tensor}
  seen: {shape: tensor, when: ndim >= 2}
blocks:
  step: |
    if flag:
        kept = grad
    value = 2 * grad
    if index == 1:
        size = norm(value, over=all)
    else:
        size = norm(value)
    more = grad
    if ndim < 2:
        more = 3 * grad
    seen = absmax(more, over=all)
    param = param - lr * grad
methods:
  fill:
    block: kept = param
"""
REUSED = """\
name: reused
hyperparameters:
  lr: {default: 0.5, range: "[0, inf)"}
states:
  size: {shape: tensor}
  past: {shape: tensor, window: 2}
blocks:
  step: |
    value = norm(grad)
    oldest = percentile(past, 0)
    past = push(past, value)
    newest = percentile(past, 0)
    grad = grad * value
    if ndim >= 2:
        value = row_mean(grad)
    else:
        size = norm(grad * norm(grad))
    if ndim >= 2:
        grad = grad * (size * step)
    param = param - lr * (min(oldest, 100) + min(newest, 100)) * grad * value
"""
AFTER_ONE_ANOTHER = """\
name: after_one_another
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
options:
  flag: {default: false}
blocks:
  step: |
    times = 1
    if flag:
        times = norm(grad * norm(grad))
    size = norm(grad * times)
    if not flag:
        size = norm(grad * size)
        size = norm(grad * size)
    param = param - lr * size
"""
OF_STATES = """\
name: of_states
hyperparameters:
  lr: {default: 1.0, range: "[0, inf)"}
states:
  kept: {shape: col, when: ndim >= 2, init: 2}
blocks:
  step: |
    if ndim >= 2:
        grad = grad * mean(kept)
        kept = kept + 1
    param = param - lr * grad
"""
every_target = pytest.mark.parametrize("target", ["torch", "cpu", "cuda"], indirect=True)


ONE_SIDE = """\
name: one_side
hyperparameters: {lr: {default: 1.0}}
options: {flag: {default: false, doc: Either.}}
blocks:
  step: |
    if not flag:
        twice = grad * 2
    if flag:
        update = grad + param
    else:
        update = twice
  apply: |
    param = param - lr * update
variants:
  OneSide: {}
"""


def stepped(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in params:
        param.grad = torch.full_like(param, 2.0)
    opt.step()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_norm_that_an_earlier_pass_takes_is_kept(target: str, limit: float, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, CLIPPED)).Clipped
    param = torch.nn.Parameter(torch.zeros(400))
    opt = cls([param], limit=limit, target=target)
    stepped(opt, [param])
    assert float(opt.state[param]["seen"]) == 40.0
    assert torch.allclose(param.detach(), torch.full((400,), -0.1 * 2 / 40))


def test_lamb_behind_percentile_clipping(target: str) -> None:
    import optgen_optim

    param = torch.nn.Parameter(torch.ones(4096))
    opt = optgen_optim.LAMB8bit([param], percentile_clipping=50, target=target)
    for _ in range(2):
        stepped(opt, [param])
    window = opt.state[param]["gnorm_vec"]
    assert torch.allclose(window, torch.full_like(window, 4 * 4096.0))


@pytest.mark.parametrize("block_wise", [True, False])
def test_a_sum_over_all_parameters_has_all_of_them(target: str, block_wise: bool, tmp_path: Path) -> None:
    """Also where only some of them need it a pass earlier, for the scale of an 8-bit state."""
    cls = optgen.load(write_spec(tmp_path, SUMMED)).Summed
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (8192, 10)]
    opt = cls(params, optim_bits=8, block_wise=block_wise, target=target)
    stepped(opt, params)
    total = 2.0 * (8192 + 10)
    assert opt.param_groups[0]["total"] == total
    for param in params:
        assert torch.allclose(param.detach(), torch.full_like(param, -0.1 * 2 / total), atol=0)


@every_target
@pytest.mark.parametrize("block_wise", [True, False])
def test_a_pass_may_make_and_read_one_reduction(target: str, block_wise: bool, tmp_path: Path) -> None:
    """It makes it where a state has a scale a block, and reads it where the scale of the tensor needs it earlier."""
    cls = optgen.load(write_spec(tmp_path, REDUCED)).Reduced
    for shape in ((300,), (20, 30)):
        param = torch.nn.Parameter(torch.zeros(shape))
        param.grad = torch.randint(-3, 4, shape).float()
        opt = cls([param], optim_bits=8, min_8bit_size=0, block_wise=block_wise, target=target)
        opt.step()
        seen = (param.grad.abs().max() + param.grad.sum()) * param.grad
        if len(shape) == 2:
            seen = seen + param.grad.sum(1, keepdim=True) + param.grad.sum(0)
        assert torch.equal(param.detach(), -seen)
        assert opt.state[param]["seen_absmax"].max() == seen.abs().max()


@every_target
def test_what_a_number_of_the_tensor_alone_needs_is_computed(target: str, tmp_path: Path) -> None:
    """Rows, columns and matrices that no element reads."""
    cls = optgen.load(write_spec(tmp_path, STORED)).Stored
    param = torch.nn.Parameter(torch.zeros(3, 20, 30))
    param.grad = grad = torch.randint(-3, 4, param.shape).float()
    opt = cls([param], target=target)
    opt.step()
    state = opt.state[param]
    assert torch.equal(state["kept"], grad.sum(2))
    assert float(state["first"]) == grad.sum(2).square().sum()
    assert float(state["second"]) == 4 * grad.sum(1).square().sum()
    assert float(state["third"]) == grad.sum((1, 2)).square().sum()


@every_target
def test_columns_are_summed_where_there_are_such(target: str, tmp_path: Path) -> None:
    """A state of one dimension more than some parameters have."""
    cls = optgen.load(write_spec(tmp_path, OF_STATES)).OfStates
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((), (10,), (2, 5))]
    opt = cls(params, target=target)
    stepped(opt, params)
    stepped(opt, params)
    assert [set(param.detach().flatten().tolist()) for param in params] == [{-4.0}, {-4.0}, {-10.0}]


@every_target
def test_a_sum_over_all_parameters_has_those_that_do_not_need_it(target: str, tmp_path: Path) -> None:
    """Parameters add to a sum by the `if` that it stands below, not by the use of its value."""
    cls = optgen.load(write_spec(tmp_path, SHARED_SUM)).SharedSum
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((40,), (10,), (2, 5))]
    opt = cls(params, target=target)
    stepped(opt, params)
    assert float(opt.state[params[0]]["seen"]) == 2 * 60
    assert "seen" not in opt.state[params[1]]
    assert float(opt.state[params[2]]["rows_of"]) == 2 * 10


@every_target
@pytest.mark.parametrize("flag", [False, True])
def test_a_sum_of_equal_numbers_has_as_many_terms(target: str, flag: bool, tmp_path: Path) -> None:
    """Also where one number stands for all elements, or one a row for all of its elements."""
    cls = optgen.load(write_spec(tmp_path, SPREAD)).Spread
    param = torch.nn.Parameter(torch.zeros(3, 4))
    opt = cls([param], flag=flag, target=target)
    param.grad = torch.arange(12.0).reshape(3, 4)
    opt.step()
    state = opt.state[param]
    assert float(state["all_of"]) == (24 if flag else 66)
    assert float(state["half"]) == 6
    assert float(state["lines"]) == 66 * 4 + (4 if flag else 66)


@every_target
@pytest.mark.parametrize("flag", [False, True])
def test_a_state_may_be_read_under_fewer_settings_than_it_is_written(target: str, flag: bool, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, SOMETIMES)).Sometimes
    param = torch.nn.Parameter(torch.zeros(300))
    opt = cls([param], flag=flag, optim_bits=8, min_8bit_size=0, target=target)
    stepped(opt, [param])
    opt.turn()
    kept, other = (0.0, 0.0) if flag else (3.0, 2.0)
    for name, value in (("kept", kept), ("other", other)):
        assert torch.equal(opt.state[param][f"{name}_absmax"], torch.full((2,), value)), name
    assert torch.equal(param.detach(), torch.full((300,), -2.0 + 300 * kept))


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> type[torch.optim.Optimizer]:
    return optgen.load(write_spec(tmp_path_factory.mktemp("aside"), ASIDE)).Aside


@every_target
@pytest.mark.parametrize("block_wise", [True, False])
def test_a_state_that_is_not_assigned_stays_as_it_is_stored(
    target: str, block_wise: bool, aside: type[torch.optim.Optimizer]
) -> None:
    """Encoded again, blocks whose largest number is negative would shrink: four bits hold less of it."""
    param = torch.nn.Parameter(torch.linspace(-2.0, 1.0, 300))
    opt = aside([param], codec="int4", min_8bit_size=0, block_wise=block_wise, target=target)
    stepped(opt, [param])
    opt.fill()
    before = {name: opt.state[param][name].clone() for name in ("kept", "kept_absmax")}
    stepped(opt, [param])
    assert all(torch.equal(opt.state[param][name], value) for name, value in before.items())


@every_target
def test_sums_below_an_if_serve_its_other_side_and_other_parameters(
    target: str, aside: type[torch.optim.Optimizer]
) -> None:
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 8), (25,))]
    opt = aside(params, target=target)
    stepped(opt, params)
    assert [float(opt.state[param]["size"]) for param in params] == [4 * 4, 4 * 5]
    assert float(opt.state[params[0]]["seen"]) == 6


@every_target
def test_a_name_may_stand_for_numbers_of_several_kinds(target: str, tmp_path: Path) -> None:
    """A tensor's number and then a row's; a window before and after this step's value; a state of one side's."""
    cls = optgen.load(write_spec(tmp_path, REUSED)).Reused
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (4,))]
    opt = cls(params, target=target)
    stepped(opt, params)
    assert torch.equal(params[0].detach(), torch.zeros(2, 2))
    assert float(opt.state[params[1]]["size"]) == 16 * 16
    assert torch.equal(params[1].detach(), torch.full((4,), -0.5 * 104 * 8 * 4))


@every_target
@pytest.mark.parametrize("flag", [False, True])
def test_a_sum_may_wait_for_one_that_other_settings_take_later(target: str, flag: bool, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, AFTER_ONE_ANOTHER)).AfterOneAnother
    param = torch.nn.Parameter(torch.zeros(4))
    stepped(cls([param], flag=flag, target=target), [param])
    assert torch.equal(param.detach(), torch.full((4,), -64.0))


@every_target
@pytest.mark.parametrize("flag", [False, True])
def test_a_value_of_one_side_is_nothing_to_the_other(target: str, flag: bool, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, ONE_SIDE)).OneSide
    param = torch.nn.Parameter(torch.zeros(4))
    stepped(cls([param], flag=flag, target=target), [param])
    assert torch.equal(param.detach(), torch.full((4,), -2.0 if flag else -4.0))


def test_prodigy_scales_an_update_that_is_nothing() -> None:
    """Prodigy's update is one 0 for all elements where no gradient has come yet."""
    import optgen_optim

    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.zeros(5)
    optgen_optim.Prodigy([param], trust_ratio="lamb", target="torch").step()
    assert torch.equal(param.detach(), torch.ones(5))


@every_target
def test_the_largest_that_either_of_two_settings_needs(target: str, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, EITHER)).Either
    param = torch.nn.Parameter(torch.zeros(300))
    param.grad = torch.arange(300.0).flip(0)
    opt = cls([param], flag=True, target=target)
    opt.step()
    assert float(opt.state[param]["first"]) == 299
