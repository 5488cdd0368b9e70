"""Properties that a plan must have before it is printed; a violation is a fault of optgen, not of a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.liveness import demands, needed, written
from optgen.ir.nodes import Expr, Kind, refs
from optgen.ir.verifier import VerificationError
from optgen.schedule.plan import PassPlan, Plan
from optgen.schedule.planner import is_element_reduction


def verify_plan(plan: Plan) -> None:
    """Check what must hold of a plan.

    Raises:
        VerificationError: naming the pass and the binding.
    """
    for check in INVARIANTS:
        for violation in check(plan):
            raise VerificationError(violation)


def _last_pass_writes(plan: Plan) -> Iterator[str]:
    """The last pass stores elements; those before it reduce, and leave everything as it is."""
    for item in plan.passes[:-1]:
        if item.writes or not item.reductions:
            yield f"{item.name} {'writes' if item.writes else 'reduces nothing'}"
    if plan.passes[-1].reductions:
        yield "the last pass reduces"
    stored = [write.input.name for write in (*plan.passes[-1].writes, *plan.commits, *plan.host_commits)]
    for name in plan.program.outputs:
        if stored.count(name) != 1:
            yield f"{name} is {'stored twice' if name in stored else 'not stored'}"


def _reduced_once(plan: Plan) -> Iterator[str]:
    """Check that each needed reduction of elements is made in exactly one pass, under any setting."""
    places: dict[str, Formula] = {}
    for item in plan.passes:
        for r in item.reductions:
            live = r.live & item.live
            if not (places.get(r.name, FALSE) & live).is_false:
                yield f"{r.name} is made in {item.name} and in an earlier pass"
            places[r.name] = places.get(r.name, FALSE) | live
    wanted, kinds = needed(plan.program.lets, written(plan.program)), plan.kinds
    for let in plan.program.lets:
        if is_element_reduction(let, kinds) and not wanted[let.name].implies(places.get(let.name, FALSE)):
            yield f"{let.name} is not made wherever it is needed"


def _at_hand(plan: Plan) -> Iterator[str]:
    """Check the operands of each pass: stored, prepared, reduced by earlier passes, or computed before in the same
    pass."""
    made: dict[str, Formula] = {}
    for item in plan.passes:
        known = _known_before(plan, item, made)
        stored = {access.input.name: access.live for access in item.reads}
        for step in item.prepare:
            yield from _missing(item, step.let.name, step.let.expr, step.live & item.live, known)
            known[step.let.name] = known.get(step.let.name, FALSE) | step.live
        known |= stored
        for step in item.elements:
            yield from _missing(item, step.let.name, step.let.expr, step.live & item.live, known)
            known[step.let.name] = known.get(step.let.name, FALSE) | step.live
        for r in item.reductions:
            yield from _missing(item, r.name, r.reduce, r.live & item.live, known)
        for write in item.writes:
            yield from _missing(item, write.input.name, write.value, write.live, known)
        for r in item.reductions:
            made[r.name] = made.get(r.name, FALSE) | (r.live & item.live)
    last = plan.passes[-1]
    known = _known_before(plan, last, made)
    known |= {name: live for name, live in plan.arrays.items() if name not in made}
    for step in plan.commit:
        yield from _missing(last, step.let.name, step.let.expr, step.live, known)
        known[step.let.name] = known.get(step.let.name, FALSE) | step.live
    for write in plan.commits:
        yield from _missing(last, write.input.name, write.value, write.live, known)


def _known_before(plan: Plan, item: PassPlan, made: dict[str, Formula]) -> dict[str, Formula]:
    """Values that a pass has before it computes anything, with the settings under which it has them."""
    known = {name: TRUE for name, kind in plan.kinds.items() if kind.is_host}
    known |= {name: TRUE for name, i in plan.program.inputs.items() if i.kind is not Kind.ELEMENT}
    return known | made


def _missing(item: PassPlan, name: str, expr: Expr, live: Formula, known: dict[str, Formula]) -> Iterator[str]:
    for read, needs in demands(expr, live):
        if not (needs & item.live).implies(known.get(read, FALSE)):
            yield f"{name} reads {read} in {item.name}, which does not have it"


def _host_operands(plan: Plan) -> Iterator[str]:
    """Check that the host computes only from settings, shared states and sums over all parameters."""
    kinds = plan.kinds
    for let in plan.host:
        for name in refs(let.expr):
            if not kinds[name].is_host:
                yield f"{let.name} is computed by the host and reads {name}"
    for name in plan.values:
        if not kinds[name].is_host:
            yield f"{name} is handed over by the host"


INVARIANTS: tuple[Callable[[Plan], Iterator[str]], ...] = (_last_pass_writes, _reduced_once, _at_hand, _host_operands)
