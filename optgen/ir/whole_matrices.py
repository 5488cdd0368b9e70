"""Matrices that a step leaves as they were, each of them whole: what stands around functions of matrices for that.

With `nonfinite="skip"` a step that calls them takes NaN where the gradient is not finite, with which all of the
matrix's direction is NaN. Where a direction is not finite nothing is active, and it counts as 0 among the others of its
parameter. The runtime decides it for parameters that are one matrix, before a step (runtime/step/left_out.py).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping

from optgen.ir.formula import FALSE, Formula
from optgen.ir.nodes import Call, Const, Expr, Input, Ref, Select
from optgen.ir.scope import Scope
from optgen.ir.values import Value, also
from optgen.operations import MATRIX_FUNCTIONS


def calls_matrices(body: Iterable[ast.stmt]) -> bool:
    """Check whether statements call a function of matrices."""
    nodes = (node.func for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(isinstance(node, ast.Name) and node.id in MATRIX_FUNCTIONS for node in nodes)


def skips(scope: Scope) -> Formula:
    """The settings under which a matrix with a gradient that is not finite has no step."""
    if "skip" not in (scope.options.get("nonfinite") or ()) or "grad" not in scope.inputs:
        return FALSE
    return scope.guards.formula("option", "nonfinite", "==", "skip")


def taken(env: Mapping[str, Value], scope: Scope) -> dict[str, Expr]:
    """The gradient that a step takes."""
    given: Expr = Ref("grad")
    if "grad_scale" in scope.given:
        scaled = Call("/", (given, Ref("grad_scale")))
        given = Select(scope.guards.formula("input", "grad_scale", "given"), scaled, given)
    return {"grad": Call("where", (Call("isfinite", (given,)), env["grad"].expr, Const(math.nan)))}


def left(env: Mapping[str, Value]) -> dict[str, Expr]:
    """Leave what is not finite behind functions of matrices: not active, and 0 in the direction."""
    result = env["update" if "update" in env else "param"].expr
    finite = Call("isfinite", (result,))
    new: dict[str, Expr] = {"active": also(env["active"].expr, finite)}
    return {**new, "update": Call("where", (finite, result, Const(0.0)))} if "update" in env else new


def kept(env: Mapping[str, Value], states: Iterable[Input]) -> dict[str, Expr]:
    """New numbers of rows and columns: those of a matrix that is left stay."""
    changed = {s.name: env[s.name].expr for s in states if s.kind.is_array and env[s.name].expr != Ref(s.name)}
    return {name: Call("where", (Call("isfinite", (new,)), new, Ref(name))) for name, new in changed.items()}
