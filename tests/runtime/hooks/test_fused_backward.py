"""fused_backward: updates within backward, of every rule that can, and the reasons of those that cannot."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from optgen_optim import LAMB, SGD, Adafactor, AdamW, AdamW8bit
from support.catalogue import each_class, optimizer_class, required, rows
from support.compiling import ROOT
from support.machine import require_compiler
from support.targets import ready
from torch import Tensor, nn

from optgen.runtime.hooks.fused_backward import ACCUMULATE
from runtime.training import same, saved, snapshot

STEPS = 3
SMALL = 64  # as min_8bit_size: the weights have 8-bit states, the biases 32-bit ones


def make_model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


def loss_of(model: nn.Module, step: int) -> Tensor:
    data = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
    result: Tensor = model(data).square().mean()
    return result


def train(model: nn.Module, opt: Any, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()


def found(model: nn.Module, opt: Any) -> dict[str, Any]:
    """Everything that training changes; `fused_backward` itself differs."""
    result = snapshot(opt, list(model.parameters()))
    for group in result["groups"]:
        group.pop("fused_backward")
    return result


def trained(cls: Callable[..., Any], fused: bool, **settings: Any) -> dict[str, Any]:
    model = make_model()
    taken = [param for param in model.parameters() if cls.rule.ndim in (None, param.ndim)]  # type: ignore[attr-defined]
    opt = cls(taken, fused_backward=fused, **settings)
    train(model, opt)
    return found(model, opt)


@pytest.mark.parametrize(
    "name", each_class(sorted(name for name, row in rows().items() if "fused_backward" not in row.fixed))
)
def test_every_class_does_the_same_or_says_why_not(name: str) -> None:
    cls, settings = optimizer_class(name), required(name)
    if "target" in rows()[name].accepted:
        settings = {**settings, "target": "torch"}
    rule = cls.rule  # type: ignore[attr-defined]
    cannot = bool(rule.shared_states) or any(
        block.grads for key, block in rule.blocks.items() if key not in ("step", ACCUMULATE)
    )
    if cannot:
        with pytest.raises(ValueError, match=f"{name} cannot have fused_backward=True: .*"):
            trained(cls, True, **settings)
    else:
        assert same(trained(cls, True, **settings), trained(cls, False, **settings))


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(AdamW, {"amsgrad": True}), (AdamW8bit, {"min_8bit_size": SMALL}), (LAMB, {"percentile_clipping": 40}),
     (Adafactor, {}), (AdamW, {"optim_bits": 4, "min_8bit_size": SMALL, "cautious": True})],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)  # fmt: skip
def test_bit_for_bit_on_every_target(cls: Any, settings: dict[str, Any], target: str) -> None:
    assert same(trained(cls, True, **settings, target=target), trained(cls, False, **settings, target=target))


def test_on_the_stand_in_for_a_gpu() -> None:
    with ready("cuda") as target:
        settings = {"min_8bit_size": SMALL, "target": target}
        assert same(trained(AdamW8bit, True, **settings), trained(AdamW8bit, False, **settings))


def test_draws_are_those_of_ordinary_steps(target: str) -> None:
    results = []
    for fused in (False, True):
        model = make_model().to(torch.bfloat16)
        opt = AdamW(model.parameters(), rounding="stochastic", seed=3, fused_backward=fused, target=target)
        for _ in range(STEPS):
            model(torch.ones(2, 16, dtype=torch.bfloat16)).square().mean().backward()
            opt.step()
            opt.zero_grad()
        results.append(found(model, opt))
    assert same(*results)


def test_gradients_are_gone_as_soon_as_they_are_applied() -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True)
    alive: list[int] = []
    for param in model.parameters():  # called after the optimizer's own hook
        param.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(param.grad is not None for param in model.parameters()))
        )
    before = [param.detach().clone() for param in model.parameters()]
    loss_of(model, 0).backward()
    assert alive == [0, 0, 0, 0]
    assert not any(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    after = found(model, opt)
    opt.step()
    assert same(found(model, opt), after)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("name", ["AdamW", pytest.param("AdamW8bit", marks=pytest.mark.full)])
def test_backward_needs_the_memory_of_one_gradient(name: str) -> None:
    """Without fused_backward all gradients are there at the end of backward: as much as the weights."""
    require_compiler()
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "peak_backward.py", name],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    slack = 2**20  # pages, activations of a batch of one, tables
    assert peak["plain"] >= peak["weights"] - slack
    # The gradient that is applied, and the next one, or a copy of it where autograd brings it to the weight's layout.
    assert peak["fused"] <= 2 * peak["weight"] + slack


# By group and by parameter


def test_a_group_or_a_parameter_alone(target: str) -> None:
    plain = trained(AdamW, False, target=target)
    for how in ("group", "override", "later"):
        model = make_model()
        first, rest = [model[0].weight], [*list(model.parameters())[1:]]
        own = {"fused_backward": True} if how == "group" else {}
        opt = AdamW([{"params": first, **own}, {"params": rest}], target=target)
        if how == "override":
            opt.override(model[0].weight, fused_backward=True)
        for step in range(STEPS):
            opt.zero_grad()
            loss_of(model, step).backward()
            assert (model[0].weight.grad is None) == (how != "later" or step > 0)
            assert all(param.grad is not None for param in rest)
            if how == "later":
                opt.param_groups[0]["fused_backward"] = True  # hooked by this step
            opt.step()
        assert same(found(model, opt)["params"], plain["params"])
        assert opt.engines() == {target: 4}


def test_switched_off_again(target: str) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    opt.param_groups[0]["fused_backward"] = False
    opt.zero_grad()
    loss_of(model, 1).backward()
    assert all(param.grad is not None for param in model.parameters())
    opt.step()
    opt.param_groups[0]["fused_backward"] = True
    train(model, opt, 2, 3)
    assert same(found(model, opt), trained(AdamW, False, target=target))


def test_groups_that_come_and_parameters_that_thaw(target: str) -> None:
    results = []
    for fused in (False, True):
        model = make_model()
        model[0].bias.requires_grad_(False)
        opt = AdamW(model[0].parameters(), fused_backward=fused, target=target)
        train(model, opt, 0, 1)
        opt.add_param_group({"params": model[2].parameters(), "lr": 0.1})
        train(model, opt, 1, 2)
        model[0].bias.requires_grad_(True)
        train(model, opt, 2, 5)
        assert not fused or all(param.grad is None for param in model.parameters())
        results.append(found(model, opt))
    assert same(*results)


def test_a_group_that_is_taken_out_and_put_back(target: str) -> None:
    model = make_model()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    opt = AdamW(groups, fused_backward=True, target=target)
    train(model, opt, 0, 1)
    group = opt.param_groups.pop()
    opt.zero_grad()
    before = model[2].weight.detach().clone()
    loss_of(model, 1).backward()
    opt.step()
    assert torch.equal(model[2].weight, before)
    assert model[2].weight.grad is not None
    model[2].zero_grad()
    opt.add_param_group({"params": group["params"]})
    train(model, opt, 2, 3)
    assert float(opt.state[model[2].weight]["step"]) == 2.0


def test_a_gradient_set_by_hand_is_applied_by_the_step(target: str) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    opt.step()
    assert not torch.equal(model[0].weight, before)
    assert float(opt.state[model[0].weight]["step"]) == 2.0
    assert float(opt.state[model[0].bias]["step"]) == 1.0


def test_tied_weights_have_one_gradient(target: str) -> None:
    results = []
    for fused in (False, True):
        torch.manual_seed(2)
        weight = nn.Parameter(torch.randn(6, 6))
        opt = AdamW([weight], fused_backward=fused, target=target)
        for _ in range(STEPS):
            opt.zero_grad()
            (weight @ (weight * 2).exp()).sum().backward()
            opt.step()
        results.append(snapshot(opt, [weight])["params"])
    assert same(*results)


def test_closures_schedules_and_hooks(target: str) -> None:
    results = []
    for fused in (False, True):
        model = make_model()
        opt = AdamW(model.parameters(), lr=0.1, fused_backward=fused, target=target)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        calls: list[str] = []
        opt.register_step_pre_hook(lambda *_, calls=calls: calls.append("before"))
        opt.register_step_post_hook(lambda *_, calls=calls: calls.append("after"))
        for step in range(STEPS):

            def closure(step: int = step, model: nn.Module = model, opt: Any = opt) -> Tensor:
                opt.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss.detach()

            calls.append(str(opt.step(closure)))
            schedule.step()
        results.append([found(model, opt), calls])
    assert same(*results)


# What lasts


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_copies_update_within_backward_too(how: Any, target: str) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    other, other_opt = how((model, opt))
    before = found(model, opt)
    train(other, other_opt, 1, STEPS)
    assert all(param.grad is None for param in other.parameters())
    assert same(found(model, opt), before)
    assert same(found(other, other_opt), trained(AdamW, False, target=target))


@pytest.mark.parametrize("fused", [False, True])
def test_checkpoints_go_on_either_way(fused: bool, target: str) -> None:
    """Updating within backward is the loading optimizer's own choice."""
    model, other = make_model(), make_model()
    opt = AdamW(model.parameters(), fused_backward=not fused, target=target)
    train(model, opt, 0, 1)
    resumed = AdamW(other.parameters(), lr=0.5, fused_backward=fused, target=target)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved(opt))
    assert resumed.param_groups[0]["fused_backward"] is fused
    for step in range(1, STEPS):
        loss_of(other, step).backward()
        assert all((param.grad is None) == fused for param in other.parameters())
        resumed.step()
        resumed.zero_grad()
    assert same(found(other, resumed), trained(AdamW, False, target=target))


def test_an_optimizer_that_is_gone_leaves_parameters_alone() -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target="torch")
    train(model, opt)
    with pytest.raises(ValueError, match="is updated within backward by another optimizer, a AdamW with fused_backw"):
        SGD(model.parameters(), lr=0.1, fused_backward=True)
    other = SGD([nn.Parameter(torch.ones(3))], lr=0.1, fused_backward=True)
    with pytest.raises(ValueError, match="is updated within backward by another optimizer"):
        other.add_param_group({"params": model.parameters()})
    assert len(other.param_groups) == 1
    del opt
    gc.collect()
    before = [param.detach().clone() for param in model.parameters()]
    loss_of(model, 0).backward()
    assert same([param.detach() for param in model.parameters()], before)
    assert all(param.grad is not None for param in model.parameters())
    SGD(model.parameters(), lr=0.1, fused_backward=True)


def test_clipping_by_torch_does_nothing(target: str) -> None:
    """It finds no gradients, and returns a norm of 0; without fused_backward the same call clips."""
    ends = {}
    for fused in (False, True):
        for clips in (False, True):
            model = make_model()
            opt = SGD(model.parameters(), lr=0.5, fused_backward=fused, target=target)
            loss_of(model, 0).backward()
            if clips:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                assert bool(norm == 0) is fused
            opt.step()
            ends[fused, clips] = [param.detach() for param in model.parameters()]
    assert same(ends[True, True], ends[True, False])
    assert same(ends[True, True], ends[False, False])
    assert not same(ends[False, True], ends[False, False])


@pytest.mark.parametrize("settings", [{"percentile_clipping": 1}, {"max_unorm": 1e-3}], ids=str)
def test_clipping_parameter_by_parameter_acts(settings: dict[str, Any]) -> None:
    ends = []
    for fused, own in ((True, {}), (True, settings), (False, settings)):
        model = make_model()
        train(model, AdamW(model.parameters(), fused_backward=fused, target="torch", **own), last=8)
        ends.append([param.detach() for param in model.parameters()])
    assert same(ends[1], ends[2])
    assert not same(ends[0], ends[1])
