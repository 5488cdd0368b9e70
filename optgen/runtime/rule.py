"""Description of a rule in its generated module: tables that the runtime acts on."""

from __future__ import annotations

import importlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from optgen.runtime.block import Block, Flags, Live, Refusal, Settings, always
from optgen.runtime.dimensions import matrix_sizes

if TYPE_CHECKING:
    import torch

NOTHING: Mapping[str, str] = MappingProxyType({})


def no_flags(settings: Settings, *facts: object) -> Mapping[str, bool]:
    """The flags of what has none."""
    return {}


@dataclass(frozen=True)
class Hyperparameter:
    """A number the user sets.

    Attributes:
        range: Range of values, as `[0, 1)`; a round bracket leaves the end out.
        label: Name in messages; empty is `NAME value`.
        parts: The names of its numbers, if it is a tuple of several.
        scope: `group`, or `global` where all groups have the same.
        decides: Whether it decides which kernels serve or what is refused, so that the host must know it.
        doc: Its documentation, where several rules have it.
    """

    name: str
    range: str
    label: str = ""
    parts: tuple[str, ...] = ()
    optional: bool = False
    integer: bool = False
    scope: str = "group"
    decides: bool = False
    doc: str = ""

    def __str__(self) -> str:
        """The range."""
        return self.range

    @cached_property
    def _ends(self) -> tuple[float, float]:
        low, high = self.range[1:-1].split(", ")
        return float(low), float(high)

    def contains(self, value: float) -> bool:
        """Check whether a number is in range; NaN never is."""
        low, high = self._ends
        above = value > low if self.range[0] == "(" else value >= low
        below = value < high if self.range[-1] == ")" else value <= high
        return above and below


@dataclass(frozen=True)
class Option:
    """A flag, or one of several choices; `doc` says what it does, where several rules have it."""

    name: str
    choices: tuple[bool | int | str | None, ...] | None = None
    doc: str = ""


@dataclass(frozen=True)
class State:
    """Value that is kept between steps.

    Attributes:
        kind: element, row, col, matrix, tensor, group or global; or shaped, for a matrix of its own dimensions.
        dims: The names of these.
        stored_as: The option that says in which dtype, if one does.
        exists: Under which flags.
        init: A number, or a function of a view of the parameter.
        reads_elements: Whether that function reads the parameter or its gradient.
        reduced: Whether it reduces them.
        draws: Whether it draws random numbers.
        given: Documentation of what `Optimizer.give` takes for it; after a step it is `init` again.
    """

    name: str
    kind: str = "element"
    signed: bool = True
    codecs: tuple[str, ...] = ("fp32",)
    stored_as: str | None = None
    window: int | None = None
    exists: Live = always
    init: float | Callable[[Any], Any] = 0.0
    reads_elements: bool = False
    reduced: bool = False
    draws: bool = False
    dims: tuple[str, ...] = ()
    given: str = ""

    def shape(self, shape: torch.Size, settings: Settings, here: bool = True) -> torch.Size:
        """The shape of a state that has codecs, of a parameter of this shape.

        Of a matrix of its own dimensions there is one for each matrix of the shape that the rule sees the parameter in.

        Args:
            here: Whether such a matrix is kept by this process; if not, it has nothing of the first dimension.
        """
        if not self.dims:
            return shape
        first, *others = (*shape[:-2], *matrix_sizes(self.dims, shape, settings))
        return type(shape)((first if here else 0, *others))


@dataclass(frozen=True)
class Shared:
    """Parts that rules of a package share which have a thing in common, as an update of elements.

    Attributes:
        settings: Hyperparameters and options.
        storage: Settings of how states are kept.
        inputs: Inputs that may be set on the optimizer for a step, as `grad_scale`, with their documentation.
        arguments: Documentation of arguments that are not settings; `optim_bits` is for classes that fix the bits.
        flags: Truth values that follow from settings, by name.
        refusals: Refusals of all these rules.
    """

    settings: tuple[Hyperparameter | Option, ...] = ()
    storage: tuple[Hyperparameter | Option, ...] = ()
    states: tuple[State, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    flags: Callable[[Settings], Mapping[str, bool]] = no_flags
    refusals: tuple[Refusal, ...] = ()


class Rule:
    """A rule as its module declares it, with what it shares with others of its package.

    What the rule declares itself goes before what it shares, and takes its place where both have a name.

    Args:
        name: The family.
        file: The module's file; its kernels lie beside it.
        package: The module's package.
        settings: Hyperparameters and options of its own.
        flags: (settings, ndim, numel, index, states with one scale for the tensor) -> its own flags by name.
        on_step: (settings, number of the step) -> its flags that differ between steps, by name.
        shared: Parts that it shares with other rules.
        inputs: Inputs that may be set on the optimizer for a step, with their documentation.
        ndim: Number of dimensions that its parameters have, where it takes no others.
        constants: Flags that the codecs decide, which no kernel is given.
        channels_alone: Whether blocks tell no dimension of a tensor but the first: kernels take the others as one.
        first_step_only: Whether blocks ask of the count of steps no more than whether this is the first.
        refusals: Combinations that it refuses.

    Attributes:
        documented: Settings by name that several rules have, with what they do.
        arguments: Documentation of arguments that are not settings.
    """

    def __init__(
        self,
        name: str,
        file: str,
        package: str | None,
        *,
        settings: Sequence[Hyperparameter | Option] = (),
        states: Sequence[State] = (),
        flags: Callable[[Settings, int, int, int, frozenset[str]], Mapping[str, bool]] = no_flags,
        on_step: Callable[[Settings, int], Mapping[str, bool]] | None = None,
        blocks: Mapping[str, Block],
        shared: Sequence[Shared] = (),
        inputs: Mapping[str, str] = NOTHING,
        ndim: int | None = None,
        constants: tuple[str, ...] = (),
        first_step_only: bool = False,
        channels_alone: bool = False,
        refusals: Sequence[Refusal] = (),
    ) -> None:
        self.name, self.file, self.package = name, file, package or ""
        self.blocks, self.constants, self.first_step_only = blocks, constants, first_step_only
        self.channels_alone = channels_alone
        self.ndim = ndim
        own = {setting.name: setting for setting in settings}
        common = {s.name: s for part in shared for s in part.settings if s.name not in own}
        declared = {**own, **common}
        self.hypers = {key: s for key, s in declared.items() if isinstance(s, Hyperparameter)}
        self.options = {key: s for key, s in declared.items() if isinstance(s, Option)}
        self.storage = {setting.name: setting for part in shared for setting in part.storage}
        self.documented = {**common, **self.storage}
        self.arguments = {key: doc for part in shared for key, doc in part.arguments.items()}
        self.states = {state.name: state for state in (*states, *(s for part in shared for s in part.states))}
        self.inputs = dict(inputs)
        for part in shared:
            self.inputs = {**part.inputs, **self.inputs}
        self.refusals = (*refusals, *(refusal for part in shared for refusal in part.refusals))
        self._flags, self._shared_flags = flags, [part.flags for part in shared]
        self._flags_type: Callable[..., Flags] | None = None
        self.on_step = on_step

    def flags(
        self, settings: Settings, ndim: int, numel: int, index: int, tensorwise: frozenset[str], step: int = 0
    ) -> Flags:
        """Compute the flags that are fixed before a step of a parameter.

        Args:
            step: The number of the step; at 0 everything happens that happens every few steps.
            index: The parameter's position in its group.
            tensorwise: The states that are stored with one scale for the tensor.
        """
        truths = dict(self._flags(settings, ndim, numel, index, tensorwise))
        if self.on_step is not None:
            truths.update(self.on_step(settings, step))
        for shared in self._shared_flags:
            truths.update(shared(settings))
        if self._flags_type is None:
            self._flags_type = namedtuple("Flags", truths)  # type: ignore[misc]
        return self._flags_type(**truths)

    def refuse(self, name: str, settings: Settings, refusals: Iterable[Refusal]) -> None:
        """Raise the error of the first of these refusals that holds.

        Args:
            name: The class's.
        """
        for refusal in refusals:
            if refusal.when(settings):
                tuples = [hyper for hyper in self.hypers.values() if hyper.parts and settings.get(hyper.name)]
                parts = {part: x for h in tuples for part, x in zip(h.parts, settings[h.name], strict=False)}
                raise refusal.error(refusal.message.format_map({**settings, **parts, "name": name}))

    @cached_property
    def sources(self) -> Mapping[str, tuple[str, int | None]]:
        """Places where a group keeps the values that functions of the host read: the key, and the index in a tuple."""
        whole = {name: (name, None) for name in (*self.hypers, *self.inputs, *self.states)}
        return whole | {part: (h.name, i) for h in self.hypers.values() for i, part in enumerate(h.parts)}

    @cached_property
    def tuples(self) -> tuple[str, ...]:
        """Hyperparameters of several numbers."""
        return tuple(hyper.name for hyper in self.hypers.values() if hyper.parts)

    @cached_property
    def fixed_by(self) -> tuple[str, ...]:
        """Settings that the flags, the storage and what is refused depend on: the host must know them."""
        decides = [hyper.name for hyper in self.hypers.values() if hyper.decides]
        return (*decides, *self.options, *self.storage, "target")

    @property
    def module(self) -> str:
        """The name of its module."""
        return f"{self.package}.{self.name}" if self.package else self.name

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
    def has_matrices(self) -> bool:
        """True if functions of matrices, or steps on them, run on parameters."""
        return any(block.matrices for block in self.blocks.values())

    @cached_property
    def matrix_states(self) -> tuple[State, ...]:
        """States that are matrices of their own dimensions."""
        return tuple(s for s in self.states.values() if s.kind == "shaped")

    @cached_property
    def coded_states(self) -> tuple[State, ...]:
        """States that have codecs: those with a number per element, then matrices of their own dimensions."""
        return (*self.element_states, *self.matrix_states)

    @cached_property
    def tensor_states(self) -> tuple[State, ...]:
        """States of a parameter with fewer numbers than elements."""
        return tuple(s for s in self.states.values() if s.kind not in ("element", "shaped", "group", "global"))

    @cached_property
    def given_states(self) -> Mapping[str, State]:
        """States that are given for a step, by name."""
        return {name: state for name, state in self.states.items() if state.given}

    @cached_property
    def shared_states(self) -> tuple[State, ...]:
        """States of a group or of the optimizer."""
        return tuple(s for s in self.states.values() if s.kind in ("group", "global"))
