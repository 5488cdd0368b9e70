"""Initial values of states: expressions over the parameter, its gradient, settings and facts, of every shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compiling import write_spec

import optgen

RULE = """\
name: started
hyperparameters:
  lr: {default: 0.5, range: "[0, inf)"}
  beta1: {default: null, range: "[0, 1)"}
states:
  whole: {init: sum(abs(grad)) * param + numel}
  mean_of: {shape: tensor, init: mean(grad)}
  rms_of: {shape: tensor, init: "where(ndim < 3, rms(grad), norm(grad))"}
  rows_of: {shape: row, init: row_mean(grad) / lr, when: ndim >= 2}
  cols_of: {shape: col, init: "2 * sum(grad, over=matrix)", when: ndim >= 2}
  matrix_of: {shape: matrix, init: "mean(col_sum(grad), over=matrix) + matrices", when: ndim >= 2}
  both: {init: row_sum(grad) - col_sum(grad) + index, when: ndim >= 2}
  given: {init: beta1, when: beta1 is not None}
blocks:
  step: |
    param = param - lr * grad
methods:
  read:
    block: |
      param = param + whole + mean_of + rms_of
      if beta1 is not None:
          param = param + given
      if ndim >= 2:
          param = param + rows_of + cols_of + matrix_of + both
"""
SWAPPED = """\
name: swapped
hyperparameters:
  lr: {default: 0.5, range: "[0, inf)"}
states:
  a: {init: grad}
  b: {init: 2}
  t: {shape: tensor, init: 1}
  u: {shape: tensor, init: 2}
  rows_a: {shape: row, init: row_sum(grad), when: ndim >= 2}
  rows_b: {shape: row, init: 1, when: ndim >= 2}
  cols_a: {shape: col, init: col_sum(grad), when: ndim >= 2}
  cols_b: {shape: col, init: 3, when: ndim >= 2}
  matrix_of: {shape: matrix, init: 4, when: ndim >= 2}
blocks:
  step: |
    old = a
    a = b
    b = param
    param = old
    number = t
    t = u
    u = number
    if ndim >= 2:
        lines = rows_a
        rows_a = rows_b
        rows_b = lines
        cols_a = cols_b
        cols_b = matrix_of
        matrix_of = sum(lines, over=matrix)
    param = param + 0 * lr * grad
"""


@pytest.mark.parametrize("bits", [32, 8])
def test_states_of_every_shape(bits: int, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, RULE)).Started
    params = [torch.nn.Parameter(torch.randint(1, 4, shape).float()) for shape in ((5,), (4, 8), (2, 3, 4), ())]
    for param in params:
        param.grad = torch.randint(-3, 4, param.shape).float()
    opt = cls(params, target="torch", beta1=0.25, optim_bits=bits, min_8bit_size=0)
    begun = [param.detach().clone() for param in params]
    opt.step()
    for index, (param, begin) in enumerate(zip(params, begun, strict=True)):
        state, grad, found = opt.state[param], param.grad.double(), {}
        found["mean_of"] = grad.mean()
        found["rms_of"] = grad.square().mean().sqrt() if grad.dim() < 3 else grad.norm()
        if bits == 32:
            found["whole"] = grad.abs().sum() * begin + grad.numel()
            found["given"] = torch.full_like(grad, 0.25)
        if grad.dim() >= 2:
            found["rows_of"] = 2 * grad.mean(-1)
            found["cols_of"] = 2 * grad.sum((-1, -2))[..., None].expand(*grad.shape[:-2], grad.shape[-1])
            found["matrix_of"] = grad.sum((-1, -2)) / grad.shape[-1] + (2 if grad.dim() > 2 else 1)
            if bits == 32:
                found["both"] = grad.sum(-1, keepdim=True) - grad.sum(-2, keepdim=True) + index
        for name, value in found.items():
            assert torch.allclose(state[name].double(), value.double(), rtol=1e-6), (name, state[name], value)


def test_states_take_over_what_others_held(target: str, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, SWAPPED)).Swapped
    for shape in ((300,), (2, 3, 5)):
        param = torch.nn.Parameter(torch.randint(1, 4, shape).float())
        begin, param.grad = param.detach().clone(), torch.randint(-3, 4, shape).float()
        opt = cls([param], target=target)
        opt.step()
        state, grad = opt.state[param], param.grad
        assert torch.equal(state["a"], torch.full(shape, 2.0))
        assert torch.equal(state["b"], begin)
        assert torch.equal(param.detach(), grad)
        assert (float(state["t"]), float(state["u"])) == (2.0, 1.0)
        if len(shape) > 1:
            assert torch.equal(state["rows_a"], torch.ones(2, 3))
            assert torch.equal(state["rows_b"], grad.sum(2))
            assert torch.equal(state["cols_a"], torch.full((2, 5), 3.0))
            assert torch.equal(state["cols_b"], torch.full((2, 5), 4.0))
            assert torch.equal(state["matrix_of"], grad.sum((1, 2)))
