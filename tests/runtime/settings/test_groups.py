"""Settings by group and by parameter, and settings that change between steps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, LARS, AdamW, AdamW8bit, PytorchLARS
from torch.optim import lr_scheduler

from runtime.training import SMALL, make_params, same, set_grads, snapshot, train

# A setting, and the classes' other settings under which it acts on a parameter of 1200 elements.
SETTINGS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (AdamW, {"lr": 0.5}, {}),
    (AdamW, {"betas": (0.5, 0.6)}, {}),
    (AdamW, {"eps": 0.5}, {}),
    (AdamW, {"weight_decay": 0.5}, {}),
    (AdamW, {"amsgrad": True}, {}),
    (AdamW, {"maximize": True}, {}),
    (AdamW, {"max_unorm": 0.001}, {}),
    (AdamW, {"percentile_clipping": 5}, {}),
    (AdamW, {"trust_ratio": "lamb"}, {}),
    (AdamW, {"optim_bits": 8, "min_8bit_size": 9}, {}),
    (AdamW8bit, {"optim_bits": 32}, {"min_8bit_size": 9}),
    (AdamW8bit, {"block_wise": False}, {"min_8bit_size": 9}),
    (AdamW8bit, {"min_8bit_size": 9}, {}),
    (LAMB, {"adam_w_mode": False}, {"weight_decay": 0.5}),
    (LAMB, {"bias_correction": False}, {}),
    (LARS, {"momentum": 0.5}, {"lr": 0.1}),
    (LARS, {"nesterov": True}, {"lr": 0.1}),
    (LARS, {"dampening": 0.5}, {"lr": 0.1}),
]


def ids(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else "-".join(map(str, value.items()))


def build(cls: Any, params: Any, **settings: Any) -> Any:
    return cls(params, **({"momentum": 0.9} if cls is LARS else {}), **settings)


@pytest.mark.parametrize(("cls", "own", "common"), SETTINGS, ids=ids)
def test_a_group_is_as_an_optimizer_of_its_own(cls, own, common) -> None:
    together, alone, plain = make_params(), make_params(), make_params()
    groups = [{"params": together[:1], **own}, {"params": together[1:]}]
    opt = build(cls, groups, **common, target="torch")
    first = build(cls, alone[:1], **common, target="torch")
    first.param_groups[0].update(own)
    second = build(cls, alone[1:], **common, target="torch")
    usual = build(cls, plain, **common, target="torch")
    for step in range(1, 5):
        for params in (together, alone, plain):
            set_grads(params, step)
        opt.step()
        first.step()
        second.step()
        usual.step()
    assert same(snapshot(opt, together)["params"], [p.detach() for p in alone])
    assert same(snapshot(opt, together)["states"][0], snapshot(first, alone)["states"][0])
    assert not torch.equal(together[0], plain[0])
    assert torch.equal(together[1], plain[1])


def test_every_group_keeps_its_settings_beside_groups_of_many() -> None:
    """The second group's rate is its own however many parameters stand before it."""
    params = make_params(shapes=[(8,)] * 5)
    optimizer = AdamW([{"params": params[:3]}, {"params": params[3:], "lr": 0.0}], lr=0.1, weight_decay=0.0)
    before = [param.detach().clone() for param in params]
    set_grads(params, 0)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, params, strict=True)]
    assert moved == [True, True, True, False, False]


@pytest.mark.parametrize(("cls", "own", "common"), SETTINGS, ids=ids)
def test_an_override_is_as_a_group(cls, own, common) -> None:
    grouped, overridden = make_params(), make_params()
    first = build(cls, [{"params": grouped[:1], **own}, {"params": grouped[1:]}], **common, target="torch")
    second = build(cls, overridden, **common, target="torch")
    second.override(overridden[0], **own)
    train(first, grouped, 1, 4)
    train(second, overridden, 1, 4)
    assert same(snapshot(first, grouped)["params"], snapshot(second, overridden)["params"])
    assert same(snapshot(first, grouped)["states"], snapshot(second, overridden)["states"])


@pytest.mark.parametrize(("cls", "own", "common"), SETTINGS, ids=ids)
def test_a_setting_changed_between_steps_acts(cls, own, common) -> None:
    """As a new optimizer with the setting, which takes over the states."""
    params, fresh = make_params(), make_params()
    opt = build(cls, params, **common, target="torch")
    train(opt, params, 1, 2)
    other = build(cls, fresh, **common, target="torch")
    for key, value in own.items():
        other.param_groups[0][key] = value
    checkpoint = opt.state_dict()
    checkpoint["param_groups"][0].update(own)
    lossy = own.keys() & {"block_wise", "min_8bit_size"}
    with pytest.warns(UserWarning, match="this checkpoint stores states as") if lossy else nullcontext():
        other.load_state_dict(checkpoint)
    with torch.no_grad():
        for param, value in zip(fresh, params, strict=True):
            param.copy_(value)
    opt.param_groups[0].update(own)
    train(opt, params, 3, 4)
    train(other, fresh, 3, 4)
    assert same(snapshot(opt, params)["params"], snapshot(other, fresh)["params"])


def test_changes_between_steps_reach_the_kernels(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    group = opt.param_groups[0]
    train(opt, params, 1, 2)
    entry = opt.state[params[0]]
    assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
    group.update(percentile_clipping=5, max_unorm=1.0)
    train(opt, params, 3, 3)
    assert opt.state[params[0]]["gnorm_vec"].shape == (100,)
    group.update(optim_bits=8, min_8bit_size=SMALL)
    train(opt, params, 4, 4)
    entry = opt.state[params[0]]
    assert entry["exp_avg"].dtype is torch.uint8
    assert entry["exp_avg_absmax"].shape == (5,)
    group["block_wise"] = False
    train(opt, params, 5, 5)
    assert opt.state[params[0]]["exp_avg_absmax"].shape == (1,)
    group["optim_bits"] = 32
    train(opt, params, 6, 6)
    entry = opt.state[params[0]]
    assert entry["exp_avg"].dtype is torch.float32
    assert "exp_avg_absmax" not in entry
    assert float(entry["step"]) == 6
    assert opt.engines() == {target: 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim_bits": 3}, "optim_bits must be one of 32, 16, 8, 4, not 3"),
        ({"max_unorm": float("nan")}, "Invalid max_unorm value: nan"),
        ({"percentile_clipping": 0}, "Invalid percentile_clipping value: 0"),
        ({"decoupled_weight_decay": False}, "AdamW fixes decoupled_weight_decay=True"),
        ({"amsgrad": True, "optim_bits": 8}, "AdamW does not support amsgrad=True with 8-bit states"),
        ({"target": "gpu"}, "target must be None"),
    ],
)
def test_bad_changes_are_refused_at_the_step(change, message) -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 1)
    opt.param_groups[0].update(change)
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match="AdamW") as raised:
        train(opt, params, 2, 2)
    assert message in str(raised.value)
    assert same(before["params"], snapshot(opt, params)["params"])
    assert same(before["states"], snapshot(opt, params)["states"])


def test_tensors_changed_in_place_act(target) -> None:
    params, plain = make_params(), make_params()
    lr, unorm = torch.tensor(0.5), torch.tensor(0.0)
    opt = AdamW(params, lr=lr, max_unorm=unorm, target=target)
    other = AdamW(plain, lr=0.5, target=target)
    train(opt, params, 1, 1)
    train(other, plain, 1, 1)
    lr.fill_(0.25)
    unorm.fill_(0.5)
    other.param_groups[0].update(lr=0.25, max_unorm=0.5)
    train(opt, params, 2, 2)
    train(other, plain, 2, 2)
    assert same(snapshot(opt, params)["params"], snapshot(other, plain)["params"])


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: 0.5**t),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=5),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=8),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=3),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_act_as_on_torch(name, tensor_lr, target) -> None:
    runs = []
    for cls, settings in ((AdamW, {"target": target}), (torch.optim.AdamW, {})):
        params = make_params()
        lr = torch.tensor(0.01, dtype=torch.float64) if tensor_lr else 0.01
        opt = cls(params, lr=lr, **settings)
        schedule = SCHEDULERS[name](opt)
        for step in range(1, 7):
            train(opt, params, step, step)
            schedule.step()
        runs.append((params, float(opt.param_groups[0]["lr"]), opt.param_groups[0]["betas"]))
    assert runs[0][1:] == runs[1][1:]
    for ours, theirs in zip(runs[0][0], runs[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_a_cycled_momentum_keeps_the_engines(target) -> None:
    params = make_params()
    opt = LARS(params, 0.1, 0.9, target=target)
    schedule = lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=8)
    train(opt, params, 1, 1)
    engines = opt._kept.of_all[0].engines
    schedule.step()
    train(opt, params, 2, 2)
    assert opt._kept.of_all[0].engines is engines


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"weight_decays": 0.1}, ValueError, "'weight_decays'; did you mean 'weight_decay'?"),
        ({"param_name": 0.1}, ValueError, "did you mean 'param_names'?"),
        ({"optim_bit": 8}, ValueError, "did you mean 'optim_bits'?"),
        ({"lr": -1}, ValueError, "Invalid learning rate: -1"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"betas": (0.9,)}, TypeError, "betas must be 2 numbers"),
        ({"optim_bits": 3}, ValueError, "optim_bits must be one of 32, 16, 8, 4, not 3"),
        ({"decoupled_weight_decay": False}, ValueError, "AdamW fixes decoupled_weight_decay=True: a group cannot have"),
        ({"amsgrad": True, "optim_bits": 8}, ValueError, "does not support amsgrad=True with 8-bit states"),
        ({"overrides": {9: {}}}, ValueError, "overrides has the key 9, and the group positions 0 to 0"),
        ({"overrides": {0: {"lr": -1}}}, ValueError, "Invalid learning rate: -1"),
        ({"overrides": {0: {"momentum": 1}}}, ValueError, "override takes no 'momentum'"),
        ({"overrides": [1]}, TypeError, "overrides is a dict of settings by position"),
        ({"params": {torch.ones(1)}}, TypeError, "AdamW: optimizer parameters need to be organized in ordered"),
        ({"params": 5}, TypeError, "AdamW: params of a group is a list of tensors, not a int"),
        (
            {"params": [("a", torch.ones(1)), torch.ones(1)]},
            ValueError,
            "Some param names are missing: number 1 has none",
        ),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_groups_are_refused(group, error, message) -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    with pytest.raises(error) as raised:
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], **group})
    assert message in str(raised.value)
    assert len(opt.param_groups) == 1
    train(opt, params, 1, 1)


def test_keys_of_the_users_own_are_kept() -> None:
    params = make_params()
    opt = AdamW([{"params": params, "layer": 3, "lr_scale": 0.5, "decoupled_weight_decay": True}])
    assert opt.param_groups[0]["layer"] == 3
    assert opt.state_dict()["param_groups"][0]["lr_scale"] == 0.5


def test_a_group_added_while_training(target) -> None:
    params = make_params()
    opt = AdamW(params[:2], target=target)
    train(opt, params[:2], 1, 2)
    mine = {"params": iter(params[2:]), "lr": 0.5}
    opt.add_param_group(mine)
    train(opt, params, 3, 3)
    assert [float(opt.state[p]["step"]) for p in params] == [3, 3, 1, 1]
    assert opt.param_groups[1]["lr"] == 0.5
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": [params[0]]})


def test_named_parameters(target) -> None:
    model = torch.nn.Linear(4, 3)
    opt = AdamW8bit(model.named_parameters(), target=target)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    opt.override(model.weight, optim_bits=32)
    train(opt, list(model.parameters()), 1, 1)
    checkpoint = opt.state_dict()
    assert checkpoint["param_groups"][0]["param_names"] == ["weight", "bias"]
    other = AdamW8bit(model.parameters(), target=target)
    other.load_state_dict(checkpoint)
    train(other, list(model.parameters()), 2, 2)


@pytest.mark.parametrize("after", [0, 1], ids=["before the first step", "after it"])
def test_an_override_of_the_bits(after, target) -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target=target)
    train(opt, params, 1, after)
    opt.override(params[0], optim_bits=32, weight_decay=0.0)
    opt.override(params[0], lr=0.5)
    train(opt, params, 2, 2)
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    assert "exp_avg_absmax" not in opt.state[params[0]]
    assert opt.state[params[1]]["exp_avg"].dtype is torch.uint8
    assert opt.param_groups[0]["overrides"] == {0: {"optim_bits": 32, "codec": "auto", "weight_decay": 0.0, "lr": 0.5}}


def test_an_override_to_8_bits_on_a_32_bit_class(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    opt.override(params[0], optim_bits=8, min_8bit_size=0)
    train(opt, params, 1, 1)
    assert opt.state[params[0]]["exp_avg"].dtype is torch.uint8


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"momentum": 0.9}, ValueError, "AdamW.override takes no 'momentum'; known: amsgrad, betas"),
        ({"params": []}, ValueError, "override takes no 'params'"),
        ({"differentiable": True}, ValueError, "AdamW: differentiable=True asks for steps"),
        ({"decoupled_weight_decay": False}, ValueError, "AdamW fixes decoupled_weight_decay=True: a parameter cannot"),
        ({"lr": -1}, ValueError, "Invalid learning rate: -1"),
        ({"optim_bits": 3}, ValueError, "optim_bits must be one of 32, 16, 8, 4, not 3"),
        ({"amsgrad": True, "optim_bits": 8}, ValueError, "does not support amsgrad=True with 8-bit states"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_overrides_are_refused(settings, error, message) -> None:
    params = make_params()
    opt = AdamW(params)
    opt.load_state_dict(opt.state_dict())
    with pytest.raises(error) as raised:
        opt.override(params[0], **settings)
    assert message in str(raised.value)
    assert "overrides" not in opt.param_groups[0]


def test_overrides_of_what_is_no_parameter() -> None:
    opt = AdamW(make_params())
    with pytest.raises(ValueError, match=r"this parameter \(shape \(40, 30\)\) is not in the optimizer"):
        opt.override(make_params()[0], lr=1.0)
    with pytest.raises(TypeError, match="the first argument is a parameter, not 'weight'"):
        opt.override("weight", lr=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PytorchLARS fixes target='torch'"):
        lars = PytorchLARS(params := make_params())
        lars.override(params[0], target="cpu")


def test_a_group_put_in_the_place_of_another(target) -> None:
    params = make_params()
    opt = AdamW(params, lr=0.0, weight_decay=0.0, target=target)
    train(opt, params, 1, 1)
    before = params[0].detach().clone()
    opt.param_groups[0] = {**opt.param_groups[0], "lr": 0.5}
    train(opt, params, 2, 2)
    assert not torch.equal(params[0], before)
    other = make_params()
    opt.param_groups[0]["params"] = other
    train(opt, other, 3, 3)
    assert float(opt.state[other[0]]["step"]) == 1
