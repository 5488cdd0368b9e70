"""fused_backward: what cannot go with it is refused with the reason, and nothing is changed by what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from optgen_optim import LOMO, AdamW, AdamWScheduleFree, Prodigy, SophiaG
from torch import nn

import optgen
from runtime.hooks.test_fused_backward import STEPS, found, loss_of, make_model, train, trained
from runtime.training import same, snapshot


def refused(error: type[Exception], message: str, action: Callable[[], Any], model: nn.Module, opt: Any) -> None:
    """That something is refused, and nothing has changed."""
    before = snapshot(opt, list(model.parameters()))
    with pytest.raises(error, match=message):
        action()
    assert same(snapshot(opt, list(model.parameters())), before)
    assert all(param.grad is None for param in model.parameters())


def test_accumulation(target: str) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    loss_of(model, 0).backward()
    message = r"AdamW: a parameter of shape \(4,\) has a second gradient since the last step\(\)"
    for _ in range(2):
        refused(RuntimeError, message, lambda: loss_of(model, 1).backward(), model, opt)
    opt.step()
    train(model, opt, 1, STEPS)
    assert same(found(model, opt), trained(AdamW, False, target=target))


def test_gradient_scalers(target: str) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    message = "AdamW: fused_backward=True does not go with torch.amp.GradScaler: gradients are applied within backward"
    refused(RuntimeError, message, lambda: scaler.step(opt), model, opt)
    train(model, opt, 1, STEPS)  # nothing of the scaler is left
    assert same(found(model, opt), trained(AdamW, False, target=target))
    opt.param_groups[0]["fused_backward"] = False
    opt.zero_grad()
    scaler.scale(loss_of(model, 0)).backward()
    scaler.step(opt)
    assert float(opt.state[model[0].weight]["step"]) == STEPS + 1


@pytest.mark.parametrize("how", ["a loss", "checkpoints"])
def test_losses_that_a_scaler_has_scaled(how: str, target: str) -> None:
    """Refused at its step, which nothing can miss: the message says what scaled gradients have done by then."""
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    before = snapshot(opt, list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    loss = loss_of(model, 1)
    if how == "checkpoints":  # gradients come in a backward pass within the backward pass
        data = torch.ones(8, 16, requires_grad=True) * 2
        loss = torch.utils.checkpoint.checkpoint(model, data, use_reentrant=True).square().mean()
    scaler.scale(loss).backward()
    assert not same(before, snapshot(opt, list(model.parameters())))
    message = (
        r"or multiply the loss by a factor of your own and set optimizer\.grad_scale to it before backward\. "
        r"4 parameters and their states have been changed with gradients scaled by 65536 since the last step\(\), and "
        r"are not what training would have made of them: go back"
    )
    refused(RuntimeError, message, lambda: scaler.step(opt), model, opt)
    refused(RuntimeError, "a second gradient since the last step", loss_of(model, 2).backward, model, opt)


def test_a_scaler_is_left_as_it_is() -> None:
    scale = torch.amp.GradScaler.scale
    model = make_model()
    opt = AdamW(model.parameters(), fused_backward=True)
    assert torch.amp.GradScaler.scale is scale
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(STEPS):
        disabled.scale(loss_of(model, step)).backward()
        disabled.step(opt)
    assert same(found(model, opt), trained(AdamW, False))


@pytest.mark.parametrize("cls", [AdamW, LOMO], ids=lambda cls: cls.__name__)
def test_a_factor_of_ones_own(cls: Any, target: str) -> None:
    """`grad_scale` set before backward: the same parameters as without, bit for bit, since it is a power of two."""
    settings: dict[str, Any] = {"target": target} if cls is LOMO else {"target": target, "fused_backward": True}
    results = []
    for factor in (None, 1024.0):
        model = make_model()
        opt = cls(model.parameters(), lr=1e-2, **settings)
        if factor is not None:
            opt.grad_scale = factor
        for step in range(STEPS):
            (loss_of(model, step) * (factor or 1.0)).backward()
            opt.step()
        results.append(snapshot(opt, list(model.parameters())))
    assert same(*results)


@pytest.mark.parametrize("cls", [Prodigy, AdamWScheduleFree], ids=lambda cls: cls.__name__)
def test_states_of_groups_and_of_the_optimizer(cls: Any) -> None:
    owner, state = ("optimizer", "d_numerator") if cls is Prodigy else ("param group", "weight_sum")
    message = rf"{cls.__name__} cannot have fused_backward=True: it keeps states of the whole {owner} \(.*{state}"
    model = make_model()
    with pytest.raises(ValueError, match=message):
        cls(model.parameters(), fused_backward=True)
    opt = cls(model.parameters())
    refused(ValueError, message, lambda: opt.override(model[0].weight, fused_backward=True), model, opt)
    group = {"params": [nn.Parameter(torch.ones(2))], "fused_backward": True}
    refused(ValueError, message, lambda: opt.add_param_group(group), model, opt)


def test_gradients_that_another_method_reads() -> None:
    with pytest.raises(ValueError, match=r"SophiaG cannot have fused_backward=True: update_hessian\(\) reads the grad"):
        SophiaG(make_model().parameters(), fused_backward=True)


@pytest.mark.parametrize(("key", "value"), [("max_grad_norm", 1.0), ("capturable", True)])
def test_settings_that_do_not_go_with_it(key: str, value: Any, target: str) -> None:
    message = f"AdamW: fused_backward=True does not go with {key}={value}"
    model = make_model()
    with pytest.raises(ValueError, match=message):
        AdamW(model.parameters(), fused_backward=True, **{key: value})
    opt = AdamW(model.parameters(), fused_backward=True, target=target)
    train(model, opt, 0, 1)
    opt.zero_grad()
    group = {"params": [nn.Parameter(torch.ones(2))], key: value}
    refused(ValueError, message, lambda: opt.add_param_group(group), model, opt)
    checkpoint = opt.state_dict()
    checkpoint["param_groups"][0][key] = value
    if key == "max_grad_norm":  # capturable is the optimizer's own
        refused(ValueError, message, lambda: opt.load_state_dict(checkpoint), model, opt)
    opt.param_groups[0][key] = value
    refused(ValueError, message, lambda: loss_of(model, 1).backward(), model, opt)
    opt.param_groups[0][key] = type(value)(0)
    train(model, opt, 1, STEPS)
    assert same(found(model, opt), trained(AdamW, False, target=target))


def test_a_bad_setting_of_the_last_group_changes_nothing_of_the_first(target: str) -> None:
    model = make_model()
    groups = [{"params": model[2].parameters()}, {"params": model[0].parameters()}]
    opt = AdamW(groups, fused_backward=True, target=target)
    train(model, opt, 0, 1)
    opt.param_groups[1]["lr"] = -1.0
    refused(ValueError, "Invalid learning rate", lambda: loss_of(model, 1).backward(), model, opt)


OWN = """\
name: shared_mean
doc: The gradient, over the mean of all gradients.
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)", doc: Step size.}
blocks:
  step: |
    update = grad / (sum(abs(grad), over=all) + 1)
  apply: |
    param = param - lr * update
"""


def test_a_rule_of_the_users_own_that_sums_over_all_parameters(tmp_path: Path) -> None:
    path = tmp_path / "shared_mean.yaml"
    path.write_text(OWN, encoding="utf-8")
    cls = optgen.load(path).SharedMean
    with pytest.raises(ValueError, match="its step takes a sum over all parameters, whose gradients are never there"):
        cls(make_model().parameters(), fused_backward=True)


def test_several_processes(tmp_path: Path, torch_python: str) -> None:
    """Each would apply its own gradient: DistributedDataParallel adds them up only after that. And DTensors."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    text = """
    import sys
    import torch
    from optgen_optim import AdamW
    rank, file = int(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
    optimizer = AdamW(model.parameters(), fused_backward=True, target="torch")
    before = [param.detach().clone() for param in model.parameters()]
    try:
        model(torch.ones(1, 3)).sum().backward()
    except RuntimeError as error:
        assert "applies a gradient before other processes' are added to it" in str(error), error
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), before))
    else:
        raise AssertionError("not refused")
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    whole = torch.ones(4, 3)
    param = torch.nn.Parameter(distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)]))
    optimizer = AdamW([param], fused_backward=True, target="torch")
    try:
        (param * 2).sum().backward()
    except RuntimeError as error:
        assert "is not for parameters that are divided among processes" in str(error), error
        assert torch.equal(param.full_tensor(), whole)
        assert param.grad is None
    else:
        raise AssertionError("not refused")
    """
    script = tmp_path / "alone.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [torch_python, script, str(rank), tmp_path / "rendezvous"], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
