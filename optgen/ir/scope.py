"""The names of a rule and what each of them is: the parser's symbol table."""

from __future__ import annotations

import ast
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from optgen.diagnostics import Reporter, suggest
from optgen.ir.expansion import Library
from optgen.ir.formula import FALSE, TRUE, Formula, atom
from optgen.ir.guards import FIRST, GuardTable, feasible
from optgen.ir.nodes import Input, Kind
from optgen.ir.parser import node_location, refuse
from optgen.operations import BY_SYNTAX, CALLED
from optgen.spec.source import SourceText

CONSTANTS = ("True", "False", "None", "inf")
ASKED = ("ndim", "numel", "index")
"""The facts that `if` can ask for."""


@dataclass
class Scope:
    """Names that the blocks of one rule may use.

    Attributes:
        options: Choices of each option; a flag has None.
        hypers: Names of the hyperparameters; True where optional.
        inputs: Values that exist before the step.
        given: Names of the inputs that are set on the optimizer for a step.
        of_params: Names of the inputs that are given for parameters.
        parts: Of the hyperparameters that are several numbers, the names of those.
        common: The names among these that shared stages may use.
        of_stages: The states of each stage that is put on the rule; its blocks assign no others.
        refused: Conditions, each with its text, under which the settings are refused.
        library: The functions that blocks may call.
        periods: Hyperparameters that are whole numbers from 1 on.
        can_record: Whether steps can be recorded.
        has_seed: Whether random numbers can be drawn.
        ndim: Number of dimensions of all parameters, where a rule takes no others.
    """

    rule: str
    options: Mapping[str, tuple[int | str | None, ...] | None]
    hypers: Mapping[str, bool]
    inputs: dict[str, Input]
    guards: GuardTable = field(default_factory=GuardTable)
    refused: tuple[tuple[ast.expr, SourceText], ...] = ()
    common: frozenset[str] = frozenset()
    of_stages: Mapping[str, frozenset[str]] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    of_params: frozenset[str] = frozenset()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    library: Library = field(default_factory=Library)
    periods: frozenset[str] = frozenset()
    can_record: bool = False
    has_seed: bool = False
    ndim: int | None = None

    def condition(
        self,
        node: ast.expr,
        text: SourceText,
        reporter: Reporter,
        lenient: bool,
        above: Container[str] | None = None,
    ) -> Formula:
        """The formula of an `if` or `when` condition; what is not fixed before the step is reported.

        Args:
            lenient: Whether comparing an option with a choice it does not have is allowed (in shared stages).
            above: The names that are assigned above an `if`; None for a `when`.
        """
        match node:
            case ast.BoolOp(op=op, values=values):
                both = isinstance(op, ast.And)
                result = TRUE if both else FALSE
                for value in values:
                    part = self.condition(value, text, reporter, lenient, above)
                    result = result & part if both else result | part
                    if lenient and result == (FALSE if both else TRUE):
                        break  # after a choice that this rule does not have, settings may follow that need it
                return result
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand, text, reporter, lenient, above)
            case ast.Constant(value=bool(value)):
                return TRUE if value else FALSE
            case ast.Name(id=name) if name in self.options and self.options[name] is None:
                return self.guards.formula("option", name, "true")
            case ast.Call(func=ast.Name(id="every"), args=[period], keywords=[]) if above is not None:
                return self._every(period, 0, text, reporter, above)
            case ast.Compare(
                left=ast.BinOp(left=ast.Name(id="step"), op=ast.Mod(), right=period),
                ops=[ast.Eq() | ast.NotEq() as op],
                comparators=[ast.Constant(value=int(rest))],
            ) if above is not None and not isinstance(rest, bool):
                steps = self._every(period, rest, text, reporter, above)
                return steps if isinstance(op, ast.Eq) else ~steps
            case ast.Compare(
                left=ast.Name(id="step"), ops=[ast.Eq() | ast.NotEq() as op], comparators=[ast.Constant(value=1)]
            ) if above is not None:
                first = self.guards.formula("step", FIRST, "every", 1)
                return first if isinstance(op, ast.Eq) else ~first
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                formula = self._comparison(left, op, right, lenient)
                if formula is not None:
                    return formula
        self._explain(node, text, reporter, above)
        return FALSE

    def _every(
        self, period: ast.expr, rest: int, text: SourceText, reporter: Reporter, above: Container[str]
    ) -> Formula:
        """The formula of the steps whose number, divided by a period, leaves `rest`."""
        help_text = "write a whole number from 1 on, or a hyperparameter with `integer: true` and such a range"
        match period:
            case ast.Constant(value=int(number)) if not isinstance(number, bool) and number >= 1:
                if 0 <= rest < number:
                    return TRUE if number == 1 else self.guards.formula("step", f"{number}", "every", rest)
                message, help_text = f"`step % {number}` is never {rest}", f"write a number from 0 to {number - 1}"
            case ast.Name(id=name) if name in self.periods:
                return self.guards.formula("step", name, "every", rest)
            case ast.Name(id=name) if name in self.hypers:
                message = f"`{name}` need not be a whole number from 1 on"
            case ast.Name(id=name) if self._is_known(name) or name in above:
                message = f"`{name}` is not fixed before the step"
            case ast.Name(id=name):
                message = f"`{name}` is not a hyperparameter of `{self.rule}`"
                help_text = suggest(name, self.hypers) or help_text
            case _:
                message = "this is not a number of steps that is fixed before the step"
        reporter.error("run-time-condition", message, node_location(text, period), help_text)
        return FALSE

    def condition_kind(self, formula: Formula) -> Kind:
        """Scope in which a condition can differ: for the optimizer, for each group, or for each parameter."""
        result = Kind.GLOBAL
        for name in formula.names:
            guard = self.guards.guards[name]
            match guard.about:
                case "fact" | "codec" | "step":
                    return Kind.STEP
                case "option":
                    result = max(result, Kind.GROUP)
                case "hyper" | "input":
                    result = max(result, self.inputs[guard.subject].kind)
        return result

    def possible(self, formula: Formula) -> bool:
        """Check whether some setting that is not refused satisfies the formula."""
        choices = {option: values for option, values in self.options.items() if values is not None}
        if not feasible(formula, self.guards.guards, choices):
            return False
        table = self.guards.copy()
        for node, text in self.refused:
            quiet = Reporter()
            refused = replace(self, guards=table).condition(node, text, quiet, lenient=False)
            if not quiet.has_errors:
                formula = formula & ~refused
        return feasible(formula, table.guards, choices)

    def has_rank(self, path: Formula, least: int) -> bool:
        """Check whether all parameters on this path have at least so many dimensions."""
        if self.ndim is not None:
            return self.ndim >= least
        facts = [guard for guard in self.guards.guards.values() if guard.about == "fact" and guard.subject == "ndim"]
        for ndim in range(least):
            lines = path
            for guard in facts:
                lines = lines & (atom(guard.name) if guard.holds(ndim) else ~atom(guard.name))
            if not lines.is_false:
                return False
        return True

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr, lenient: bool) -> Formula | None:
        if isinstance(op, ast.Is | ast.IsNot):
            match left, right:
                case ast.Name(id=name), ast.Constant(value=None) if self.hypers.get(name):
                    given = self.guards.formula("hyper", name, "given")
                    return given if isinstance(op, ast.IsNot) else ~given
                case ast.Name(id=name), ast.Constant(value=None) if name in self.given:
                    given = self.guards.formula("input", name, "given")
                    return given if isinstance(op, ast.IsNot) else ~given
            return None
        comparison = BY_SYNTAX.get(type(op))
        if comparison is None:
            return None
        symbol = comparison.name
        if not isinstance(left, ast.Name):
            left, right, symbol = right, left, comparison.mirrored
        value = _constant(right)
        if not isinstance(left, ast.Name) or value is None:
            return None
        name = left.id
        if name in self.options:
            choices = self.options[name]
            if choices is None or symbol not in ("==", "!="):
                return None
            if value not in choices:
                return (FALSE if symbol == "==" else TRUE) if lenient else None
            equal = self._chosen(name, value, choices)
            return equal if symbol == "==" else ~equal
        if isinstance(value, str):
            return None
        if name in self.hypers:
            return self.guards.formula("hyper", name, symbol, value)
        if name in ASKED:
            return self.guards.formula("fact", name, symbol, value)
        return None

    def _chosen(self, name: str, value: float | str, choices: tuple[int | str | None, ...]) -> Formula:
        """The formula for a choice; of two choices, one is the other negated."""
        if len(choices) == 2:
            other = choices[0] if value == choices[1] else choices[1]
            if other is not None and self.guards.knows("option", name, "==", other):
                return ~self.guards.formula("option", name, "==", other)
        return self.guards.formula("option", name, "==", value)

    def _explain(self, node: ast.expr, text: SourceText, reporter: Reporter, above: Container[str] | None) -> None:
        """Report why a condition cannot be tested before the step."""
        for part in ast.walk(node):
            where = node_location(text, part) if hasattr(part, "lineno") else node_location(text, node)
            match part:
                case ast.Attribute() | ast.Lambda() | ast.Subscript() | ast.IfExp():
                    refuse(text, part, reporter)
                    return
                case ast.Name(id=name) if name in self.parts:
                    message, help_text = several(name, self.parts[name])
                    reporter.error("undefined-name", message, where, help_text)
                    return
                case ast.Name(id=name) if not self._is_known(name) and name not in (above or ()):
                    known = [*self.options, *self.hypers, *self.given, *ASKED]
                    message = f"`{name}` is not an option, hyperparameter or fact of `{self.rule}`"
                    help_text = suggest(name, known) or "declare it under `options` or `hyperparameters`"
                    reporter.error("undefined-name", message, where, help_text)
                    return
        where = node_location(text, node)
        names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id not in CONSTANTS]
        called = {
            part.func.id for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
        }
        instead = "test options, hyperparameters against numbers, `is None`, and `ndim`"
        if above is not None:
            chosen = ast.unparse(node) if len(ast.unparse(node)) <= 40 else "condition"
            instead = f"use `where({chosen}, a, b)`; `if` tests {instead.removeprefix('test ')}"
        for name in names:
            if name in self.given:
                message = f"`{name}` is set for each step: its value is not known before the step"
                help_text = f"test whether it is given: `{name} is not None`; or use `where(condition, a, b)`"
                reporter.error("run-time-condition", message, where, help_text)
                return
        for name in names:
            if name not in (*self.options, *self.hypers, *ASKED) and name not in called:
                message = f"`{name}` is not fixed before the step"
                if name == "step" and above is not None:
                    instead += "; what happens every n steps stands below `if every(n):`"
                reporter.error("run-time-condition", message, where, instead)
                return
        match node:
            case ast.Name(id=name) if name in self.options:
                message, help_text = f"`{name}` is a choice, not a flag", self.test_of(name)
            case ast.Name(id=name) if name in self.hypers:
                message = f"`{name}` is a number, not a condition"
                help_text = f"compare it: `{name} is not None`" if self.hypers[name] else f"compare it: `{name} != 0`"
            case ast.Compare(left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot()]) if name in self.hypers:
                message, help_text = f"`{name}` is never None", "`default: null` would let users leave it out"
            case ast.Compare(left=ast.Name(id=name)) if name in self.options and self.options[name] is None:
                message, help_text = f"`{name}` is true or false", f"write `{name}` or `not {name}`"
            case ast.Compare(left=ast.Name(id=name)) if name in self.options:
                reporter.error("unknown-choice", f"`{name}` is one of {self._choices(name)}", where)
                return
            case ast.Compare() if len(names) > 1:
                message, help_text = "`if` compares settings with numbers, not with one another", instead
            case ast.Constant():
                message, help_text = "this is not a condition", "`if` " + instead.rpartition("`if` ")[2]
            case _:
                message, help_text = "this is not known before the step", instead
        reporter.error("run-time-condition", message, where, help_text)

    def _is_known(self, name: str) -> bool:
        return name in (*self.options, *self.hypers, *self.inputs, *CALLED, *self.library.functions, *CONSTANTS)

    def test_of(self, name: str) -> str:
        """Help that shows the test of an option, as `if name:`."""
        choices = self._choices(name)
        return f"test it with `if {name} == {choices.split(', ')[0]}:`" if choices else f"test it with `if {name}:`"

    def _choices(self, name: str) -> str:
        return ", ".join(
            f'"{choice}"' if isinstance(choice, str) else f"{choice}"
            for choice in self.options[name] or ()
            if choice is not None
        )


def several(name: str, parts: Sequence[str]) -> tuple[str, str]:
    """Message and help for a hyperparameter of several numbers that is used as one."""
    return f"`{name}` is {len(parts)} numbers", f"use {' or '.join(f'`{part}`' for part in parts)}"


def _constant(node: ast.expr) -> float | str | None:
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None
