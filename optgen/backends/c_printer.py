"""Expressions and formulas as C++, for every target that is compiled from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optgen.backends.quoting import Identifier, identifier
from optgen.ir.formula import Formula
from optgen.ir.nodes import Call, Const, Expr, Reduce, Ref, Select

PRECEDENCE = {"or": 1, "and": 2, "==": 4, "!=": 4, "<": 5, "<=": 5, ">": 5, ">=": 5, "+": 6, "-": 6, "*": 7, "/": 7}
SYMBOL = {"or": "||", "and": "&&"}
FUNCTION = {"min": "minimum", "max": "maximum", "**": "power"}
UNARY, ATOM, TERNARY = 8, 9, 0
KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const const_cast consteval constexpr constinit continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires return short signed sizeof static static_assert static_cast struct switch template this thread_local throw
    true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
WORDS = """
    t c s i k n at call value values row column lines segment tile load store chunk prepare finish commit begin end
    lines_of segment_at sum_of magnitude_bits from_bits read_window finished_sum finished_max finish_rows finish_cols
    steps_of count_step draw_of put run_pass
    first place shared band line inside aligned element books count lane
    main memcpy errno math_errhandling int64_t uint32_t uint8_t int8_t optgen std is_tensorwise
"""
RESERVED = frozenset((*KEYWORDS.split(), *WORDS.split()))
ENDINGS = ("_at", "_tile", "_part", "_value")
FUNCTION_NAME = re.compile(r"\w+_(apply|reduce_\d+)(_(scalars|prepare|chunk|finish|values|shared|end))?")


class UnloweredNodeError(AssertionError):
    """A node reached a printer that a pass should have replaced."""


def c_name(name: str) -> Identifier:
    """A name that is no keyword of C++ and none of the kernels' own; no two names become one.

    Their own are those with capitals and some endings, and those of functions.
    """
    own = name in RESERVED or name.endswith(ENDINGS) or name != name.lower() or FUNCTION_NAME.fullmatch(name)
    return identifier(f"{name}_value" if own else name)


def c_formula(formula: Formula) -> str:
    """A formula over the kernel's constants."""
    if formula.is_true:
        return "true"
    if formula.is_false:
        return "false"
    return formula.text(lambda name, value: f"{'' if value else '!'}{c_name(name)}", " && ", " || ")


def c_all(*conditions: str) -> str:
    """Conditions that hold together; one of which either part holds is parenthesised."""
    if len(conditions) == 1:
        return conditions[0]
    return " && ".join(f"({text})" if _is_either(text) else text for text in conditions)


def _is_either(text: str) -> bool:
    """Whether an expression has an `||` outside of all brackets."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0 and text.startswith("||", place):
            return True
    return False


@dataclass(frozen=True)
class CPrinter:
    """Prints expressions of one precision.

    Attributes:
        single: Arithmetic in float32 (elements, rows, columns) instead of float64 (everything below).
        names: How a name is written where it is not itself.
        masks: Conditions held as a `Mask`, which compilers vectorise where they do not vectorise a lone bool.
    """

    single: bool
    names: Mapping[str, str]
    masks: frozenset[str] = frozenset()
    spell: Callable[[str], str] = c_name

    def print(self, expr: Expr) -> str:
        """The expression as C++."""
        return self._print(expr, TERNARY)

    def _print(self, expr: Expr, outer: int) -> str:
        match expr:
            case Const(value=bool(value)):
                return "true" if value else "false"
            case Const(value=value):
                text = self._number(float(value))
                return f"({text})" if text.startswith("-") and outer > TERNARY else text
            case Ref(name=name):
                return self.names.get(name, self.spell(name))
            case Call(op="where", args=(Ref(name=name), then, other)) if name in self.masks:
                return f"optgen::where({self.spell(name)}, {self._print(then, TERNARY)}, {self._print(other, TERNARY)})"
            case Call(op="where", args=(condition, then, other)):
                return self._ternary(self._print(condition, 1), then, other, outer)
            case Select(formula=formula, then=then, other=other):
                return self._ternary(c_formula(formula), then, other, outer)
            case Call(op="neg", args=(x,)):
                return _wrap(f"-{self._print(x, ATOM)}", UNARY, outer)
            case Call(op="not", args=(x,)):
                return _wrap(f"!{self._print(x, UNARY)}", UNARY, outer)
            case Call(op="**", args=(x, Const(value=2.0))):
                return f"optgen::square({self._print(x, TERNARY)})"
            case Call(op="or", args=args):  # compilers want parentheses around `and` within `or`
                parts = [self._print(x, 1 if isinstance(x, Call) and x.op == "or" else 3) for x in args]
                return _wrap(" || ".join(parts), 1, outer)
            case Call(op=op, args=(a, b)) if op in PRECEDENCE:
                level = PRECEDENCE[op]
                text = f"{self._print(a, level)} {SYMBOL.get(op, op)} {self._print(b, level + 1)}"
                return _wrap(text, level, outer)
            case Call(op="rounded", args=(x,)):
                return f"optgen::rounded<ParamCodec>({self._print(x, TERNARY)})"
            case Call(op=op, args=args):
                inner = ", ".join(self._print(arg, TERNARY) for arg in args)
                return f"optgen::{FUNCTION.get(op, op)}({inner})"
            case Reduce(over=over):
                raise UnloweredNodeError(f"a reduction over {over.name} must be placed by the planner before printing")

    def _ternary(self, condition: str, then: Expr, other: Expr, outer: int) -> str:
        text = f"{condition} ? {self._print(then, 1)} : {self._print(other, TERNARY)}"
        return f"({text})" if outer > TERNARY else text

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "NAN"
        if math.isinf(value):
            return "INFINITY" if value > 0 else "-INFINITY"
        text = repr(value)
        return f"{text}f" if self.single else text


def _wrap(text: str, level: int, outer: int) -> str:
    return f"({text})" if level < outer else text
