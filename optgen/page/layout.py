"""Content of the page's pictures: each pass with the bytes that it moves of each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optgen.codecs import PARAMETER_CODECS
from optgen.explanation import ClassInfo
from optgen.ir.nodes import Input, Kind, Reduce
from optgen.schedule.traffic import MATRIX_BYTES, Setting, element_bytes, scale_bytes

ORDER = {"param": 0, "grad": 1}
UNITS = {
    Kind.ROW: "a row",
    Kind.COL: "a column",
    Kind.MATRIX: "a matrix",
    Kind.TENSOR: "a tensor",
    Kind.ELEMENT: "an element",
}


@dataclass(frozen=True)
class Lane:
    """A tensor of one number an element, how it is stored, and its bytes a parameter, scales included."""

    name: str
    stored: str
    bytes: float


@dataclass(frozen=True)
class Pass:
    """A pass over memory.

    Attributes:
        reads: Bytes a parameter by lane. Scales of blocks are counted where a tensor is read, as in the plan.
        writes: The same.
        makes: Numbers that it reduces elements to, with the kind of each.
    """

    name: str
    reads: dict[str, float]
    writes: dict[str, float]
    makes: tuple[tuple[str, str], ...]

    @property
    def bytes(self) -> float:
        """Bytes a parameter that it moves."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(frozen=True)
class Layout:
    """The lanes, the passes in their order, and the states of fewer numbers that are stored after the last."""

    lanes: tuple[Lane, ...]
    passes: tuple[Pass, ...]
    after: tuple[str, ...]


def layout_of(info: ClassInfo) -> Layout:
    """The passes of a class under its defaults, for large float32 matrices."""
    setting, plan = info.setting, info.plans["step"]
    inputs: dict[str, Input] = {}
    scratch: dict[str, None] = {}  # elements that functions of matrices take, and leave in their place
    passes = []
    for item in plan.live_passes(setting.guards):
        read = [a.input for a in item.reads if a.live.holds(setting.guards)]
        written = [w.input for w in item.writes if w.live.holds(setting.guards)]
        inputs |= {one.name: one for one in (*read, *written)}
        reads = {one.name: element_bytes(one, setting) + scale_bytes(one, setting) for one in read}
        writes = {one.name: element_bytes(one, setting) for one in written}
        for one in written:
            writes[one.name] += 0.0 if one.name in reads else scale_bytes(one, setting)
        reads |= {one.name: MATRIX_BYTES for one in item.matrices if one.live.holds(setting.guards)}
        made = [one for one in item.reductions if one.live.holds(setting.guards)]
        writes |= {one.name: MATRIX_BYTES for one in made if one.is_matrix}
        scratch |= {name: None for name in (*reads, *writes) if name not in inputs}
        makes = tuple((one.name, UNITS[one.reduce.over]) for one in made if isinstance(one.reduce, Reduce))
        passes.append(Pass(item.name, reads, writes, makes))
    declared = list(info.whole_rule.inputs)
    named = sorted(inputs.values(), key=lambda one: (ORDER.get(one.role, 2), declared.index(one.name)))
    order = [*(one.name for one in named), *scratch]
    passes = [replace(one, reads=_sorted(one.reads, order), writes=_sorted(one.writes, order)) for one in passes]
    lanes = [Lane(one.name, stored(one, setting), kept_bytes(one, setting)) for one in named]
    lanes += [Lane(name, "fp32 between passes", MATRIX_BYTES) for name in scratch]
    commits = (*plan.commits, *plan.host_commits)
    after = tuple(w.input.name for w in commits if w.live.holds(setting.guards))
    return Layout(tuple(lanes), tuple(passes), after)


def _sorted(sizes: dict[str, float], order: Sequence[str]) -> dict[str, float]:
    return {name: sizes[name] for name in order if name in sizes}


def kept_bytes(item: Input, setting: Setting) -> float:
    """Bytes a parameter of a tensor with its scales."""
    return element_bytes(item, setting) + scale_bytes(item, setting)


def stored(item: Input, setting: Setting) -> str:
    """Name of the format in which a tensor is stored."""
    match item.role:
        case "param":
            kept = PARAMETER_CODECS[setting.rounding].compensation_dtype(setting.param)
            return setting.param + (f" + {kept}" if kept else "")
        case "grad":
            return setting.grad
        case _:
            return setting.codecs[item.name].name
