"""Checkpoints: what they hold, and that training goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from optgen_optim import LAMB, LARS, Adam, AdamW, AdamW8bit, LAMB8bit, PytorchLARS

from runtime.training import SMALL, make_params, same, saved, set_grads, snapshot, train

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {}),
    "amsgrad": (AdamW, {"amsgrad": True}),
    "AdamW8bit": (AdamW8bit, {"min_8bit_size": SMALL}),
    "tensor-wise": (AdamW, {"optim_bits": 8, "block_wise": False, "min_8bit_size": SMALL}),
    "percentile": (AdamW, {"percentile_clipping": 20}),
    "LAMB8bit": (LAMB8bit, {"min_8bit_size": SMALL}),
    "LARS": (LARS, {"lr": 0.1, "momentum": 0.9}),
    "LARS block-wise": (
        LARS,
        {"lr": 0.1, "momentum": 0.9, "optim_bits": 8, "block_wise": True, "min_8bit_size": SMALL},
    ),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def resumed(cls: Any, dtype: torch.dtype, target: str, settings: dict[str, Any], to: Any = None) -> tuple[Any, Any]:
    """Results of eight steps without and with a stop after the fourth."""
    whole_params = make_params(dtype)
    whole = cls(whole_params, target=target, **settings)
    train(whole, whole_params, 1, 4)
    checkpoint, values = saved(whole), [p.detach().clone() for p in whole_params]
    train(whole, whole_params, 5, 8)
    params = make_params(dtype)
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
    opt = (to or cls)(params, target=target, **settings)
    opt.load_state_dict(checkpoint)
    train(opt, params, 5, 8)
    assert whole.engines() == opt.engines() == {target: 4}
    return snapshot(whole, whole_params), snapshot(opt, params)


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_bit_for_bit(case, target) -> None:
    cls, settings = CASES[case]
    assert same(*resumed(cls, torch.float32, target, settings))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", ["AdamW", "AdamW8bit"])
def test_half_precision_goes_on_bit_for_bit(case, dtype, target) -> None:
    cls, settings = CASES[case]
    whole, again = resumed(cls, dtype, target, settings)
    assert same(whole, again)
    floats = {v.dtype for entry in again["states"] for v in entry.values() if v.is_floating_point()}
    assert floats == {torch.float32}, "states keep the rule's dtype, not the parameter's"


def test_groups_and_overrides_go_on_bit_for_bit(target) -> None:
    def build(params: Any) -> Any:
        groups = [
            {"params": params[:1], "lr": 0.01, "optim_bits": 32},
            {"params": params[1:], "weight_decay": 0.3, "percentile_clipping": 20},
        ]
        return AdamW8bit(groups, min_8bit_size=SMALL, target=target)

    params = make_params()
    opt = build(params)
    opt.override(params[1], optim_bits=32, weight_decay=0.0)
    train(opt, params, 1, 4)
    opt.override(params[2], lr=0.2)
    checkpoint, values = saved(opt), [p.detach().clone() for p in params]
    train(opt, params, 5, 8)

    again = make_params()
    with torch.no_grad():
        for param, value in zip(again, values, strict=True):
            param.copy_(value)
    other = build(again)
    other.load_state_dict(checkpoint)
    train(other, again, 5, 8)
    assert same(snapshot(opt, params), snapshot(other, again))
    assert other.state[again[1]]["exp_avg"].dtype is torch.float32
    assert other.param_groups[1]["overrides"][1] == {"lr": 0.2}


def test_own_overrides_stand_before_saved_ones() -> None:
    params, again = make_params(), make_params()
    opt, other = AdamW(params), AdamW(again)
    opt.override(params[0], lr=0.5, weight_decay=0.5)
    opt.override(params[3], lr=0.25)
    other.override(again[0], lr=0.75)
    other.load_state_dict(saved(opt))
    expected = {0: {"lr": 0.75, "weight_decay": 0.5}, 3: {"lr": 0.25}}
    assert other.param_groups[0]["overrides"] == expected


@pytest.mark.parametrize("case", CASES)
def test_only_tensors_and_plain_values(case) -> None:
    cls, settings = CASES[case]
    params = make_params(torch.bfloat16)
    opt = cls(params, target="torch", **settings)
    opt.override(params[0], weight_decay=0.5)
    train(opt, params, 1, 2)

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) in (str, int)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (bool, int, float, str, torch.Tensor), repr(value)

    check(opt.state_dict())
    for entry in opt.state.values():
        step = entry["step"]
        assert (step.dtype, step.shape, step.device.type, float(step)) == (torch.float32, (), "cpu", 2.0)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [(AdamW, torch.optim.AdamW), (Adam, torch.optim.Adam)])
def test_exchange_with_torch(ours, theirs, amsgrad, target) -> None:
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": amsgrad}
    runs = []
    for first, second in ((theirs, theirs), (theirs, ours), (ours, theirs)):
        params = make_params()
        opt = first(params, **settings, **({"target": target} if first is ours else {}))
        train(opt, params, 1, 3)
        other = second(params, **({"target": target} if second is ours else {}))
        other.load_state_dict(saved(opt))
        train(other, params, 4, 6)
        runs.append(snapshot(other, params))
    for run in runs[1:]:
        for param, expected in zip(run["params"], runs[0]["params"], strict=True):
            torch.testing.assert_close(param, expected, rtol=2e-6, atol=2e-7)
        for entry, wanted in zip(run["states"], runs[0]["states"], strict=True):
            assert float(entry["step"]) == float(wanted["step"]) == 6


def test_half_states_of_torch_become_float32(target) -> None:
    params = make_params(torch.bfloat16)
    theirs = torch.optim.AdamW(params)
    train(theirs, params, 1, 2)
    opt = AdamW(params, target=target)
    opt.load_state_dict(saved(theirs))
    for param in params:
        assert torch.equal(opt.state[param]["exp_avg"], theirs.state[param]["exp_avg"])
    train(opt, params, 3, 3)
    for param in params:
        assert opt.state[param]["exp_avg"].dtype is opt.state[param]["exp_avg_sq"].dtype is torch.float32


@pytest.mark.parametrize("block_wise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_8_and_32_bits_take_over_from_each_other(block_wise, dtype, target) -> None:
    params = make_params(dtype)
    wide = AdamW(params, target=target)
    train(wide, params, 1, 3)
    narrow = AdamW8bit(params, min_8bit_size=SMALL, block_wise=block_wise, target=target)
    with pytest.warns(UserWarning, match="stores states as fp32; from the next step on they are stored as int8"):
        narrow.load_state_dict(saved(wide))
    before = [p.detach().clone() for p in params]
    train(narrow, params, 4, 4)
    after = [p.detach().clone() for p in params]
    entry = narrow.state[params[0]]
    assert entry["exp_avg"].dtype is entry["exp_avg_sq"].dtype is torch.uint8
    assert entry["exp_avg_absmax"].numel() == (5 if block_wise else 1)
    assert narrow.state[params[2]]["exp_avg"].dtype is torch.float32
    assert float(entry["step"]) == 4

    with torch.no_grad():
        for param, value in zip(params, before, strict=True):
            param.copy_(value)
    train(wide, params, 4, 4)
    for param, value in zip(params, after, strict=True):
        torch.testing.assert_close(param.detach(), value, rtol=0.02, atol=2e-3)

    back = AdamW(params, target=target)
    back.load_state_dict(saved(narrow))
    train(back, params, 5, 5)
    assert set(back.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    assert back.state[params[0]]["exp_avg"].dtype is torch.float32


def test_tensor_wise_states_become_block_wise(target) -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, block_wise=False, target=target)
    train(opt, params, 1, 2)
    other = AdamW8bit(params, min_8bit_size=SMALL, target=target)
    with pytest.warns(UserWarning, match="as int8 with one scale for the tensor; .* as int8 in blocks of 256"):
        other.load_state_dict(saved(opt))
    train(other, params, 3, 3)
    assert other.state[params[0]]["exp_avg_absmax"].numel() == 5
    assert other.param_groups[0]["block_wise"] is True


def test_before_the_first_step(target) -> None:
    params = make_params()
    opt = AdamW(params, lr=0.25, target=target)
    checkpoint = saved(opt)
    assert checkpoint["state"] == {}
    other = AdamW(params, target=target)
    train(other, params, 1, 1)
    other.load_state_dict(checkpoint)
    assert not any(other.state.values())
    assert other.param_groups[0]["lr"] == 0.25
    train(other, params, 1, 1)
    assert float(other.state[params[0]]["step"]) == 1


def test_some_parameters_without_state(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    set_grads(params[:2], 1)
    opt.step()
    checkpoint = saved(opt)
    assert set(checkpoint["state"]) == {0, 1}
    other = AdamW(params, target=target)
    other.load_state_dict(checkpoint)
    train(other, params, 2, 2)
    assert [float(other.state[p]["step"]) for p in params] == [2, 2, 1, 1]


def test_twice_and_copied(target) -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target=target)
    train(opt, params, 1, 2)
    checkpoint = saved(opt)
    results = []
    start = [p.detach().clone() for p in params]
    for _ in range(2):
        with torch.no_grad():
            for param, value in zip(params, start, strict=True):
                param.copy_(value)
        opt.load_state_dict(checkpoint)
        assert opt.state[params[0]]["exp_avg"].data_ptr() != checkpoint["state"][0]["exp_avg"].data_ptr()
        train(opt, params, 3, 4)
        results.append(snapshot(opt, params))
    assert same(*results)


def test_hooks_see_the_whole_checkpoint() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 2)
    checkpoint = saved(opt)
    other = AdamW(params, target="torch")
    seen: list[Any] = []

    def before(opt: Any, state_dict: Any) -> Any:
        seen.append(sorted(state_dict["state"]))
        entries = {key: {**entry, "step": torch.tensor(41.0)} for key, entry in state_dict["state"].items()}
        return {**state_dict, "state": entries}

    def after(opt: Any) -> None:
        seen.append(float(opt.state[params[0]]["step"]))

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(after)
    for _ in range(2):
        other.load_state_dict(checkpoint)
    assert seen == [[0, 1, 2, 3], 41.0] * 2
    train(other, params, 3, 3)
    assert float(other.state[params[0]]["step"]) == 42


def test_steps_of_old_checkpoints_and_wider_states() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 1)
    checkpoint = opt.state_dict()
    for entry in checkpoint["state"].values():
        entry.update(step=7, exp_avg=entry["exp_avg"].double())
    other = AdamW(params, target="torch")
    other.load_state_dict(checkpoint)
    entry = other.state[params[0]]
    assert entry["exp_avg"].dtype is entry["step"].dtype is torch.float32
    assert float(entry["step"]) == 7


def test_the_window_comes_back(target) -> None:
    params = make_params()
    opt = LAMB(params, percentile_clipping=50, target=target)
    train(opt, params, 1, 3)
    other = LAMB(params, target=target)
    other.load_state_dict(saved(opt))
    assert other.param_groups[0]["percentile_clipping"] == 50
    assert torch.equal(other.state[params[0]]["gnorm_vec"], opt.state[params[0]]["gnorm_vec"])


def test_target_and_storage_are_the_optimizers_own() -> None:
    params = make_params()
    opt = LARS(params, 0.1, 0.9, optim_bits=8, min_8bit_size=5, target="torch")
    other = PytorchLARS(params, 0.5)
    other.load_state_dict(saved(opt))
    assert other.param_groups[0]["target"] == "torch"
    assert other.param_groups[0]["min_8bit_size"] == 4096
    assert (other.param_groups[0]["lr"], other.param_groups[0]["momentum"]) == (0.1, 0.9)
    train(other, params, 1, 1)


def test_without_a_count_of_steps(target) -> None:
    """A rule may ask only whether a step is its first, as torch.optim.SGD does, which saves no count."""
    params = make_params(torch.float32)
    opt = LARS(params, lr=0.1, momentum=0.9, target=target)
    train(opt, params, 1, 4)
    checkpoint, values = saved(opt), [p.detach().clone() for p in params]
    train(opt, params, 5, 8)
    for entry in checkpoint["state"].values():
        del entry["step"]
    others = make_params(torch.float32)
    with torch.no_grad():
        for param, value in zip(others, values, strict=True):
            param.copy_(value)
    other = LARS(others, lr=0.1, momentum=0.9, target=target)
    other.load_state_dict(checkpoint)
    train(other, others, 5, 8)
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(opt.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])
        assert float(other.state[b]["step"]) == 5.0


def test_a_state_that_is_none_was_not_saved(target) -> None:
    params = make_params(torch.float32)
    opt = LARS(params, lr=0.1, momentum=0.9, target=target)
    checkpoint = saved(opt)
    checkpoint["state"] = {index: {"momentum_buffer": None} for index in range(len(params))}
    opt.load_state_dict(checkpoint)
    train(opt, params, 1, 1)
    assert all(torch.equal(opt.state[p]["momentum_buffer"], p.grad) for p in params)


def test_it_says_what_it_is_of(target) -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target=target)
    mark = {"version": 1, "rule": "adam", "class": "AdamW8bit"}
    assert saved(opt)["optgen"] == mark
    train(opt, params, 1, 1)
    opt.override(params[1], optim_bits=4)  # from the next step on
    both = [["fp32", 0], ["int8", 256]]
    assert saved(opt)["optgen"] == {**mark, "codecs": {"exp_avg": both, "exp_avg_sq": both}}
    train(opt, params, 2, 2)
    assert saved(opt)["optgen"]["codecs"]["exp_avg"] == [["fp32", 0], ["int4", 128], ["int8", 256]]


OLD = Path(__file__).parents[1] / "data" / "unversioned.pt"


@pytest.mark.parametrize("name", ["AdamW8bit", "LAMB", "AdamWScheduleFree", "SGD"])
def test_checkpoints_from_before_there_was_a_version(name) -> None:
    """Written by an earlier optgen: states, overrides, windows, parts of parameters and modes are taken over."""
    old = torch.load(OLD, weights_only=True)[name]
    assert set(old["checkpoint"]) == {"state", "param_groups"}
    params = [torch.nn.Parameter(value.clone()) for value in old["params"]]
    opt = getattr(optgen_optim, name)(params, target="torch", **old["settings"])
    opt.load_state_dict(old["checkpoint"])
    now = opt.state_dict()
    assert same(now["state"], old["checkpoint"]["state"])
    for group, before in zip(now["param_groups"], old["checkpoint"]["param_groups"], strict=True):
        assert same({key: group[key] for key in before}, before)
    train(opt, params, 3, 3)
    for param, wanted in zip(params, old["after"], strict=True):
        torch.testing.assert_close(param.detach(), wanted)
