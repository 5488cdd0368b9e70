"""What a generated module says about its rule: tables that the runtime acts on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

Settings = Mapping[str, Any]
Flags = Any  # the rule's own NamedTuple of truth values
Live = Callable[[Any], bool]


def always(flags: Flags) -> bool:
    """The formula of what every setting needs."""
    return True


@dataclass(frozen=True)
class Hyperparameter:
    """A number the user sets, and what it may be."""

    name: str
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    label: str = ""
    parts: tuple[str, ...] = ()
    optional: bool = False
    integer: bool = False
    scope: str = "group"

    def __str__(self) -> str:
        """The range, as `[0, 1)`."""
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{_plain(self.low)}, {_plain(self.high)}{right}"

    def contains(self, value: float) -> bool:
        """Whether a number is in range; NaN never is."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)


@dataclass(frozen=True)
class Option:
    """A flag, or one of several choices."""

    name: str
    choices: tuple[bool | int | str | None, ...] | None = None


@dataclass(frozen=True)
class State:
    """Something kept between steps.

    Attributes:
        kind: element, row, col, matrix, tensor, group or global.
        stored_as: The option that says in which dtype, if one does.
        exists: Under which flags.
        init: A number, or a function of a view of the parameter.
        reads_elements: Whether that function reads the parameter or its gradient.
        reduced: Whether it reduces them.
    """

    name: str
    kind: str
    signed: bool = True
    codecs: tuple[str, ...] = ("fp32",)
    stored_as: str | None = None
    window: int | None = None
    exists: Live = always
    init: float | Callable[[Any], Any] = 0.0
    reads_elements: bool = False
    reduced: bool = False


@dataclass(frozen=True)
class Partial:
    """A result of a pass, to which every part of a tensor adds.

    Attributes:
        over: tensor, row or col: of which it is one number each.
        op: sum or max.
        live: Whether the pass makes it, where it is run.
    """

    name: str
    over: str
    op: str
    live: Live


@dataclass(frozen=True)
class Pass:
    """One pass of a block.

    Attributes:
        function: Its name in every target.
        live: When it is run.
        reductions: What it reduces to one number per tensor.
        rows: How many sums of rows it makes.
        cols: How many sums of columns.
        scalars: How many values below element kind it hands to its elements.
        partials: All that it reduces, rows and columns included.
    """

    function: str
    live: Live
    reductions: tuple[str, ...] = ()
    rows: int = 0
    cols: int = 0
    scalars: int = 0
    partials: tuple[Partial, ...] = ()


@dataclass(frozen=True)
class Array:
    """Numbers of a tensor that are kept between passes: one per row, column or matrix."""

    name: str
    kind: str
    live: Live


@dataclass(frozen=True)
class Block:
    """A block of a rule.

    Attributes:
        values: Evaluates what is the same for a group: (settings, sums over all parameters, their elements) -> floats.
        inputs: What those values follow from, where tensors on a GPU stay unread: same arguments.
        names: The names of those values.
        commit: New values of group and global states.
        reductions: Every reduction to one number per tensor, in the order of their results.
        sums: Sums over all parameters: (name, operator, reduction).
        refuse: Raises where the block may not run: (class name, settings).
        grads: Whether the block runs over parameters that have a gradient, rather than over those that have states.
        line_sums: Whether numbers of rows, columns or matrices are summed over the tensor.
        counts: Whether anything depends on a parameter's position in its group.
    """

    passes: tuple[Pass, ...]
    values: Callable[[Settings, Mapping[str, float], float], tuple[float, ...]]
    inputs: Callable[[Settings, Mapping[str, Any], float], tuple[Any, ...]]
    names: tuple[str, ...]
    commit: Callable[[Settings, Mapping[str, float], float], dict[str, float]] | None = None
    reductions: tuple[str, ...] = ()
    sums: tuple[tuple[str, str, str], ...] = ()
    arrays: tuple[Array, ...] = ()
    refuse: Callable[[str, Settings], None] | None = None
    grads: bool = False
    line_sums: bool = False
    counts: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule as its module declares it.

    Attributes:
        name: The family.
        file: The module's file; its kernels lie beside it.
        package: The module's package.
        flags: (settings, ndim, numel, index, states with one scale for the tensor) -> flags.
        fixed_by: Settings that the flags, the storage and what is refused depend on: the host must know them.
        inputs: Names of what may be set on the optimizer for a step, such as `grad_scale`.
        constants: Flags that the codecs decide, which no kernel is given.
        first_step_only: Whether blocks ask of the count of steps no more than whether this is the first.
        refuse: Raises for combinations that the rule rejects: (class name, settings).
    """

    name: str
    file: str
    package: str
    hypers: Mapping[str, Hyperparameter]
    options: Mapping[str, Option]
    storage: Mapping[str, Option | Hyperparameter]
    states: Mapping[str, State]
    flags: Callable[[Settings, int, int, int, frozenset[str]], Flags]
    fixed_by: tuple[str, ...]
    blocks: Mapping[str, Block]
    inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    first_step_only: bool = False
    refuse: Callable[[str, Settings], None] | None = None

    @property
    def source(self) -> Path:
        """The C++ source."""
        return Path(self.file).with_name(f"{self.name}.cpp")

    @property
    def cuda_source(self) -> Path:
        """The CUDA C++ source."""
        return Path(self.file).with_name(f"{self.name}.cu")

    @cached_property
    def functions(self) -> tuple[str, ...]:
        """The names of the passes' functions in the C++ source, and of their kernels in the CUDA source."""
        return tuple(item.function for block in self.blocks.values() for item in block.passes)

    @cached_property
    def torch_functions(self) -> ModuleType:
        """The module of the torch target."""
        return importlib.import_module(f"{self.package}.{self.name}_torch")

    @cached_property
    def element_states(self) -> tuple[State, ...]:
        """States with a number per element."""
        return tuple(s for s in self.states.values() if s.kind == "element")

    @cached_property
    def tensor_states(self) -> tuple[State, ...]:
        """States of a parameter with fewer numbers than elements."""
        return tuple(s for s in self.states.values() if s.kind in ("row", "col", "matrix", "tensor"))

    @cached_property
    def shared_states(self) -> tuple[State, ...]:
        """States of a group or of the optimizer."""
        return tuple(s for s in self.states.values() if s.kind in ("group", "global"))
