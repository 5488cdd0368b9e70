"""Exchanged states: each is written where the other lies, since their memory changes places after the step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from optgen.ir.exchanges import Exchange
from optgen.ir.formula import Formula
from optgen.ir.liveness import changes, resolve
from optgen.ir.nodes import Expr, Let, Program, Ref, Select


def exchange_states(program: Program, exchanges: Iterable[Exchange]) -> Program:
    """The same with what is to be stored where each state is before the exchange."""
    lets = {let.name: let for let in program.lets}
    outputs, writes = dict(program.outputs), dict(program.writes)
    for one in exchanges:
        values = {name: outputs.get(name, Ref(name)) for name in one.names}
        for name, other in (one.names, one.names[::-1]):
            there, here = _under(one.live, values[other], lets), _under(~one.live, values[name], lets)
            outputs[name] = here if here == there else Select(one.live, there, here)
            writes[name] = program.inputs[name].exists & changes(program.lets, name, outputs[name])
    kept = [name for name in outputs if not writes[name].is_false]
    return replace(program, outputs={n: outputs[n] for n in kept}, writes={n: writes[n] for n in kept})


def _under(live: Formula, value: Expr, lets: Mapping[str, Let]) -> Expr:
    """A value where a formula holds: behind an `if` that it decides, that of the side."""
    while isinstance(value, Ref) and value.name in lets:
        inner = resolve(lets[value.name].expr, live)
        if not isinstance(inner, Ref):
            break
        value = inner
    return value
