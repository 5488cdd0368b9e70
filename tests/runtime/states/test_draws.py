"""Random initial values: the numbers themselves, and that they follow from the seed and the place alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiling import refusal, write_spec
from torch import nn

import optgen
from optgen.runtime.states.philox import Draw

RULE = """\
name: drawn
hyperparameters: {lr: 1e-3}
states:
  noise: {init: normal(), codecs: [fp32]}
  other: {init: 2 * uniform() - uniform(), codecs: [fp32]}
  spread: {shape: tensor, init: rms(grad - mean(grad)) / rms(param)}
  length: {shape: row, init: row_mean(normal() * normal()), when: ndim >= 2}
blocks:
  step: |
    param = param - lr * (grad + noise + other) * spread
    if ndim >= 2:
        param = param + lr * length
"""


def begun(folder: Path, target: str, **settings: Any) -> tuple[Any, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((40, 30), (), (9,))]
    for param in params:
        param.grad = torch.ones_like(param) * 2 + param.detach()
    opt = optgen.load(write_spec(folder, RULE)).Drawn(params, target=target, **settings)
    opt.step()
    return opt, params


def test_the_numbers_of_a_known_key() -> None:
    """The blocks of Philox4x32-10 for the counter (element, 1 << 16, 0, 0), by the oracle that is tested by itself."""
    from oracles.philox import words

    first, second = words(1000, 7, 3, 2).astype("float64").T
    draw = Draw(7, 3)
    assert torch.equal(draw.uniform(2, 1000, "cpu"), torch.tensor(first // 256 / 2**24).float())
    angle = torch.tensor(second) * (2 * torch.pi / 2**32)
    value = (torch.tensor((first + 1) / 2**32).log() * -2).sqrt() * angle.cos()
    torch.testing.assert_close(draw.normal(2, 1000, "cpu").double(), value, rtol=1e-6, atol=1e-7)


def test_moments() -> None:
    """Within five standard errors."""
    count = 200_000
    uniform, normal = Draw(3, 1).uniform(1, count, "cpu").double(), Draw(3, 1).normal(2, count, "cpu").double()
    assert 0 <= float(uniform.min()) < 1e-3 < 1 - 1e-3 < float(uniform.max()) < 1
    error = 5 / count**0.5
    assert abs(float(uniform.mean()) - 0.5) < error / 12**0.5
    assert abs(float(normal.mean())) < error
    assert abs(float((normal**2).mean()) - 1) < error * 2**0.5
    assert abs(float((normal**4).mean()) - 3) < error * 96**0.5
    assert abs(float((normal * (uniform - 0.5)).mean())) < error / 12**0.5


def test_initial_values(target: str, tmp_path: Path) -> None:
    opt, params = begun(tmp_path, target, seed=5)
    for index, param in enumerate(params):
        state, draw, count = opt.state[param], Draw(5, index), param.numel()
        assert torch.equal(state["noise"].flatten(), draw.normal(1, count, "cpu"))
        other = 2 * draw.uniform(2, count, "cpu") - draw.uniform(3, count, "cpu")
        assert torch.equal(state["other"].flatten(), other)
        if param.dim() == 2:
            product = (draw.normal(4, count, "cpu") * draw.normal(5, count, "cpu")).view(40, 30)
            torch.testing.assert_close(state["length"], product.mean(-1), rtol=1e-5, atol=1e-7)


def test_another_seed_gives_others(tmp_path: Path) -> None:
    (first, a), (again, b), (other, c) = (begun(tmp_path, "torch", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.state[a[0]]["noise"], again.state[b[0]]["noise"])
    assert not torch.equal(first.state[a[0]]["noise"], other.state[c[0]]["noise"])


def test_a_part_of_a_tensor_has_its_part_of_the_numbers() -> None:
    elements = torch.tensor([[5, 6], [25, 26]])
    part = Draw(1, 2, elements=elements)
    for name in ("uniform", "normal"):
        whole = getattr(Draw(1, 2), name)(3, 100, "cpu")
        assert torch.equal(getattr(part, name)(3, 4, "cpu"), whole[elements.flatten()])


def test_the_reference_follows(tmp_path: Path) -> None:
    opt, params = begun(tmp_path, "torch")
    _, state = optgen.reference(write_spec(tmp_path, RULE)).step([p.detach() for p in params], [p.grad for p in params])
    for param, states in zip(params, state.params, strict=True):
        torch.testing.assert_close(opt.state[param]["noise"].double(), states["noise"])


@pytest.mark.parametrize("block", ["step", "init"])
def test_mistakes(block: str, tmp_path: Path) -> None:
    if block == "step":
        said = refusal(tmp_path, RULE.replace("grad + noise", "normal() + noise"))
        assert "error[not-in-language]: `normal` is for initial values of states" in said
        assert "^^^^^^^^ write it in `init` of a state" in said
        return
    (tmp_path / "shared.yaml").write_text("{}\n")
    said = refusal(tmp_path, RULE)
    assert "error[no-seed]: `normal` needs the setting `seed`, from which its numbers follow" in said
    assert "^^^^^^^^ declare `seed` in `storage` of shared.yaml" in said
