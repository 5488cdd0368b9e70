"""An oracle for every rule: it interprets the equations of specs/*.yaml over float64 balls.

Nothing of the compiler is asked: files are read by oracles/declared.py, equations are parsed by Python and evaluated by
oracles/expressions.py as docs/language.md says. It serves one param group.

A reduction over all parameters is known only when every parameter has given its part: a parameter that comes to one
stops, and all are evaluated again with it until none stops.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from oracles import ball as balls
from oracles.ball import HOST, HOST_TINY, Array, Ball, rounded, where
from oracles.base import array
from oracles.declared import Row, Stage, State, holds, parsed
from oracles.expressions import (
    KINDS,
    Evaluator,
    Kind,
    Number,
    Truth,
    Value,
    Window,
    both,
    const,
    dims_of,
    finish,
    join,
    kind_of,
    single,
    widened,
)
from oracles.philox import bits16, words
from oracles.rounding import Rounding, decoded, rounding_of
from oracles.storage import BITS, CODECS, DTYPES, OF_BITS, WHOLE, Quantized, store

FACTS = ("ndim", "numel", "index", "rows", "cols", "matrices", "total_numel", "fan_in")
STEP_NAMES = frozenset(("param", "grad", "step", "active", "update", *FACTS))  # what all stages of a step share
DRAWS = ("uniform", "normal")
EVERYWHERE = Truth(np.array(True), np.array(False), Kind.CONST)


class _PartMissing(Exception):
    """A reduction over all parameters that is not known yet, and what this parameter adds to it."""

    def __init__(self, node: ast.Call, operator: str, part: Ball) -> None:
        super().__init__(ast.unparse(node))
        self.node, self.operator, self.part = node, operator, part


class _Block:
    """A block of one parameter: names, statements, what they leave."""

    def __init__(
        self,
        oracle: SpecOracle,
        names: Mapping[str, Value],
        facts: Mapping[str, Any],
        step: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.oracle, self.names, self.facts, self.step, self.dtype = oracle, dict(names), facts, step, dtype

    def run(self, stages: Iterable[Stage], known: Mapping[int, Ball]) -> dict[str, Value]:
        """The names after these stages."""

        def everywhere(node: ast.Call, operator: str, part: Ball) -> Ball:
            if id(node) not in known:
                raise _PartMissing(node, operator, part)
            return known[id(node)]

        left: dict[str, Value] = {}  # the gradient as the stages before the rule left it, which those behind it see
        declared = frozenset(self.names) | STEP_NAMES
        kept: dict[str, dict[str, Value]] = {}  # names of stages' own
        for stage in stages:
            common = self.oracle.rule.common | STEP_NAMES if stage.shared else declared
            seen = {name: value for name, value in self.names.items() if not stage.block or name in common}
            seen |= kept.get(stage.owner, {}) if stage.block else {}
            own = {"grad": seen["grad"]} if stage.block in ("update", "apply") else {}
            seen |= left if stage.block in ("update", "apply") else {}
            self._statements(stage.body, seen, everywhere)
            if stage.block == "grad":
                left = {"grad": seen["grad"]}
            if stage.block:
                kept[stage.owner] = {name: value for name, value in seen.items() if name not in common}
            self.names |= {name: value for name, value in seen.items() if not stage.block or name in common}
            self.names |= own
        return self.names

    def _statements(self, body: Sequence[ast.stmt], names: dict[str, Value], everywhere: Any) -> None:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call() as call):
                    for target, value in zip(targets, self._call(call, names, everywhere), strict=True):
                        assert isinstance(target, ast.Name)
                        if value is not None:
                            names[target.id] = value
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=nodes)):
                    evaluator = self._evaluator(dict(names), everywhere)
                    values = [evaluator.value(node) for node in nodes]
                    names |= {target.id: value for target, value in zip(targets, values, strict=True)}  # type: ignore[attr-defined]
                case ast.Assign(targets=[ast.Name(id=name)], value=node):
                    value = self._evaluator(names, everywhere).value(node)
                    if name == "active":
                        active = names["active"]
                        assert isinstance(active, Truth)
                        assert isinstance(value, Truth)
                        value = both(active, value)
                    names[name] = value
                case ast.If(test=test, body=then, orelse=other):
                    before = dict(names)
                    taken, left = (then, other) if holds(test, self.facts) else (other, then)
                    self._statements(taken, names, everywhere)
                    self._widen(names, before, statement, left)
                case ast.Pass() | ast.Expr():
                    pass
                case _:
                    raise ValueError(f"not in the language: {ast.unparse(statement)}")

    def _evaluator(self, names: Mapping[str, Value], everywhere: Any) -> Evaluator:
        def caller(call: ast.Call) -> list[Value]:
            return [value for value in self._call(call, names, everywhere) if value is not None]

        functions = dict.fromkeys(self.oracle.rule.functions, caller)
        return Evaluator(names, self.step, everywhere, self.dtype, functions)

    def _call(self, call: ast.Call, names: Mapping[str, Value], everywhere: Any) -> list[Value | None]:
        """Results of a function: its statements over the caller's names, in which its own come first.

        A state that does not exist can be handed to it and back; it is None.
        """
        assert isinstance(call.func, ast.Name)
        function, evaluator = self.oracle.rule.functions[call.func.id], self._evaluator(names, everywhere)
        own = dict(names)
        for param, arg in zip(function.args.args, call.args, strict=True):
            own.pop(param.arg, None)
            if not isinstance(arg, ast.Name) or arg.id in names:
                own[param.arg] = evaluator.value(arg)
        *body, last = function.body
        assert isinstance(last, ast.Return)
        self._statements(body, own, everywhere)
        results = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
        inner = self._evaluator(own, everywhere)
        return [
            None if isinstance(result, ast.Name) and result.id not in own else inner.value(result)
            for result in results
            if result is not None
        ]

    def _widen(
        self, names: dict[str, Value], before: Mapping[str, Value], statement: ast.If, left: Sequence[ast.stmt]
    ) -> None:
        """Give numbers the kind that they have behind an `if`, where its other branch leaves a larger one."""
        mentioned, assigned = _names_in(statement)
        known = {
            name: before[name].kind if name in before else self.oracle.declared_kinds[name]
            for name in mentioned
            if name in before or name in self.oracle.declared_kinds
        }
        kinds = self.oracle.kinds_after(left, known) if left else known
        for name in assigned:
            value = names.get(name)
            if isinstance(value, Number) and name in kinds:
                names[name] = self._widened(value, join(value.kind, kinds[name]))

    def _widened(self, value: Number, kind: Kind) -> Number:
        if kind is value.kind:
            return value
        if not kind.is_single:
            return replace(value, kind=kind)
        param = self.names["param"]
        assert isinstance(param, Number)
        return widened(Number(single(value, kind), kind), param.ball.shape)


@cache
def _names_in(statement: ast.If) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names in a statement, and those that it assigns."""
    nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    stored = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    return tuple(sorted({node.id for node in nodes})), tuple(sorted(stored))


def _assigned_kinds(body: Sequence[ast.stmt], kinds: dict[str, Kind]) -> None:
    """Infer the kinds of names after statements; those that read what is not there are left out."""
    for statement in body:
        match statement:
            case ast.Assign(targets=[target], value=node):
                with suppress(KeyError):
                    kind = kind_of(node, kinds)
                    kinds |= {part.id: kind for part in ast.walk(target) if isinstance(part, ast.Name)}
            case ast.If(body=then, orelse=other):
                branches = [dict(kinds), dict(kinds)]
                _assigned_kinds(then, branches[0])
                _assigned_kinds(other, branches[1])
                for name in branches[0].keys() | branches[1].keys():
                    kinds[name] = join(*(branch[name] for branch in branches if name in branch))


def _in_order(body: Iterable[ast.AST]) -> Iterator[ast.Call]:
    """The calls of statements, in the order in which they are evaluated."""
    for node in body:
        yield from _in_order(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            yield node


class SpecOracle:
    """The float64 rule of a class. `adopt` takes over what an optimizer holds, so that one step can be judged alone.

    Without `dtypes` parameters and states that are not quantized are kept in float64.

    Attributes:
        balls: Parameters, as the next step reads them.
        tensors: The part of them in the tensors: less, where a rounding keeps something beside them.
        state_balls: States by name, as they read back from storage.
        codes: Those that are stored in codes.
        group: Group and global states.
        inputs: Inputs that are set on the optimizer for a step.
    """

    def __init__(
        self,
        row: Row,
        params: Sequence[Any],
        settings: Mapping[str, Any],
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> None:
        self.row, self.rule, self.settings = row, row.rule, row.complete(settings)
        self.dtypes = dtypes
        self.balls = [Ball(array(param)) for param in params]
        self.tensors = list(self.balls)
        self.state_balls: list[dict[str, Ball]] = [{} for _ in params]
        self.codes: list[dict[str, Quantized]] = [{} for _ in params]
        self.steps = [0] * len(params)
        self.settled: set[int] = set()  # parameters that have had a gradient
        self.inputs: dict[str, float] = {}
        self._kinds_after: dict[tuple[ast.stmt, tuple[tuple[str, Kind], ...]], Mapping[str, Kind]] = {}
        self.hypers = self._hypers()
        self.declared_kinds = dict.fromkeys(
            (part for name, hyper in self.rule.hypers.items() for part in hyper.parts or (name,)), Kind.GROUP
        )
        self.declared_kinds |= {name: KINDS[state.shape] for name, state in self.rule.states.items()}
        self.group = {
            name: self._initial_of_group(state)
            for name, state in self.rule.states.items()
            if state.shape in ("group", "global")
        }

    def kinds_after(self, body: Sequence[ast.stmt], known: Mapping[str, Kind]) -> Mapping[str, Kind]:
        """The kinds of names behind statements, given those before."""
        key = (body[0], tuple(known.items()))
        if key not in self._kinds_after:
            kinds = dict(known)
            _assigned_kinds(body, kinds)
            self._kinds_after[key] = kinds
        return self._kinds_after[key]

    @property
    def params(self) -> list[Array]:
        return [ball.mid for ball in self.balls]

    @property
    def unsigned(self) -> frozenset[str]:
        return frozenset(name for name, state in self.rule.states.items() if not state.signed)

    def adopt(self, index: int, param: Any, states: Mapping[str, Any], kept: Any = None) -> None:
        """Go on from exactly these values (or balls); states not named stay as they are.

        kept: what is kept beside the parameter.
        """
        self.tensors[index] = Ball(array(param))
        self.balls[index] = Ball(decoded(self.rounding(index), array(param), kept))
        if states:
            self.settled.add(index)
        for name, value in states.items():
            self.state_balls[index][name] = value if isinstance(value, Ball) else Ball(array(value))

    def rounding(self, index: int) -> Rounding:
        dtype = torch.float32 if self.dtypes is None else self.dtypes[index]
        return rounding_of(self.settings.get("rounding", "nearest"), dtype)

    # What equations may name

    def _hypers(self) -> dict[str, Number]:
        result = {}
        for name, hyper in self.rule.hypers.items():
            value = hyper.value(self.settings[name])
            if value is not None:
                kind = Kind.GLOBAL if hyper.is_global else Kind.GROUP
                parts = zip(hyper.parts, value, strict=True) if hyper.parts else [(name, value)]
                result |= {part: const(number, kind) for part, number in parts}
        return result

    def _facts(self, index: int) -> dict[str, int]:
        shape = self.balls[index].shape
        rows, cols = shape[-2:] if len(shape) > 1 else (1, max(math.prod(shape), 1))
        return {
            "ndim": len(shape),
            "numel": math.prod(shape),
            "index": index,
            "rows": rows,
            "cols": cols,
            "matrices": math.prod(shape[:-2]) if len(shape) > 1 else 1,
            "fan_in": math.prod(shape[1:]),
            **{f"shape[{dim}]": size for dim, size in enumerate(shape)},
            **{f"shape[{dim - len(shape)}]": size for dim, size in enumerate(shape)},
        }

    def _conditions(self, index: int) -> dict[str, Any]:
        """Values that `if` and `when` may ask for."""
        given = {name: self.inputs.get(name) for name in self.rule.inputs}
        return {**self.settings, **given, **self._facts(index)}

    def exists(self, index: int, state: State) -> bool:
        return state.when is None or bool(holds(parsed(state.when), self._conditions(index)))

    def _names(self, index: int, total: int) -> dict[str, Value]:
        """Values that a block may read: settings, facts, the parameter, its states."""
        names: dict[str, Value] = dict(self.hypers)
        names |= {name: const(value, Kind.STEP) for name, value in self._facts(index).items()}
        names |= {name: const(value, Kind.GLOBAL) for name, value in self.inputs.items()}
        names["total_numel"] = const(total, Kind.GLOBAL)
        names["step"] = const(self.steps[index], Kind.STEP)
        names["param"] = Number(self.balls[index], Kind.ELEMENT)
        names["active"] = EVERYWHERE
        for name, state in self.rule.states.items():
            if name in self.group:
                names[name] = Number(self.group[name], KINDS[state.shape])
            elif name in self.state_balls[index] and self.exists(index, state):
                names[name] = self._read(state, self.state_balls[index][name], self.balls[index].shape)
        return names

    @staticmethod
    def _read(state: State, value: Ball, shape: tuple[int, ...]) -> Value:
        if state.window is not None:
            return Window(value)
        kind = KINDS[state.shape]
        if kind.is_single:
            spread = [size if dim in dims_of(kind, len(shape)) else 1 for dim, size in enumerate(shape)]
            value = Ball(value.mid.reshape(spread), value.rad.reshape(spread))
        return Number(value, kind)

    # Steps and methods

    def step(self, grads: Sequence[Any]) -> None:
        """One step with these gradients; None leaves a parameter out."""
        with np.errstate(all="ignore"):
            given = {i: Number(Ball(array(grad)), Kind.ELEMENT) for i, grad in enumerate(grads) if grad is not None}
            if self.rule.ndim == 2 and self.settings["nonfinite"] == "skip":  # a matrix is left out whole
                given = {i: grad for i, grad in given.items() if np.isfinite(grad.ball.mid).all()}
            if not given:
                return
            for i, grad in given.items():
                self.steps[i] += 1
                self._settle(i, grad)
            self._run(self.rule.stages, {i: {"grad": grad} for i, grad in given.items()})
            for i in given:  # a step has taken what was given for it
                for state in filter(lambda state: state.given, self.rule.states.values()):
                    self.state_balls[i][state.name] = Ball(np.full(self._shape(i, state), float(state.init)))

    def give(self, index: int, name: str, numbers: Any) -> None:
        """Numbers of a parameter for its next step."""
        self.state_balls[index][name] = Ball(array(numbers))

    def call(self, name: str, grads: Sequence[Any] = ()) -> None:
        """Run a method: on parameters that have states, and on the group; or on those with a gradient that it reads."""
        method = self.rule.methods[name]
        with np.errstate(all="ignore"):
            if not method.reads_grad:
                self._run([method.stage], {i: {} for i in sorted(self.settled)}, ahead=1)
                return
            given = {i: Number(Ball(array(grad)), Kind.ELEMENT) for i, grad in enumerate(grads) if grad is not None}
            for i, grad in given.items():
                self._settle(i, grad)
            if given:
                stages = [*(stage for stage in self.rule.stages if stage.block == "grad"), method.stage]
                self._run(stages, {i: {"grad": grad} for i, grad in given.items()}, keep_windows=True, ahead=1)

    def _run(
        self,
        stages: Sequence[Stage],
        given: Mapping[int, Mapping[str, Value]],
        keep_windows: bool = False,
        ahead: int = 0,
    ) -> None:
        """Run stages; `ahead` is 1 for what draws random numbers as the next step would."""
        total = sum(self.balls[i].mid.size for i in given)
        names = {i: {**self._names(i, total), **more} for i, more in given.items()}
        known: dict[int, Ball] = {}
        found: dict[int, dict[str, Value]] = {}
        while len(found) < len(given):
            missing: dict[int, _PartMissing] = {}
            for i, own in names.items():
                try:
                    found[i] = self._block(i, own).run(stages, known)
                except _PartMissing as part:
                    missing[i] = part
            if missing:
                # Several may wait for different sums, where `if ndim` parts them: all come to the first of these.
                waited = {id(part.node) for part in missing.values()}
                node = next(call for stage in stages for call in _in_order(stage.body) if id(call) in waited)
                known[id(node)] = _combined([part for part in missing.values() if part.node is node])
                found = {}
        for i, after in found.items():
            if keep_windows:  # what stages before the rule keep is of steps alone
                kept = (self.rule.common | self.rule.of_stages) & self.rule.states.keys() & names[i].keys()
                after |= {name: names[i][name] for name in kept}
            self._commit(i, names[i], after, self.steps[i] + ahead)
        if found or self.group:
            self._commit_group(next(iter(found.values()), None) or self._without_parameters(stages))

    def _block(self, index: int, names: Mapping[str, Value]) -> _Block:
        dtype = None if self.dtypes is None else self.dtypes[index]
        conditions = {**self._conditions(index), "step": self.steps[index]}
        return _Block(self, names, conditions, self.steps[index], dtype)

    def _without_parameters(self, stages: Sequence[Stage]) -> Mapping[str, Value]:
        """Values that a method leaves in the group where no parameter has states: no number depends on one."""
        nothing = Number(Ball(np.zeros(1)), Kind.ELEMENT)
        names: dict[str, Value] = {**self.hypers, "param": nothing, "active": EVERYWHERE}
        names |= {
            name: Number(self.group.get(name, nothing.ball), KINDS[state.shape])
            for name, state in self.rule.states.items()
        }
        names |= {fact: const(0, Kind.GLOBAL if fact == "total_numel" else Kind.STEP) for fact in FACTS}
        names["step"] = const(0, Kind.STEP)
        return _Block(self, names, {**self.settings, "ndim": 1, "numel": 1, "index": 0}, 0).run(stages, {})

    # Storage

    def _settle(self, index: int, grad: Number) -> None:
        """States that do not exist yet; `grad` in initial values is unscaled."""
        held = self.state_balls[index]
        self.settled.add(index)
        for name, state in self.rule.states.items():
            if name in self.group or name in held or not self.exists(index, state):
                continue
            shape = self._shape(index, state)
            if state.window is not None:
                held[name] = Ball(np.full(shape, np.inf))
                continue
            names: dict[str, Value] = {**self.hypers, "param": Number(self.balls[index], Kind.ELEMENT), "grad": grad}
            names |= {fact: const(value, Kind.STEP) for fact, value in self._facts(index).items()}
            if "grad_scale" in self.inputs:
                scale = const(self.inputs["grad_scale"], Kind.GLOBAL)
                names["grad"] = Evaluator({"g": grad, "s": scale}, 0, _nowhere).value(ast.parse("g / s").body[0].value)  # type: ignore[attr-defined]
            value = self._initial(state, names, None if self.dtypes is None else self.dtypes[index], index)
            held[name] = self._stored(index, state, _filled(value, shape))

    def _initial(
        self, state: State, names: Mapping[str, Value], dtype: torch.dtype | None = None, index: int = 0
    ) -> Ball:
        if isinstance(state.init, int | float):
            return Ball(float(state.init))
        node = parsed(state.init)
        numbers = self._draws(state, node)
        functions = dict.fromkeys(DRAWS, lambda call: [self._drawn(call.func.id, numbers[id(call)], index)])  # type: ignore[attr-defined]
        number = Evaluator(names, 0, _nowhere, dtype, functions).number(node)
        return single(number, KINDS[state.shape])

    def _draws(self, state: State, node: ast.expr) -> dict[int, int]:
        """The number of each draw of an initial value: they are counted through the initial values of the rule."""
        calls: list[ast.Call] = []
        for other in self.rule.states.values():
            if not isinstance(other.init, int | float):
                tree = node if other is state else parsed(other.init)
                calls += [
                    call for call in _in_order([tree]) if isinstance(call.func, ast.Name) and call.func.id in DRAWS
                ]
        return {id(call): number for number, call in enumerate(calls, start=1)}

    def _drawn(self, name: str, number: int, index: int) -> Number:
        """Random numbers of a parameter, by their definition in docs/language.md."""
        shape = self.balls[index].shape
        first, second = words(math.prod(shape), self.settings["seed"], index, number).astype(np.float64).T
        if name == "uniform":
            return Number(Ball((np.floor(first / 2**8) / 2**24).reshape(shape)), Kind.ELEMENT)
        value = np.sqrt(-2 * np.log((first + 1) / 2**32)) * np.cos(2 * math.pi * second / 2**32)
        return finish(Ball(value.reshape(shape), 1e-12), Kind.ELEMENT)

    def _initial_of_group(self, state: State) -> Ball:
        return self._initial(state, self.hypers)

    def _shape(self, index: int, state: State) -> tuple[int, ...]:
        shape = self.balls[index].shape
        kind = KINDS[state.shape]
        if kind.is_single:
            return tuple(shape[dim] for dim in dims_of(kind, len(shape)))
        return () if state.window is None else (state.window,)

    def storage_of(self, index: int, name: str) -> tuple[str, int | None]:
        """Codec of a state, and the elements of its blocks if that is not the codec's own number."""
        state, numel = self.rule.states[name], self.balls[index].mid.size
        if state.shape != "param":
            return "fp32", None
        if state.stored_as is not None:
            return DTYPE_NAMES[self.settings[state.stored_as]], None
        wanted, block = wanted_storage(self.settings, state)
        small = wanted in CODECS and numel < max(self.settings.get("min_8bit_size", 0), CODECS[wanted].least)
        return (wanted, block) if state.takes(wanted) and not small else (state.plain, None)

    def _stored(self, index: int, state: State, value: Ball) -> Ball:
        """A new value as it reads back."""
        codec, block = self.storage_of(index, state.name)
        if codec not in CODECS:
            self.codes[index].pop(state.name, None)
            return value if self.dtypes is None else store(value, DTYPES[codec])
        codes = Quantized(value, state.signed, codec, block)
        self.codes[index][state.name] = codes
        return codes.decoded()

    def _commit(self, index: int, before: Mapping[str, Value], after: Mapping[str, Value], step: int) -> None:
        """Store what a block left; where elements are inactive, they stay as they were. `step` is that of draws."""
        active = after["active"]
        assert isinstance(active, Truth)
        new = self._kept(before["param"], after["param"], active)
        shape = self.balls[index].shape
        if self.dtypes is None:
            self.balls[index] = self.tensors[index] = _filled(new, shape)
        elif after["param"] is not before["param"]:
            rounding = self.rounding(index)
            bits = bits16(math.prod(shape), self.settings["seed"], index, step) if rounding.draws else None
            self.tensors[index], self.balls[index] = rounding.stored(_filled(new, shape), self.dtypes[index], bits)
        for name, state in self.rule.states.items():
            value = after.get(name)
            if name in self.group or name not in before or value is before[name]:
                continue
            if isinstance(value, Window):
                self.state_balls[index][name] = value.ball
                continue
            assert isinstance(value, Number)
            kept = self._kept(before[name], value, active) if state.shape == "param" else value.ball
            self.state_balls[index][name] = self._stored(index, state, _filled(kept, self._shape(index, state)))

    @staticmethod
    def _kept(old: Value, new: Value, active: Truth) -> Ball:
        assert isinstance(old, Number)
        assert isinstance(new, Number)
        value = single(new, Kind.ELEMENT)
        return value if active is EVERYWHERE else where(active.holds, value, old.ball, active.unsure)

    def _commit_group(self, after: Mapping[str, Value]) -> None:
        for name in self.group:
            value = after[name]
            assert isinstance(value, Number)
            self.group[name] = value.ball  # Python floats are float64


DTYPE_NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}


def wanted_storage(settings: Mapping[str, Any], state: State | None = None) -> tuple[str, int | None]:
    """Codec that settings ask for, where a state (or one that takes all) can be stored so, and the size of its
    blocks."""
    named, bits = settings.get("codec"), settings.get("optim_bits", 32)
    listed = (codec for codec in (state and state.codecs) or () if BITS[codec] == bits)
    name = next(listed, OF_BITS[bits]) if named in (None, "auto") else str(named)
    if name not in CODECS:
        return name, None
    return name, (settings.get("block_size") or None) if settings.get("block_wise", True) else WHOLE


def _nowhere(node: ast.Call, operator: str, part: Ball) -> Ball:
    raise ValueError("an initial value has no reduction over all parameters")


def _combined(parts: Sequence[_PartMissing]) -> Ball:
    result = parts[0].part
    for part in parts[1:]:
        if part.operator == "max":
            result = balls.maximum(result, part.part)
        else:
            result = rounded(balls.added(result, part.part), HOST, HOST_TINY)
    return result


def _filled(value: Ball, shape: tuple[int, ...]) -> Ball:
    """A value in a state's own shape: lower kinds are one number for several entries."""
    mid, rad = value.mid, value.rad
    if mid.size == math.prod(shape):
        return Ball(mid.reshape(shape), rad.reshape(shape))
    while mid.ndim > len(shape) and 1 in mid.shape:
        axis = max(i for i, size in enumerate(mid.shape) if size == 1)
        mid, rad = mid.squeeze(axis), rad.squeeze(axis)
    return Ball(np.broadcast_to(mid, shape).copy(), np.broadcast_to(rad, shape).copy())
