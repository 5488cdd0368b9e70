"""What must hold of a program between passes; a violation is a fault of optgen, not of a spec."""

from __future__ import annotations

from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Program, refs, takes


class VerificationError(AssertionError):
    """A pass broke the program."""


def verify(program: Program) -> None:
    """Check single assignment, definition before use, kinds, and that outputs fit their targets.

    Raises:
        VerificationError: naming the binding.
    """
    kinds = {name: item.kind for name, item in program.inputs.items()}
    for let in program.lets:
        if let.name in kinds:
            raise VerificationError(f"{let.name} is bound twice")
        for name in refs(let.expr):
            if name not in kinds:
                raise VerificationError(f"{let.name} reads {name}, which is not bound before it")
        if not takes(let.kind, kind_of(let.expr, kinds)):
            raise VerificationError(f"{let.name} is of kind {let.kind.name}, its value is not")
        kinds[let.name] = let.kind
    for target, value in program.outputs.items():
        if target not in program.inputs:
            raise VerificationError(f"{target} is written but is no input")
        if not takes(program.inputs[target].kind, kind_of(value, kinds)):
            raise VerificationError(f"{target} cannot take a value of kind {kind_of(value, kinds).name}")
