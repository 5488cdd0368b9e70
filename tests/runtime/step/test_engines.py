"""Choice of the engine, which notices whatever a user changes between steps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, AdamW, AdamW8bit, PytorchLARS
from support.machine import require_compiler
from torch import nn

from optgen.runtime.building.cache import CompileError
from optgen.runtime.step import target_choice
from runtime.training import SMALL, make_params, same, saved, set_grads, snapshot, train

pytestmark = pytest.mark.usefixtures("each_sweep")


def test_engines_reports_the_last_step(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    assert opt.engines() == {}
    train(opt, params, 1, 1)
    assert opt.engines() == {target: 4}
    params[0].grad = None
    opt.step()
    assert opt.engines() == {target: 3}
    opt.zero_grad()
    opt.step()
    assert opt.engines() == {}


def test_each_parameter_has_its_target() -> None:
    require_compiler()
    params = make_params()
    opt = AdamW([{"params": params[:3]}, {"params": params[3:], "target": "torch"}])
    opt.override(params[0], target="torch")
    train(opt, params, 1, 2)
    assert opt.engines() == {"torch": 2, "cpu": 2}
    assert PytorchLARS(params).param_groups[0]["target"] == "torch"


def test_changing_sets_of_gradients(target) -> None:
    params, alone = make_params(), [make_params() for _ in range(4)]
    opt = AdamW(params, target=target)
    singles = [AdamW([p[i]], target=target) for i, p in enumerate(alone)]
    for step, present in enumerate([{0, 1, 2, 3}, {1, 3}, {0}, set(), {0, 1, 2, 3}, {2}], start=1):
        set_grads(params, step)
        for index, single in enumerate(singles):
            set_grads(alone[index], step)
            if index in present:
                single.step()
            else:
                params[index].grad = None
        opt.step()
    assert same(snapshot(opt, params)["params"], [p[i].detach() for i, p in enumerate(alone)])
    assert [float(opt.state[p]["step"]) for p in params] == [3, 3, 3, 3]


def test_frozen_and_thawed(target) -> None:
    model = nn.Linear(4, 3)
    opt = AdamW(model.parameters(), target=target)

    def step() -> None:
        opt.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        opt.step()

    step()
    model.weight.requires_grad_(False)
    frozen = model.weight.detach().clone()
    step()
    assert torch.equal(model.weight, frozen)
    model.weight.requires_grad_(True)
    step()
    assert not torch.equal(model.weight, frozen)
    assert (float(opt.state[model.weight]["step"]), float(opt.state[model.bias]["step"])) == (2, 3)


@pytest.mark.parametrize("cls", [AdamW, LAMB, AdamW8bit], ids=lambda c: c.__name__)
def test_other_storage_for_a_parameter(cls, target) -> None:
    params, expected = make_params(), make_params()
    opt, other = cls(params, target=target), cls(expected, target=target)
    train(opt, params, 1, 1)
    train(other, expected, 1, 1)
    old = params[0].data
    params[0].data = old.clone()
    params[1].data = torch.stack([params[1].data, params[1].data], dim=1)[:, 0]  # strided
    params[2].data = params[2].data.flip(0).flip(0)
    kept = old.clone()
    train(opt, params, 2, 3)
    train(other, expected, 2, 3)
    assert same(snapshot(opt, params)["params"], snapshot(other, expected)["params"])
    assert torch.equal(old, kept)
    assert params[1].stride() == (2,)


def test_a_parameter_of_another_dtype(target) -> None:
    model = nn.Linear(30, 20)
    opt = AdamW(model.parameters(), target=target)
    params = list(model.parameters())
    train(opt, params, 1, 1)
    for param in params:
        param.grad = None
    model.bfloat16()
    train(opt, params, 2, 2)
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    expected = [p.detach().clone() for p in params]
    assert all(torch.isfinite(value).all() for value in expected)
    model.float()
    for param in params:
        param.grad = None
    train(opt, params, 3, 3)
    assert opt.engines() == {target: 2}


@pytest.mark.parametrize("data", [torch.zeros(5), torch.zeros(40, 31), torch.zeros(30, 40)])
def test_a_parameter_of_another_shape_is_refused(data, target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 1)
    params[0].grad = None
    params[0].data = data
    set_grads(params, 2)
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match=r"exp_avg.*\(40, 30\)"):
        opt.step()
    assert same(before, snapshot(opt, params))


def test_a_gradient_left_from_another_shape_is_refused(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 1)
    params[0].data = torch.zeros(50)
    with pytest.raises(ValueError, match=r"AdamW: a gradient of shape \(40, 30\) for a parameter of \(50,\)"):
        opt.step()


REPLACEMENTS: dict[str, Any] = {
    "entry": lambda entry: entry.update(exp_avg=torch.full((40, 30), 0.5)),
    "strided": lambda entry: entry.update(exp_avg=torch.full((30, 40), 0.5).t()),
    "data": lambda entry: setattr(entry["exp_avg"], "data", torch.full((40, 30), 0.5)),
    "in place": lambda entry: entry["exp_avg"].fill_(0.5),
    "half": lambda entry: entry.update(exp_avg=torch.full((40, 30), 0.5).bfloat16()),
    "shared": lambda entry: entry["exp_avg"].fill_(0.5).share_memory_(),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_a_state_replaced_by_the_user(how, target) -> None:
    results = []
    for way in ("in place", how):
        params = make_params()
        opt = AdamW(params, target=target)
        train(opt, params, 1, 1)
        REPLACEMENTS[way](opt.state[params[0]])
        train(opt, params, 2, 3)
        results.append(snapshot(opt, params))
        assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    assert same(*results)


def test_all_states_replaced_by_the_user(target) -> None:
    params, expected = make_params(), make_params()
    opt, other = AdamW(params, target=target), AdamW(expected, target=target)
    for way in range(4):
        train(opt, params, 2 * way + 1, 2 * way + 1)
        train(other, expected, 2 * way + 1, 2 * way + 1)
        other = _rebuilt(other, expected, target, keep=way == 0)
        if way == 0:
            for param in params:
                opt.state[param] = {key: value.clone() for key, value in opt.state[param].items()}
        elif way == 1:
            opt.state.clear()
        elif way == 2:
            for param in params:
                del opt.state[param]
        else:
            opt.state = type(opt.state)(dict)
        train(opt, params, 2 * way + 2, 2 * way + 2)
        train(other, expected, 2 * way + 2, 2 * way + 2)
        assert same(snapshot(opt, params)["params"], snapshot(other, expected)["params"]), way
        assert float(opt.state[params[0]]["step"]) == (2 if way == 0 else 1)


def _rebuilt(opt: Any, params: Any, target: str, keep: bool) -> Any:
    other = AdamW(params, target=target)
    if keep:
        other.load_state_dict(saved(opt))
    return other


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(30), ValueError, "state 'exp_avg' has shape (30,), not (40, 30)"),
        (torch.zeros(40, 30, dtype=torch.int64), ValueError, "state 'exp_avg' is int64 of shape (40, 30)"),
        (
            torch.zeros(40, 30, dtype=torch.uint8),
            ValueError,
            "state 'exp_avg' is uint8 of shape (40, 30) with no scales",
        ),
        (torch.zeros(40, 30, device="meta"), ValueError, "state 'exp_avg' is on the device meta, without values"),
        (0.5, TypeError, "state 'exp_avg' is a float, not a tensor"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_a_state_that_does_not_fit_is_refused(value, error, message, target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 1)
    opt.state[params[0]]["exp_avg"] = value
    before = [p.detach().clone() for p in params]
    with pytest.raises(error) as raised:
        train(opt, params, 2, 2)
    assert message in str(raised.value)
    assert same(before, [p.detach() for p in params])
    assert float(opt.state[params[1]]["step"]) == 1


def test_a_count_set_by_the_user(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 1)
    opt.state[params[0]]["step"] = 9
    opt.state[params[1]]["step"] = torch.tensor(4, dtype=torch.int64)
    opt.state[params[2]]["step"].fill_(6)
    opt.state[params[3]]["mine"] = "kept"
    train(opt, params, 2, 2)
    assert [float(opt.state[p]["step"]) for p in params] == [10, 5, 7, 2]
    assert opt.state[params[0]]["step"].dtype is torch.float32
    assert opt.state[params[3]]["mine"] == "kept"


def test_mixed_dtypes_in_one_optimizer(target) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    params = [p for dtype in dtypes for p in make_params(dtype)]
    expected = [make_params(dtype) for dtype in dtypes]
    opt = AdamW8bit(params, min_8bit_size=SMALL, target=target)
    singles = [AdamW8bit(own, min_8bit_size=SMALL, target=target) for own in expected]
    for step in (1, 2):
        for index, single in enumerate(singles):
            set_grads(params[4 * index : 4 * index + 4], step)
            set_grads(expected[index], step)
            single.step()
        opt.step()
    assert same(snapshot(opt, params)["params"], [p.detach() for own in expected for p in own])
    assert opt.engines() == {target: 12}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("cls", [AdamW, AdamW8bit, LAMB], ids=lambda c: c.__name__)
def test_small_shapes(cls, shape, target) -> None:
    param = nn.Parameter(torch.ones(shape))
    opt = cls([param], min_8bit_size=0, percentile_clipping=50, target=target)
    for block_wise in (True, False):
        opt.param_groups[0]["block_wise"] = block_wise
        param.grad = torch.ones(shape)
        opt.step()
        opt.load_state_dict(saved(opt))
    assert param.shape == shape
    assert opt.state[param]["exp_avg"].shape == shape
    assert (param < 1).all()


THREADED: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {}),
    (AdamW8bit, {}),
    (LAMB, {"percentile_clipping": 50}),
    (LAMB, {"optim_bits": 8}),
]


@pytest.mark.parametrize(("cls", "settings"), THREADED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_same_bits_on_any_number_of_threads(cls, settings) -> None:
    require_compiler()
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        params = make_params(shapes=((300, 700), (70_001,), (3,), ()))
        opt = cls(params, target="cpu", **settings)
        train(opt, params, 1, 3)
        results.append(snapshot(opt, params))
    for result in results[1:]:
        assert same(results[0], result)


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()

    def fails(*_: Any) -> Any:
        raise CompileError("g++ says no")

    monkeypatch.setattr("optgen.runtime.engines.cpu_engine.CpuEngine", fails)
    monkeypatch.setattr(target_choice, "_said", set())
    params = make_params()
    opt = AdamW(params)
    set_grads(params, 1)
    with pytest.warns(RuntimeWarning, match="a kernel of AdamW could not be compiled.*g\\+\\+ says no"):
        opt.step()
    assert opt.engines() == {"torch": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(opt, params, 2, 2)

    opt = AdamW(params, target="cpu")
    before = snapshot(opt, params)
    with pytest.raises(CompileError, match="g\\+\\+ says no"):
        train(opt, params, 1, 1)
    assert same(before, snapshot(opt, params))
