"""Reductions of every kind, against torch's own on float64: maxima, deviations, and numbers that are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import optgen
from numerics.harness import targeted

LINES = {"row": -1, "col": -2, "matrix": (-2, -1)}
SPEC = """
name: extremes
title: Extremes
hyperparameters: {lr: 1e-2}
states:
  average: {}
  top: {shape: tensor}
  row_top: {shape: row, when: ndim >= 2}
  col_top: {shape: col, when: ndim >= 2}
  matrix_top: {shape: matrix, when: ndim >= 2}
  row_std: {shape: row, when: ndim >= 2}
  of_rows: {shape: matrix, when: ndim >= 2}
  spread: {shape: tensor}
blocks:
  step: |
    average = 0.5 * average + grad
    top = max(grad)
    spread = std(grad)
    param = param - lr * (grad + average + max(grad) + min(grad))
    if ndim >= 2:
        row_top = max(grad, over=row)
        col_top = min(grad, over=col)
        matrix_top = absmax(grad, over=matrix)
        row_std = std(grad, over=row)
        of_rows = min(max(grad, over=row), over=matrix)
        param = param - lr * (row_top + col_top * matrix_top + row_std + of_rows + top + spread)
"""


@pytest.fixture(scope="module")
def extremes(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("extremes") / "extremes.yaml"
    path.write_text(SPEC)
    return optgen.load(path)


def gradients() -> list[Tensor]:
    """Gradients with negative numbers alone, with NaN of both signs, infinite ones and zeros of both signs."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(5, 7), (3, 4, 5), (2, 2, 3, 4), (9,), (), (300, 41), (1, 1), (40, 3, 3)]
    plain = [torch.randn(shape, generator=generator) for shape in shapes]
    below = -plain[0].abs() - 1
    infinite = plain[0].clone()
    infinite[0, 0], infinite[2, 3], infinite[4] = math.inf, -math.inf, -math.inf
    invalid = plain[1].clone()
    invalid[0, 1, 2], invalid[2, 0, 0] = math.nan, -math.nan
    zeros = torch.tensor([[-0.0, 0.0], [-0.0, -0.0], [0.0, -1.0]])
    return [*plain, below, infinite, invalid, zeros]


def expected(grad: Tensor) -> dict[str, Tensor]:
    x = grad.double()
    if grad.dim() < 2:
        return {"top": x.max(), "spread": x.std() if x.numel() > 1 else x.new_tensor(math.nan)}
    return {
        "top": x.max(),
        "spread": x.std(),
        "row_top": x.amax(-1),
        "col_top": x.amin(-2),
        "matrix_top": x.abs().amax((-2, -1)),
        "row_std": x.std(-1),
        "of_rows": x.amax(-1).amin(-1),
    }


@pytest.mark.filterwarnings("ignore:std")
def test_every_kind(extremes: ModuleType, target: str) -> None:
    """Maxima are those of torch exactly; deviations are within a few roundings of float32."""
    grads = gradients()
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    opt = targeted(extremes.Extremes, params, target, optim_bits=8, min_8bit_size=0)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    opt.step()
    for param, grad in zip(params, grads, strict=True):
        for name, value in expected(grad).items():
            ours = opt.state[param][name].cpu().double()
            exact = name not in ("spread", "row_std")
            torch.testing.assert_close(
                ours,
                value,
                rtol=0 if exact else 2e-6,
                atol=0 if exact else 1e-6,
                equal_nan=True,
                msg=lambda text, about=f"{name} {grad}": f"{about}: {text}",
            )
            if exact:
                assert not (torch.signbit(ours) & (ours == 0)).any(), f"{name}: a zero has a sign"


def test_no_elements(extremes: ModuleType, target: str) -> None:
    """Parameters without elements take their steps beside others."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 0), (0, 3), (2, 4))]
    opt = targeted(extremes.Extremes, params, target)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    assert (opt.state[params[2]]["row_top"] == 1).all()


@pytest.mark.filterwarnings("ignore:std")
def test_reference_follows(tmp_path: Path) -> None:
    path = tmp_path / "extremes.yaml"
    path.write_text(SPEC)
    grads = [grad for grad in gradients() if grad.isfinite().all()]
    _, state = optgen.reference(path).step([torch.zeros_like(grad) for grad in grads], grads)
    for states, grad in zip(state.params, grads, strict=True):
        for name, value in expected(grad).items():
            torch.testing.assert_close(states[name], value, rtol=1e-12, atol=1e-12, equal_nan=True)


DIMENSIONS = """
name: dimensions
title: Dimensions
hyperparameters: {lr: 1e-2}
states:
  average: {}
  channel: {shape: channel, when: ndim >= 2}
  top: {shape: last, when: ndim >= 2}
  line: {shape: last2, when: ndim >= 2}
  planes: {shape: last3, when: ndim >= 3}
  blocks: {shape: last4, when: ndim >= 4}
functions: |
  def per_input(x):
      return x / fan_in
blocks:
  step: |
    average = 0.5 * average + grad
    update = per_input(average)
    if ndim >= 2:
        channel = norm(grad, over=channel)
        top = max(top, max(grad, over=last))
        line = mean(row_sum(grad), over=last2) / shape[-2]
        update = update + channel * top + line * std(grad, over=channel)
    if ndim >= 3:
        planes = absmax(grad, over=last3) + shape[0]
        update = update * planes
    if ndim >= 4:
        blocks = min(grad * planes, over=last4)
        update = update + blocks + max(blocks * planes, over=last3) + sum(blocks * channel)
    param = param - lr * update
"""
SHAPES = [(7,), (), (5, 7), (40, 300), (3, 4, 5), (2, 3, 4, 5), (6, 4, 3, 3), (8, 6, 1, 1), (2, 3, 2, 3, 4)]


def by_hand(param: Tensor, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The rule `dimensions` at its first step with torch's own operations, in float64."""
    x, rank = grad.double(), grad.dim()
    update = x / (x.numel() / (x.shape[0] if rank else 1))
    states: dict[str, Tensor] = {}

    def at(value: Tensor, dim: int) -> Tensor:
        return value.reshape([-1 if d == dim % rank else 1 for d in range(rank)])

    def but(dim: int) -> tuple[int, ...]:
        return tuple(d for d in range(rank) if d != dim % rank)

    if rank >= 2:
        channel = states["channel"] = x.flatten(1).norm(dim=1)
        states["top"] = x.amax(but(-1)).clamp(min=0)
        states["line"] = x.sum(-1, keepdim=True).mean(but(-2)) / x.shape[-2]
        spread = x.flatten(1).std(dim=1)
        update = update + at(channel, 0) * at(states["top"], -1) + at(states["line"], -2) * at(spread, 0)
    if rank >= 3:
        planes = states["planes"] = x.abs().amax(but(-3)) + x.shape[0]
        update = update * at(planes, -3)
    if rank >= 4:
        blocks = states["blocks"] = (x * at(planes, -3)).amin(but(-4))
        both = at(blocks, -4) * at(planes, -3)
        whole = (at(blocks, -4) * at(channel, 0)).expand(*x.shape[:-1], 1)
        update = update + at(blocks, -4) + at(both.amax(but(-3)), -3) + whole.sum()
    return param.double() - 1e-2 * update, states


@pytest.mark.parametrize("bits", [32, 8])
def test_dimensions(bits: int, target: str, tmp_path: Path) -> None:
    """Channels and single dimensions of tensors of every rank, as states and as what elements read."""
    path = tmp_path / "dimensions.yaml"
    path.write_text(DIMENSIONS)
    generator = torch.Generator().manual_seed(5)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [torch.nn.Parameter(param.clone()) for param in start]
    settings = {"optim_bits": 8, "min_8bit_size": 0} if bits == 8 else {}
    opt = targeted(optgen.load(path).Dimensions, params, target, **settings)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    opt.step()
    followed, reference = optgen.reference(path).step(start, grads)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        new, states = by_hand(start[i], grad)
        torch.testing.assert_close(param.detach().cpu().double(), new, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(followed[i], new, rtol=1e-12, atol=1e-12)
        for name, value in states.items():
            torch.testing.assert_close(opt.state[param][name].cpu().double(), value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(reference.params[i][name], value, rtol=1e-12, atol=1e-12)
    again = targeted(type(opt), [torch.nn.Parameter(p.detach().clone()) for p in params], target, **settings)
    again.load_state_dict(opt.state_dict())
    for o, ps in ((opt, params), (again, again.param_groups[0]["params"])):
        for param, grad in zip(ps, grads, strict=True):
            param.grad = grad.clone()
        o.step()
    for one, other in zip(params, again.param_groups[0]["params"], strict=True):
        assert torch.equal(one, other)


ALONE = """
name: by_channel
title: By channel
hyperparameters: {lr: 1e-2}
states:
  average: {}
  size: {shape: channel, when: ndim >= 2}
  top: {shape: channel, when: ndim >= 2}
blocks:
  step: |
    average = 0.5 * average + grad
    update = average
    if ndim >= 2:
        size = 0.5 * size + norm(grad, over=channel)
        top = max(average * size, over=channel) - min(grad, over=channel)
        update = average / (1 + size) + top * std(grad, over=channel)
    param = param - lr * update
"""


@pytest.mark.parametrize(("rows", "alone"), [("", True), (" + 0 * max(row_sum(grad), over=channel)", False)])
def test_channels_alone(rows: str, alone: bool, target: str, tmp_path: Path) -> None:
    """Kernels take a channel as one row in a rule that tells no other dimension; numbers stay the same."""
    path = tmp_path / "by_channel.yaml"
    path.write_text(ALONE.replace("over=channel)\n    param", f"over=channel){rows}\n    param"))
    cls = optgen.load(path).ByChannel
    assert cls.rule.channels_alone == alone
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    opt = targeted(cls, params, target)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    opt.step()
    for param, grad in zip(params, grads, strict=True):
        x = grad.double()
        update = x
        if grad.dim() >= 2:
            flat = x.flatten(1)
            size = flat.norm(dim=1, keepdim=True)
            top = (flat * size).amax(1, keepdim=True) - flat.amin(1, keepdim=True)
            update = (flat / (1 + size) + top * flat.std(1, keepdim=True)).reshape(x.shape)
            torch.testing.assert_close(opt.state[param]["size"].cpu().double(), size[:, 0], rtol=1e-6, atol=0)
            torch.testing.assert_close(opt.state[param]["top"].cpu().double(), top[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(param.detach().cpu().double(), -1e-2 * update, rtol=1e-5, atol=1e-7)
