"""Bindings get the names that people read: that of their variable, for its last value; others are numbered."""

from __future__ import annotations

import re
from dataclasses import replace

from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Expr, Let, Program, Ref
from optgen.passes.rewrite import rewrite, unused_name

NUMBER = re.compile(r"_\d+$")


def stem_of(let: Let) -> str:
    """What a binding is called, whichever of several it is."""
    return let.variable or NUMBER.sub("", let.name)


def rename(program: Program, guards: GuardTable) -> Program:
    """Give every binding its name; those of inputs and settings stay theirs."""
    taken = {*program.inputs, *guards.guards}
    names: dict[str, str] = {}
    parts = [let for let in program.lets if not let.variable]
    for let in (*reversed([let for let in program.lets if let.variable]), *parts):
        stem = stem_of(let)
        names[let.name] = unused_name(f"new_{stem}" if stem in program.inputs else stem, taken)
        taken.add(names[let.name])

    def change(expr: Expr) -> Expr:
        return Ref(names[expr.name]) if isinstance(expr, Ref) and expr.name in names else expr

    lets = tuple(replace(let, name=names[let.name], expr=rewrite(let.expr, change)) for let in program.lets)
    return replace(program, lets=lets, outputs={n: rewrite(value, change) for n, value in program.outputs.items()})
