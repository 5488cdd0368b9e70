"""Limits of sizes: what is too large is refused at once, with the limit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.compiling import refusal

HEAD = "name: large\n"
CHAIN = HEAD + "blocks:\n  step: |\n    x = grad\n" + "    x = x * norm(x)\n" * 300 + "    param = param - x\n"


def states(number: int) -> str:
    declared = "".join(f"  s{k}: {{}}\n" for k in range(number))
    used = "".join(f"    s{k} = s{k} + grad\n    x = x + s{k}\n" for k in range(number))
    return f"{HEAD}states:\n{declared}blocks:\n  step: |\n    x = grad\n{used}    param = param - x\n"


def test_passes_over_memory_are_counted_before_they_are_planned(tmp_path: Path) -> None:
    start = time.process_time()
    said = refusal(tmp_path, CHAIN)
    assert said.startswith("error[too-many-passes]: this waits for more than 31 passes over memory")
    assert "    x = x * norm(x)\n" in said
    assert time.process_time() - start < 15  # planned, it took minutes


@pytest.mark.parametrize("number", [8, 33, 400])
def test_states_are_counted_and_that_is_said_once(number: int, tmp_path: Path) -> None:
    said = refusal(tmp_path, states(number))
    if number == 8:
        assert said == "accepted"
    else:
        assert said.startswith(f"error[too-many-states]: a rule has at most 32 states, and this one {number}\n")
        assert said.count("error[") == 1
