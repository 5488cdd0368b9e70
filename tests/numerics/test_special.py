"""Inputs beyond plain dense finite tensors: NaN and Inf, zeros, views, strides, tied weights, missing gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.catalogue import computed_rows, optimizer_class, required, rows, rules, shapes_of
from support.targets import GPU

import optgen
from numerics.harness import NAMES, duel, make_grads, set_grads, targeted

pytest.importorskip("optgen_optim")

CODECS = {
    "fp32": {},
    "int8": {"optim_bits": 8, "min_8bit_size": 0, "block_wise": True},
    "int8_tensor": {"optim_bits": 8, "min_8bit_size": 0, "block_wise": False},
}
CLASSES = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "LAMB": {"lr": 0.01, "weight_decay": 0.1},
    "LARS": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
}
ZERO_CODE = {"exp_avg": 127, "momentum_buffer": 127, "exp_avg_sq": 0}


@pytest.fixture(params=CODECS)
def storage(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CODECS[request.param]


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("name", CLASSES)
def test_nonfinite_gradients(name, nonfinite, storage, target) -> None:
    """A clean step, one with NaN and Inf, a clean one: as the oracle has it, element by element."""
    it = duel(name, target, **CLASSES[name], **storage, nonfinite=nonfinite)
    for t in range(1, 4):
        it.step(make_grads(it.params, t, torch.float32, nonfinite=t == 2))


def test_propagated_nan_stays_where_it_is(storage, target) -> None:
    """Of an elementwise rule only the element itself is lost, as in torch; no code is read from outside a table."""
    param = torch.nn.Parameter(torch.ones(1000))
    opt = targeted(optimizer_class("AdamW"), [param], target, **storage)
    bad = torch.zeros(1000, dtype=torch.bool)
    bad[[0, 300, 999]] = True
    param.grad = torch.where(bad, torch.nan, 1.0)
    opt.step()
    assert (torch.isnan(param) == bad).all()
    for name, code in ZERO_CODE.items():
        state = opt.state[param].get(name)
        if state is not None and state.dtype == torch.uint8:
            assert (state[bad] == code).all()
            assert torch.isfinite(opt.state[param][f"{name}_absmax"]).all()


def test_skipped_elements_stay_as_they_were(storage, target) -> None:
    param = torch.nn.Parameter(torch.randn(1000))
    opt = targeted(optimizer_class("AdamW"), [param], target, **storage, nonfinite="skip")
    set_grads([param], [torch.randn(1000)])
    opt.step()
    before = param.detach().clone()
    grad = torch.randn(1000)
    grad[::2] = torch.inf
    set_grads([param], [grad])
    opt.step()
    assert torch.equal(param[::2], before[::2])
    assert (param[1::2] != before[1::2]).all()


def test_nan_norms_never_enter_the_window(target) -> None:
    param = torch.nn.Parameter(torch.ones(100))
    opt = targeted(optimizer_class("AdamW"), [param], target, percentile_clipping=50)
    for value in (1.0, torch.nan, 2.0):
        set_grads([param], [torch.full((100,), value)])
        opt.step()
    window = opt.state[param]["gnorm_vec"]
    assert window.shape == (100,)
    assert torch.isfinite(window).all()
    assert sorted(set(window.tolist())) == [100.0, 400.0]


def every_rule() -> Iterator[Any]:
    """A class of each rule on torch, and CLASSES on every target; the rest is `full`.

    That kernels do on a tensor of zeros what the equations say is in the matrix, which has one (NAMES). A gradient of
    ones has rank one: what rules on matrices make of it is in tests/matrices.
    """
    table = {name: row for name, row in rows().items() if name in computed_rows()}
    for name in (names[0] for names in rules(table).values()):
        for target in ("torch",) if rows()[name].torch_only else ("torch", "cpu", "cuda", GPU):
            marks = [pytest.mark.full] if target != "torch" and name not in CLASSES else []
            marks += [pytest.mark.gpu] if target == GPU else []
            yield pytest.param(name, target, id=f"{target}-{name}", marks=marks)


@pytest.mark.parametrize(("name", "target"), list(every_rule()), indirect=["target"])
def test_zero_tensors_train(name, target) -> None:
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes_of(name, [(5,), (5000,)])]
    opt = targeted(optimizer_class(name), params, target, **required(name))
    if "train" in opt.rule.blocks:
        opt.train()
    for _ in range(7):  # RAdam begins with its sixth step
        set_grads(params, [torch.ones(param.shape) for param in params])
        opt.step()
    for param in params:
        assert (param < 0).all()


@pytest.mark.parametrize("name", CLASSES)
def test_zero_gradients_are_harmless(name, storage, target) -> None:
    params = [torch.nn.Parameter(torch.ones(size)) for size in (5, 5000)]
    settings = CLASSES[name] | storage | {"weight_decay": 0.0}
    opt = targeted(optimizer_class(name), params, target, **settings)
    for _ in range(2):
        set_grads(params, [torch.zeros(param.shape) for param in params])
        opt.step()
    for param in params:
        assert (param == 1).all()


# memory layout


def strided(kind: str) -> torch.Tensor:
    """A 20 x 30 tensor in a layout of that kind."""
    match kind:
        case "contiguous":
            return torch.randn(20, 30)
        case "transposed":
            return torch.randn(30, 20).t()
        case "every other column":
            return torch.randn(20, 60)[:, ::2]
        case "slice of a flat buffer":
            return torch.randn(1000)[17:617].view(20, 30)
    raise ValueError(kind)


LAYOUTS = ["contiguous", "transposed", "every other column", "slice of a flat buffer"]


def layouts() -> Iterator[Any]:
    """Every class with half of the pairs of layouts, so that all of them meet; the rest is `full`."""
    for (turn, name), (p, param), (g, grad) in product(enumerate(CLASSES), enumerate(LAYOUTS), enumerate(LAYOUTS)):
        marks = () if (turn + p + g) % 2 == 0 else pytest.mark.full
        yield pytest.param(name, param, grad, id=f"{name}-{param}-{grad}", marks=marks)


@pytest.mark.parametrize(("name", "param_layout", "grad_layout"), list(layouts()))
def test_layouts_change_nothing(name, param_layout, grad_layout, target) -> None:
    memory = strided(param_layout)
    param, plain = torch.nn.Parameter(memory), torch.nn.Parameter(memory.clone(memory_format=torch.contiguous_format))
    place = (param.data_ptr(), param.stride())
    both = [targeted(optimizer_class(name), [p], target, **CLASSES[name]) for p in (param, plain)]
    for _ in range(2):
        grad = strided(grad_layout)
        param.grad, plain.grad = grad, grad.clone(memory_format=torch.contiguous_format)
        for opt in both:
            opt.step()
    assert (param.data_ptr(), param.stride()) == place
    torch.testing.assert_close(param.detach(), plain.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_a_view_changes_only_its_own_elements(name, storage, target) -> None:
    buffer = torch.randn(100, 50)
    before = buffer.clone()
    param = torch.nn.Parameter(buffer[10:60, 5:45:3])
    opt = targeted(optimizer_class(name), [param], target, **CLASSES[name], **storage)
    set_grads([param], [torch.ones(param.shape)])
    opt.step()
    changed = buffer != before
    assert changed[10:60, 5:45:3].all()
    changed[10:60, 5:45:3] = False
    assert not changed.any()


def test_tied_weights_stay_tied(storage, target) -> None:
    first, second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    opt = targeted(optimizer_class("AdamW"), model.parameters(), target, **storage)
    place = first.weight.data_ptr()
    for _ in range(2):
        opt.zero_grad()
        model(torch.randn(4, 64)).square().sum().backward()
        opt.step()
    assert second.weight is first.weight
    assert first.weight.data_ptr() == place
    assert float(opt.state[first.weight]["step"]) == 2


def test_parameters_without_gradient_are_left_alone(target) -> None:
    it = duel("AdamW", target, percentile_clipping=50)
    for t in range(1, 6):
        grads: list[Any] = make_grads(it.params, t, torch.float32, nonfinite=False)
        for i in range(len(NAMES)):
            if (i + t) % 3 == 0:
                grads[i] = None
        it.step(grads)
        assert it.opt.engines() == {target: sum(grad is not None for grad in grads)}
    assert len(set(it.oracle.steps)) > 1


def test_empty_tensors_are_harmless(target) -> None:
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((0,), (3, 0), (5,))]
    opt = targeted(optimizer_class("LAMB"), params, target, percentile_clipping=50)
    set_grads(params, [torch.ones(param.shape) for param in params])
    opt.step()
    assert (params[2] < 1).all()


GRAD_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("grad_dtype", GRAD_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", GRAD_DTYPES, ids=str)
def test_states_are_float32_whatever_the_dtypes(dtype, grad_dtype, target) -> None:
    """torch admits a gradient of another dtype where `param.grad_dtype` names it."""
    param = torch.nn.Parameter(torch.ones(10, dtype=dtype))
    opt = targeted(optimizer_class("AdamW"), [param], target)
    set_grads([param], [torch.ones(10, dtype=grad_dtype)])
    opt.step()
    assert param.dtype == dtype
    assert opt.state[param]["exp_avg"].dtype == torch.float32
    assert opt.state[param]["step"].dtype == torch.float32


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_a_default_device_of_torchs_is_not_followed(name, storage, target) -> None:
    """A step makes tensors beside their parameter, or on the CPU: on "meta" nothing has a value."""
    device = torch.empty(()).device
    results = []
    for default in (device, torch.device("meta")):
        torch.manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((300,), (40, 30), ())]
        opt = targeted(optimizer_class(name), params, target, **CLASSES[name], **storage)
        for step in range(3):
            set_grads(params, [torch.randn(param.shape) for param in params])
            if step == 2:
                opt.load_state_dict(opt.state_dict())
                opt.grad_scale, opt.found_inf = torch.tensor(3.0), 0.0
            with default:
                opt.step()
        results.append([tensor for param in params for tensor in (param.detach(), *opt.state[param].values())])
    assert all(map(torch.equal, *results))


PLACES = """\
name: places
hyperparameters: {lr: {default: 1}, q: {default: 1}}
states: {past: {shape: tensor, window: 4}}
blocks:
  step: |
    past = push(past, norm(grad))
    param = param - percentile(past, q / (lr - lr))
"""


@pytest.mark.parametrize(("q", "left"), [(1, -3.0), (-1, -1.0), (0, math.nan)])
def test_no_percentage_leads_out_of_a_window(q: float, left: float, target: str, tmp_path: Path) -> None:
    """Infinities are the last and the first of the window's entries, and NaN is none of them."""
    (tmp_path / "places.yaml").write_text(PLACES)
    param = torch.nn.Parameter(torch.ones(5))
    opt = targeted(optgen.load(tmp_path / "places.yaml").Places, [param], target, q=q)
    for norm in (1.0, 3.0):
        param.grad = torch.tensor([norm, 0.0, 0.0, 0.0, 0.0])
        opt.step()
    assert torch.equal(param.detach().nan_to_num(9), torch.full((5,), left).nan_to_num(9))
