"""Programs read back as the equations they were written as."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.compiling import compiled

from optgen.ir.dump import dump, text
from optgen.ir.formula import atom
from optgen.ir.nodes import Call, Const, Kind, Reduce, Ref, Select

A, B = Ref("a"), Ref("b")


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (Call("*", (Call("+", (A, B)), A)), "(a + b) * a"),
        (Call("-", (A, Call("-", (A, B)))), "a - (a - b)"),
        (Call("-", (Call("-", (A, A)), B)), "a - a - b"),
        (Call("neg", (Call("+", (A, B)),)), "-(a + b)"),
        (Call("**", (Call("neg", (A,)), Const(2.0))), "(-a)**2"),
        (Call("not", (Call("and", (A, B)),)), "not (a and b)"),
        (Call("not", (Call(">", (A, B)),)), "not a > b"),
        (Select(atom("f"), Select(atom("g"), A, B), B), "(a if g else b) if f else b"),
        (Call("where", (Call(">", (A, Const(0.0))), A, B)), "where(a > 0, a, b)"),
        (Select(atom("f") & ~atom("g"), A, B), "a if f and not g else b"),
        (Call("*", (Select(atom("f"), A, B), A)), "(a if f else b) * a"),
        (Reduce("squares", Kind.TENSOR, A), "sum_of_squares(a)"),
        (Reduce("sum", Kind.ROW, A), "row_sum(a)"),
        (Reduce("max", Kind.GLOBAL, A), "max(a, over=all)"),
        (Reduce("greatest", Kind.CHANNEL, A), "max(a, over=channel)"),
        (Call("/", (A, Ref("size0"))), "a / shape[0]"),
    ],
)
def test_text(expr: object, expected: str) -> None:
    assert text(expr) == expected  # type: ignore[arg-type]


def test_dump_shows_bindings_with_kinds_and_outputs(tmp_path: Path) -> None:
    planned = compiled(
        tmp_path, "name: probe\nhyperparameters:\n  lr: {default: 0.1}\nblocks:\n  step: param = param - lr * grad\n"
    )
    lines = dump(planned.plans["step"].program).split("\n")
    assert "param_1 [element] = param - lr * grad_10" in lines
    assert lines[-2].startswith(("param :=", "gnorm_vec :="))
