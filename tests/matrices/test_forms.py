"""Matrices of a parameter as settings declare them: convolutions, stacked experts, heads."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from optgen_optim import Muon, Muon8bit, NorMuon, for_model
from runtime.training import same, snapshot
from support.targets import ready
from torch import Tensor, nn

from matrices.oracle import MuonOracle

TARGETS = ("torch", "cpu", "cuda")
STEPS = 3
CONVOLUTION, EXPERTS, HEADS = (12, 3, 2, 4), (3, 10, 6), (12, 20)


def numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(cls: Any, target: str, shape: tuple[int, ...], seen: tuple[int, ...] | None = None, **settings: Any) -> Any:
    """A parameter after some steps, and its optimizer; of the same numbers in another shape, where that is `seen`."""
    param = nn.Parameter(numbers(0, shape).reshape(seen or shape))
    with ready(target) as chosen:
        opt = cls([param], target=chosen, **settings)
        for step in range(STEPS):
            param.grad = numbers(step + 1, shape).reshape(param.shape)
            opt.step()
    return param, opt


def assert_follows(param: Tensor, cut: Any, **settings: Any) -> None:
    """Hold a parameter against the formula for each of its matrices: `cut` makes them of a tensor of its shape."""
    shape = tuple(param.shape)
    oracles = [MuonOracle(part.double().numpy(), **settings) for part in cut(numbers(0, shape))]
    for step in range(STEPS):
        for oracle, part in zip(oracles, cut(numbers(step + 1, shape)), strict=True):
            oracle.step(part.double().numpy())
    for oracle, part in zip(oracles, cut(param.detach()), strict=True):
        assert np.abs(part.double().numpy() - oracle.param).max() <= oracle.error


FORMS: dict[str, tuple[tuple[int, ...], dict[str, Any], Any]] = {
    "flatten": (CONVOLUTION, {"matrix_form": "flatten"}, lambda x: [x.reshape(12, 24)]),
    "batch": (EXPERTS, {"matrix_form": "batch"}, lambda x: x.unbind()),
    "heads": (HEADS, {"row_blocks": 4}, lambda x: x.split(3)),
    "heads of experts": (EXPERTS, {"matrix_form": "batch", "row_blocks": 2}, lambda x: x.reshape(6, 5, 6).unbind()),
    "groups of filters": (
        CONVOLUTION,
        {"matrix_form": "flatten", "row_blocks": 3},
        lambda x: x.reshape(3, 4, 24).unbind(),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_each_matrix_by_itself(form: str, target: str, scale: str) -> None:
    """Also in its scale, which follows from the matrix's own rows and columns."""
    shape, settings, cut = FORMS[form]
    param, opt = trained(Muon, target, shape, **settings, adjust_lr_fn=scale)
    assert_follows(param, cut, scale=scale)
    assert opt.state[param]["momentum_buffer"].shape == shape


@pytest.mark.parametrize("target", TARGETS)
def test_a_convolution_is_the_matrix_of_its_rows(target: str) -> None:
    """Bit for bit, rows of states and codes of 8 bits too."""
    for cls, own in ((NorMuon, {}), (Muon8bit, {"min_8bit_size": 0})):
        first, opt = trained(cls, target, CONVOLUTION, matrix_form="flatten", **own)
        second, plain = trained(cls, target, CONVOLUTION, (12, 24), **own)
        assert torch.equal(first.flatten(1), second)
        for key, value in opt.state[first].items():
            assert torch.equal(value.flatten(), plain.state[second][key].flatten()), key
    param, opt = trained(NorMuon, target, HEADS, row_blocks=4)
    assert opt.state[param]["second_momentum"].shape == (4, 3)


def test_by_group_and_by_parameter() -> None:
    """A group's key, its overrides, and `override`; an optimizer may have matrices of every form."""
    params = [nn.Parameter(numbers(i, shape)) for i, shape in enumerate((CONVOLUTION, EXPERTS, HEADS, HEADS))]
    groups = [
        {"params": params[:1], "matrix_form": "flatten"},
        {"params": params[1:], "overrides": {0: {"matrix_form": "batch"}}},
    ]
    opt = Muon(groups, target="torch")
    opt.override(params[2], row_blocks=4)
    for index, param in enumerate(params):
        param.grad = numbers(10 + index, tuple(param.shape))
    opt.step()
    for index, cut in ((0, FORMS["flatten"][2]), (1, FORMS["batch"][2]), (2, FORMS["heads"][2]), (3, lambda x: [x])):
        shape = tuple(params[index].shape)
        tensors = params[index].detach(), numbers(index, shape), numbers(10 + index, shape)
        for found, start, grad in zip(*map(cut, tensors), strict=True):
            oracle = MuonOracle(start.double().numpy())
            oracle.step(grad.double().numpy())
            assert np.abs(found.double().numpy() - oracle.param).max() <= oracle.error


@pytest.mark.parametrize("form", FORMS)
def test_resumes_bit_for_bit(form: str) -> None:
    shape, settings, _ = FORMS[form]
    for cls, own in ((NorMuon, settings), (Muon8bit, settings | {"min_8bit_size": 0})):
        param, opt = trained(cls, "torch", shape, **own)
        twin = nn.Parameter(param.detach().clone())
        other = cls([twin], target="torch", **own)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        for each, made in ((param, opt), (twin, other)):
            each.grad = numbers(9, shape)
            made.step()
        assert same(snapshot(opt, [param]), snapshot(other, [twin]))


def test_what_no_setting_makes_a_matrix_is_refused() -> None:
    convolution, bias, heads = (nn.Parameter(torch.ones(shape)) for shape in (CONVOLUTION, (4,), HEADS))
    with pytest.raises(ValueError, match=r"'bias' has the shape \(4,\), which is no matrix: .* for_model\(model"):
        Muon([("bias", bias)])
    with pytest.raises(ValueError, match="of which no setting says what its matrices are: matrix_form='flatten'"):
        Muon([convolution])
    with pytest.raises(ValueError, match="whose 12 rows are not row_blocks=5 blocks of equal size"):
        Muon([heads], row_blocks=5)
    with pytest.raises(ValueError, match="matrix_form must be one of None, 'flatten', 'batch'"):
        Muon([convolution], matrix_form="conv")
    opt = Muon([heads])
    with pytest.raises(ValueError, match="which is no matrix"):
        opt.add_param_group({"params": [bias], "matrix_form": "flatten"})
    assert len(opt.param_groups) == 1
    heads.grad = torch.ones(HEADS)
    opt.param_groups[0]["row_blocks"] = 7
    with pytest.raises(ValueError, match="row_blocks=7"):
        opt.step()
    assert not opt.state
    assert torch.equal(heads, torch.ones(HEADS))


def test_a_whole_model() -> None:
    """Its convolutions are matrices where the rule's settings say which."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    for form, shapes in ((None, [(8, 16)]), ("flatten", [(4, 3, 3, 3), (8, 16)])):
        opt = for_model(model, {"rule": "muon", "matrix_form": form}, show=False)
        taken = [tuple(p.shape) for group in opt.param_groups if "ns_steps" in group for p in group["params"]]
        assert taken == shapes
        model(torch.ones(2, 3, 4, 4)).sum().backward()
        opt.step()
