"""Settings and their checks: kinds of numbers, `args`, the factory, and what is refused."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import optgen_optim
import pytest
import torch
from optgen_optim import LAMB, LARS, Adam, AdamW, AdamW8bit, LAMB8bit, PagedAdamW8bit, PytorchLARS, create
from support.catalogue import required

from runtime.training import make_params, same, saved, snapshot, train

NUMBERS = [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).double()]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__} {n.dtype}")
def test_numbers_of_numpy_and_torch(number, target) -> None:
    results = []
    for half in (number, 0.5):
        params = make_params()
        opt = AdamW(params, lr=half, betas=(half, half), eps=half, weight_decay=half, max_unorm=half, target=target)
        train(opt, params, 1, 2)
        saved(opt)
        results.append(snapshot(opt, params))
    assert same(results[0]["params"], results[1]["params"])


def test_whole_numbers_become_pythons_own() -> None:
    params = make_params()
    opt = AdamW(params, optim_bits=np.int64(8), min_8bit_size=np.int32(5), block_wise=np.bool_(False), amsgrad=0)
    group = opt.param_groups[0]
    assert (type(group["optim_bits"]), group["optim_bits"]) == (int, 8)
    assert (type(group["min_8bit_size"]), group["min_8bit_size"]) == (int, 5)
    assert group["block_wise"] is group["amsgrad"] is False
    assert type(AdamW(params, optim_bits=8.0).param_groups[0]["optim_bits"]) is int
    assert AdamW(params, min_8bit_size=torch.tensor(5)).param_groups[0]["min_8bit_size"] == 5


BAD_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"lr": True}, "lr must be a number in [0, inf), not True"),
    ({"lr": np.bool_(True)}, "lr must be a number"),
    ({"lr": torch.tensor(True)}, "lr must be a number"),
    ({"lr": "0.1"}, "lr must be a number in [0, inf), not '0.1'"),
    ({"lr": None}, "lr must be a number in [0, inf), not None"),
    ({"lr": 1j}, "lr must be a number"),
    ({"betas": 0.9}, "betas must be 2 numbers in [0, 1), not 0.9"),
    ({"betas": (0.9,)}, "betas must be 2 numbers"),
    ({"betas": (0.9, True)}, "betas must be 2 numbers"),
    ({"betas": (0.9, "0.9")}, "betas must be 2 numbers"),
    ({"betas": "0.9"}, "betas must be 2 numbers"),
    ({"betas": "__import__('os')"}, "betas must be 2 numbers"),
    ({"betas": "(" * 500}, "betas must be 2 numbers"),
    ({"amsgrad": "yes"}, "amsgrad must be True or False, not 'yes'"),
    ({"amsgrad": 2}, "amsgrad must be True or False, not 2"),
    ({"amsgrad": None}, "amsgrad must be True or False, not None"),
    ({"min_8bit_size": "big"}, "min_8bit_size must be a whole number"),
    ({"percentile_clipping": [5]}, "percentile_clipping must be a number in (0, 100]"),
    ({"args": 4096}, "args is an object with attributes"),
    ({"args": {"block_wise": True}}, "args is an object with attributes"),
    ({"lrr": 1}, "lrr"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_TYPES, ids=lambda v: str(v)[:30])
def test_wrong_types_name_class_argument_and_value(settings, message) -> None:
    with pytest.raises(TypeError) as raised:
        AdamW(make_params(), **settings)
    assert message in str(raised.value)
    assert "AdamW" in str(raised.value)


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"lr": float("nan")}, "Invalid learning rate: nan (AdamW: lr must be in [0, inf))"),
    ({"lr": torch.ones(2)}, "Tensor lr must be 1-element (AdamW: lr has the shape (2,))"),
    ({"lr": float("inf")}, "Invalid learning rate: inf"),
    ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1.0"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ({"betas": "(0.9, 1.5)"}, "Invalid beta parameter at index 1: 1.5"),
    ({"max_unorm": -1.0}, "Invalid max_unorm value: -1.0"),
    ({"max_unorm": float("nan")}, "Invalid max_unorm value: nan"),
    (
        {"percentile_clipping": 0},
        "Invalid percentile_clipping value: 0 (AdamW: percentile_clipping must be in (0, 100])",
    ),
    ({"percentile_clipping": 101}, "Invalid percentile_clipping value: 101"),
    ({"min_8bit_size": -1}, "Invalid min_8bit_size value: -1"),
    ({"min_8bit_size": 0.5}, "must be a whole number in [0, inf)"),
    ({"optim_bits": 3}, "AdamW: optim_bits must be one of 32, 16, 8, 4, not 3"),
    ({"optim_bits": True}, "optim_bits must be one of 32, 16, 8, 4, not True"),
    ({"optim_bits": [8]}, "optim_bits must be one of"),
    ({"nonfinite": "drop"}, "nonfinite must be one of 'propagate', 'skip', not 'drop'"),
    ({"trust_ratio": "lars"}, "trust_ratio must be one of 'none', 'lamb', not 'lars'"),
    ({"target": "gpu"}, "target must be None, 'cuda', 'cpu' or 'torch', not 'gpu'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_VALUES, ids=lambda v: str(v)[:30])
def test_values_out_of_range_name_the_range(settings, message) -> None:
    with pytest.raises(ValueError, match="AdamW") as raised:
        AdamW(make_params(), **settings)
    assert message in str(raised.value)


def test_betas_as_text() -> None:
    opt = Adam(make_params(), betas="(0.5, 0.75)")
    assert opt.param_groups[0]["betas"] == opt.defaults["betas"] == (0.5, 0.75)


def test_args_take_the_place_of_arguments() -> None:
    args = SimpleNamespace(
        optim_bits=8, min_8bit_size=7, percentile_clipping=50, block_wise=False, max_unorm=0.5, skip_zeros=True, lr=9
    )
    for cls, settings in ((AdamW, {}), (LAMB, {}), (LARS, {"lr": 0.1, "momentum": 0.9})):
        opt = cls(make_params(), args=args, min_8bit_size=1, **settings)
        for key in ("optim_bits", "min_8bit_size", "percentile_clipping", "block_wise", "max_unorm", "skip_zeros"):
            assert opt.param_groups[0][key] == getattr(args, key)
        assert opt.param_groups[0]["lr"] != 9
    for cls in (AdamW8bit, LAMB8bit, PagedAdamW8bit):
        assert cls(make_params(), args=args).param_groups[0]["optim_bits"] == 8


def test_args_of_other_objects() -> None:
    class Fixed:
        block_wise = False

    assert AdamW(make_params(), args=Fixed()).param_groups[0]["block_wise"] is False
    assert AdamW(make_params(), args=object()).param_groups[0]["block_wise"] is True
    with pytest.raises(ValueError, match=r"AdamW.*percentile_clipping"):
        AdamW(make_params(), args=SimpleNamespace(percentile_clipping=0))
    with pytest.raises(ValueError, match="AdamW does not support amsgrad=True with 8-bit states"):
        AdamW(make_params(), amsgrad=True, args=SimpleNamespace(optim_bits=8))


@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit, LAMB8bit], ids=lambda c: c.__name__)
def test_locked_bits(cls) -> None:
    message = f"{cls.__name__} only supports optim_bits=32 \\(default value for compatibility\\)"
    with pytest.raises(ValueError, match=message):
        cls(make_params(), args=SimpleNamespace(optim_bits=32))
    if "optim_bits" in inspect.signature(cls).parameters:
        for bits in (8, 16):
            with pytest.raises(ValueError, match=message):
                cls(make_params(), optim_bits=bits)


@pytest.mark.parametrize("name", optgen_optim.CLASSES)
def test_every_class_with_defaults(name) -> None:
    cls: Any = optgen_optim.CLASSES[name]
    settings = required(name)
    params = make_params(of=name)
    before = [p.detach().clone() for p in params]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = cls(params, **settings)
        if "target" in opt.param_groups[0] and not name.startswith("Pytorch"):
            opt.param_groups[0]["target"] = "torch"
        if hasattr(opt, "train"):
            opt.train()
        train(opt, params, 1, 7)  # some rules only gather averages in their first steps
    assert opt.engines() == {"torch": 4}
    assert all(not torch.equal(param, value) for param, value in zip(params, before, strict=True))
    assert opt.state_bytes() > 0 or name == "PytorchLARS"
    assert cls.__name__ in repr(opt)


def test_create() -> None:
    params = make_params()
    opt = create("adamw", params, bits=8, paged=True, lr=0.5)
    assert type(opt) is AdamW
    group = opt.param_groups[0]
    assert (group["optim_bits"], group["is_paged"], group["lr"]) == (8, True, 0.5)
    assert type(create("AdamW_8bit", params, bits=8)) is AdamW8bit
    assert type(create("paged-adamw-8bit", params, paged=True)) is PagedAdamW8bit
    assert type(create("PytorchLARS", params)) is PytorchLARS


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("adamq", {}, ValueError, "there is no optimizer 'adamq'; did you mean 'adam'? known: ADOPT, "),
        ("zzz", {}, ValueError, "there is no optimizer 'zzz'; known: ADOPT, "),
        (torch.optim.AdamW, {}, TypeError, "an optimizer is given by its class or the name of it"),
        ("adamw8bit", {"bits": 32}, ValueError, "AdamW8bit stores its states in 8 bits, not 32"),
        ("adamw", {"bits": 3}, ValueError, "AdamW: optim_bits must be one of 32, 16, 8, 4, not 3"),
        ("adamw", {"bits": 8, "optim_bits": 8}, TypeError, "bits and optim_bits mean the same"),
        ("adamw", {"paged": 1}, TypeError, "paged must be True or False"),
        ("adamw", {"momentum": 1}, TypeError, "AdamW"),
        ("adamw", {"lr": -1}, ValueError, "Invalid learning rate: -1"),
        ("lars", {}, TypeError, "lr"),
    ],
)
def test_create_refuses(name, settings, error, message) -> None:
    with pytest.raises(error) as raised:
        create(name, make_params(), **settings)
    assert message in str(raised.value)


PARAMS: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "optimizer got an empty parameter list"),
    (iter(()), ValueError, "optimizer got an empty parameter list"),
    (torch.ones(2, requires_grad=True), TypeError, "not a single tensor; write [param]"),
    (5, TypeError, "not 5"),
    ({"params": []}, TypeError, "not a dict; write a list"),
    ("model", TypeError, "not a str"),
    ([torch.ones(2), 3], TypeError, "optimizer can only optimize Tensors, but one of the params is int"),
    ([{"lr": 0.1}], ValueError, "needs the key 'params'"),
    ([torch.ones(2, dtype=torch.complex64)], TypeError, "float32, bfloat16 and float16, not complex64"),
    ([torch.ones(2, dtype=torch.int64)], TypeError, "not int64"),
    ([{"params": iter([torch.ones(2, dtype=torch.complex64)])}], TypeError, "not complex64"),
    ([("w", torch.ones(2, dtype=torch.int8))], TypeError, "not int8"),
    ([torch.ones(2, device="meta")], TypeError, "parameters on the 'meta' device have no values"),
    ([torch.eye(2).to_sparse()], TypeError, "parameters are dense"),
]


@pytest.mark.parametrize(("params", "error", "message"), PARAMS, ids=lambda v: str(v)[:25])
def test_parameters_that_are_refused(params, error, message) -> None:
    with pytest.raises(error) as raised:
        AdamW(params)
    assert message in str(raised.value)
    assert "AdamW" in str(raised.value)


def test_float64_parameters_are_served_by_the_torch_target(target, monkeypatch) -> None:
    """They are float32 numbers from the first step on, and a warning says so."""
    monkeypatch.setattr("optgen.runtime.step.target_choice._said", set())
    wide = torch.nn.Parameter(torch.full((300,), 1 / 3, dtype=torch.float64))
    narrow = torch.nn.Parameter(wide.detach().float())
    opt, other = AdamW([wide], target=None if target == "torch" else target), AdamW([narrow], target="torch")
    wide.grad, narrow.grad = torch.ones(300, dtype=torch.float64), torch.ones(300)
    if target != "torch":
        with pytest.raises(RuntimeError, match=f"AdamW: target='{target}' cannot serve a float64 parameter"):
            opt.step()
        assert torch.equal(wide, torch.full((300,), 1 / 3, dtype=torch.float64))
        return
    with pytest.warns(RuntimeWarning, match="float64 parameters are served by the torch target and rounded to float32"):
        opt.step()
    for _ in range(2):
        other.step()
        opt.step()
    other.step()
    assert wide.dtype is torch.float64
    assert torch.equal(wide, narrow.double())
    assert opt.engines() == {"torch": 1}
    again = AdamW([wide])
    again.load_state_dict(opt.state_dict())
    assert torch.equal(again.state[wide]["exp_avg"], opt.state[wide]["exp_avg"])
    assert again.state[wide]["exp_avg"].dtype is torch.float32


def test_the_same_parameter_twice() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="AdamW: a param group holds the same parameter twice, at positions 0 and 2"):
        AdamW([param, torch.nn.Parameter(torch.ones(3)), param])


def test_paged_states_on_a_cpu_are_ordinary(target) -> None:
    results = []
    for paged in (False, True):
        params = make_params()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opt = AdamW(params, is_paged=paged, target=target)
            train(opt, params, 1, 3)
        results.append(snapshot(opt, params))
    assert same(results[0]["params"], results[1]["params"])
    assert same(results[0]["states"], results[1]["states"])


def test_maximize_climbs(target) -> None:
    results = []
    for maximize in (False, True):
        param = torch.nn.Parameter(torch.zeros(5))
        opt = AdamW([param], maximize=maximize, weight_decay=0.0, target=target)
        for _ in range(3):
            param.grad = torch.arange(5.0) - 2
            opt.step()
        results.append(param.detach())
    assert torch.equal(results[0], -results[1])
    assert results[1][4] > 0
