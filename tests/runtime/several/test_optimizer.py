"""Several rules in one optimizer: each part computes as its class does alone, and all or none of them step and load."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit, AdamW32bit, CombinedOptimizer, Lion, Lion8bit, create, for_model
from support.targets import ready
from torch import Tensor, nn

from optgen.runtime.engines.cpu_engine import CpuEngine
from runtime.several.models import Model, loss_of, make_model, matrices_of, others_of, train
from runtime.training import same, saved, snapshot

SMALL = {"min_8bit_size": 0}


def combined(model: nn.Module, **settings: Any) -> CombinedOptimizer:
    return for_model(model, "lion", "adamw", show=False, lr=1e-2, **settings)


def apart(model: Model, **settings: Any) -> tuple[Lion, AdamW]:
    return Lion(matrices_of(model), lr=1e-2, **settings), AdamW(others_of(model), lr=1e-2, **settings)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, param), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(param, theirs), name


def of_all(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    return snapshot(opt, list(model.parameters()))


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
@pytest.mark.parametrize("settings", [{}, {"bits": 8, **SMALL}], ids=str)
def test_the_bits_of_each_class_alone(target: str, settings: dict[str, Any]) -> None:
    one, other = make_model(), make_model()
    with ready(target) as chosen:
        opt = combined(one, target=chosen, **settings)
        own = {**settings, "optim_bits": settings["bits"]} if settings else {}
        own.pop("bits", None)
        alone = apart(other, target=chosen, **own)
        train(one, opt)
        train(other, *alone)
    assert_same(one, other)
    assert opt.engines() == {target: 10}
    assert opt.state_bytes() == sum(each.state_bytes() for each in alone)
    assert len(opt.state) == 10
    for param, entry in opt.state.items():
        assert opt.state[param] is entry


def test_a_launch_for_each_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    opt = combined(model, target="cpu")
    train(model, opt)
    calls: list[int] = []
    run = CpuEngine.run
    monkeypatch.setattr(CpuEngine, "run", lambda self, *rest: (calls.append(1), run(self, *rest))[1])
    train(model, opt, first=3, last=4)
    assert len(calls) == 2


def test_bits_and_settings_of_each_rule() -> None:
    model = make_model()
    opt = create(
        {nn.Linear: {"rule": "lion", "bits": 8, "lr_scale": 0.1}, ...: {"rule": "adamw", "betas": (0.9, 0.95)}},
        model,
        lr=1e-2,
        weight_decay=0.5,
    )
    first, second = opt.param_groups
    assert (first["rule"], first["optim_bits"], first["lr"], first["weight_decay"]) == ("Lion", 8, 1e-2 * 0.1, 0.5)
    assert (second["rule"], second["optim_bits"], second["lr"], second["betas"]) == ("AdamW", 32, 1e-2, (0.9, 0.95))
    assert opt.defaults["weight_decay"] == 0.5


def test_settings_in_which_entries_of_a_class_differ() -> None:
    model = make_model()
    opt = create({"*norm*": {"rule": "adamw", "weight_decay": 0.0}, ...: "adamw"}, model, lr=1e-2)
    assert [group["weight_decay"] for group in opt.param_groups] == [0.0, 1e-2]
    assert list(opt.parts) == ["AdamW"]


def test_one_norm_over_the_gradients_of_all_rules() -> None:
    """Two classes of one rule clip as one optimizer of that rule does, to the last bit."""
    one, other = make_model(), make_model()
    hidden = {id(param) for param in matrices_of(one)}
    opt = create(lambda _, param: "adamw" if id(param) in hidden else "adamw32bit", one, lr=1e-2, max_grad_norm=0.1)
    theirs = dict(other.named_parameters())
    names = [name for group in opt.param_groups for name in group["param_names"]]
    alone = AdamW([theirs[name] for name in names], lr=1e-2, max_grad_norm=0.1)
    assert {type(part) for part in opt.parts.values()} == {AdamW, AdamW32bit}
    train(one, opt)
    train(other, alone)
    assert_same(one, other)


def test_the_norm_is_that_of_torch() -> None:
    one, other = make_model(), make_model()
    opt = combined(one, max_grad_norm=0.1)
    alone = apart(other)
    for step in range(3):
        for each in (opt, *alone):
            each.zero_grad()
        loss_of(one, step).backward()
        loss_of(other, step).backward()
        assert float(torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)) > 0.2
        opt.step()
        for each in alone:
            each.step()
    for param, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, theirs, rtol=1e-4, atol=1e-6)


def test_rules_cannot_clip_by_norms_of_their_own() -> None:
    message = "max_grad_norm is one number for the optimizer"
    with pytest.raises(ValueError, match=message):
        create({nn.Linear: {"rule": "lion", "max_grad_norm": 1.0}, ...: "adamw"}, make_model())
    model = make_model()
    opt = combined(model)
    train(model, opt)
    opt.param_groups[0]["max_grad_norm"] = 1.0
    before = of_all(model, opt)
    loss_of(model, 4).backward()
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert same(before, of_all(model, opt))


def test_no_rule_steps_where_another_cannot() -> None:
    model = make_model()
    opt = combined(model)
    train(model, opt)
    before = of_all(model, opt)
    loss_of(model, 4).backward()
    opt.param_groups[1]["betas"] = (0.9, 1.5)
    with pytest.raises(ValueError, match="AdamW"):
        opt.step()
    opt.param_groups[1]["betas"] = before["groups"][1]["betas"]
    assert same(before, of_all(model, opt))


def test_schedulers() -> None:
    one, other = make_model(), make_model()
    opt, alone = combined(one), apart(other)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=4)
    others = [torch.optim.lr_scheduler.CosineAnnealingLR(each, T_max=4) for each in alone]
    for step in range(4):
        train(one, opt, first=step, last=step + 1)
        train(other, *alone, first=step, last=step + 1)
        for each in (schedule, *others):
            each.step()
    assert_same(one, other)
    assert opt.param_groups[0]["lr"] == opt.parts["Lion"].param_groups[0]["lr"] == alone[0].param_groups[0]["lr"]


@pytest.mark.parametrize("settings", [{}, {"bits": 8, **SMALL}], ids=str)
def test_saved_and_resumed(settings: dict[str, Any]) -> None:
    one, other = make_model(), make_model()
    opt = combined(one, **settings)
    train(one, opt)
    checkpoint = saved(opt)
    assert list(checkpoint["optgen"]["rules"]) == ["Lion", "AdamW"]
    other.load_state_dict(one.state_dict())
    resumed = combined(other, **settings)
    resumed.load_state_dict(checkpoint)
    assert same(saved(resumed), checkpoint)
    train(one, opt, first=3, last=6)
    train(other, resumed, first=3, last=6)
    assert_same(one, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies(copied: Any) -> None:
    one = make_model()
    opt = combined(one)
    train(one, opt)
    other, theirs = copied((one, opt))
    assert all(a is b for a, b in zip(theirs.param_groups, theirs.parts["Lion"].param_groups, strict=False))
    train(one, opt, first=3, last=6)
    train(other, theirs, first=3, last=6)
    assert_same(one, other)
    assert same(opt.state_dict(), theirs.state_dict())


def test_a_checkpoint_without_marks() -> None:
    """As torch.distributed.checkpoint hands it over."""
    one, other = make_model(), make_model()
    opt = combined(one)
    train(one, opt)
    checkpoint = {key: value for key, value in saved(opt).items() if key != "optgen"}
    resumed = combined(other)
    resumed.load_state_dict(checkpoint)
    assert same(opt.state_dict(), resumed.state_dict())
    swapped = for_model(make_model(), "rmsprop", "adamw", show=False)
    with pytest.raises(ValueError, match="RMSprop: this checkpoint does not fit: its groups are of Lion"):
        swapped.load_state_dict(checkpoint)


def test_states_in_other_bits() -> None:
    one, other = make_model(), make_model()
    opt = combined(one)
    train(one, opt)
    eight = create({nn.Embedding: "adamw8bit", ...: "adamw"}, make_model(), min_8bit_size=0)
    resumed = for_model(other, "lion8bit", "adamw8bit", show=False, lr=1e-2, **SMALL)
    with pytest.warns(UserWarning, match="this checkpoint stores states as"):
        resumed.load_state_dict(saved(opt))
    train(other, resumed, first=3, last=4)
    assert {type(part) for part in resumed.parts.values()} == {Lion8bit, AdamW8bit}
    assert all(resumed.state[p]["exp_avg"].dtype == torch.uint8 for p in other.parameters())
    assert list(eight.parts) == ["AdamW8bit", "AdamW"]


def _lacks_a_state(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state"][9]["exp_avg_sq"]


def _has_another_rule(checkpoint: dict[str, Any]) -> None:
    checkpoint["optgen"]["rules"]["AdamW"]["rule"] = "lamb"


def _has_one_rule(checkpoint: dict[str, Any]) -> None:
    checkpoint["optgen"] = checkpoint["optgen"]["rules"]["Lion"]


def _lacks_a_group(checkpoint: dict[str, Any]) -> None:
    checkpoint["param_groups"].pop()


def _mixes_groups(checkpoint: dict[str, Any]) -> None:
    checkpoint["param_groups"][1]["rule"] = "SGD"


def _clips_by_two_norms(checkpoint: dict[str, Any]) -> None:
    checkpoint["param_groups"][1]["max_grad_norm"] = 1.0


MISFITS = {
    _lacks_a_state: "AdamW: this checkpoint does not fit: parameter 6: exp_avg_sq missing",
    _has_another_rule: "it is of AdamW .rule lamb., and AdamW has the rule adam",
    _has_one_rule: "it is of Lion .rule lion., and AdamW has the rule adam",
    _lacks_a_group: "it has .* param groups?, not 2|states of .* which no group holds",
    _mixes_groups: "AdamW: this checkpoint does not fit: its groups are of SGD, here all of AdamW",
    _clips_by_two_norms: "max_grad_norm is one number",
}


@pytest.mark.parametrize("spoil", MISFITS, ids=lambda spoil: spoil.__name__)
def test_nothing_is_loaded_where_one_rule_does_not_fit(spoil: Any) -> None:
    model = make_model()
    opt = combined(model)
    train(model, opt)
    checkpoint = copy.deepcopy(saved(opt))
    spoil(checkpoint)
    other = make_model()
    resumed = combined(other)
    train(other, resumed, last=1)
    before = of_all(other, resumed)
    with pytest.raises(ValueError, match=MISFITS[spoil]):
        resumed.load_state_dict(checkpoint)
    assert same(before, of_all(other, resumed))


def test_checkpoints_of_one_rule_and_of_several() -> None:
    model = make_model()
    opt = combined(model)
    alone = AdamW([{"params": matrices_of(model)}, {"params": others_of(model)}])
    with pytest.raises(ValueError, match=r"Lion: .* it is of AdamW .rule adam., and Lion has the rule lion"):
        opt.load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match=r"it is of several rules in one optimizer \(Lion, AdamW\)"):
        alone.load_state_dict(opt.state_dict())
    with pytest.raises(TypeError, match="load_state_dict takes"):
        opt.load_state_dict(3)  # type: ignore[arg-type]


def test_groups_that_are_added() -> None:
    model = make_model()
    extra = [nn.Parameter(torch.ones(3, 2)) for _ in range(3)]
    opt = combined(model)
    opt.add_param_group({"params": [("one", extra[0])], "rule": "lion", "lr": 0.5, "name": "mine"})
    opt.add_param_group({"params": [("two", extra[1])], "rule": "sgd", "lr": 0.25})
    assert [group["rule"] for group in opt.param_groups] == ["Lion", "AdamW", "Lion", "SGD"]
    assert opt.param_groups[2]["name"] == "mine"
    for param in extra[:2]:
        param.grad = torch.ones_like(param)
    opt.step()
    assert torch.equal(extra[0], torch.full((3, 2), 0.5))
    assert torch.equal(extra[1], torch.full((3, 2), 0.75))
    resumed = combined(make_model())
    with pytest.raises(ValueError, match="it has 4 param groups, not 2"):
        resumed.load_state_dict(saved(opt))
    before = of_all(model, opt)
    for group, message in (
        ({"params": [("two", extra[1])], "rule": "lion"}, "is given to SGD and to Lion"),
        ({"params": [("three", extra[2])]}, "needs the key 'rule'"),
        ({"params": [("three", extra[2])], "rule": "adamv"}, "did you mean"),
        ({"params": [("three", extra[2])], "rule": "lion", "lr": -1.0}, "Invalid learning rate"),
        ({"params": [("three", extra[2])], "rule": "lamb", "max_grad_norm": 1.0}, "max_grad_norm is one number"),
    ):
        with pytest.raises(ValueError, match=message):
            opt.add_param_group(group)
    assert same(before, of_all(model, opt))
    assert list(opt.parts) == ["Lion", "AdamW", "SGD"]


def test_groups_that_name_their_rules() -> None:
    model = make_model()
    opt = create(
        [
            {"params": matrices_of(model), "rule": "lion", "lr": 1e-2, "mine": 3},
            {"params": others_of(model), "rule": "adamw", "bits": 8},
        ],
        lr=1e-3,
    )
    assert [(group["rule"], group["lr"]) for group in opt.param_groups] == [("Lion", 1e-2), ("AdamW", 1e-3)]
    assert opt.param_groups[0]["mine"] == 3
    assert opt.param_groups[1]["optim_bits"] == 8
    train(model, opt)
    with pytest.raises(ValueError, match="is given to Lion and to AdamW"):
        create([{"params": matrices_of(model), "rule": "lion"}, {"params": model.parameters(), "rule": "adamw"}])


def test_groups_whose_list_is_exchanged() -> None:
    model = make_model()
    opt = combined(model)
    opt.param_groups = [opt.param_groups[1]]
    before = [param.detach().clone() for param in matrices_of(model)]
    train(model, opt)
    assert all(map(torch.equal, before, matrices_of(model)))
    opt.param_groups[0]["rule"] = "SGD"
    with pytest.raises(ValueError, match="param group 0 has rule='SGD', and the rules are Lion, AdamW"):
        opt.step()


def test_overrides() -> None:
    model = make_model()
    opt = combined(model, bits=8, **SMALL)
    opt.override(model.embed.weight, optim_bits=32)
    train(model, opt)
    assert opt.state[model.embed.weight]["exp_avg"].dtype == torch.float32
    assert opt.state[model.head.weight]["exp_avg"].dtype == torch.uint8
    with pytest.raises(ValueError, match="is not in the optimizer"):
        opt.override(nn.Parameter(torch.ones(2)), optim_bits=32)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_fused_backward(all_of_them: bool) -> None:
    one, other = make_model(), make_model()
    if all_of_them:
        opt = combined(one, fused_backward=True)
    else:
        opt = for_model(one, {"rule": "lion", "fused_backward": True}, show=False, lr=1e-2)
    train(one, opt, last=1)
    opt.zero_grad()
    loss_of(one, 1).backward()
    assert all(param.grad is None for param in matrices_of(one))
    assert all((param.grad is None) == all_of_them for param in others_of(one))
    opt.step()
    alone = apart(other)
    train(other, *alone, last=2)
    assert_same(one, other)


def test_fused_backward_and_a_scaler() -> None:
    model = make_model()
    opt = for_model(model, {"rule": "lion", "fused_backward": True}, show=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    others = others_of(model)
    scaler.scale(sum(param.sum() for param in others)).backward()
    with pytest.raises(RuntimeError, match=r"does not go with torch.amp.GradScaler"):
        scaler.step(opt)
    assert not hasattr(opt, "found_inf")
    assert not hasattr(opt.parts["AdamW"], "found_inf")


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
def test_a_scaler(target: str) -> None:
    one, other = make_model(), make_model()
    with ready(target) as chosen:
        opt, alone = combined(one, target=chosen), apart(other, target=chosen)
        assert opt._step_supports_amp_scaling
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            opt.zero_grad()
            loss = loss_of(one, step)
            scaler.scale(loss).backward()
            if step == 2:
                one.head.weight.grad[0, 0] = float("inf")  # type: ignore[index]
            scaler.step(opt)
            scaler.update()
            if step != 2:
                train(other, *alone, first=step, last=step + 1)
    assert scaler.get_scale() == 512.0
    for param, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, theirs, rtol=1e-4, atol=1e-5)
    assert float(opt.state[one.head.weight]["step"]) == 3


def test_a_closure_is_called_once() -> None:
    model = make_model()
    opt = combined(model)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        opt.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert opt.step(closure) is not None  # type: ignore[arg-type]
    assert len(calls) == 1


def test_methods_of_rules() -> None:
    model = make_model()
    opt = for_model(model, "lion", "adamwschedulefree", show=False, lr=1e-2)
    alone_model = make_model()
    alone = for_model(alone_model, "lion", "adamwschedulefree", show=False, lr=1e-2)
    opt.train()
    train(model, opt)
    opt.eval()
    for part in alone.parts.values():
        if hasattr(part, "train"):
            part.train()
    train(alone_model, alone)
    alone.parts["AdamWScheduleFree"].eval()  # type: ignore[attr-defined]
    assert_same(model, alone_model)
    with pytest.raises(AttributeError, match="'CombinedOptimizer' object has no attribute 'update_hessian'"):
        opt.update_hessian()
    with pytest.raises(RuntimeError, match="eval"):
        train(model, opt, last=1)


def test_hooks_that_change_the_form_of_checkpoints() -> None:
    model = make_model()
    opt = combined(model)
    train(model, opt)
    opt.register_state_dict_post_hook(lambda _, found: {"mine": found})
    assert list(opt.state_dict()) == ["mine"]


def test_a_compiled_step(fresh_dynamo: None) -> None:
    one, other = make_model(), make_model()
    opt, alone = combined(one), apart(other)
    step = torch.compile(lambda: opt.step(), backend="eager")
    for number in range(3):
        opt.zero_grad()
        loss_of(one, number).backward()
        step()
    train(other, *alone)
    assert_same(one, other)
    torch._dynamo.reset()
    whole = torch.compile(lambda: opt.step(), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="several rules step together outside of graphs"):
        whole()
