"""Rules evaluated in float64 by plain torch operations, for unit tests of a rule of one's own.

Nothing is planned, printed or rounded here: the equations are followed statement by statement, so that results can be
differentiated (`torch.autograd.gradcheck`) and looked at.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce as fold
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optgen.compiler import check_specs
from optgen.diagnostics import Reporter, suggest
from optgen.explanation import ClassInfo
from optgen.ir.guards import RECORDED, Guard
from optgen.ir.kinds import kind_of
from optgen.ir.matrix_stage import OVER, UPDATE
from optgen.ir.nodes import MATRICES, Call, Const, Expr, Input, Kind, Let, MatrixCall, Reduce, Ref, Select, walk
from optgen.ir.rule import Block
from optgen.operations import DRAWS, OPERATIONS, Named
from optgen.runtime import torch_math
from optgen.runtime.core.bucket import matrix_shape, sizes_of
from optgen.runtime.dimensions import SIDE, is_turned, kind_dims, matrix_sizes, shape_of, spread_shape
from optgen.runtime.matrix_math import MATRIX_FUNCTIONS
from optgen.runtime.states.philox import Draw
from optgen.runtime.states.store import in_equations
from optgen.spec.given import given_states

Values = dict[str, Any]

OF_NONE = {"max": 0.0, "greatest": -math.inf}
"""Maxima of no numbers."""


@dataclass(frozen=True)
class State:
    """States of a rule between two steps.

    Attributes:
        params: For each parameter its states by name, in float64; "step" is its number of steps.
        group: States that the whole group, or all groups, have one of.
    """

    params: tuple[Mapping[str, Tensor], ...]
    group: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Traced:
    """A value of one parameter on the way of a step.

    Attributes:
        index: Position of the parameter.
        name: What the equations call it, or its part of a statement.
        source: The statement that it comes from.
        kind: How many numbers it is: `element`, `row`, `tensor`, ...
        value: The number or numbers, in float64.
    """

    index: int
    name: str
    source: str
    kind: str
    value: Any


class Reference:
    """One class of a rule, under given settings.

    Args:
        info: The class.
        settings: Those that are not to have its defaults. Ranges and refusals are the optimizer's to check.

    Raises:
        TypeError: the class has no such setting, or it says how states are stored: nothing is stored here.
        ValueError: an option has no such choice.
    """

    def __init__(self, info: ClassInfo, settings: Mapping[str, Any]) -> None:
        rule = info.whole_rule
        known = (*rule.hypers, *rule.options, *(name for name in rule.storage if name == SIDE))
        for name in settings:
            if name not in known:
                near = suggest(name, known)
                raise TypeError(f"{info.name} has no setting `{name}`{f': {near}' if near else ''}")
        self.name, self.rule = info.name, rule
        self.settings: Values = {**info.defaults, **{name: settings[name] for name in settings if name == SIDE}}
        for name, hyper in rule.hypers.items():
            if name in settings and hyper.names:
                self.settings |= dict(zip(hyper.names, settings[name], strict=True))
            elif name in settings:
                self.settings[name] = settings[name]
        for name, option in rule.options.items():
            if name in settings:
                value = settings[name]
                if value not in (option.choices or (False, True)):
                    choices = ", ".join(map(repr, option.choices or (False, True)))
                    raise ValueError(f"{info.name}: {name} is {value!r}, and must be one of {choices}")
                self.settings[name] = value

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor | None], state: State | None = None, **inputs: Any
    ) -> tuple[list[Tensor], State]:
        """One step; nothing that is given is changed.

        Args:
            params: Parameters of one group.
            grads: Their gradients; None for a parameter that is not in this step.
            state: What the step before has left; None before the first one.
            inputs: Inputs of this step by name, such as `grad_scale`; those of parameters for each of them, or None.

        Returns:
            The new parameters in float64, and the new state.
        """
        return self._run("step", params, grads, state, inputs).result

    def call(
        self, method: str, params: Sequence[Tensor], grads: Sequence[Tensor | None] = (), state: State | None = None
    ) -> tuple[list[Tensor], State]:
        """One call of a method of the rule, as `step` is one step; gradients are for methods that read them."""
        if method not in self.rule.spec.methods:
            known = ", ".join(self.rule.spec.methods) or "none"
            raise ValueError(f"{self.name} has no method `{method}`; its methods: {known}")
        return self._run(method, params, grads, state, {}).result

    def trace(
        self, params: Sequence[Tensor], grads: Sequence[Tensor | None], state: State | None = None, **inputs: Any
    ) -> list[Traced]:
        """Every value of a step by statement, in the order in which they are computed."""
        return self._run("step", params, grads, state, inputs).traced

    def _run(
        self,
        block: str,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: State | None,
        inputs: Mapping[str, Any],
    ) -> _Run:
        own = given_states(self.rule.states)
        for name in inputs:
            if name not in self.rule.given and name not in own:
                raise TypeError(f"{self.name} has no input `{name}`; its inputs: {', '.join((*self.rule.given, *own))}")
        if self.rule.reads_gradients(block) and len(grads) != len(params):
            raise ValueError(f"{len(params)} parameters have {len(grads)} gradients")
        return _Run(self, block, params, grads or [None] * len(params), state, inputs)


def reference(
    spec: str | Path | Sequence[str | Path],
    name: str | None = None,
    /,
    *,
    onto: str | Path | None = None,
    **settings: Any,
) -> Reference:
    """A rule to be evaluated in float64 with plain torch operations.

    Args:
        spec: A spec file, or a folder of them; several in a list. With `onto`, stages in their order.
        name: A class of it; None for the first.
        onto: What the stages are put on, as `optgen.load` takes it.
        settings: Hyperparameters and options that are not to have the class's defaults; tensors may require gradients.

    Raises:
        SpecError: all mistakes of the spec at once.
        UserError: optgen has no rule that `onto` names.
        ValueError: there is no such class, or an option has no such choice.
        TypeError: the class has no such setting.
    """
    paths = [Path(path) for path in ([spec] if isinstance(spec, str | Path) else spec)]
    units = check_specs(paths, Reporter(), onto, name)
    infos = [ClassInfo(unit.rule, unit.plans, one, None, ()) for unit in units for one in unit.classes]
    found = next((info for info in infos if name in (None, info.name)), None)
    if found is None:
        every = [one.name for unit in check_specs(paths, Reporter(), onto) for one in unit.classes]
        known = ", ".join(every) or "none"
        raise ValueError(f"{spec} has no class {name}; its classes: {known}")
    return Reference(found, settings)


class _Run:
    """One run of a block over all parameters, statement by statement."""

    def __init__(
        self,
        reference: Reference,
        name: str,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: State | None,
        inputs: Mapping[str, Any],
    ) -> None:
        self.rule, self.settings, self.inputs = reference.rule, reference.settings, inputs
        self.block: Block = self.rule.blocks[name]
        self.program = self.block.program
        self.kinds = self.program.kinds()
        self.lets = {let.name: let for let in self.program.lets}
        self.is_step = name == "step"
        self.params = [param.to(torch.float64) for param in params]
        takes = self.rule.reads_gradients(name)
        self.members = [i for i, grad in enumerate(grads) if grad is not None or not takes]
        self.total = sum(params[i].numel() for i in self.members)
        self.grads = [None if grad is None else grad.to(torch.float64) for grad in grads]
        state = state if state is not None else State(tuple({} for _ in params), {})
        self.group = {**self._initial_group(), **state.group}
        self.states = [dict(each) for each in state.params]
        for name in given_states(self.rule.states).keys() & inputs.keys():
            for own, numbers in zip(self.states, inputs[name], strict=True):
                own |= {} if numbers is None else {name: torch.as_tensor(numbers, dtype=torch.float64)}
        self.guards = {i: self._guards(i) for i in self.members}
        for i in self.members:
            self._begin(i)
        self.values = {i: self._given(i) for i in self.members}
        self.of_all: dict[Reduce, Any] = {}  # reductions over all parameters, or those of the group
        self.traced: list[Traced] = []
        self.matrices: dict[int, Values] = {}  # new states of steps on matrices
        stage = self.rule.matrices
        self.own = {} if stage is None else {let.name: let for let in stage.program.lets}
        for let in self.program.lets:
            self._bind(let)

    @property
    def result(self) -> tuple[list[Tensor], State]:
        """Parameters and states after the block: a value that is not written stays."""
        params, states, group = list(self.params), [dict(each) for each in self.states], dict(self.group)
        for position, i in enumerate(self.members):
            active = self._value(i, self.block.active)
            for name, expr in self.program.outputs.items():
                item = self.program.inputs[name]
                if not (self.program.writes[name] & item.exists).holds(self.guards[i]):
                    continue
                new = self._value(i, expr)
                if item.kind is Kind.ELEMENT:
                    new = where(active, new, self.values[i][name])
                new = _stored(self._spread(i, new, item.kind), item, self.params[i].shape)
                if name == "param":
                    params[i] = new
                elif not item.kind.is_host:
                    states[i][name] = new
                elif position == 0:
                    group[name] = new
            states[i] |= self.matrices.get(i, {})
            if self.is_step:
                states[i]["step"] = states[i]["step"] + 1
        return params, State(tuple(states), group)

    # What is known before the first statement

    def _guards(self, i: int) -> dict[str, bool]:
        facts = self._facts(i)
        number = int(self.states[i].get("step", 0)) + self.is_step
        return {name: self._holds(guard, facts, number) for name, guard in self.rule.guards.guards.items()}

    def _holds(self, guard: Guard, facts: Mapping[str, float], number: int) -> bool:
        if guard.about == "codec" or guard.subject == RECORDED:
            return False  # nothing is quantized, nothing recorded
        if guard.about == "step":
            period = self.settings.get(guard.subject, guard.subject)
            return number % int(period) == guard.value
        subjects: Mapping[str, Any] = {"fact": facts, "input": self.inputs}.get(guard.about, self.settings)
        value = subjects.get(guard.subject)
        match guard.op:
            case "given":
                return value is not None
            case "true":
                return bool(value)
        return value is not None and guard.holds(value)

    def _facts(self, i: int) -> dict[str, float]:
        shape = self.params[i].shape
        matrices, rows, cols = matrix_shape(shape)
        return {
            "ndim": len(shape), "numel": shape.numel(), "index": i, "rows": rows, "cols": cols, "matrices": matrices,
            "total_numel": self.total, **sizes_of(shape),
        }  # fmt: skip

    def _initial_group(self) -> Values:
        return {
            name: self._value(-1, self.rule.inits[name], self.settings)
            for name, item in self.rule.inputs.items()
            if item.role == "state" and item.kind.is_host
        }

    def _begin(self, i: int) -> None:
        """Give a parameter the states that it has at its first step."""
        states = self.states[i]
        states.setdefault("step", torch.zeros((), dtype=torch.float64))
        for name, item in self.rule.inputs.items():
            if item.role != "state" or item.kind.is_host or name in states:
                continue
            if item.exists.holds(self.guards[i]):
                first = self._value(i, self.rule.inits[name], self._given(i))
                states[name] = _stored(self._spread(i, first, item.kind), item, self.params[i].shape)
        for name, dims in self.rule.matrices.shapes.items() if self.rule.matrices is not None else ():
            if name not in states and self.rule.state_inputs[name].exists.holds(self.guards[i]):
                size = matrix_sizes(dims, self.params[i].shape, self.settings)
                first = float(self._value(i, self.rule.inits[name], self._given(i)))
                states[name] = torch.full(size, first, dtype=torch.float64)

    def _given(self, i: int) -> Values:
        """The values of a parameter before the first statement."""
        values: Values = {**self.settings, **self.group, **self._facts(i)}
        values |= {name: self.inputs.get(name) for name in self.rule.given}
        values["param"], values["grad"] = self.params[i], self.grads[i]
        values["step"] = float(self.states[i]["step"]) + self.is_step
        for name, value in self.states[i].items():
            if name not in self.rule.inputs:
                values[name] = value
            elif name != "step":
                values[name] = in_equations(self.rule.inputs[name].kind.name.lower(), value, self.params[i].shape)
        return {name: math.nan if value is None else value for name, value in values.items()}

    # Statements

    def _bind(self, let: Let) -> None:
        """Give a name its value in every parameter that comes to its statement."""
        reached = [i for i in self.members if not let.joins and let.path.holds(self.guards[i])]
        for node in walk(let.expr):
            if isinstance(node, Reduce) and node.over.is_host and reached:
                together: Callable[[Any, Any], Any] = torch_math.maximum if node.op == "max" else operator.add
                self.of_all[node] = fold(together, (self._reduced(i, node) for i in reached))
        values = {i: self._value(i, let.expr) for i in reached}
        for i, value in values.items():
            self.values[i][let.name] = value
            self.traced.append(Traced(i, let.variable or let.name, let.source, let.kind.name.lower(), value))

    def _value(self, i: int, expr: Expr, values: Values | None = None) -> Any:
        values = self.values[i] if values is None else values
        match expr:
            case Const(value=value):
                return value
            case Ref(name=name):
                if name not in values:  # what an `if` leaves is looked at when it is read
                    lets = self.lets if values is self.values[i] else self.own
                    values[name] = self._value(i, lets[name].expr, values)
                return values[name]
            case Select(formula=formula, then=then, other=other):
                return self._value(i, then if formula.holds(self.guards[i]) else other, values)
            case Call(op=op, args=(_, Const(value=number))) if op in DRAWS:
                shape, draw = self.params[i].shape, Draw(0, i)
                numbers = draw.normal if op == "normal" else draw.uniform
                return numbers(int(number), shape.numel(), self.params[i].device).double().reshape(shape)
            case Call(op="from_tall" | "turned" | "turned_back" as op, args=(x,)):
                matrix = self._value(i, x, values)
                return matrix.mT if values["from_tall" if op == "from_tall" else "turned"] else matrix
            case Call(op="normal_matrix", args=(rows, cols, number, _)):
                sizes = [int(self._value(i, size, values)) for size in (rows, cols)]
                drawn = Draw(0, i).normal_in(int(self._value(i, number, values)), math.prod(sizes), "cpu")
                return drawn.double().view(sizes)
            case Call(op=op, args=args):
                return FUNCTIONS[op](*(self._value(i, arg, values) for arg in args))
            case MatrixCall(op=op, x=x, settings=settings):
                elements = self._spread(i, self._value(i, x, values), Kind.ELEMENT)
                if op == MATRICES:
                    return self._step_on_matrices(i, elements)
                return MATRIX_FUNCTIONS[op](elements, *(float(self._value(i, s, values)) for s in settings))
            case Reduce(over=over) if over.is_host:  # there is one group
                return self.of_all[expr]
            case Reduce():
                return self._reduced(i, expr, values)

    def _step_on_matrices(self, i: int, grad: Tensor) -> Tensor:
        """The direction of a step on matrices; the new states are kept until the result is asked for."""
        assert self.rule.matrices is not None
        stage, shape = self.rule.matrices, self.params[i].shape
        values: Values = {**self.values[i], "grad": grad}
        for name, item in stage.program.inputs.items():
            if name.startswith("size_of_"):
                (values[name],) = matrix_sizes((name.removeprefix("size_of_"),), shape, self.settings)
            elif item.kind is Kind.CONST:
                values[name] = name.removeprefix(OVER)
        values |= {"from_tall": shape[0] < shape[1], "turned": is_turned(shape, self.settings)}
        for let in stage.program.lets:
            if not let.joins and let.path.holds(self.guards[i]):
                values[let.name] = self._value(i, let.expr, values)
                self.traced.append(Traced(i, let.variable, let.source, let.kind.name.lower(), values[let.name]))
        made = {
            name: self._value(i, value, values)
            for name, value in stage.program.outputs.items()
            if stage.program.writes[name].holds(self.guards[i])
        }
        update: Tensor = made.pop(UPDATE)
        if all(bool(value.isfinite().all()) for value in (update, *made.values())):
            self.matrices[i] = made
            return update
        return torch.full_like(update, math.nan)

    def _reduced(self, i: int, node: Reduce, values: Values | None = None) -> Tensor:
        """A reduction over one parameter, or over each of its rows, columns or matrices."""
        x = self._spread(i, self._value(i, node.x, values), kind_of(node.x, self.kinds))
        x = x * x if node.op == "squares" else x
        own, kept = kind_dims(node.over.name.lower(), x.dim()), node.over.is_array
        dims = tuple(dim for dim in range(x.dim()) if dim not in own)
        if not node.is_maximum:
            return x.sum(dims, keepdim=kept)
        return x.amax(dims, keepdim=kept) if x.numel() else x.sum(dims, keepdim=kept) + OF_NONE[node.op]

    def _spread(self, i: int, value: Any, kind: Kind) -> Tensor:
        """A value as a tensor of as many numbers as its kind has."""
        tensor = torch.as_tensor(value, dtype=torch.float64) if not isinstance(value, Tensor) else value
        shape = tuple(self.params[i].shape) if i >= 0 else ()
        if kind is Kind.ELEMENT or kind.is_array:
            return tensor.expand(spread_shape(kind.name.lower(), shape))
        return tensor


def _stored(value: Tensor, item: Input, shape: torch.Size) -> Tensor:
    """A value as a state keeps it."""
    if item.kind.is_array:
        return value.reshape(shape_of(item.kind.name.lower(), shape))
    window = item.window
    return value.expand(window) if window is not None else value


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(condition, *(torch.as_tensor(x, dtype=torch.float64) for x in (a, b)))


def push(window: Tensor, value: Any, step: Any) -> Tensor:
    """The window with a value in slot `step % n`; the first finite value fills it, others never enter."""
    return torch_math.push(window, value, float(step)).double()


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, row in OPERATIONS.items():
        match row.python:
            case Named(name=function) if function.startswith("m.") and name != "size":  # which stands for a number
                yield name, getattr(torch_math, function.removeprefix("m."))
            case _ if row.value is not None:
                yield name, row.value


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **dict(_functions()),
    "/": lambda a, b: a / b if isinstance(a, Tensor) or isinstance(b, Tensor) else torch_math.divide(a, b),
    "matmul": operator.matmul,
    "rounded": lambda x: x,  # a float64 parameter stores what is computed
    "where": where,
    "push": push,
}
