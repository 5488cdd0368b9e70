"""The least that a step can move through memory, worked out from a rule's equations without the planner or its passes.

What is taken as given: elements are too many to be kept anywhere but in the parameter, its gradient and the states;
nothing is stored before everything is computed; a pass over memory reads each input that it uses once and gives any
number of reductions, whose results are known after it. Then an input must be read in every pass in which a reduction,
or what is stored, is computed from it, and a reduction in a later pass than those that it depends on. Which reduction
stands in which pass is tried out in full, the cheapest choice is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optgen.codecs import CODECS, WHOLE_TENSOR, Codec
from optgen.ir.nodes import Const, Expr, Kind, Let, MatrixCall, Program, Reduce, Ref, Select, children

MOST_CHOICES = 500_000
MORE_PASSES = 2  # a schedule that is longer than it must be can move less, if what is shared then falls together
WEIGHT_BYTES = 4.0


def codec_of(kept: str | Codec) -> Codec:
    """Codec of a state, where a setting may give it by name."""
    return CODECS[kept] if isinstance(kept, str) else kept


@dataclass
class Use:
    """Operands of a value: element inputs of the same pass, and reductions that must be known before it."""

    inputs: set[str] = field(default_factory=set)
    after: set[str] = field(default_factory=set)

    def add(self, other: Use) -> None:
        self.inputs |= other.inputs
        self.after |= other.after


class Equations:
    """A block under one setting of its guards."""

    def __init__(
        self, program: Program, active: Expr, truth: Mapping[str, bool], codecs: Mapping[str, str | Codec]
    ) -> None:
        self.program, self.truth = program, truth
        self.codecs = {name: codec_of(kept) for name, kept in codecs.items()}
        self.lets: dict[str, Let] = {let.name: let for let in program.lets}
        self.reductions: dict[str, Use] = {}
        self.matrices: set[str] = set()  # those of them that are one number for each element, and are stored as such
        self.stored = Use()
        self.written: list[str] = []
        self.later: set[str] = set()
        self._uses: dict[str, Use] = {}
        masked = self.chosen(active) != Const(True)
        for name, value in program.outputs.items():
            item = program.inputs[name]
            if not item.exists.holds(truth) or self.chosen(value) == Ref(name):
                continue
            use = self.use(value)
            if item.kind is not Kind.ELEMENT:
                self.later |= use.after
                continue
            self.written.append(name)
            if masked:
                use.add(self.use(active))
                use.inputs.add(name)
            self.stored.add(use)
            if name in codecs and self.codecs[name].block == WHOLE_TENSOR:
                self.reductions[f"scale of {name}"] = use
                self.stored.after.add(f"scale of {name}")

    def chosen(self, expr: Expr) -> Expr:
        """An expression behind the choices that the guards make, and behind bindings that only name another."""
        while True:
            match expr:
                case Select(formula=formula, then=then, other=other):
                    expr = then if formula.holds(self.truth) else other
                case Ref(name=name) if name in self.lets:
                    target = self.lets[name].expr
                    if isinstance(target, Reduce) or (children(target) and not isinstance(target, Select)):
                        return expr
                    expr = target
                case _:
                    return expr

    def use(self, expr: Expr) -> Use:
        """Operands of an expression."""
        result = Use()
        match expr:
            case Ref(name=name):
                result.add(self._named(name))
            case Select(formula=formula, then=then, other=other):
                result.add(self.use(then if formula.holds(self.truth) else other))
            case Reduce(x=x) if self.is_element(x):
                key = f"{expr.op} over {expr.over.name} of {x}"
                if key not in self.reductions:
                    self.reductions[key] = self.use(x)
                result.after.add(key)
            case MatrixCall(op=op, x=x, settings=settings):
                key = f"{op} of {x} with {settings}"
                if key not in self.reductions:
                    self.reductions[key] = self.use(x)
                self.matrices.add(key)
                result.after.add(key)
                result.inputs.add(key)
            case _:
                for child in children(expr):
                    result.add(self.use(child))
        return result

    def is_element(self, expr: Expr) -> bool:
        """Check whether an expression is one number per element."""
        match expr:
            case Ref(name=name):
                return self.program.kind(name) is Kind.ELEMENT
            case Select(formula=formula, then=then, other=other):
                return self.is_element(then if formula.holds(self.truth) else other)
            case Reduce():
                return False
            case _:
                return any(self.is_element(child) for child in children(expr))

    def _named(self, name: str) -> Use:
        if name in self._uses:
            return self._uses[name]
        if name in self.lets:
            use = self.use(self.lets[name].expr)
        else:
            item = self.program.inputs[name]
            use = Use({name} if item.kind is Kind.ELEMENT and item.exists.holds(self.truth) else set())
        self._uses[name] = use
        return use

    # Bytes

    def element(self, name: str) -> float:
        """Bytes of one element of an input, in float32 parameters and gradients."""
        return self.codecs[name].bits / 8 if name in self.codecs else WEIGHT_BYTES

    def scale(self, name: str) -> float:
        """Bytes of its block scales."""
        block = self.codecs[name].block if name in self.codecs else 0
        return 4 / block if block > 0 else 0.0

    def moved(self, passes: Sequence[set[str]]) -> float:
        """Bytes per parameter of passes that read these inputs, the last of which stores what is written."""
        total = sum(self.element(name) + self.scale(name) for read in passes for name in read)
        total += sum(self.element(name) for name in self.written)
        return total + sum(self.scale(name) for name in self.written if name not in passes[-1])


def least_bytes(program: Program, active: Expr, truth: Mapping[str, bool], codecs: Mapping[str, str | Codec]) -> float:
    """The least bytes per parameter that a step moves."""
    it = Equations(program, active, truth, codecs)
    needed = _needed(it)
    made = WEIGHT_BYTES * len(it.matrices.intersection(needed))
    depth = _depth(it, it.stored.after)
    best = float("inf")
    for passes in range(depth, depth + MORE_PASSES + 1):
        for places in _schedules(it, needed, passes):
            reads: list[set[str]] = [set() for _ in range(passes + 1)]
            reads[-1] |= it.stored.inputs
            for name, place in places.items():
                reads[place] |= it.reductions[name].inputs
            best = min(best, made + it.moved(reads))
    return best


def _needed(it: Equations) -> list[str]:
    """The reductions that anything depends on, each behind those that it depends on."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        for before in sorted(it.reductions[name].after):
            visit(before)
        found.setdefault(name)

    for name in sorted(it.stored.after | it.later):
        visit(name)
    return list(found)


def _depth(it: Equations, names: set[str]) -> int:
    """Passes that must come before what depends on these reductions."""
    return max((1 + _depth(it, it.reductions[name].after) for name in names), default=0)


def _schedules(it: Equations, needed: Sequence[str], passes: int) -> Iterator[dict[str, int]]:
    """Every way to give each reduction a pass; what is stored stands in the pass numbered `passes`, the last one."""
    bound = set(_before(it, it.stored.after))

    def places(chosen: dict[str, int]) -> Iterator[dict[str, int]]:
        if len(chosen) == len(needed):
            yield chosen
            return
        name = needed[len(chosen)]
        first = max((chosen[before] + 1 for before in it.reductions[name].after), default=0)
        for place in range(first, passes + (name not in bound)):
            yield from places({**chosen, name: place})

    for count, chosen in enumerate(places({})):
        assert count < MOST_CHOICES, f"too many schedules of {len(needed)} reductions"
        yield chosen


def _before(it: Equations, names: set[str]) -> Iterator[str]:
    """The reductions and all that they depend on."""
    for name in names:
        yield name
        yield from _before(it, it.reductions[name].after)
