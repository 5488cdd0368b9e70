"""nonfinite="skip" for rules of matrices: a NaN or Inf anywhere in its gradient leaves a matrix as it was, whole."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import optgen_optim
import pytest
import torch
from runtime.training import same, snapshot
from support.targets import ready
from torch import Tensor, nn

from matrices.test_forms import numbers
from optgen.runtime.engines.matrix_stage import NotFiniteWarning

TARGETS = ("torch", "cpu", "cuda")
SHAPE, EXPERTS = (8, 16), (3, 8, 16)
RULES: dict[str, dict[str, Any]] = {
    "Muon": {},
    "Muon8bit": {"min_8bit_size": 0, "block_size": 64},
    "NorMuon": {},
    "AdaMuon": {},
    "MuonClip": {},
    "GaLoreAdamW": {"rank": 2, "update_proj_gap": 2},
    "GaLoreAdafactor": {"rank": 2, "update_proj_gap": 2},
    "APOLLO": {"rank": 2, "update_proj_gap": 2},
    "SOAP": {"precondition_frequency": 2},
    "Shampoo": {"precondition_frequency": 2, "eps": 1e-2},
    "Dion": {"rank": 2},
}
BAD = {"nan": float("nan"), "inf": float("inf")}


def make(name: str, params: list[nn.Parameter], target: str | None, **settings: Any) -> Any:
    return getattr(optgen_optim, name)(params, target=target, nonfinite="skip", **RULES[name], **settings)


def twins(shapes: list[tuple[int, ...]]) -> list[list[nn.Parameter]]:
    return [[nn.Parameter(numbers(i, shape)) for i, shape in enumerate(shapes)] for _ in range(2)]


def states_of(opt: Any, param: Tensor) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value).clone() for key, value in opt.state[param].items()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RULES)
def test_a_parameter_that_is_a_matrix_has_no_step(name: str, target: str) -> None:
    """Bit for bit as if it had no gradient: its count too, so that what the first step begins begins at the next."""
    for bad_step, bad in ((0, "nan"), (2, "inf")):
        (ours, theirs), settings = (
            twins([SHAPE, SHAPE, (8, 4, 4)]),
            {"matrix_form": "flatten", "percentile_clipping": 50},
        )
        with ready(target) as chosen:
            opt, other = (make(name, params, chosen, max_grad_norm=1.0, **settings) for params in (ours, theirs))
            for step in range(4):
                for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                    a.grad, b.grad = (numbers(10 * step + i, tuple(a.shape)) for _ in range(2))
                if step == bad_step:
                    for i in (0, 2):
                        assert ours[i].grad is not None
                        ours[i].grad.view(-1)[5] = BAD[bad]
                        theirs[i].grad = None
                opt.step()
                other.step()
        assert same(snapshot(opt, ours), snapshot(other, theirs)), (bad_step, bad)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("form", ["batch", "row_blocks"])
def test_one_of_several_matrices_stays_and_the_others_step(name: str, form: str, target: str) -> None:
    """The others' bits are those of a step without any NaN; the matrix that stays keeps its bits, and goes on."""
    shape = EXPERTS if form == "batch" else (24, 16)
    settings: dict[str, Any] = {"matrix_form": "batch"} if form == "batch" else {"row_blocks": 3}
    ((ours,), (theirs,)) = twins([shape])
    with ready(target) as chosen, warnings.catch_warnings():
        warnings.simplefilter("error")
        opt, other = make(name, [ours], chosen, **settings), make(name, [theirs], chosen, **settings)
        for step in range(5):
            ours.grad, theirs.grad = numbers(step + 1, shape), numbers(step + 1, shape)
            before = ours.detach().clone(), states_of(opt, ours)
            if step == 2:
                ours.grad.view(3, -1)[1, 7] = BAD["nan"]
                ours.grad.view(3, -1)[1, 9] = BAD["inf"]
            opt.step()
            other.step()
            if step == 2:
                after = states_of(opt, ours)
                assert torch.equal(before[0].view(3, -1)[1], ours.detach().view(3, -1)[1])
                for key, value in other.state[theirs].items():
                    if key == "step":
                        continue
                    found, old, new = (x.reshape(3, -1) for x in (after[key], before[1][key], value))
                    assert torch.equal(found[::2], new[::2]), key
                    if "8bit" not in name:
                        assert torch.equal(found[1], old[1]), key
                    elif key.endswith("absmax"):  # codes are made again: the least one is -0.993 of the scale
                        assert torch.allclose(found[1], old[1], rtol=0.008, atol=0.0)
            assert torch.equal(ours.detach().view(3, -1)[::2], theirs.detach().view(3, -1)[::2])
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours.detach().view(3, -1)[1], theirs.detach().view(3, -1)[1])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["GaLoreAdamW", "SOAP", "Dion"])
def test_states_of_several_matrices_begin_together(name: str, target: str) -> None:
    """A first step with a NaN in one of them is none for the parameter: no matrix is left without a basis."""
    ((ours,), (theirs,)) = twins([EXPERTS])
    with ready(target) as chosen:
        opt, other = (make(name, params, chosen, matrix_form="batch") for params in ([ours], [theirs]))
        for step in range(4):
            ours.grad = numbers(step, EXPERTS)
            if step == 0:
                ours.grad[1, 2, 3] = BAD["nan"]
            else:
                theirs.grad = numbers(step, EXPERTS)
                other.step()
            opt.step()
    assert same(snapshot(opt, [ours]), snapshot(other, [theirs]))


@pytest.mark.parametrize("name", ["GaLoreAdamW", "APOLLO", "SOAP", "Shampoo", "Dion"])
def test_a_first_step_with_a_nan_has_not_been_under_any_setting(name: str) -> None:
    """Without skip too, with a warning: otherwise it would train without a basis until the next one."""
    ((ours,), (theirs,)) = twins([SHAPE])
    cls = getattr(optgen_optim, name)
    opt, other = (cls([param], target="cpu", **RULES[name]) for param in (ours, theirs))
    ours.grad = numbers(9, SHAPE)
    ours.grad[2, 3] = BAD["nan"]
    with pytest.warns(NotFiniteWarning, match=rf"{name}: parameter 0 of shape \(8, 16\) has not begun"):
        opt.step()
    for step in range(3):
        ours.grad, theirs.grad = numbers(step, SHAPE), numbers(step, SHAPE)
        opt.step()
        other.step()
    assert same(snapshot(opt, [ours]), snapshot(other, [theirs]))


@pytest.mark.parametrize("target", TARGETS)
def test_norms_are_of_the_matrices_that_step(target: str) -> None:
    """max_grad_norm, trust_ratio and max_unorm see no NaN of a matrix that stays."""
    settings: dict[str, Any] = {"matrix_form": "batch", "trust_ratio": "lamb", "max_unorm": 0.1, "cautious": True}
    for name in ("Muon", "NorMuon", "GaLoreAdamW"):
        (ours, _), _ = twins([EXPERTS, SHAPE])
        with ready(target) as chosen:
            opt = make(name, [ours], chosen, max_grad_norm=1.0, **settings)
            for step in range(3):
                ours.grad = numbers(step, EXPERTS)
                if step == 1:
                    ours.grad[1, 2, 3] = BAD["inf"]
                before = ours.detach().clone()
                opt.step()
                moved = (ours.detach() - before).flatten(1).norm(dim=1)
                assert (moved == 0).tolist() == [False, step == 1, False]
                assert float(moved.norm()) < 0.5 * float(before.norm())


def test_within_backward() -> None:
    """fused_backward: the matrix stays, and its gradient is freed as others are."""
    layer = nn.Linear(16, 8, bias=False)
    before = layer.weight.detach().clone()
    opt = optgen_optim.Muon(layer.parameters(), nonfinite="skip", fused_backward=True, target="cpu")
    layer(torch.full((2, 16), float("inf"))).sum().backward()
    opt.step()
    assert layer.weight.grad is None
    assert torch.equal(layer.weight, before)
    layer(torch.ones(2, 16)).sum().backward()
    opt.step()
    assert not torch.equal(layer.weight, before)


def test_a_scaled_gradient_that_overflows() -> None:
    """A finite gradient that becomes infinite as it is unscaled counts as infinite."""
    for shape, settings in ((SHAPE, {}), (EXPERTS, {"matrix_form": "batch"})):
        param = nn.Parameter(numbers(0, shape))
        before = param.detach().clone()
        opt = optgen_optim.Muon([param], nonfinite="skip", target="cpu", **settings)  # type: ignore[arg-type]
        param.grad = numbers(1, shape)
        param.grad.view(-1)[0] = 1e38
        opt.grad_scale = torch.tensor(1e-3)  # type: ignore[attr-defined]
        opt.step()
        stays = torch.zeros(shape, dtype=torch.bool)
        stays.view(-1, SHAPE[0] * SHAPE[1])[0] = True
        assert torch.equal(param[stays], before[stays])
        assert stays.all() or not torch.equal(param[~stays], before[~stays])


def test_propagates_otherwise() -> None:
    """Without it a NaN goes on, as in torch."""
    param = nn.Parameter(numbers(0, SHAPE))
    opt = optgen_optim.Muon([param], target="cpu")
    param.grad = numbers(1, SHAPE)
    param.grad[2, 3] = BAD["nan"]
    opt.step()
    assert torch.isnan(param).all()


def test_several_rules_in_one_optimizer() -> None:
    """The other rule's elements are left out by themselves, as before."""
    model = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8))
    own = {"rule": "muon", "nonfinite": "skip"}
    opt = optgen_optim.for_model(model, own, {"rule": "adamw", "nonfinite": "skip"}, lr=1e-2, show=False)
    before = copy.deepcopy(model.state_dict())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
        param.grad.view(-1)[0] = BAD["nan"]
    opt.step()
    after = model.state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert before["0.bias"][0] == after["0.bias"][0]
    assert not torch.equal(before["0.bias"], after["0.bias"])
