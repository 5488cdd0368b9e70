"""The bindings of a program that is being built: every value gets a name of its own, and the settings that reach it."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from optgen.ir.formula import TRUE, Formula
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Arm, Expr, Kind, Let, Ref
from optgen.ir.parser import node_location
from optgen.ir.scope import Scope
from optgen.ir.steps import sides_of
from optgen.ir.values import Value
from optgen.spec.source import NO_TEXT


class Bindings:
    """Bindings, and where in the text and under which settings the next one stands.

    Attributes:
        at_once: Whether what is built is one expression without bindings.
    """

    def __init__(self, scope: Scope, at_once: bool) -> None:
        self.scope, self.at_once = scope, at_once
        self.lets: list[Let] = []
        self.kinds: dict[str, Kind] = {name: item.kind for name, item in scope.inputs.items()}
        self.counts: dict[str, int] = {}
        self.by_name: dict[str, Let] = {}
        self.text = NO_TEXT
        self.stage = ""
        self.source, self.path = "", TRUE
        self.arms: tuple[Arm, ...] = ()
        self.branches = 0

    def bind(self, name: str, expr: Expr, source: str, node: ast.AST | None = None, joins: int = 0) -> Expr:
        """A new value of a variable, which may choose between the two sides of an `if`."""
        return self._bind(name, expr, source, node, name, joins)

    def bind_part(self, name: str, expr: Expr, node: ast.AST | None = None) -> Expr:
        """A binding for a part of a statement."""
        return self._bind(name, expr, self.source, node, "", 0)

    def _bind(self, name: str, expr: Expr, source: str, node: ast.AST | None, variable: str, joins: int) -> Expr:
        if self.at_once:
            return expr
        number = self.counts.get(name, 0) + 1
        while (unique := f"{name}_{number}") in self.kinds or unique.lower() in self.scope.guards.names:
            number += 1
        self.counts[name] = number
        kind = kind_of(expr, self.kinds)
        location = node_location(self.text, node) if node is not None else None
        let = Let(unique, expr, kind, source, location, self.path, variable, self.arms, joins, self.stage)
        self.lets.append(let)
        self.by_name[unique] = let
        self.scope.guards.taken.add(unique.lower())
        self.kinds[unique] = kind
        return Ref(unique)

    def under(
        self, formula: Formula, new: Mapping[str, Expr], env: Mapping[str, Value], source: str
    ) -> dict[str, Value]:
        """Values that names have under some settings, and those that they had under others."""
        if formula.is_false or formula.is_true:
            return {name: Value(self.bind(name, x, source)) for name, x in new.items()} if formula.is_true else {}
        sides, arms = sides_of(formula, self.scope, self.branches, has_other=False), self.arms
        self.arms, self.path, self.branches = (*arms, sides.here.arm), sides.here.live, sides.joins
        found = {name: self.bind(name, x, source) for name, x in new.items()}
        self.arms, self.path = arms, TRUE
        joined = {name: sides.chosen(x, env[name].expr) for name, x in found.items()}
        return {name: Value(self.bind(name, x, "", joins=sides.joins)) for name, x in joined.items()}
