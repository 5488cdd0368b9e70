"""The plan of a block: which pass computes what.

Passes before the last one store nothing but what they reduce elements to, and elements that functions of matrices take;
the last pass, `apply`, is the only one that writes. Every
member carries the formula under which it is live, so that one plan serves all settings: a pass that no live value
needs is not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from optgen.ir.formula import TRUE, Formula
from optgen.ir.liveness import demands
from optgen.ir.nodes import Expr, Input, Kind, Let, MatrixCall, OfAllElements, Program
from optgen.passes.scale_tensorwise import scale_name


@dataclass(frozen=True)
class Step:
    """A binding that a pass computes."""

    let: Let
    live: Formula


@dataclass(frozen=True)
class Reduction:
    """A result that a pass makes of all elements: a reduction of them, or a function of the matrices that they are."""

    name: str
    reduce: OfAllElements
    live: Formula

    @property
    def is_matrix(self) -> bool:
        """True if it has a number for each element."""
        return isinstance(self.reduce, MatrixCall)


@dataclass(frozen=True)
class Access:
    """An element input that a pass reads."""

    input: Input
    live: Formula


@dataclass(frozen=True)
class Made:
    """Result of a function of matrices that a pass reads."""

    name: str
    live: Formula


@dataclass(frozen=True)
class Write:
    """Store of a value by the last pass, or by the commit after it."""

    input: Input
    value: Expr
    live: Formula


def stored_roots(program: Program, writes: Iterable[Write]) -> Iterator[tuple[str, Formula]]:
    """The values from which stores of elements follow: a state with one scale is encoded with its new scale."""
    for write in writes:
        yield from demands(write.value, write.live)
        scale = scale_name(write.input.name)
        if scale in program.outputs:
            yield from demands(program.outputs[scale], program.writes[scale])


@dataclass(frozen=True)
class PassPlan:
    """One pass over memory.

    Attributes:
        slot: Position among the block's passes, from 0; the apply pass comes last.
        live: Condition under which the pass is run.
        reads: Element inputs.
        matrices: Results of functions of matrices, made after earlier passes, whose elements are read.
        elements: Bindings per element, in order.
        reductions: Reductions of the pass (none in the apply pass).
        writes: Stores of elements (apply pass only).
        prepare: Bindings below element kind that the pass needs, in order, computed before its elements.
    """

    slot: int
    name: str
    live: Formula
    reads: tuple[Access, ...]
    matrices: tuple[Made, ...]
    elements: tuple[Step, ...]
    reductions: tuple[Reduction, ...]
    writes: tuple[Write, ...]
    prepare: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a block does in a step.

    Attributes:
        host: Bindings of global and group kind, evaluated by the host.
        values: Names of host kind that passes read, in the order in which they are handed over: first what all of
            them follow from, which no pass may read itself.
        reductions: All reductions of elements to one number per tensor, in the order of their results.
        sums: Global reductions: name -> (operator, name of the tensor reduction).
        arrays: Names of row, column and matrix kind that are kept in scratch between passes, with their formulas, and
            results of functions of matrices.
        commit: Bindings needed for the values below element kind that are stored after the last pass.
        commits: Those values.
        live: Under which settings each binding and input is needed.
    """

    program: Program
    passes: tuple[PassPlan, ...]
    host: tuple[Let, ...]
    values: tuple[str, ...]
    reductions: tuple[Reduction, ...]
    sums: Mapping[str, tuple[str, str]]
    arrays: Mapping[str, Formula]
    commit: tuple[Step, ...]
    commits: tuple[Write, ...]
    host_commits: tuple[Write, ...]
    live: Mapping[str, Formula]

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """The kind of each of the program's values."""
        return self.program.kinds()

    @property
    def host_inputs(self) -> tuple[str, ...]:
        """Inputs of the values of host kind: settings, shared states and sums over all parameters."""
        computed = {let.name for let in self.host}
        return tuple(name for name in self.values if name not in computed)

    def live_passes(self, guards: Mapping[str, bool]) -> tuple[PassPlan, ...]:
        """The passes that run under these guards."""
        return tuple(p for p in self.passes if p.live == TRUE or p.live.holds(guards))
