"""Statements as Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optgen.backends.code import Labelled
from optgen.backends.layout import python_code
from optgen.backends.py_printer import PyPrinter, py_condition, py_name
from optgen.backends.statements import Assign, Block, Declare, Fill, If, Invoke, Statement, Take, walk_statements
from optgen.ir.nodes import Const

Lines = list[str]


def _unexpected(statement: Take | Invoke, indent: int) -> Lines:
    raise AssertionError(f"{statement} has no place in this function")


@dataclass(frozen=True)
class PyStatements:
    """Prints the statements of a function.

    Attributes:
        printer: Printer for the value of a statement.
        loose: Variables that are read under settings which do not assign them.
        spell: A variable's name.
        take: Statement for a sum's value, with its indentation.
        invoke: Call of a stage, likewise.
    """

    printer: Callable[[Assign], PyPrinter]
    loose: frozenset[str] = frozenset()
    spell: Callable[[str], str] = py_name
    take: Callable[[Take, int], Lines] = _unexpected
    invoke: Callable[[Invoke, int], Lines] = _unexpected

    def lines(self, block: Block, indent: int) -> Lines:
        """Statements as lines that fit when they are indented by `indent`."""
        return [line for statement in block for line in self._statement(statement, indent)]

    def has_types(self, block: Block) -> bool:
        """Check whether statements say a type, which is then `Any`."""
        return any(self._has_type(statement) for statement in walk_statements(block))

    def _has_type(self, statement: Statement) -> bool:
        match statement:
            case Assign(value=value, declares=declares, constant=constant):
                return declares and not constant and isinstance(value, Const)
            case Declare(variable=variable):
                return variable in self.loose
        return False

    def _statement(self, statement: Statement, indent: int) -> Lines:
        match statement:
            case Assign(variable=variable, value=value):
                type_ = ": Any" if self._has_type(statement) else ""
                return self.printer(statement).lines(value, f"{self.spell(variable)}{type_} = ", indent)
            case Declare(variable=variable):
                return [f"{self.spell(variable)}: Any = m.NAN"] if self._has_type(statement) else []
            case If():
                return self._if(statement, indent)
            case Take():
                return self.take(statement, indent)
            case Invoke():
                return self.invoke(statement, indent)
            case Fill():
                raise AssertionError("arrays are variables in Python")

    def _if(self, statement: If, indent: int) -> Lines:
        lines = python_code(Labelled("if ", py_condition(statement.formula)), indent, ":")
        lines += below(self.lines(statement.then, indent + 4)) or ["    pass"]
        match statement.other:
            case (If() as chained,):
                first, *rest = self._if(chained, indent)
                return [*lines, f"el{first}", *rest]
            case (_, *_):
                return [*lines, "else:", *below(self.lines(statement.other, indent + 4))]
        return lines


def below(lines: Lines) -> Lines:
    """Lines that stand in a block of Python."""
    return [f"    {line}" for line in lines]
