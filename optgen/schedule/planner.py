"""Places every reduction in a pass, as late as its consumers allow.

A reduction of elements raises the level by one: what depends on it can be computed only after a whole pass over
memory. Placing late rather than early keeps passes few and lean under every setting: a norm that only the last pass
needs is taken with the other norms of the pass before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from optgen.ir.formula import FALSE, TRUE, Formula, any_of
from optgen.ir.liveness import demands, needed, resolve, written
from optgen.ir.nodes import Kind, Let, MatrixCall, OfAllElements, Program, Reduce, Ref, refs
from optgen.schedule.plan import Access, Made, PassPlan, Plan, Reduction, Step, Write, stored_roots


def is_element_reduction(let: Let, kinds: Mapping[str, Kind]) -> bool:
    """Check whether a binding takes all elements of a tensor, which takes a pass over memory."""
    if not isinstance(let.expr, OfAllElements):
        return False
    x = let.expr.x
    return isinstance(x, Ref) and kinds[x.name] is Kind.ELEMENT


def levels(program: Program) -> dict[str, int]:
    """Number of passes over memory that must come before each value, by name."""
    kinds = program.kinds()
    result = dict.fromkeys(program.inputs, 0)
    for let in program.lets:
        level = max((result[name] for name in refs(let.expr)), default=0)
        result[let.name] = level + is_element_reduction(let, kinds)
    return result


def beyond(program: Program, passes: int) -> Let | None:
    """The first binding that waits for more passes over memory than these; None if there is none."""
    level = levels(program)
    return next((let for let in program.lets if level[let.name] > passes), None)


def slots(program: Program) -> tuple[dict[str, dict[int, Formula]], int]:
    """The passes in which each reduction of elements is made, and the number of reduce passes.

    A reduction that different settings need at different times has a place for each, with the formula under which it
    is made there; under any one setting it is made once. One over all parameters has the earliest place alone, since
    settings differ between parameters.
    """
    kinds = program.kinds()
    level = levels(program)
    count = max((level[name] for value in program.outputs.values() for name in refs(value)), default=0)
    due: dict[str, dict[int, Formula]] = {}

    def require(name: str, deadline: int, live: Formula) -> None:
        places = due.setdefault(name, {})
        places[deadline] = places.get(deadline, FALSE) | live

    for name, live in written(program):
        require(name, count, live)
    result: dict[str, dict[int, Formula]] = {}
    for let in reversed(program.lets):
        places = _earliest(due.get(let.name, {}))
        if let.sums_all and places:
            places = {min(places): let.path}
        if is_element_reduction(let, kinds):
            places = {deadline - 1: live.given(TRUE) for deadline, live in places.items()}
            result[let.name] = places
        for deadline, formula in places.items():
            for name, live in demands(let.expr, formula, let.path):
                require(name, deadline, live)
    return result, count


def _earliest(due: Mapping[int, Formula]) -> dict[int, Formula]:
    """Each deadline with the formula under which there is no earlier one."""
    result, before = {}, FALSE
    for deadline in sorted(due):
        live = due[deadline] & ~before
        if not live.is_false:
            result[deadline] = live
        before = before | due[deadline]
    return result


def plan(program: Program) -> Plan:
    """The plan of a program that `run_passes` has prepared."""
    return _Planner(program).run()


class _Planner:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.kinds = program.kinds()
        self.lets = program.lets
        self.by_name = {let.name: let for let in program.lets}
        self.slot, self.count = slots(program)
        self.arrays: dict[str, Formula] = {}
        self.demand = needed(self.lets, written(program))

    def run(self) -> Plan:
        passes = [self._pass(slot) for slot in range(self.count + 1)]
        commits = self._writes(lambda kind: kind.is_scalar or kind.is_array)
        roots = [root for write in commits for root in demands(write.value, write.live)]
        commit = self._prepare(roots, arrays=False)
        made = dict.fromkeys(r.name for item in passes for r in item.reductions if r.reduce.over is Kind.TENSOR)
        tensors = tuple(
            Reduction(let.name, let.expr, self.demand[let.name])
            for let in (self.by_name[name] for name in made)
            if isinstance(let.expr, OfAllElements)
        )
        self.arrays |= {name: self.demand[name] for item in passes for name in _matrices_made(item)}
        sums = {
            let.name: (let.expr.op, let.expr.x.name)
            for let in self.lets
            if let.sums_all and isinstance(let.expr, Reduce) and isinstance(let.expr.x, Ref)
        }
        host = tuple(let for let in self.lets if let.kind.is_host and let.name not in sums)
        return Plan(
            program=self.program,
            passes=tuple(p for p in passes if p.slot == self.count or p.reductions),
            host=host,
            values=self._values(passes, commit, commits, host, sums),
            reductions=tensors,
            sums=sums,
            arrays=self.arrays,
            commit=commit,
            commits=commits,
            host_commits=self._writes(lambda kind: kind.is_host),
            live=self.demand,
        )

    def _pass(self, slot: int) -> PassPlan:
        last = slot == self.count
        writes = self._writes(lambda kind: kind is Kind.ELEMENT) if last else ()
        reductions = tuple(
            Reduction(let.name, let.expr, self.slot[let.name][slot])
            for let in self.lets
            if slot in self.slot.get(let.name, {}) and isinstance(let.expr, OfAllElements)
        )
        roots = [*stored_roots(self.program, writes)]
        roots += [root for r in reductions for root in demands(r.reduce.x, r.live)]
        live = TRUE if last else any_of(r.live for r in reductions).given(TRUE)
        elements = needed(self.lets, roots, stop=lambda let: let.kind is not Kind.ELEMENT or let.name in self.slot)
        below = [(name, live) for name, live in elements.items() if self.kinds[name] is not Kind.ELEMENT]
        if last:
            below += self._stored_arrays()
        return PassPlan(
            slot=slot,
            name="apply" if last else f"reduce_{slot}",
            live=live,
            reads=tuple(
                Access(item, elements[name].given(live))
                for name, item in self.program.inputs.items()
                if item.kind is Kind.ELEMENT and name in elements
            ),
            matrices=tuple(
                Made(let.name, elements[let.name].given(live))
                for let in self.lets
                if isinstance(let.expr, MatrixCall) and let.name in elements
            ),
            elements=tuple(
                _step(let, elements[let.name], live)
                for let in self.lets
                if let.kind is Kind.ELEMENT and let.name in elements and let.name not in self.slot
            ),
            reductions=tuple(replace(r, live=r.live.given(live)) for r in reductions),
            writes=writes,
            prepare=self._prepare(below, known=live),
        )

    def _stored_arrays(self) -> list[tuple[str, Formula]]:
        """Rows, columns and matrices that are stored, or that a stored number of the tensor is computed from."""
        commits = self._writes(lambda kind: kind.is_scalar or kind.is_array)
        roots = [root for write in commits for root in demands(write.value, write.live)]
        found = needed(self.lets, roots, stop=lambda let: let.kind.is_array or let.name in self.slot)
        return [(name, live) for name, live in found.items() if self.kinds[name].is_array]

    def _prepare(
        self, roots: Iterable[tuple[str, Formula]], arrays: bool = True, known: Formula = TRUE
    ) -> tuple[Step, ...]:
        """Bindings between host and element kind that the roots need; arrays among them stay in scratch.

        Without `arrays`, those are in scratch already and are not computed again. `known` holds wherever this runs.
        """

        def given(let: Let) -> bool:
            return let.kind.is_host or let.name in self.slot or (let.kind.is_array and not arrays)

        live = needed(self.lets, roots, stop=given)
        for name, formula in live.items():
            if self.kinds[name].is_array and name in self.by_name:
                self.arrays[name] = self.arrays.get(name, FALSE) | formula
        return tuple(
            _step(let, live[let.name], known)
            for let in self.lets
            if let.name in live and not given(let) and let.kind is not Kind.ELEMENT
        )

    def _writes(self, of_kind: Callable[[Kind], bool]) -> tuple[Write, ...]:
        return tuple(
            Write(self.program.inputs[name], value, self.program.writes[name])
            for name, value in self.program.outputs.items()
            if of_kind(self.program.inputs[name].kind)
        )

    def _values(
        self,
        passes: Iterable[PassPlan],
        commit: Iterable[Step],
        commits: Iterable[Write],
        host: Sequence[Let],
        sums: Iterable[str],
    ) -> tuple[str, ...]:
        """Host values that anything outside the host reads: what they follow from, then the others."""
        used: set[str] = set()
        for item in passes:
            for step in (*item.elements, *item.prepare):
                used.update(refs(step.let.expr))
            for made in item.reductions:
                used.update(refs(made.reduce))
            for write in item.writes:
                used.update(refs(write.value))
        for step in commit:
            used.update(refs(step.let.expr))
        for write in commits:
            used.update(refs(write.value))
        needed = set(used)
        for let in reversed(host):
            if let.name in needed:
                needed.update(refs(let.expr))
        given = [name for name, item in self.program.inputs.items() if item.kind.is_host]
        names = [name for name in (*given, *sums) if name in needed]
        return (*names, *(let.name for let in host if let.name in used))


def _matrices_made(item: PassPlan) -> list[str]:
    return [made.name for made in item.reductions if made.is_matrix]


def _step(let: Let, live: Formula, known: Formula) -> Step:
    """A binding with what is left to ask of it where `known` holds."""
    return Step(replace(let, expr=resolve(let.expr, live & known)), live.given(known))
