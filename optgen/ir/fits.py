"""Checks of what a statement may do: assign a name, draw a random number, take a matrix, give a state a value.

A state takes one of its kind or a smaller one, under an `if` that all its numbers share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from optgen.diagnostics import Location, Reporter, suggest
from optgen.ir.habits import instead_of_name
from optgen.ir.kinds import unit_of
from optgen.ir.nodes import Input, Kind, takes
from optgen.ir.parser import Stage
from optgen.ir.scope import Scope, several
from optgen.operations import CALLED, MatrixFunction
from optgen.spec.names import SEED


@dataclass(frozen=True)
class Mistake:
    """A mistake of a statement, to be reported at its place."""

    rule: str
    message: str
    help_text: str


def why_not_assigned(
    name: str, known: Mapping[str, str], writable: Collection[str], block: Stage, has_grad: bool
) -> Mistake | None:
    """The reason why a name cannot be assigned, if there is one.

    Args:
        known: Names that are declared, with what they are.
        writable: Those among them that the block may assign.
        has_grad: Whether there is a `grad`.
    """
    if name == "grad" and block.keeps_grad:
        message = "`grad` cannot be assigned after the `step` block"
        return Mistake("not-assignable", message, "use another name for the value")
    if name == "update" and block.name in ("grad", "apply"):
        before = "before the rule names it" if block.name == "grad" else "behind its last use"
        message = f"`update` cannot be assigned here, {before}"
        return Mistake("not-assignable", message, "write this statement under `update:`")
    if name == "grad" and not has_grad:
        message = "`grad` does not exist in this block"
        return Mistake("undefined-name", message, "declare the method with `grad: true`")
    if name in writable or name in ("grad", "active"):
        return None
    if name in known:
        message = f"`{name}` is {known[name]} and cannot be assigned here"
        return Mistake("not-assignable", message, "use another name for the value")
    if name in CALLED or name.startswith("_"):
        return Mistake("reserved-name", f"`{name}` is reserved", "use another name")
    return None


def why_unknown(name: str, scope: Scope, known: Collection[str], block: Stage, is_assigned: bool) -> Mistake:
    """The reason why a name has no value.

    Args:
        known: The names that have one.
        is_assigned: Whether the block assigns it.
    """
    if name in scope.options:
        return Mistake("undefined-name", f"`{name}` is an option, not a number", scope.test_of(name))
    if name in scope.parts:
        return Mistake("undefined-name", *several(name, scope.parts[name]))
    if name not in scope.inputs and is_assigned:
        return Mistake("undefined-name", f"`{name}` is assigned below this line", "move the assignment up")
    owner, help_text = "", instead_of_name(name, [*known, *scope.options])
    if block.owner:
        owner = f"the stage `{block.owner}` or of "
        help_text = suggest(name, known) or "declare it, or put the stage on a rule that has it"
        if name == "update":
            help_text = "the rule's `step` names it: write this statement under `update:`"
    message = f"`{name}` is not a hyperparameter, state or earlier value of {owner}`{scope.rule}`"
    return Mistake("undefined-name", message, help_text)


def why_not_drawn(name: str, at_once: bool, scope: Scope) -> Mistake | None:
    """The reason why no random number can be drawn, if there is one.

    Args:
        at_once: Whether it is in an initial value.
    """
    if not at_once:
        message = f"`{name}` is for initial values of states"
        return Mistake("not-in-language", message, "write it in `init` of a state")
    if not scope.has_seed:
        message = f"`{name}` needs the setting `{SEED}`, from which its numbers follow"
        return Mistake("no-seed", message, f"declare `{SEED}` in `storage` of shared.yaml")
    return None


def fits(
    name: str, state: Input, kind: Kind, window: str | None, help_text: str, where: Location, reporter: Reporter
) -> bool:
    """Check whether a state takes a value; report one that is more numbers than the state, or others.

    Args:
        kind: Of the value.
        window: The state whose past values it is, if it is a window.
        help_text: Help about another kind.
    """
    if window != (None if state.window is None else name):
        held = (
            "is one number, but this is a window"
            if state.window is None
            else "keeps its own past values, but these are others"
        )
        way = "use `percentile(window, q)`" if state.window is None else f"write `{name} = push({name}, x)`"
        reporter.error("type", f"`{name}` {held}", where, way)
        return False
    if not takes(state.kind, kind):
        message = f"`{name}` is one number per {unit_of(state.kind)}, but this is one per {unit_of(kind)}"
        reporter.error("kind", message, where, help_text)
        return False
    return True


def fits_below(name: str, state: Input, kind: Kind, where: Location, reporter: Reporter) -> bool:
    """Check whether a state may be assigned below an `if`; report one that is for more than what that is decided for.

    Args:
        kind: For what the `if` can differ.
    """
    if takes(state.kind, kind):
        return True
    each = "parameter" if kind is Kind.STEP else unit_of(kind)
    message = f"`{name}` is one number per {unit_of(state.kind)}, but this `if` is decided for each {each}"
    help_text = "assign it outside of the `if`, or give the state another shape"
    reporter.error("kind", message, where, help_text)
    return False


def why_not_taken(
    row: MatrixFunction, kinds: Sequence[Kind], has_rows: bool, initial: bool
) -> tuple[Mistake | None, int | None]:
    """Reason why a function of matrices cannot be called so, and the number of the argument that it is about.

    Args:
        kinds: Of its arguments.
        has_rows: Whether all parameters that come to it have two dimensions or more.
        initial: Whether it is in an initial value.
    """
    x, *settings = kinds
    if x is not Kind.ELEMENT:
        message = f"`{row.name}` takes one number per element, this is one per {unit_of(x)}"
        return Mistake("kind", message, "give it elements, as `grad`"), 0
    for index, (name, kind) in enumerate(zip(row.settings, settings, strict=True), 1):
        if not kind.is_host:
            message = f"`{name}` of `{row.name}` is one number per param group, this is one per {unit_of(kind)}"
            return Mistake("kind", message, "give it a hyperparameter, or a number"), index
    if not has_rows:
        message = f"`{row.name}` needs a matrix, which a parameter of fewer than two dimensions is not"
        return Mistake("kind", message, "say `ndim: 2` of the rule, or put it below `if ndim >= 2:`"), None
    if initial:
        message = f"`{row.name}` cannot be part of an initial value"
        return Mistake("kind", message, "compute it in the block `step`"), None
    return None, None
