"""Facts about a class that need no run of it: its states, its plan, and the cost of a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from optgen.backends.alone import Alone
from optgen.backends.alone_c import c_alone
from optgen.backends.alone_torch import torch_alone
from optgen.backends.python_classes import Argument, ClassSpec, class_arguments
from optgen.codecs import (
    CODECS,
    PAGED_NUMEL,
    WHOLE_TENSOR,
    Codec,
    codec_among,
    is_asked,
    plain_codec,
    plain_codec_of,
)
from optgen.emit.environment import render
from optgen.ir.dump import text
from optgen.ir.formula import TRUE
from optgen.ir.guards import RECORDED, Guard, describe
from optgen.ir.matrix_stage import MatrixStage
from optgen.ir.nodes import Kind, MatrixCall
from optgen.ir.rule import WholeRule
from optgen.operations import MATRIX_FUNCTIONS
from optgen.passes.settle import settle
from optgen.prose import Prose
from optgen.schedule.matrix_work import MatrixWork, matrix_work
from optgen.schedule.plan import Plan
from optgen.schedule.planner import plan
from optgen.schedule.traffic import Setting, pageable_bytes, pass_bytes, state_bytes, traffic, visit_traffic
from optgen.schedule.visits import visits
from optgen.spec.model import Option

Target = Literal["cpu", "cuda", "torch"]
TARGETS: tuple[Target, ...] = get_args(Target)
LONGEST_CYCLE = 10_000  # of steps that differ; of longer ones the first
SIDE = 4096
LARGE_MATRIX = {"ndim": 2, "numel": SIDE**2, "index": 0}


@dataclass(frozen=True)
class PassInfo:
    """One pass: what it reads, writes and reduces, and its bytes per parameter."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    reduces: tuple[str, ...]
    bytes: float


@dataclass(frozen=True)
class Explanation:
    """A class explained.

    Attributes:
        kinds: (name, kind, expression) of every value, whatever the settings.
        reached: The values that a step of a large matrix computes under the class's defaults, every choice made.
        shared: Those among them that stages of every rule compute, by the stage.
    """

    equations: tuple[str, ...]
    kinds: tuple[tuple[str, str, str], ...]
    reached: tuple[tuple[str, str, str], ...]
    shared: Mapping[str, tuple[str, ...]]
    passes: tuple[PassInfo, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class ClassInfo:
    """A public class, for large float32 matrices under its default settings.

    Attributes:
        module: Module to import it from; None where its spec belongs to no package yet.
    """

    whole_rule: WholeRule
    plans: Mapping[str, Plan]
    spec: ClassSpec
    module: str | None
    rendered: tuple[str, ...]

    @property
    def name(self) -> str:
        """The class's name."""
        return self.spec.name

    @property
    def rule(self) -> str:
        """The name of the rule that it is a class of."""
        return self.whole_rule.name

    @property
    def doc(self) -> Prose:
        """Description in a sentence: the class's own, else its rule's."""
        return self.spec.entry.doc or self.whole_rule.spec.doc

    @property
    def bits(self) -> int:
        """Bits of the states: the class's own, or the default."""
        if self.spec.entry.bits is not None:
            return self.spec.entry.bits
        default = self._default("optim_bits")
        return default if isinstance(default, int) else 32

    @property
    def bits_choices(self) -> tuple[int, ...]:
        """Bits that the class can store its states in, all else at its defaults."""
        declared = self.whole_rule.storage.get("optim_bits")
        if self.spec.entry.bits is not None or not isinstance(declared, Option) or declared.choices is None:
            return (self.bits,)
        usual = self._refusals(self.bits)
        choices = (b for b in declared.choices if isinstance(b, int) and self._refusals(b) <= usual)
        return tuple(bits for bits in choices if bits == 32 or self._takes(bits))

    def _takes(self, bits: int) -> bool:
        """Check whether some state of a matrix can be stored in so many bits, as the constructor does."""
        states = self.whole_rule.state_inputs.values()
        return any(
            item.kind is Kind.ELEMENT
            and codec_among(item.codecs, bits, "auto", True, 0)
            and item.exists.holds(self.setting.guards)
            for item in states
            if item.name in self.whole_rule.states and self.whole_rule.states[item.name].stored_as is None
        )

    def stored_in(self, bits: int) -> ClassInfo:
        """The class with its states in so many bits, as `optim_bits` would have them."""
        entry = self.spec.entry.model_copy(update={"bits": bits})
        return replace(self, spec=replace(self.spec, entry=entry))

    def given(self, settings: Mapping[str, object]) -> ClassInfo:
        """The class as it is where these settings are given: with them for its defaults."""
        entry = self.spec.entry
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        changed = entry.model_copy(update={"defaults": {**entry.defaults, **listed}})
        return replace(self, spec=replace(self.spec, entry=changed))

    @property
    def defaults(self) -> dict[str, object]:
        """Default of each setting, by the name that equations use; a required number is taken as 1."""
        rule = self.whole_rule
        found: dict[str, object] = {name: self._default(name) for name in (*rule.options, *rule.storage)}
        for owner, hyper in rule.hypers.items():
            for name in hyper.names or (owner,):
                found[name] = self._number(name)
        return found

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """Arguments of the constructor beside `params`, by name."""
        return class_arguments(self.whole_rule, self.spec.entry)

    @cached_property
    def setting(self) -> Setting:
        """Guards and codecs under the class's default settings, in a step in which most happens."""
        asked = self.bits, "auto", bool(self._default("block_wise")), 0
        codecs = {}
        for name, item in self.whole_rule.state_inputs.items():
            if name in self.whole_rule.state_inputs and item.kind is Kind.ELEMENT:
                stored_as = self.whole_rule.states[name].stored_as
                if stored_as is not None:
                    codecs[name] = plain_codec_of(str(self._default(stored_as)))
                else:
                    taken = codec_among(item.codecs, *asked) if is_asked(self.bits, "auto") else None
                    codecs[name] = taken or CODECS[plain_codec(item.codecs)]
        guards = {name: self._holds(guard, codecs) for name, guard in self.whole_rule.guards.guards.items()}
        return Setting(guards, codecs)

    @property
    def states(self) -> tuple[str, ...]:
        """States that exist by default."""
        inputs = self.whole_rule.state_inputs.values()
        return tuple(i.name for i in inputs if i.exists.holds(self.setting.guards))

    @property
    def state_bytes(self) -> float:
        """Bytes of states per parameter; those that are matrices as of a square parameter of 4096 rows."""
        return self.element_bytes + self.matrix_bytes(SIDE, SIDE) / SIDE**2

    @property
    def element_bytes(self) -> float:
        """Bytes per parameter of the states that have a number for each element."""
        return state_bytes(self.plans["step"], self.setting)

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes of the states that are matrices of their own dimensions, of a parameter of this shape."""
        stage = self.whole_rule.matrices
        if stage is None:
            return 0
        return sum(self._bytes_of_matrices(stage, rows, cols).values())

    def _bytes_of_matrices(self, stage: MatrixStage, rows: int, cols: int) -> dict[str, int]:
        """The bytes of each of these states that exists."""
        sizes, found = self._sizes(stage, rows, cols), {}
        for name, item in stage.states.items():
            if item.exists.holds(self.setting.guards):
                numel = math.prod(sizes[dimension] for dimension in stage.shapes[name])
                codec = self.setting.codecs[name]
                small = codec.scaled and numel < int(str(self._default("min_8bit_size")))
                found[name] = (CODECS[plain_codec(item.codecs)] if small else codec).state_bytes(numel)
        return found

    def _sizes(self, stage: MatrixStage, rows: int, cols: int) -> dict[str, int]:
        """The sizes of the dimensions of states that are matrices, of a parameter of this shape."""
        long, short = max(rows, cols), min(rows, cols)
        own = {name: min(int(str(self._number(name)).removesuffix(".0")), short) for name in stage.sizes}
        return {"rows": rows, "cols": cols, "long": long, "short": short, "kept": long, "reduced": short, "1": 1, **own}

    @cached_property
    def matrix_work(self) -> tuple[tuple[MatrixWork, str], ...]:
        """Products and decompositions of a step on matrices, each with the condition under which it runs."""
        stage, guards = self.whole_rule.matrices, self.whole_rule.guards
        if stage is None:
            return ()
        found = matrix_work(stage, self.setting.guards, guards)
        return tuple((work, "" if work.when.is_true else describe(work.when, guards.guards)) for work in found)

    @property
    def matrix_operations(self) -> float:
        """Operations per parameter of these products, of a square parameter of 4096 rows, on average."""
        stage = self.whole_rule.matrices
        if stage is None:
            return 0.0
        sizes = self._sizes(stage, SIDE, SIDE)
        counts = [(work.count(sizes), work.when) for work, _ in self.matrix_work]
        steps = (share * sum(n for n, when in counts if when.holds(s.guards)) for share, s in self.cycle)
        return sum(steps) / SIDE**2

    @property
    def matrix_traffic(self) -> float:
        """Bytes per parameter of such states that a step reads and writes, of a square parameter of 4096 rows, on
        average; what products and decompositions move besides is not counted."""
        stage = self.whole_rule.matrices
        if stage is None:
            return 0.0
        writes, sizes = stage.program.writes, self._bytes_of_matrices(stage, SIDE, SIDE)
        steps = (
            share * sum(n * (1 + writes.get(name, TRUE).holds(s.guards)) for name, n in sizes.items())
            for share, s in self.cycle
        )
        return sum(steps) / SIDE**2

    @property
    def pageable_bytes(self) -> float:
        """Bytes of them that a GPU can page: elements, without their scales. From `paged_from` elements on."""
        return pageable_bytes(self.plans["step"], self.setting)

    @property
    def is_paged(self) -> bool:
        """True if states are paged by default."""
        paged = self.spec.entry.paged
        return bool(self._default("is_paged") if paged is None else paged)

    @property
    def paged_from(self) -> int:
        """Elements that a parameter has at least whose states are paged."""
        return PAGED_NUMEL

    @property
    def passes(self) -> int:
        """Passes over memory in a step."""
        return len(self.plans["step"].live_passes(self.setting.guards))

    @property
    def traffic(self) -> float:
        """Bytes per parameter that a step moves, on average."""
        return sum(share * traffic(self.plans["step"], setting) for share, setting in self.cycle)

    @property
    def visits(self) -> tuple[tuple[str, ...], ...]:
        """The names of these passes, those together that a CPU takes row by row in one visit of memory."""
        found = visits(self.plans["step"], self.setting.guards)
        return tuple(tuple(item.name for item in visit) for visit in found)

    @property
    def visit_traffic(self) -> float:
        """Bytes per parameter that a step moves there, on average."""
        return sum(share * visit_traffic(self.plans["step"], setting) for share, setting in self.cycle)

    @property
    def matrix_functions(self) -> tuple[str, ...]:
        """Functions of matrices that a step runs, each with the operations and the memory of its products."""
        guards = self.setting.guards
        passes = self.plans["step"].live_passes(guards)
        made = [r.reduce for item in passes for r in item.reductions if r.live.holds(guards)]
        rows = [
            MATRIX_FUNCTIONS[call.op] for call in made if isinstance(call, MatrixCall) and call.op in MATRIX_FUNCTIONS
        ]
        return tuple(f"{row.name}: {row.products}; {row.room}" for row in rows if row.products)

    @cached_property
    def cycle(self) -> tuple[tuple[float, Setting], ...]:
        """The settings of steps that differ in what happens on some steps only, each with its share of all steps."""
        kinds = Counter(
            tuple(number % period == guard.value for guard, period in self._periods.items()) for number in self._numbers
        )
        names = [guard.name for guard in self._periods]
        return tuple(
            (
                count / len(self._numbers),
                replace(self.setting, guards={**self.setting.guards, **dict(zip(names, kind, strict=True))}),
            )
            for kind, count in kinds.items()
        )

    @cached_property
    def _periods(self) -> dict[Guard, int]:
        """Conditions on the step, each with the number of steps after which it comes again."""
        conditions = [guard for guard in self.whole_rule.guards.guards.values() if guard.about == "step"]
        every = {guard: self.defaults.get(guard.subject, guard.subject) for guard in conditions}
        return {guard: int(str(number).removesuffix(".0")) for guard, number in every.items()}

    @cached_property
    def _numbers(self) -> range:
        """The numbers of steps of which one is like any other."""
        return range(1, min(math.lcm(*self._periods.values()), LONGEST_CYCLE) + 1)

    @cached_property
    def _fullest(self) -> int:
        """The number of a step in which most happens."""
        periods = [(guard.value, period) for guard, period in self._periods.items()]
        return max(self._numbers, key=lambda number: sum(number % period == value for value, period in periods))

    def explain(self) -> Explanation:
        """Everything about the class."""
        step = self.plans["step"]
        passes = tuple(
            PassInfo(
                name=item.name,
                reads=(
                    *(a.input.name for a in item.reads if a.live.holds(self.setting.guards)),
                    *(one.name for one in item.matrices if one.live.holds(self.setting.guards)),
                ),
                writes=(
                    *(w.input.name for w in item.writes if w.live.holds(self.setting.guards)),
                    *(r.name for r in item.reductions if r.is_matrix and r.live.holds(self.setting.guards)),
                ),
                reduces=tuple(r.name for r in item.reductions if not r.is_matrix and r.live.holds(self.setting.guards)),
                bytes=pass_bytes(item, self.setting),
            )
            for item in step.live_passes(self.setting.guards)
        )
        kinds = tuple((let.name, let.kind.name.lower(), text(let.expr)) for let in step.program.lets)
        lets = settle(step.program, self.setting.guards).lets
        reached = tuple((let.name, let.kind.name.lower(), text(let.expr)) for let in lets)
        of_stages = dict.fromkeys(let.stage for let in lets if let.stage)
        shared = {stage: tuple(let.name for let in lets if let.stage == stage) for stage in of_stages}
        equations = []
        for name, block in self.whole_rule.equations.items():
            equations += [f"{name}:", *(f"    {line.raw}" for line in block.lines())]
        for function in self.whole_rule.functions:
            equations += function.written.split("\n")
        return Explanation(tuple(equations), kinds, reached, shared, passes, self.rendered)

    def code(self, target: Target) -> str:
        """Its kernel alone, or its function in plain torch: under its default settings, which leave nothing open."""
        rendering = torch_alone(self.alone) if target == "torch" else c_alone(self.alone, target)
        return render(rendering.template, rendering.context)

    @property
    def alone(self) -> Alone:
        """Content of the code for this class alone, without parts that only other classes and settings need."""
        guards, hypers = self.setting.guards, self.whole_rule.hypers
        if RECORDED in guards:  # what serves every step alike, as in steps that are recorded
            guards = {**guards, RECORDED: True}
        plans = {name: plan(settle(block.program, guards)) for name, block in self.plans.items()}
        taken = {
            name for name, hyper in hypers.items() if not hyper.names and self._number(name) != self._default(name)
        }
        settings = {name: value for name, value in self.defaults.items() if name not in taken}
        return Alone(self.name, self.whole_rule, plans, self.setting.codecs, settings, guards)

    def _refusals(self, bits: int) -> set[str]:
        """The conditions under which the class refuses these bits, all else at its defaults."""
        rule = self.whole_rule
        names = (*rule.hypers, *rule.options, *rule.storage)
        settings = {name: self._default(name) for name in names}
        settings |= {name: 1.0 for name, h in rule.hypers.items() if h.required or name in self.spec.entry.required}
        settings |= {"optim_bits": bits, "target": self.spec.entry.target, "is_paged": self.is_paged}
        conditions = [r.condition for r in (*rule.refusals, *self.spec.refusals) if r.on == "construct"]
        # A condition is made of comparisons of settings alone (ir/refusals.py), as the generated class holds it.
        return {c for c in conditions if eval(c, {"__builtins__": {}, "o": settings})}

    def _default(self, name: str) -> object:
        entry, rule = self.spec.entry, self.whole_rule
        if name in entry.set:
            return entry.set[name]
        if name == "block_wise" and entry.block_wise is not None:
            return entry.block_wise
        if name in entry.defaults:
            return entry.defaults[name]
        declared = rule.hypers.get(name) or rule.options.get(name) or rule.storage.get(name)
        return declared.default if declared is not None else None

    def _holds(self, guard: Guard, codecs: Mapping[str, Codec]) -> bool:
        match guard.about:
            case "option":
                value = self._default(guard.subject)
                return bool(value) if guard.op == "true" else guard.holds(value)
            case "hyper":
                number = self._number(guard.subject)
                if guard.op == "given":
                    return number is not None
                return number is not None and guard.holds(number)
            case "fact":
                return guard.holds(LARGE_MATRIX[guard.subject])
            case "input":
                return False
            case "step":
                return self._fullest % self._periods[guard] == guard.value
            case "codec":
                return codecs[guard.subject].block == WHOLE_TENSOR

    def _number(self, name: str) -> object:
        """A hyperparameter's default. One that the user must give is taken as 1, and momentum as in use."""
        for owner, hyper in self.whole_rule.hypers.items():
            if name in hyper.names:
                values = self._default(owner)
                return values[hyper.names.index(name)] if isinstance(values, list) else None
        hyper = self.whole_rule.hypers[name]
        if hyper.required or name in self.spec.entry.required:
            return 1.0
        value = self._default(name)
        if value == 0 and any(r.condition == f'o["{name}"] == 0' for r in self.spec.refusals):
            return 1.0
        return value
