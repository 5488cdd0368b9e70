"""Bindings get the names that people read: that of their variable.

Of numbers that are one for a tensor the last value has it; others, and elements that are several, are numbered. Those
of the stages that all rules have come first, so that they are called the same in all of them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Expr, Kind, Let, Program, Ref
from optgen.passes.rewrite import rewrite, unused_name

NUMBER = re.compile(r"_\d+$")


def stem_of(let: Let) -> str:
    """Name of a binding without the number that tells it from others of the same name."""
    return let.variable or let.stem or NUMBER.sub("", let.name)


def rename(program: Program, guards: GuardTable) -> Program:
    """Give every binding its name; those of inputs and settings stay theirs."""
    taken = {*program.inputs, *guards.guards}
    names: dict[str, str] = {}

    def name(let: Let, stem: str) -> None:
        names[let.name] = unused_name(stem, taken)
        taken.add(names[let.name])

    others = [let for let in program.lets if let.kind is not Kind.ELEMENT]
    for lets in ([let for let in others if let.stage], [let for let in others if not let.stage]):
        values = [let for let in lets if let.variable]
        for let in (*reversed(values), *(let for let in lets if not let.variable)):
            name(let, f"new_{stem_of(let)}" if stem_of(let) in program.inputs else stem_of(let))
    elements = [let for let in program.lets if let.kind is Kind.ELEMENT]
    stems = [stem_of(let) for let in elements]
    for number, (let, stem) in enumerate(zip(elements, stems, strict=True)):  # of which only programs show the names
        several = stem in program.inputs or stems.count(stem) > 1
        name(let, f"{stem}_{stems[: number + 1].count(stem)}" if several else stem)

    def change(expr: Expr) -> Expr:
        return Ref(names[expr.name]) if isinstance(expr, Ref) and expr.name in names else expr

    renamed = tuple(replace(let, name=names[let.name], expr=rewrite(let.expr, change)) for let in program.lets)
    return replace(program, lets=renamed, outputs={n: rewrite(value, change) for n, value in program.outputs.items()})
