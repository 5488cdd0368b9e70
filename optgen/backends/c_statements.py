"""Statements as C++."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from optgen.backends.c_printer import CPrinter, c_formula, c_member
from optgen.backends.statements import Assign, Block, Declare, Fill, If, Statement, Take
from optgen.ir.formula import Formula
from optgen.ir.nodes import Let


@dataclass(frozen=True)
class CStatements:
    """Prints the statements of one precision.

    Attributes:
        printer: Of expressions.
        type_of: The type of a variable.
        fill: An array's numbers as statements.
    """

    printer: CPrinter
    type_of: Callable[[str], str]
    fill: Callable[[Let], Iterable[str]] = lambda let: ()

    def lines(self, block: Block) -> list[str]:
        """Statements, a line each, indented by what they stand in."""
        return [line for statement in block for line in self._statement(statement)]

    def _statement(self, statement: Statement) -> Iterable[str]:
        match statement:
            case Assign(variable=variable, value=value, declares=declares, constant=constant):
                head = f"{'const ' if constant else ''}{self.type_of(variable)} " if declares else ""
                yield f"{head}{self.printer.spell(variable)} = {self.printer.print(value)};"
            case Declare(variable=variable, always_assigned=always):
                start = "" if always else f" = {self._zero(variable)}"
                yield f"{self.type_of(variable)} {self.printer.spell(variable)}{start};"
            case If():
                yield from self._if(statement)
            case Take(name=name, value=value):
                yield f"terms.{c_member(name)} = {self.printer.print(value)};"
            case Fill(let=let):
                yield from self.fill(let)

    def _zero(self, variable: str) -> str:
        return {"float": "0.0f", "double": "0.0", "bool": "false"}.get(self.type_of(variable), "{}")

    def _if(self, statement: If, short: bool = True) -> Iterable[str]:
        """An `if` with its sides; one of a single short statement may stand in one line."""
        then, other = self.lines(statement.then), self.lines(statement.other)
        head = f"if constexpr ({c_formula(statement.formula)})"
        if short and not other and len(then) == 1 and not then[0].startswith("if "):
            yield f"{head} {then[0]}"
            return
        yield f"{head} {{"
        yield from (f"  {line}" for line in then)
        match statement.other:
            case (If() as chained,):
                first, *rest = self._if(chained, short=False)
                yield f"}} else {first}"
                yield from rest
                return
            case (_, *_):
                yield "} else {"
                yield from (f"  {line}" for line in other)
        yield "}"


def under(formula: Formula, statement: str) -> str:
    """A statement under settings that are fixed before the kernel is compiled."""
    return statement if formula.is_true else f"if constexpr ({c_formula(formula)}) {statement}"


def spelled(names: Mapping[str, str], spell: Callable[[str], str]) -> Callable[[str], str]:
    """A function that writes some names as given and all others with `spell`."""
    return lambda name: names[name] if name in names else spell(name)
