"""Products of a step on matrices as `optgen explain` tells them: those that torch counts in a run."""

from __future__ import annotations

from typing import Any

import optgen_optim
import pytest
import torch
from support.compiling import stock_package
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from optgen.commands import app
from optgen.explanation import ClassInfo

ROWS, COLS, LAST = 48, 32, 12
OF_THEMSELVES = ("svd_basis", "eigenvectors", "inverse_root")
"""Decompositions that take products of their own, which are not counted."""
INFOS: dict[str, ClassInfo] = {info.name: info for info in stock_package().classes}
RULES = ("APOLLO", "APOLLOMini", "Dion", "GaLoreAdafactor", "GaLoreAdamW", "SOAP", "Shampoo")


def runs(info: ClassInfo, when: str, step: int) -> bool:
    known = {"step": step, "every": lambda period: step % period == 0, **info.defaults}
    return not when or bool(eval(when, known))


CASES = [
    (name, settings)
    for name in RULES
    for settings in ({}, {"precondition_frequency": 5}, {"rank": 7})
    if settings.keys() <= INFOS[name].defaults.keys()
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_operations_are_those_of_a_run(name: str, settings: dict[str, Any]) -> None:
    info = INFOS[name].given(settings)
    sizes = {"rows": ROWS, "cols": COLS, "kept": ROWS, "reduced": COLS, "1": 1}
    sizes |= {"long": ROWS, "short": COLS}
    sizes["rank"] = min(int(info.defaults.get("rank", 1)), COLS)
    param = nn.Parameter(torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0)))
    optimizer = getattr(optgen_optim, name)([param], target="torch", **settings)
    compared = 0
    for step in range(1, LAST + 1):
        param.grad = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(step))
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        now = [work for work, when in info.matrix_work if runs(info, when, step)]
        if not any(work.name in OF_THEMSELVES for work in now):
            assert counter.get_total_flops() == sum(work.count(sizes) for work in now), step
            compared += 1
    assert compared or (name == "Shampoo" and not settings), "at its defaults it takes roots at every step"


def test_explain_shows_them() -> None:
    text = CliRunner().invoke(app, ["explain", "GaLoreAdamW"]).output
    assert "a step moves 20, and of matrices 0.63\n" in text  # 3 of [4096, 128], two of them written again
    assert "products of 4096 x 4096: 512 operations a parameter" in text  # 2 * 128 each of two products
    assert "svd_basis [kept, reduced]               not counted          step % update_proj_gap == 1\n" in text
    assert "matmul [kept, reduced] [reduced, rank]  2 kept reduced rank  every step\n" in text
