"""Numbers that are given for parameters' next step: MuonClip's logits of heads, and inputs of other shapes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import optgen_optim
import pytest
import torch
from optgen_optim import Muon, MuonClip, for_model
from runtime.training import same, snapshot
from support.targets import ready
from torch import Tensor, nn

import optgen

TARGETS = ("torch", "cpu", "cuda")
BITS = {"32": {}, "8": {"optim_bits": 8, "min_8bit_size": 0}, "4": {"optim_bits": 4, "min_8bit_size": 0}}
SHAPES = ((12, 20), (20, 12), (9, 9))
HEADS = (4, 2, 3)
STEPS = 4
MUON = {"adjust_lr_fn": "match_rms_adamw", "momentum_form": "sum", "nesterov": False}


def numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(numbers(i, shape)) for i, shape in enumerate(SHAPES)]


def logits(step: int, heads: int) -> Tensor:
    return 70.0 * torch.arange(1.0, heads + 1) + step


def step(opt: Any, params: list[nn.Parameter], number: int) -> None:
    for i, param in enumerate(params):
        param.grad = numbers(100 * number + i, tuple(param.shape)).reshape(param.shape)
    opt.step()


def factors(step: int, heads: int, rows: int, exponent: float) -> Tensor:
    """The factor of each row."""
    wide = logits(step, heads).double()
    return (100 / wide.clamp(min=100)).pow(exponent).repeat_interleave(rows // heads)[:, None]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
def test_muonclip_is_muon_and_a_factor_of_each_head(target: str, bits: str) -> None:
    """The momentum does not see the factors, so that its bits are those of Muon; a step without logits has none."""
    params, plain, largest = parameters(), parameters(), 0.0
    with ready(target) as chosen:
        ours = MuonClip(params, target=chosen, lr=0.02, qk_exponent=0.3, **BITS[bits])
        muon = Muon(plain, target=chosen, lr=0.02, **MUON, **BITS[bits])
        for number in range(STEPS):
            if number != 2:
                pairs = zip(params[:2], HEADS, strict=False)
                ours.give(max_logits={param: logits(number, heads) for param, heads in pairs})
            step(ours, params, number)
            step(muon, plain, number)
            largest = max(largest, *(float(param.detach().abs().max()) for param in plain))
            for i, (param, heads) in enumerate(zip(plain[:2], HEADS, strict=False)):
                if number != 2:
                    param.data *= factors(number, heads, SHAPES[i][0], 0.3).float()
    for i, (param, other) in enumerate(zip(params, plain, strict=True)):
        # Off by units of 2**-24 a step: 1 of the power, 0.3 + 0.3 ln 2.8 of base and exponent, 0.5 of a product; and
        # 1 of the factor and the product here.
        assert float((param - other).detach().abs().max()) <= STEPS * 3.2 * 2**-24 * largest
        assert torch.equal(ours.state[param]["momentum_buffer"], muon.state[other]["momentum_buffer"]), i
        assert not ours.state[param]["max_logits"].any()
    assert torch.equal(params[2], plain[2])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
def test_resumes_bit_for_bit_with_what_was_given(target: str, bits: str) -> None:
    params = parameters()
    with ready(target) as chosen:
        ours = MuonClip(params, target=chosen, **BITS[bits])
        step(ours, params, 0)
        ours.give(max_logits={params[0]: logits(0, 4)})
        twins = [nn.Parameter(param.detach().clone()) for param in params]
        other = MuonClip(twins, target=chosen, **BITS[bits])
        other.load_state_dict(copy.deepcopy(ours.state_dict()))
        for opt, own in ((ours, params), (other, twins)):
            step(opt, own, 1)
        assert same(snapshot(ours, params), snapshot(other, twins))
        without = MuonClip(again := parameters(), target=chosen, **BITS[bits])
        step(without, again, 0)
        step(without, again, 1)
    assert not torch.equal(params[0], again[0])


def test_given_before_the_first_step_and_in_other_forms() -> None:
    """A number for each row, for each head, one for all; heads of stacked matrices; a matrix of blocks."""
    for value, wide in ((torch.full((12,), 400.0), 400), (torch.full((4,), 400.0), 400), (400, 400)):
        param = nn.Parameter(numbers(0, (12, 20)))
        opt = MuonClip([param], target="torch", lr=0.0)
        opt.give(max_logits={param: value})
        step(opt, [param], 0)
        assert torch.equal(param, numbers(0, (12, 20)) * math.sqrt(100 / wide))
    experts = nn.Parameter(numbers(0, (2, 6, 4)))
    opt = MuonClip([experts], target="torch", lr=0.0, matrix_form="batch")
    opt.give(max_logits={experts: torch.tensor([[50.0, 400.0], [400.0, 50.0]])})
    step(opt, [experts], 0)
    wanted = numbers(0, (2, 6, 4))
    wanted[0, 3:] /= 2
    wanted[1, :3] /= 2
    assert torch.equal(experts, wanted)
    blocks = nn.Parameter(numbers(0, (12, 20)))
    opt = MuonClip([blocks], target="torch", lr=0.0, row_blocks=3)
    opt.give(max_logits={blocks: [50.0, 400.0, math.inf]})
    step(opt, [blocks], 0)
    wanted = numbers(0, (12, 20))
    wanted[4:8] /= 2
    assert torch.equal(blocks, wanted)


def test_what_is_given_is_checked_before_any_is_taken() -> None:
    params, stranger = parameters(), nn.Parameter(torch.ones(2, 2))
    opt = MuonClip(params, target="torch")
    good = {params[0]: logits(0, 4)}
    with pytest.raises(TypeError, match=r"MuonClip.give: the rule muonclip has no input 'logits' of parameters; it has "
                                        "max_logits"):  # fmt: skip
        opt.give(logits=good)
    with pytest.raises(TypeError, match=r"max_logits is numbers by parameter, as \{parameter: tensor\}, not a Tensor"):
        opt.give(max_logits=logits(0, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_logits of a parameter \(shape \(2, 2\)\) that is not in the optimizer"):
        opt.give(max_logits=good | {stranger: 3.0})
    with pytest.raises(ValueError, match=r"of shape \(12, 20\) has the shape \(5,\), not \(12,\): one number for each "
                                         "row, or for each of several equal blocks"):  # fmt: skip
        opt.give(max_logits=good | {params[0]: torch.ones(5)})
    with pytest.raises(ValueError, match=r"has the shape \(2, 6\), not \(12,\)"):
        opt.give(max_logits={params[0]: torch.ones(2, 6)})
    with pytest.raises(ValueError, match=r"has the shape \(0,\), not \(12,\)"):
        opt.give(max_logits={params[0]: torch.ones(0)})
    with pytest.raises(TypeError, match=r"max_logits is numbers, not torch.bool"):
        opt.give(max_logits={params[0]: torch.ones(4, dtype=torch.bool)})
    with pytest.raises(
        TypeError, match=r"Muon.give: the rule muon has no input 'max_logits' of parameters; it has none"
    ):
        Muon(parameters()).give(max_logits=good)
    assert not opt.state


def test_a_skipped_step_takes_nothing() -> None:
    """Neither one that a gradient scaler skips, nor one in which the parameter has no gradient."""
    for target in ("torch", "cpu"):
        params = parameters()
        opt = MuonClip(params, target=target, lr=0.0)
        opt.give(max_logits={params[0]: 400.0, params[1]: 400.0})
        opt.found_inf = torch.ones(())
        step(opt, params, 0)
        del opt.found_inf
        params[0].grad = None
        opt.step()
        assert torch.equal(params[0], numbers(0, SHAPES[0]))
        assert torch.equal(params[1], numbers(1, SHAPES[1]) / 2)
        step(opt, params, 1)
        assert torch.equal(params[0], numbers(0, SHAPES[0]) / 2)
        assert torch.equal(params[1], numbers(1, SHAPES[1]) / 2)


def test_several_rules_take_what_is_theirs() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))
    opt = for_model(model, {"rule": "muonclip"}, "adamw", lr=0.0, target="torch", show=False)
    weight, before = model[2].weight, model[2].weight.detach().clone()
    with pytest.raises(ValueError, match="that is not in the optimizer"):
        opt.give(max_logits={weight: 400.0, nn.Parameter(torch.ones(2, 2)): 1.0})
    with pytest.raises(TypeError, match=r"AdamW.give: the rule adam has no input 'max_logits'"):
        opt.give(max_logits={weight: 400.0, model[1].weight: 1.0})
    opt.give(max_logits={weight: torch.tensor([400.0, 1.0])})
    model(torch.ones(3, 12)).sum().backward()
    opt.step()
    assert torch.equal(weight[:4], before[:4] / 2)
    assert torch.equal(weight[4:], before[4:])


def test_fused_backward_takes_it_too() -> None:
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    opt = MuonClip(layer.parameters(), lr=0.0, target="torch", fused_backward=True)
    opt.give(max_logits={layer.weight: [1.0, 400.0]})
    layer(torch.ones(2, 6)).sum().backward()
    opt.step()
    assert torch.equal(layer.weight[2:], before[2:] / 2)
    assert torch.equal(layer.weight[:2], before[:2])


OTHERS = {
    "matrix": ((2, 3, 4), (2,)),
    "col": ((3, 4), (4,)),
    "channel": ((3, 4), (3,)),
    "tensor": ((3, 4), ()),
}


@pytest.mark.parametrize("shape", OTHERS)
@pytest.mark.parametrize("target", TARGETS)
def test_inputs_of_other_shapes(shape: str, target: str, tmp_path: Path) -> None:
    """Against the equations in float64, which the reference has too; without what is given the default holds."""
    whole, wanted = OTHERS[shape]
    when = "" if shape == "tensor" else "if ndim >= 2:\n        "
    path = tmp_path / "scaled.yaml"
    path.write_text(f"""\
name: scaled
{"" if shape == "tensor" else "ndim: 2"}
hyperparameters: {{lr: 0.1}}
inputs:
  weight: {{shape: {shape}, default: 1, doc: A factor of the gradient.}}
blocks:
  step: |
    {when}param = param - lr * weight * grad
""")
    made = optgen.load(path).Scaled
    param, given = nn.Parameter(numbers(0, whole)), numbers(1, wanted)
    settings = {"matrix_form": "batch"} if len(whole) > 2 else {}
    with ready(target) as chosen:
        opt = made([param], target=chosen, **settings)
        opt.give(weight={param: given})
        step(opt, [param], 0)
        step(opt, [param], 1)
    reference = optgen.reference(path)
    params, state = reference.step([numbers(0, whole)], [numbers(0, whole)], weight=[given])
    params, _ = reference.step(params, [numbers(100, whole)], state)
    assert np.abs(param.detach().double().numpy() - params[0].numpy()).max() < 1e-6
    assert "weight: For parameters' next step, by `give`. A factor of the gradient." in made.__doc__


def test_it_is_documented() -> None:
    text = " ".join((optgen_optim.MuonClip.__doc__ or "").split())
    assert "max_logits: For parameters' next step, by `give`. The greatest logit of each row's head" in text
