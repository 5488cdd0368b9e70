"""Matrices of a parameter as settings declare them: convolutions, stacked experts, heads."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import optgen_optim
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


OWN_STEPS: dict[str, dict[str, Any]] = {
    "GaLoreAdamW": {"rank": 2, "update_proj_gap": 2},
    "GaLoreAdafactor": {"rank": 2, "update_proj_gap": 2, "beta1": 0.9},
    "APOLLO": {"rank": 2, "update_proj_gap": 2, "proj": "svd"},
    "SOAP": {"precondition_frequency": 2},
    "Shampoo": {"precondition_frequency": 2, "eps": 1e-2},
}


# Matrices of whole cache lines: the last bits of torch's products may depend on where a matrix begins in memory.
ALIGNED: dict[str, tuple[tuple[int, ...], dict[str, Any], Any]] = {
    "flatten": ((8, 2, 2, 4), {"matrix_form": "flatten"}, lambda x: [x.reshape(8, 16)]),
    "batch": ((3, 8, 6), {"matrix_form": "batch"}, lambda x: x.unbind()),
    "heads": ((12, 16), {"row_blocks": 4}, lambda x: x.split(3)),
    "heads of experts": ((3, 8, 8), {"matrix_form": "batch", "row_blocks": 2}, lambda x: x.reshape(6, 4, 8).unbind()),
    "groups of filters": (
        (8, 2, 2, 4),
        {"matrix_form": "flatten", "row_blocks": 2},
        lambda x: x.reshape(2, 4, 16).unbind(),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OWN_STEPS)
def test_states_of_own_dimensions_are_of_each_matrix(name: str, target: str) -> None:
    """Bit for bit as parameters of two dimensions: convolutions, stacked experts, heads."""
    cls, settings = getattr(optgen_optim, name), OWN_STEPS[name]
    for form, (shape, own, cut) in ALIGNED.items():
        param, opt = trained(cls, target, shape, **own, **settings)
        parts = [nn.Parameter(part.clone()) for part in cut(numbers(0, shape))]
        with ready(target) as chosen:
            other = cls(parts, target=chosen, **settings)
            for step in range(STEPS):
                for part, grad in zip(parts, cut(numbers(step + 1, shape)), strict=True):
                    part.grad = grad.clone()
                other.step()
        for found, part in zip(cut(param.detach()), parts, strict=True):
            assert torch.equal(found, part), form
        for state in opt.rule.matrix_states:
            if state.name in opt.state[param]:
                whole = opt.state[param][state.name].reshape(len(parts), *other.state[parts[0]][state.name].shape)
                assert all(torch.equal(w, other.state[p][state.name]) for w, p in zip(whole, parts, strict=True))


@pytest.mark.parametrize("name", ["APOLLO", "Dion"])
def test_random_matrices_of_blocks_are_their_own(name: str) -> None:
    param, opt = trained(getattr(optgen_optim, name), "torch", EXPERTS, matrix_form="batch", rank=2)
    first, second, third = opt.state[param]["basis" if name == "APOLLO" else "right"]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, bits) for name in (*OWN_STEPS, "Dion") for bits in (32, 8, 4) if (name, bits) != ("SOAP", 4)],
)
def test_own_dimensions_resume_bit_for_bit(name: str, bits: int) -> None:
    for form in ("flatten", "heads of experts"):
        shape, own, _ = FORMS[form]
        settings = {**own, **OWN_STEPS.get(name, {"rank": 2}), "optim_bits": bits, "min_8bit_size": 0}
        if bits < 32 and name in ("GaLoreAdafactor",):
            settings["beta1"] = 0.9
        cls = getattr(optgen_optim, name)
        param, opt = trained(cls, "cpu", shape, **settings)
        twin = nn.Parameter(param.detach().clone())
        other = cls([twin], target="cpu", **settings)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        for each, made in ((param, opt), (twin, other)):
            each.grad = numbers(9, shape)
            made.step()
        assert same(snapshot(opt, [param]), snapshot(other, [twin]))


@pytest.mark.parametrize("target", TARGETS)
def test_one_matrix_of_several_that_is_not_finite_is_left_and_named(target: str) -> None:
    param, opt = trained(optgen_optim.GaLoreAdamW, target, EXPERTS, matrix_form="batch", rank=2)
    before = param.detach().clone(), {key: value.clone() for key, value in opt.state[param].items()}
    param.grad = numbers(9, EXPERTS)
    param.grad[1, 2, 3] = float("nan")
    with (
        ready(target),
        pytest.warns(UserWarning, match=r"matrix 1 of parameter 0 of shape \(3, 10, 6\) was left as it"),
    ):
        opt.step()
    for number in range(3):
        kept = number == 1
        assert torch.equal(param[number], before[0][number]) is kept
        assert torch.equal(opt.state[param]["exp_avg"][number], before[1]["exp_avg"][number]) is kept


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
