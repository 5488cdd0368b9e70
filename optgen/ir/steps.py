"""Conditions on the number of the step, which the host decides before it.

In a step that is recorded the host decides nothing: a replay has another number. Both sides of an `if` are computed
there, and each number is chosen as the step is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from optgen.ir.formula import FALSE, TRUE, Formula, atom
from optgen.ir.guards import FIRST, RECORDED
from optgen.ir.nodes import Arm, Call, Const, Expr, Kind, Ref, Select
from optgen.ir.scope import Scope


@dataclass(frozen=True)
class Side:
    """A side of an `if`.

    Attributes:
        live: The settings and steps under which it may be reached.
        arm: Its place in the program.
    """

    live: Formula
    arm: Arm


@dataclass(frozen=True)
class Sides:
    """The sides of an `if`, and the choice between what they assign.

    Attributes:
        joins: The number of the `if` after which that choice is made.
        now: The condition as it is computed, where both sides may be reached.
        kind: For what the condition can differ.
    """

    here: Side
    there: Side
    joins: int
    now: Expr | None
    kind: Kind

    def chosen(self, then: Expr, other: Expr) -> Expr:
        """The value behind the `if` of a name that has these at the end of its sides."""
        if self.now is not None:
            then = Select(self.there.live, Call("where", (self.now, then, other)), then, self.kind)
        return Select(self.here.live, then, other, self.kind)


def sides_of(condition: Formula, scope: Scope, branches: int, has_other: bool) -> Sides:
    """The sides of an `if`.

    Args:
        branches: The number of those before it. One of which both sides may be reached together counts for three: each
            side, and the choice.
        has_other: Whether it has an `else`.
    """
    here, there = may_hold(condition, scope), may_hold(~condition, scope)
    first, kind = branches + 1, scope.condition_kind(condition)
    now = None if (here & there).is_false else as_computed(condition, scope)
    if now is None or not has_other:
        return Sides(Side(here, Arm(first, here, True)), Side(there, Arm(first, here, False)), first, now, kind)
    return Sides(Side(here, Arm(first, here, True)), Side(there, Arm(first + 1, there, True)), first + 2, now, kind)


def asks_step(formula: Formula, scope: Scope) -> bool:
    """Check whether a condition depends on the number of the step."""
    return bool(_guards(formula, scope))


def may_hold(formula: Formula, scope: Scope) -> Formula:
    """The settings and steps under which a condition can hold: in steps that are recorded, at any number."""
    asked = _guards(formula, scope)
    if not asked:
        return formula
    recorded, known, at_any_number = FALSE, TRUE, formula
    if scope.can_record:
        recorded = scope.guards.formula("option", RECORDED, "true")
    for name in asked:
        known = known & (atom(name) | ~recorded)
        at_any_number = at_any_number.given(atom(name)) | at_any_number.given(~atom(name))
    return ((formula & ~recorded) | (at_any_number & recorded)).given(known)


def as_computed(formula: Formula, scope: Scope) -> Expr:
    """A condition as a step computes it: choices of settings, and tests of the step's number."""
    if formula.is_true or formula.is_false:
        return Const(formula.is_true)
    then, other = as_computed(formula.then, scope), as_computed(formula.other, scope)
    guard = scope.guards.guards[formula.guard]
    if guard.about != "step":
        return Select(atom(guard.name), then, other, scope.condition_kind(atom(guard.name)))
    period = Ref(guard.subject) if guard.subject in scope.hypers else Const(float(guard.subject))
    number = Ref("step") if guard.subject == FIRST else Call("%", (Ref("step"), period))
    holds = Call("==", (number, Const(float(guard.value or 0))))
    if other == Const(False):
        return holds if then == Const(True) else Call("and", (holds, then))
    if then == Const(False):
        holds = Call("not", (holds,))
        return holds if other == Const(True) else Call("and", (holds, other))
    return Call("or", (Call("and", (holds, then)), Call("and", (Call("not", (holds,)), other))))


def _guards(formula: Formula, scope: Scope) -> list[str]:
    return [name for name in sorted(formula.names) if scope.guards.guards[name].about == "step"]
