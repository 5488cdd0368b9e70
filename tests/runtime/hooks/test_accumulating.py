"""Batches in parts with fused_backward: gradients of all parts but the last go to the momentum."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import optgen_optim
import pytest
import torch
from optgen_optim import LOMO, SGD, AdamW, CombinedOptimizer, Muon, for_model
from support.targets import ready
from torch import Tensor, nn

from runtime.several.models import loss_of, make_model

STEPS, PARTS, MOMENTUM = 4, 3, 0.9
SHAPE = (24, 40)
UNIT = 2.0**-24
CASES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1},
    "Muon": {"nesterov": False},
    "Muon, a sum": {"nesterov": False, "momentum_form": "sum"},
    "NorMuon": {"nesterov": False},
    "AdaMuon": {"nesterov": False},
    "MuonClip": {},
}


def gradients() -> Iterator[list[Tensor]]:
    """Of the parts of each step."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        yield [torch.randn(SHAPE, generator=generator) for _ in range(PARTS)]


def backward(param: Tensor, grad: Tensor) -> None:
    (param * grad).sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_momentum_is_that_of_the_whole_batch(case: str, target: str) -> None:
    """Against float64. A part is a product, a sum and three roundings at most; a step has as many."""
    settings = {"momentum": MOMENTUM, **CASES[case]}
    average = case.startswith(("Muon", "NorMuon", "AdaMuon")) and "sum" not in case and case != "MuonClip"
    param = nn.Parameter(torch.ones(SHAPE))
    right, greatest = torch.zeros(SHAPE, dtype=torch.float64), 0.0
    with ready(target) as chosen:
        opt = getattr(optgen_optim, case.partition(",")[0])(
            [param], fused_backward=True, target=chosen, weight_decay=0.0, **settings
        )
        for parts in gradients():
            before = param.detach().clone()
            with opt.accumulating():
                for grad in parts[:-1]:
                    backward(param, grad)
                    assert param.grad is None
            assert torch.equal(param, before)
            backward(param, parts[-1])
            opt.step()
            assert not torch.equal(param, before)
            whole = torch.stack(parts).double().sum(0)
            right = MOMENTUM * right + (1 - MOMENTUM if average else 1) * whole
            greatest = max(greatest, float(right.abs().max()), float(torch.stack(parts).abs().max()) / MOMENTUM)
    error = (opt.state[param]["momentum_buffer"].double() - right).abs().max()
    assert error <= PARTS * 4 * UNIT * PARTS * greatest / (1 - MOMENTUM)
    assert opt.state[param]["step"] == STEPS if "step" in opt.state[param] else True


def test_sgd_moves_as_with_the_whole_gradient() -> None:
    """The first gradient too, which begins the momentum."""
    for steps in (1, STEPS):
        whole, apart = (nn.Parameter(torch.ones(SHAPE)) for _ in range(2))
        one, other = SGD([whole], lr=0.1, momentum=0.9), SGD([apart], lr=0.1, momentum=0.9, fused_backward=True)
        for parts in list(gradients())[:steps]:
            for number, grad in enumerate(parts, 1):
                backward(whole, grad)
                with other.accumulating() if number < PARTS else nullcontext():
                    backward(apart, grad)
            for opt in (one, other):
                opt.step()
                opt.zero_grad()
        torch.testing.assert_close(apart, whole, rtol=0, atol=STEPS * 0.1 * PARTS * 4 * UNIT * 40)
        assert float((whole.detach() - 1).abs().max()) > 0.1


def test_without_fused_backward_it_is_a_method() -> None:
    param, other = (nn.Parameter(torch.ones(SHAPE)) for _ in range(2))
    fused = SGD([param], lr=0.1, momentum=0.9, fused_backward=True)
    called = SGD([other], lr=0.1, momentum=0.9)
    for parts in gradients():
        with fused.accumulating():
            backward(param, parts[0])
        backward(param, parts[1])
        fused.step()
        backward(other, parts[0])
        called.accumulate()
        called.zero_grad()
        with called.accumulating():  # changes nothing where gradients are kept
            backward(other, parts[1])
        called.step()
        called.zero_grad()
    assert torch.equal(param, other)


def test_in_few_bits_saved_and_resumed() -> None:
    """A checkpoint between two parts has the gradients that came before it."""
    settings: dict[str, Any] = {"nesterov": False, "optim_bits": 8, "min_8bit_size": 0, "fused_backward": True}
    params = [nn.Parameter(torch.ones(SHAPE)) for _ in range(2)]
    opt, resumed = (Muon([param], **settings) for param in params)
    parts = next(gradients())
    with opt.accumulating():
        backward(params[0], parts[0])
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for param, each in zip(params, (opt, resumed), strict=True):
        with each.accumulating():
            backward(param, parts[1])
        backward(param, parts[2])
        each.step()
    assert torch.equal(*params)


def test_what_cannot_is_refused_before_anything_changes() -> None:
    def ones() -> list[Tensor]:
        return [nn.Parameter(torch.ones(SHAPE))]

    cases: list[tuple[Any, str]] = [
        (AdamW(ones(), fused_backward=True), "AdamW cannot take a batch in parts with fused_backward=True"),
        (Muon(ones(), fused_backward=True), "Muon: accumulate() needs a momentum without nesterov"),
        (LOMO(ones()), "LOMO: accumulate() needs a momentum"),
        (
            SGD(ones(), momentum=0.9, skip_zeros=True, fused_backward=True),
            "SGD: accumulate() does not go with skip_zeros",
        ),
    ]
    for opt, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)), opt.accumulating():
            pytest.fail("it has begun")
        assert not opt.state


def test_a_second_backward_pass_names_it() -> None:
    param = nn.Parameter(torch.ones(SHAPE))
    opt = SGD([param], momentum=0.9, fused_backward=True)
    backward(param, torch.ones(SHAPE))
    with pytest.raises(RuntimeError, match=r"have all but the last of them within `with optimizer.accumulating\(\):`"):
        backward(param, torch.ones(SHAPE))
    with opt.accumulating(), pytest.raises(RuntimeError, match="has a second gradient since the last step"):
        backward(param, torch.ones(SHAPE))


def test_settings_that_change_between_parts_are_checked() -> None:
    """Those of all groups, before the first parameter of any is stepped."""
    params = [nn.Parameter(torch.ones(SHAPE)) for _ in range(2)]
    opt = SGD([{"params": [param]} for param in params], momentum=0.9, fused_backward=True)
    with opt.accumulating():
        backward(params[0], torch.ones(SHAPE))
    opt.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        backward(params[0], torch.ones(SHAPE))
    assert torch.equal(params[0], torch.ones(SHAPE))


def test_several_rules() -> None:
    """A rule that cannot keeps its gradients, without fused_backward."""

    def made(fused: bool) -> tuple[nn.Module, CombinedOptimizer]:
        model = make_model()
        muon = {"rule": "muon", "nesterov": False, "lr": 1e-2, "fused_backward": fused}
        return model, for_model(model, muon, "adamw", show=False)

    (model, opt), (other, whole) = made(True), made(False)
    with opt.accumulating():
        loss_of(model, 0).backward()
    loss_of(model, 1).backward()
    for part in range(2):
        loss_of(other, part).backward()
    for each in (opt, whole):
        each.step()
    for (name, param), right in zip(model.named_parameters(), other.parameters(), strict=True):
        if "exp_avg" in whole.state[right]:
            assert torch.equal(param, right), name
        else:
            found, wanted = (each.state[one]["momentum_buffer"] for each, one in ((opt, param), (whole, right)))
            assert float((found - wanted).abs().max()) <= 8 * UNIT * float(wanted.abs().max()), name
    with (
        pytest.raises(ValueError, match="AdamW cannot take a batch in parts"),
        for_model(
            make_model(), {"rule": "muon", "nesterov": False}, "adamw", fused_backward=True, show=False
        ).accumulating(),
    ):
        pytest.fail("it has begun")
