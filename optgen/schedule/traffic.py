"""Memory traffic of a plan, in bytes per parameter.

Rows, columns, windows and scalars are left out: their share goes to nothing as tensors grow. The scale of a block is
counted once, at its size, not once for each direction (0.4 % of the traffic of 8-bit AdamW).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optgen.codecs import PARAMETER_CODECS, Codec
from optgen.dtypes import DTYPES
from optgen.ir.nodes import Input
from optgen.schedule.plan import PassPlan, Plan
from optgen.schedule.visits import visits

MATRIX_BYTES = 4.0
"""Bytes of an element that a function of matrices takes or leaves: a float32."""


@dataclass(frozen=True)
class Setting:
    """Setting that a traffic figure is for.

    Attributes:
        guards: Every guard's truth.
        codecs: The codec of each element state.
        param: dtype of parameters.
        grad: dtype of gradients.
        rounding: Rounding of parameters.
    """

    guards: Mapping[str, bool]
    codecs: Mapping[str, Codec]
    param: str = "float32"
    grad: str = "float32"
    rounding: str = "nearest"


def element_bytes(item: Input, setting: Setting) -> float:
    """Bytes of one element of an input, without its scale."""
    match item.role:
        case "param":
            kept = PARAMETER_CODECS[setting.rounding].compensation_dtype(setting.param)
            return DTYPES[setting.param].bytes + (DTYPES[kept].bytes if kept else 0)
        case "grad":
            return DTYPES[setting.grad].bytes
        case _:
            return setting.codecs[item.name].bits / 8


def scale_bytes(item: Input, setting: Setting) -> float:
    """Bytes of a state's block scales per element."""
    if item.role != "state":
        return 0.0
    codec = setting.codecs[item.name]
    return 4 / codec.block if codec.block > 0 else 0.0


def pass_bytes(item: PassPlan, setting: Setting) -> float:
    """Bytes per parameter that one pass reads and writes, not those that functions of matrices do."""
    return visit_bytes((item,), setting)


def visit_bytes(passes: Sequence[PassPlan], setting: Setting) -> float:
    """The same of passes together that read everything once."""
    read = {a.input.name: a.input for p in passes for a in p.reads if a.live.holds(setting.guards)}
    written = {w.input.name: w.input for p in passes for w in p.writes if w.live.holds(setting.guards)}
    matrices = {made.name for p in passes for made in p.matrices if made.live.holds(setting.guards)}
    made = [r for p in passes for r in p.reductions if r.is_matrix and r.live.holds(setting.guards)]
    elements = sum(element_bytes(item, setting) for item in (*read.values(), *written.values()))
    scales = sum(scale_bytes(item, setting) for item in (read | written).values())
    return elements + MATRIX_BYTES * (len(matrices) + len(made)) + scales


def traffic(plan: Plan, setting: Setting) -> float:
    """Bytes per parameter that a step moves."""
    return sum(pass_bytes(item, setting) for item in plan.live_passes(setting.guards))


def visit_traffic(plan: Plan, setting: Setting) -> float:
    """The same where a cache holds the rows of a visit: what several passes read there is moved once."""
    return sum(visit_bytes(visit, setting) for visit in visits(plan, setting.guards))


def state_bytes(plan: Plan, setting: Setting) -> float:
    """Bytes per parameter of the states of a parameter."""
    return sum(setting.codecs[item.name].bytes_per_element for item in _element_states(plan, setting))


def pageable_bytes(plan: Plan, setting: Setting) -> float:
    """Bytes per parameter of element states without their scales, which stay on the device."""
    return sum(element_bytes(item, setting) for item in _element_states(plan, setting))


def _element_states(plan: Plan, setting: Setting) -> list[Input]:
    return [i for i in plan.program.inputs.values() if i.name in setting.codecs and i.exists.holds(setting.guards)]
