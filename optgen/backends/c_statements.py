"""Statements as C++."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from optgen.backends.assignments import Assignments, StageCode
from optgen.backends.c_printer import CPrinter, c_condition
from optgen.backends.code import Brackets, Code, Guarded, Labelled, call
from optgen.backends.layout import c_code
from optgen.backends.statements import Assign, Block, Declare, Fill, If, Invoke, Statement, Take, reads, takes_sums
from optgen.ir.formula import Formula
from optgen.ir.nodes import Let


@dataclass(frozen=True)
class CStatements:
    """Prints the statements of one precision.

    Attributes:
        printer: Of expressions.
        type_of: The type of a variable.
        fill: An array's numbers as a statement.
        stages: The stages that statements call.
        take: Statement for an element's term of a sum.
        store: A value as its variable takes it.
    """

    printer: CPrinter
    type_of: Callable[[str], str]
    fill: Callable[[Let], Code] | None = None
    stages: Mapping[str, StageCode] = field(default_factory=dict)
    take: Callable[[str, Code], Code] | None = None
    store: Callable[[str, Code], Code] = lambda variable, value: value

    def lines(self, block: Block, indent: int) -> list[str]:
        """Statements as lines that fit when they are indented by `indent`."""
        return [line for statement in block for line in self._statement(statement, indent)]

    def _statement(self, statement: Statement, indent: int) -> Iterable[str]:
        if isinstance(statement, If):
            return self._if(statement, indent)
        return c_code(self._code(statement), indent)

    def _code(self, statement: Assign | Declare | Take | Fill | Invoke) -> Code:
        match statement:
            case Assign(variable=variable, value=value, declares=declares, constant=constant):
                head = f"{'const ' if constant else ''}{self.type_of(variable)} " if declares else ""
                code = self.store(variable, self.printer.code(value))
                return Labelled(f"{head}{self.printer.spell(variable)} = ", code)
            case Declare(variable=variable, always_assigned=always):
                start = "" if always else f" = {self._zero(variable)}"
                return f"{self.type_of(variable)} {self.printer.spell(variable)}{start}"
            case Take(name=name, value=value):
                assert self.take is not None
                return self.take(name, self.printer.code(value))
            case Fill(let=let):
                assert self.fill is not None
                return self.fill(let)
            case Invoke(stage=stage, arguments=arguments, results=results):
                variables = [self.printer.spell(name) for name in {**arguments, **results}.values()]
                return call(f"{stage}_stage", *variables, *also_given(self.stages[stage].code))

    def _zero(self, variable: str) -> str:
        return {"float": "0.0f", "double": "0.0", "bool": "false"}.get(self.type_of(variable), "{}")

    def _if(self, statement: If, indent: int, before: str = "") -> Iterable[str]:
        """An `if` with its sides; one of a single short statement may stand in one line."""
        condition = c_condition(statement.formula).code
        then, otherwise = self._where(statement.formula), self._where(~statement.formula)
        match statement:
            case If(then=(Assign() | Declare() | Take() | Fill() | Invoke() as single,), other=()) if not before:
                code = then._code(single)
                if not isinstance(code, Guarded):
                    yield from c_code(Guarded(condition, code), indent)
                    return
        yield from c_code(Brackets(f"{before}if constexpr (", (condition,), ") {"), indent, "")
        yield from (f"  {line}" for line in then.lines(statement.then, indent + 2))
        match statement.other:
            case (If() as chained,):
                yield from otherwise._if(chained, indent, "} else ")
                return
            case (_, *_) as other:
                yield "} else {"
                yield from (f"  {line}" for line in otherwise.lines(tuple(other), indent + 2))
        yield "}"

    def _where(self, formula: Formula) -> CStatements:
        """The printer of statements below a condition."""
        return replace(self, printer=self.printer.where(formula))


def also_given(code: Assignments) -> list[str]:
    """Names that a stage gets beside its variables: scalars that it reads, and the terms that it adds to."""
    reads_scalars = any(name.startswith("s.") for name in reads(code.body))
    return [*(["s"] if reads_scalars else []), *(["terms"] if takes_sums(code.body) else [])]


def under(formula: Formula, statement: Code) -> Code:
    """A statement under settings that are fixed before the kernel is compiled."""
    return statement if formula.is_true else Guarded(c_condition(formula).code, statement)


def spelled(names: Mapping[str, str], spell: Callable[[str], str]) -> Callable[[str], str]:
    """A function that writes some names as given and all others with `spell`."""
    return lambda name: names[name] if name in names else spell(name)
