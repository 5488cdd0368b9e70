"""States with one scale for the whole tensor: the scale is a tensor-kind value like any other.

The largest magnitude of the new state is a reduction, so that the state is written a pass later than it would be
otherwise; the planner sees to that.
"""

from __future__ import annotations

from dataclasses import replace

from optgen.codecs import CODECS
from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Call, Const, Input, Kind, Let, Program, Reduce, Ref
from optgen.passes.rewrite import unused_name


def scale_name(state: str) -> str:
    """The input that holds a state's tensor-wise scale."""
    return f"{state}_absmax"


def scale_tensorwise(program: Program, guards: GuardTable) -> Program:
    """Add, for every element state that may be stored with one scale, that scale as a state of the tensor."""
    taken = program.kinds().keys() | guards.guards.keys()
    lets = list(program.lets)
    inputs = dict(program.inputs)
    outputs, writes = dict(program.outputs), dict(program.writes)
    for name, item in program.inputs.items():
        if item.role != "state" or item.kind is not Kind.ELEMENT:
            continue
        if not any(CODECS[codec].scaled for codec in item.codecs):
            continue
        tensorwise = guards.formula("codec", name, "tensorwise") & item.exists
        scale = scale_name(name)
        inputs[scale] = Input(scale, "state", Kind.TENSOR, exists=tensorwise, codecs=("fp32",))
        if name not in program.outputs:
            continue
        stems = (f"{name}_magnitude", f"{name}_largest", f"new_{scale}")
        magnitude, largest, kept = (unused_name(stem, taken) for stem in stems)
        new = program.outputs[name]
        finite = Call("where", (Call("isfinite", (new,)), Call("abs", (new,)), Const(0.0)))
        lets.append(Let(magnitude, finite, Kind.ELEMENT, f"largest magnitude of {name}"))
        lets.append(Let(largest, Reduce("max", Kind.TENSOR, Ref(magnitude)), Kind.TENSOR, ""))
        lets.append(Let(kept, Call("scale_of", (Ref(largest),)), Kind.TENSOR, f"scale of {name}"))
        outputs[scale], writes[scale] = Ref(kept), tensorwise & writes[name]
    return replace(program, inputs=inputs, lets=tuple(lets), outputs=outputs, writes=writes)
