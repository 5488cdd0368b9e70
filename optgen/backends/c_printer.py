"""Expressions and formulas as C++, for every target that is compiled from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from optgen.backends.base import UnloweredNodeError
from optgen.backends.code import Chain, Code, Labelled, Operand, call, chained, flat, formula_code, prefixed
from optgen.backends.layout import c_code
from optgen.backends.quoting import Identifier, identifier
from optgen.ir.formula import Formula
from optgen.ir.nodes import Call, Const, Expr, MatrixCall, Reduce, Ref, Select
from optgen.operations import OPERATIONS, Binds, Infix, Named, Prefix, Ternary
from optgen.spec.names import STAGES

KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const const_cast consteval constexpr constinit continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires return short signed sizeof static static_assert static_cast struct switch template this thread_local throw
    true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
WORDS = """
    t c s x i n at call sums values value place first shared band line inside aligned element terms pass begin segment
    lines partial body count row col books scalars prepare run finish run_chunk run_tiles run_bands store_sums
    run_element in_bands walks_lines row_sums col_sums before is_one_of is_found values_of sums_of partials_of steps_of
    count_step read_window sum_of line_sum strided_sum load store read put each larger greater order_of ordered_bits
    join_to plus_square magnitude_bits bits_float draw_of lines_of segment_at run_pass finish_sum finish_max
    finish_untaken finish_rows finish_cols wait_for_all first_element for_each_tile are_aligned line_at run_of
    tensors_of blocks_with is_tensorwise main memcpy errno math_errhandling int64_t uint32_t uint8_t int8_t optgen std
"""
OF_THE_LANGUAGE = frozenset(KEYWORDS.split())
RESERVED = OF_THE_LANGUAGE | frozenset(WORDS.split())
ENDINGS = ("_at", "_here", "_to", "_tile", "_pass", "_value")
STARTS = ("reads_", *(f"{stage}_{what}" for stage in STAGES for what in ("stage", "scalars")))


def c_name(name: str) -> Identifier:
    """A name that is no keyword of C++ and none of the kernels' own; no two names become one.

    Their own are those with capitals, and some endings.
    """
    own = name in RESERVED or name.endswith(ENDINGS) or name.startswith(STARTS) or name != name.lower()
    return identifier(f"{name}_value" if own else name)


def c_member(name: str) -> Identifier:
    """A name among those of a struct: all but keywords are free there."""
    return identifier(f"{name}_value" if name in OF_THE_LANGUAGE or name.endswith("_value") else name)


@lru_cache(maxsize=4096)
def c_condition(formula: Formula) -> Operand:
    """A formula over the kernel's constants, as an operand."""
    if formula.is_true or formula.is_false:
        return Operand("true" if formula.is_true else "false")
    return formula_code(formula, lambda name, value: f"{'' if value else '!'}{c_name(name)}", "&&", "||")


@dataclass(frozen=True)
class CPrinter:
    """Prints expressions of one precision.

    Attributes:
        single: Arithmetic in float32 (elements, rows, columns) instead of float64 (everything below).
        names: Text of names that differ in the code.
        masks: Conditions held as a `Mask`, which compilers vectorise where they do not vectorise a lone bool.
    """

    single: bool
    names: Mapping[str, str]
    masks: frozenset[str] = frozenset()
    spell: Callable[[str], str] = c_name

    def where(self, formula: Formula) -> CPrinter:
        """The printer of what stands below a condition."""
        return self

    def print(self, expr: Expr) -> str:
        """The expression as C++, in one line."""
        return flat(self.code(expr))

    def lines(self, expr: Expr, prefix: str = "", suffix: str = ";", indent: int = 0) -> list[str]:
        """A statement as lines that fit when they are indented by `indent`, as `const float x = ` and `;` around it."""
        return c_code(Labelled(prefix, self.code(expr)), indent, suffix)

    def code(self, expr: Expr) -> Code:
        """The expression as C++ that knows where its lines may end."""
        return self.operand(expr).code

    def operand(self, expr: Expr) -> Operand:
        """The expression as C++, to be an operand of another."""
        match expr:
            case Const(value=bool(value)):
                return Operand("true" if value else "false")
            case Const(value=value):
                text = self._number(float(value))
                return Operand(text, Binds.CHOICE if text.startswith("-") else Binds.ATOM)
            case Ref(name=name):
                return Operand(self.names[name] if name in self.names else self.spell(name))
            case Call(op="where", args=(Ref(name=name), then, other)) if name in self.masks:
                return Operand(call("optgen::where", self.spell(name), self.code(then), self.code(other)))
            case Call(op="**", args=(x, Const(value=2.0))):
                return Operand(call("optgen::square", self.code(x)))
            case Call():
                return self._operation(expr)
            case Select(formula=formula, then=then, other=other):
                return self._choice(c_condition(formula), then, other)
            case Reduce(over=over) | MatrixCall(over=over):
                raise UnloweredNodeError(f"a reduction over {over.name} must be placed by the planner before printing")

    def _operation(self, expr: Call) -> Operand:
        match OPERATIONS[expr.op].c, expr.args:
            case Infix(symbol, Binds.OR), (a, b):  # compilers want parentheses around `and` within `or`
                first, second = self.operand(a), self.operand(b)
                left, right = (Binds.OR if x.binds == Binds.OR else Binds.NOT for x in (first, second))
                return chained(Binds.OR, first, symbol, second, (left, right))
            case Infix(symbol, binds, wants=wants), (a, b):
                return chained(binds, self.operand(a), symbol, self.operand(b), wants)
            case Prefix(symbol, binds, wants), (x,):
                return Operand(prefixed(symbol, self.operand(x).within(wants)), binds)
            case Ternary(), (condition, then, other):
                return self._choice(self.operand(condition), then, other)
            case Named(name), args:
                return Operand(call(name, *map(self.code, args)))
        raise UnloweredNodeError(f"`{expr.op}` is not written with {len(expr.args)} operands")

    def _choice(self, condition: Operand, then: Expr, other: Expr) -> Operand:
        first, second = self.operand(then).within(Binds.OR), self.code(other)
        return Operand(Chain(condition.within(Binds.OR), (("?", first), (":", second))), Binds.CHOICE)

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "OPTGEN_NAN"
        if math.isinf(value):
            return "OPTGEN_INFINITY" if value > 0 else "-OPTGEN_INFINITY"
        text = repr(value)
        return f"{text}f" if self.single else text
