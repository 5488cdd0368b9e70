"""Description of a block in a generated module: its passes, their reductions, and when each is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Settings = Mapping[str, Any]
Flags = Any  # a NamedTuple of truth values, one for every flag of the rule
Live = Callable[[Any], bool]


def never(flags: Flags) -> bool:
    """The formula of what no setting has."""
    return False


def always(flags: Flags) -> bool:
    """The formula of what every setting needs."""
    return True


@dataclass(frozen=True)
class Refusal:
    """A combination of settings that is refused.

    Attributes:
        when: Whether these settings are.
        message: A format string over the settings, the parts of tuples, and `name`, the class.
        error: Exception that is raised.
    """

    when: Callable[[Settings], bool]
    message: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Partial:
    """A result of a pass, to which every part of a tensor adds.

    Attributes:
        live: Whether it is needed.
        before: The results that wait for it, beside the last pass: names with spaces between them, or with when they
            do.
        over: tensor, row or col: of which it is one number each; or element, for a function of matrices.
        op: sum or max; or the function, a name of `matrix_math.MATRIX_FUNCTIONS`.
        settings: Further arguments of the function: numbers, or names of values of a group.
        reads_param: Whether the function reads the parameter too.
        takes_grad: Whether what the function takes is the gradient as it is.
    """

    name: str
    live: Live = always
    before: str | Mapping[str, Live] = ""
    over: str = "tensor"
    op: str = "sum"
    settings: tuple[float | str, ...] = ()
    reads_param: bool = False
    takes_grad: Live = never

    @cached_property
    def waiting(self) -> Mapping[str, Live]:
        """The results that wait for it, and when they do."""
        return dict.fromkeys(self.before.split(), always) if isinstance(self.before, str) else self.before


@dataclass(frozen=True)
class Exchange:
    """Two states of elements whose memory changes places after the block."""

    first: str
    second: str
    live: Live = always


@dataclass(frozen=True)
class Pass:
    """One pass of a block.

    Attributes:
        function: Its name in every target.
        partials: The results that it may make, with spaces between them.
    """

    function: str
    partials: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The results that it may make."""
        return tuple(self.partials.split())


@dataclass(frozen=True)
class Array:
    """Numbers of a tensor that are kept between passes: one per row, column, matrix or, for functions of matrices,
    element."""

    name: str
    kind: str
    live: Live


@dataclass(frozen=True)
class Block:
    """A block of a rule.

    Attributes:
        partials: All that the passes reduce.
        scalars: Number of values below element kind that passes hand to their elements.
        reads: Values of a group that the step reads: names of hyperparameters, inputs, states of the group
            and sums over several parameters, with spaces between them.
        values: Function of the values that follow from these, by name; its parameters say from which.
        commit: New values of group and global states, likewise.
        sums: Sums over all parameters: (name, operator, reduction).
        group_sums: The names of those among them that are over the parameters of a group, with spaces between them.
        refusals: Settings and states of a group with which the block may not run.
        grads: Whether the block runs over parameters that have a gradient, rather than over those that have states.
        line_sums: Whether numbers of several matrices are brought together: for the tensor, or one of its last
            dimensions.
        channel_sums: Whether numbers of rows are brought together for their index of the first dimension.
        counts: Whether anything depends on a parameter's position in its group.
        exchanges: States whose memory changes places.
        by_rows: Whether passes can take a few rows one after the other, while these are in a cache.
    """

    passes: tuple[Pass, ...]
    partials: tuple[Partial, ...] = ()
    scalars: int = 0
    reads: str = ""
    values: Callable[..., dict[str, float]] | None = None
    commit: Callable[..., dict[str, float]] | None = None
    sums: tuple[tuple[str, str, str], ...] = ()
    group_sums: str = ""
    arrays: tuple[Array, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    grads: bool = False
    line_sums: bool = False
    channel_sums: bool = False
    counts: bool = False
    by_rows: bool = False
    exchanges: tuple[Exchange, ...] = ()

    @cached_property
    def reductions(self) -> tuple[str, ...]:
        """Every reduction to one number per tensor, in the order of their results."""
        return tuple(partial.name for partial in self.partials if partial.over == "tensor")

    @cached_property
    def lines(self) -> Mapping[str, str]:
        """The results that are one number for each row or column, and which of them."""
        return {partial.name: partial.over for partial in self.partials if partial.over in ("row", "col")}

    @cached_property
    def matrices(self) -> Mapping[str, Partial]:
        """The results of functions of matrices."""
        return {partial.name: partial for partial in self.partials if partial.over == "element"}

    @cached_property
    def maxima(self) -> frozenset[str]:
        """The results that are one of the numbers, rather than their sum."""
        return frozenset(partial.name for partial in self.partials if partial.op == "max")

    @cached_property
    def over_all(self) -> frozenset[tuple[str, None]]:
        """The sums over all parameters, as they are known between passes."""
        return frozenset((name, None) for name, _, _ in self.sums if name not in self.group_sums.split())

    def taken(self, item: Pass, flags: Flags) -> tuple[Partial, ...]:
        """The results that a pass makes."""
        return self._taken(flags)[item.function]

    def runs(self, item: Pass, flags: Flags) -> bool:
        """Check whether a pass is run; the last one always is."""
        return item is self.passes[-1] or bool(self._taken(flags)[item.function])

    def _taken(self, flags: Flags) -> Mapping[str, tuple[Partial, ...]]:
        """The results of every pass."""
        found = self._known.get(flags)
        if found is None:
            found = self._known[flags] = self._place(flags)
        return found

    @cached_property
    def _known(self) -> dict[Flags, Mapping[str, tuple[Partial, ...]]]:
        return {}

    def _place(self, flags: Flags) -> Mapping[str, tuple[Partial, ...]]:
        """Each result in the pass before the first that waits for it.

        One that is summed over all parameters has a pass of its own, and is there wherever that is run.
        """
        live = {partial.name: partial for partial in self.partials if partial.live(flags)}
        fixed = {reduction for _, _, reduction in self.sums}
        places: dict[str, int] = {}

        def place(name: str) -> int:
            if name not in places:
                waiting = (other for other, when in live[name].waiting.items() if other in live and when(flags))
                own = [index for index, item in enumerate(self.passes) if name in item.names]
                places[name] = own[0] if name in fixed else min([len(self.passes) - 1, *map(place, waiting)]) - 1
            return places[name]

        result = {}
        for index, item in enumerate(self.passes):
            made = {name for name in live if place(name) == index}
            made |= fixed.intersection(item.names) if made else set()
            result[item.function] = tuple(partial for partial in self.partials if partial.name in made)
        return result
