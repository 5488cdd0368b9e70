"""Checks that a state can take a value: one of its kind or a smaller one, under an `if` that all its numbers share."""

from __future__ import annotations

from optgen.diagnostics import Location, Reporter
from optgen.ir.kinds import unit_of
from optgen.ir.nodes import Input, Kind, takes


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
