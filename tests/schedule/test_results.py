"""Results of one pass reach every later one, on each target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compiling import write_spec

import optgen

CLIPPED = """\
name: clipped
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
  limit: {default: 0.0, range: "[0, inf)"}
states:
  seen: {shape: tensor}
blocks:
  step: |
    size = norm(grad)
    if limit > 0:
        grad = grad * min(1, limit / size)
    seen = size
    other = norm(grad)
    param = param - lr * grad / other
"""
SUMMED = """\
name: summed
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
states:
  share: {}
  total: {shape: global}
blocks:
  step: |
    total = sum(abs(grad), over=all)
    share = grad / total
    param = param - lr * share
"""


def stepped(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in params:
        param.grad = torch.full_like(param, 2.0)
    opt.step()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_norm_that_an_earlier_pass_takes_is_kept(target: str, limit: float, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, CLIPPED)).Clipped
    param = torch.nn.Parameter(torch.zeros(400))
    opt = cls([param], limit=limit, target=target)
    stepped(opt, [param])
    assert float(opt.state[param]["seen"]) == 40.0
    assert torch.allclose(param.detach(), torch.full((400,), -0.1 * 2 / 40))


def test_lamb_behind_percentile_clipping(target: str) -> None:
    import optgen_optim

    param = torch.nn.Parameter(torch.ones(4096))
    opt = optgen_optim.LAMB8bit([param], percentile_clipping=50, target=target)
    for _ in range(2):
        stepped(opt, [param])
    window = opt.state[param]["gnorm_vec"]
    assert torch.allclose(window, torch.full_like(window, 4 * 4096.0))


@pytest.mark.parametrize("block_wise", [True, False])
def test_a_sum_over_all_parameters_has_all_of_them(target: str, block_wise: bool, tmp_path: Path) -> None:
    """Also where only some of them need it a pass earlier, for the scale of an 8-bit state."""
    cls = optgen.load(write_spec(tmp_path, SUMMED)).Summed
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (8192, 10)]
    opt = cls(params, optim_bits=8, block_wise=block_wise, target=target)
    stepped(opt, params)
    total = 2.0 * (8192 + 10)
    assert opt.param_groups[0]["total"] == total
    for param in params:
        assert torch.allclose(param.detach(), torch.full_like(param, -0.1 * 2 / total), atol=0)
