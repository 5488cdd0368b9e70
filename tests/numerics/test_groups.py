"""Reductions over the parameters of a group: one number for each group, whatever kernels serve its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import optgen
from numerics.harness import set_grads
from optgen.compiler import check_specs
from optgen.diagnostics import Reporter, SpecError

SPEC = """\
name: by_group
hyperparameters: {lr: 0.1, eps: 1e-8}
states: {usual: {shape: group}, exp_avg: {}}
blocks:
  step: |
    length = norm(grad, over=group)
    usual = 0.9 * usual + 0.1 * length
    exp_avg = 0.9 * exp_avg + 0.1 * grad / (length + eps)
    update = exp_avg * sqrt(usual)
    if ndim >= 2:
        update = update + 0.01 * sum(abs(update), over=group) * sign(update)
  apply: |
    param = param - lr * update / (absmax(update, over=all) + absmax(update, over=group) + eps)
"""
SHAPES = [(3, 4), (5,), (70, 9), (2, 2), (300,)]
GROUP_OF = [0, 1, 1, 0, 2]  # the last group has vectors alone
RATES = [0.1, 0.5, 0.2]


class Expected:
    """The same in float64, by hand."""

    def __init__(self, params: list[torch.Tensor]) -> None:
        self.params = [param.detach().cpu().double() for param in params]
        self.averages = [torch.zeros_like(param) for param in self.params]
        self.usual = [0.0, 0.0, 0.0]

    def step(self, grads: list[torch.Tensor]) -> None:
        def of_groups(values: list[Any]) -> list[list[Any]]:
            return [[value for value, own in zip(values, GROUP_OF, strict=True) if own == group] for group in range(3)]

        own = [grad.double() for grad in grads]
        length = [float(torch.cat([grad.flatten() for grad in group]).norm()) for group in of_groups(own)]
        self.usual = [0.9 * usual + 0.1 * now for usual, now in zip(self.usual, length, strict=True)]
        updates = []
        for i, (grad, group) in enumerate(zip(own, GROUP_OF, strict=True)):
            self.averages[i] = 0.9 * self.averages[i] + 0.1 * grad / (length[group] + 1e-8)
            updates.append(self.averages[i] * self.usual[group] ** 0.5)
        sums = [sum(float(update.abs().sum()) for update in group if update.dim() > 1) for group in of_groups(updates)]
        for i, group in enumerate(GROUP_OF):
            if updates[i].dim() > 1:
                updates[i] = updates[i] + 0.01 * sums[group] * updates[i].sign()
        most = [max(float(update.abs().max()) for update in group) for group in of_groups(updates)]
        for i, group in enumerate(GROUP_OF):
            self.params[i] = self.params[i] - RATES[group] * updates[i] / (max(most) + most[group] + 1e-8)


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.bfloat16)], ids=["one kernel", "two"])
def test_one_number_for_each_group(dtypes: tuple[torch.dtype, ...], tmp_path: Path, target: str) -> None:
    (tmp_path / "by_group.yaml").write_text(SPEC)
    cls = optgen.load(tmp_path / "by_group.yaml").ByGroup
    params = [torch.nn.Parameter(torch.randn(shape).to(dtypes[i % len(dtypes)])) for i, shape in enumerate(SHAPES)]
    groups = [
        {"params": [param for param, own in zip(params, GROUP_OF, strict=True) if own == group], "lr": rate}
        for group, rate in enumerate(RATES)
    ]
    groups[2]["overrides"] = {0: {"eps": 1e-8}}
    expected, opt = Expected(params), cls(groups, target=target)
    for _ in range(3):
        grads = [torch.randn(param.shape).to(param.dtype) for param in params]
        expected.step(grads)
        set_grads(params, list(grads))
        opt.step()
        for param, wanted in zip(params, expected.params, strict=True):
            allowed = 2**-8 if param.dtype is torch.bfloat16 else 1e-6  # a rounding of the parameter a step
            found = param.detach().cpu().double()
            torch.testing.assert_close(found, wanted, rtol=3 * allowed, atol=3 * allowed)
            wanted.copy_(found)
        for group, usual in zip(opt.param_groups, expected.usual, strict=True):
            assert group["usual"] == pytest.approx(usual, rel=1e-6)


def test_the_reference_has_one_group(tmp_path: Path) -> None:
    path = tmp_path / "by_group.yaml"
    path.write_text(SPEC.replace("over=all", "over=group"))
    reference = optgen.reference(path, lr=1.0)
    (param,), _ = reference.step([torch.zeros(2)], [torch.tensor([3.0, -4.0])])
    torch.testing.assert_close(param, torch.tensor([-0.375, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("update = mean(grad, over=group)", "takes `sum`, `norm` or `absmax` of one number per element"),
        ("update = sum(norm(grad), over=group)", "has nothing to reduce"),
        ("total = total + sum(grad, over=group)", "one per param group"),
    ],
)
def test_what_is_no_sum_over_a_group(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(
        "name: wrong\nstates: {total: {shape: global}}\nblocks:\n  step: |\n"
        f"    total = total + 1\n    {line}\n    param = param - 0.1 * grad / total\n"
    )
    with pytest.raises(SpecError, match=said):
        check_specs([tmp_path / "wrong.yaml"], Reporter())
