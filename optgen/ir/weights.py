"""Finds the states that hold weights: coarse rounding of those would round the model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from optgen.ir.nodes import Call, Const, Expr, Kind, Let, Program, Ref, Select, refs
from optgen.ir.rule import WholeRule

_TOLERANCE = 1e-9


def weight_states(rule: WholeRule) -> list[str]:
    """The states of elements that begin as the parameter, or become a mean of it and of such states."""
    elements = [name for name in rule.states if name in rule.inputs and rule.inputs[name].kind is Kind.ELEMENT]
    found = [name for name in elements if rule.inits.get(name) == Ref("param")]
    for name in elements:
        programs = [block.program for block in rule.blocks.values() if name in block.program.outputs]
        if name not in found and programs and all(_Mean(name, program, found).holds() for program in programs):
            found.append(name)
    return found


@dataclass(frozen=True)
class _Mean:
    """Test of whether a state's new value is a weighted mean: weights are read unchanged, and weights of 1 give 1."""

    state: str
    program: Program
    weights: list[str]

    def holds(self) -> bool:
        lets = {let.name: let for let in self.program.lets}
        known = {
            "param",
            self.state,
            *self.weights,
            *(n for n, let in lets.items() if let.source.startswith("param = ")),
        }
        value = self.program.outputs[self.state]
        own = [let for let in lets.values() if self._is_own(let)]
        read = {name for expr in (value, *(let.expr for let in own)) for name in refs(expr)}
        return bool(read & known - {self.state}) and abs(self._number(value, lets, known) - 1) < _TOLERANCE

    def _is_own(self, let: Let) -> bool:
        """Check whether a binding is a statement that assigns the state, or a choice between such statements."""
        return let.source.startswith(f"{self.state} = ") or (not let.source and isinstance(let.expr, Select))

    def _number(self, expr: Expr, lets: Mapping[str, Let], known: set[str]) -> float:
        """The value where weights are 1 and numbers of tensors are any; NaN where it is made of other elements."""
        match expr:
            case Const(value=value):
                return float(value)
            case Ref(name=name) if name in known and not (name in lets and self._is_own(lets[name])):
                return 1.0
            case Ref(name=name) if name in lets and self._is_own(lets[name]):
                return self._number(lets[name].expr, lets, known)
            case Ref(name=name) if self.program.kind(name) is not Kind.ELEMENT:
                return 0.25 + zlib.crc32(name.encode()) / 2**33
            case Select(then=then, other=other) | Call(op="where", args=(_, then, other)):
                first, second = self._number(then, lets, known), self._number(other, lets, known)
                return first if abs(first - second) < _TOLERANCE else math.nan
            case Call(op="neg", args=(x,)):
                return -self._number(x, lets, known)
            case Call(op=op, args=(x, y)):
                a, b = self._number(x, lets, known), self._number(y, lets, known)
                match op:
                    case "+":
                        return a + b
                    case "-":
                        return a - b
                    case "*":
                        return a * b
                    case "/" if b:
                        return a / b
        return math.nan
