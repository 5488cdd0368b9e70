"""The operations of the equation language, a row each: how one is written, checked, printed, shown and documented.

The checker, the printers, the pages, `optgen new` and docs/language.md follow from the rows. What an operation computes
stands in `math.h` for the compiled targets, and in `torch_math.py` for torch and the host.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

Sort = Literal["number", "elements", "tensor", "condition", "window", "value", "matrix", "dimension"]
"""Sort of an argument: a number of any kind, one for each element, one a tensor or less; `value` is a number or a
condition, `dimension` the name of one."""
Over = Literal["tensor", "matrix", "all", "group", "row", "col", "channel", "last", "last2", "last3", "last4"]
Compare = Callable[[Any, Any], bool]
MINUS = "\N{MINUS SIGN}"


class Binds(IntEnum):
    """Binding strength of an expression, the loosest first."""

    CHOICE = 0
    OR = 1
    AND = 2
    NOT = 3
    EQUAL = 4
    ORDER = 5
    SUM = 6
    PRODUCT = 7
    SIGN = 8
    POWER = 9
    ATOM = 10


@dataclass(frozen=True)
class Infix:
    """`a + b`."""

    symbol: str
    binds: Binds

    @property
    def wants(self) -> tuple[int, int]:
        """Strengths below which operands need parentheses; powers group from the right, others from the left."""
        return (Binds.ATOM, Binds.SIGN) if self.binds is Binds.POWER else (self.binds, self.binds + 1)


@dataclass(frozen=True)
class Prefix:
    """`-a`, whose operand needs no parentheses if it binds as tightly as `wants`."""

    symbol: str
    binds: Binds
    wants: Binds


@dataclass(frozen=True)
class Named:
    """`f(a, b)`."""

    name: str


@dataclass(frozen=True)
class Ternary:
    """`condition ? a : b`."""


Spelling = Infix | Prefix | Named | Ternary


@dataclass(frozen=True)
class Operation:
    """An operator or function applied element by element, or to a window.

    Attributes:
        takes: Its arguments: the name and sort of each.
        gives: Sort of its result; `value` if it is that of its last argument.
        written: In the equation language.
        c: In C++, for the cpu and the cuda target.
        python: In Python, for the torch target (`m` is torch_math) and for the host.
        page: On a page: a sign or a word, or signs around `{}`.
        word: In the name of a value: `one_minus_beta1`.
        doc: Its description in docs/language.md.
        syntax: The operator in Python's syntax trees.
        value: Its result where the arguments are known when a spec is compiled.
        endless: Whether it takes any number of arguments like its last.
        beside: Inputs that it reads beside its arguments.
        mirrored: The comparison with its sides exchanged.
        contrary: The comparison that holds where this one does not.
    """

    name: str
    takes: tuple[tuple[str, Sort], ...]
    gives: Sort
    written: Spelling
    c: Spelling
    python: Spelling
    page: str
    word: str
    doc: str = ""
    syntax: type[ast.AST] | None = None
    value: Callable[..., Any] | None = None
    endless: bool = False
    beside: tuple[str, ...] = ()
    mirrored: str = ""
    contrary: str = ""

    @property
    def arity(self) -> int:
        """Number of arguments."""
        return len(self.takes)

    @property
    def reads_between(self) -> bool:
        """True if its word stands between its operands' in the name of a value, as in `one_minus_beta1`."""
        return isinstance(self.written, Infix) and self.gives == "number"

    @property
    def signature(self) -> str:
        """Call with the names of its arguments: `where(condition, a, b)`."""
        return f"{self.name}({', '.join(name for name, _ in self.takes)})"


@dataclass(frozen=True)
class Reduction:
    """A function from the numbers of a tensor to fewer: a sum or a maximum, and what is made of it.

    Attributes:
        over: Words that `over=` takes; the first is the default.
        of: Values that are reduced: `squares` and `magnitudes` are those of the argument, `deviations` its squared
            distances from the mean; of `greatest` and `least` one is taken.
        is_mean: Whether it is divided by the count.
        is_root: Whether the root is taken last.
        page: On a page: a word, or signs around `{}`.
    """

    name: str
    over: tuple[Over, ...]
    of: Literal["numbers", "squares", "magnitudes", "greatest", "least", "deviations"]
    page: str
    doc: str
    is_mean: bool = False
    is_root: bool = False

    @property
    def arity(self) -> int:
        """Number of arguments."""
        return 1

    @property
    def signature(self) -> str:
        """Call with the name of its argument."""
        return f"{self.name}(x)"


@dataclass(frozen=True)
class MatrixFunction:
    """A function of a matrix: of the last two dimensions of a parameter's elements, or of what these are flattened to.

    Attributes:
        settings: Its other arguments, numbers that are the same for a group.
        doc: Its description in docs/language.md.
        page: A word on a page.
        products: Operations of its products.
        room: Memory that these take, beside what a pass leaves for them.
    """

    name: str
    settings: tuple[str, ...]
    page: str
    doc: str
    products: str = ""
    room: str = ""

    @property
    def arity(self) -> int:
        """Number of arguments."""
        return 1 + len(self.settings)

    @property
    def signature(self) -> str:
        """Call with the names of its arguments."""
        return f"{self.name}({', '.join(('x', *self.settings))})"


Takes = tuple[tuple[str, Sort], ...]
NUMBER: Takes = (("x", "number"),)
NUMBERS: Takes = (("a", "number"), ("b", "number"))
CONDITION: Takes = (("x", "condition"),)
CONDITIONS: Takes = (("a", "condition"), ("b", "condition"))


def _operator(
    symbol: str,
    binds: Binds,
    syntax: type[ast.AST],
    word: str,
    *,
    name: str = "",
    takes: Takes = NUMBERS,
    gives: Sort = "number",
    c: Spelling | None = None,
    python: Spelling | None = None,
    page: str = "",
    value: Callable[..., Any] | None = None,
) -> Operation:
    """An operator between two operands, or before one; spelled alike everywhere unless said otherwise."""
    written = Infix(symbol, binds) if len(takes) == 2 else Prefix(symbol, binds, binds)
    name, page = name or symbol, page or symbol
    return Operation(name, takes, gives, written, c or written, python or written, page, word, "", syntax, value)


def _comparison(
    symbol: str, binds: Binds, syntax: type[ast.AST], word: str, mirrored: str, contrary: str, page: str, value: Compare
) -> Operation:
    same = _operator(symbol, binds, syntax, word, gives="condition", page=page, value=value)
    return replace(same, mirrored=mirrored, contrary=contrary)


def _function(
    name: str,
    doc: str,
    *,
    takes: Takes = NUMBER,
    gives: Sort = "number",
    c: Spelling | None = None,
    python: str | Spelling = "",
    page: str = "",
    value: Callable[..., Any] | None = None,
    endless: bool = False,
    beside: tuple[str, ...] = (),
) -> Operation:
    """A function, of the same name everywhere unless said otherwise."""
    c = c or Named(f"optgen::{name}")
    in_python = Named(python or f"m.{name}") if isinstance(python, str) else python
    return Operation(
        name, takes, gives, Named(name), c, in_python, page or name, name, doc, None, value, endless, beside
    )


_OPERATORS = (
    _operator("+", Binds.SUM, ast.Add, "plus", value=operator.add),
    _operator("-", Binds.SUM, ast.Sub, "minus", value=operator.sub, page=MINUS),
    _operator("*", Binds.PRODUCT, ast.Mult, "times", value=operator.mul, page="·"),
    _operator("/", Binds.PRODUCT, ast.Div, "over", value=operator.truediv),
    _operator("%", Binds.PRODUCT, ast.Mod, "modulo", c=Named("optgen::remainder"), python=Named("m.remainder"),
              page="mod"),
    _operator("**", Binds.POWER, ast.Pow, "power", value=operator.pow,
              c=Named("optgen::power"), python=Named("m.power")),
    # In C++, `--x` is another operation.
    _operator("-", Binds.SIGN, ast.USub, "minus", name="neg", takes=NUMBER, value=operator.neg, page=MINUS,
              c=Prefix("-", Binds.SIGN, wants=Binds.ATOM)),
    _operator("and", Binds.AND, ast.And, "and", takes=CONDITIONS, gives="condition",
              c=Infix("&&", Binds.AND), python=Named("m.both")),
    _operator("or", Binds.OR, ast.Or, "or", takes=CONDITIONS, gives="condition",
              c=Infix("||", Binds.OR), python=Named("m.either")),
    _operator("not ", Binds.NOT, ast.Not, "not", name="not", takes=CONDITION, gives="condition",
              c=Prefix("!", Binds.SIGN, wants=Binds.SIGN), python=Named("m.negate")),
)  # fmt: skip
_COMPARISONS = (  # with the sides exchanged, and where it does not hold
    _comparison("<", Binds.ORDER, ast.Lt, "below", ">", ">=", page="<", value=operator.lt),
    _comparison("<=", Binds.ORDER, ast.LtE, "up_to", ">=", ">", page="≤", value=operator.le),
    _comparison(">", Binds.ORDER, ast.Gt, "above", "<", "<=", page=">", value=operator.gt),
    _comparison(">=", Binds.ORDER, ast.GtE, "from", "<=", "<", page="≥", value=operator.ge),
    _comparison("==", Binds.EQUAL, ast.Eq, "equal", "==", "!=", page="=", value=operator.eq),
    _comparison("!=", Binds.EQUAL, ast.NotEq, "differ", "!=", "==", page="≠", value=operator.ne),
)
_FUNCTIONS = (
    _function("sqrt", "the square root", value=math.sqrt),
    _function("rsqrt", "one over the square root"),
    _function("exp", "e to the power of x"),
    _function("log", "the natural logarithm", page="ln"),
    _function("abs", "the magnitude", python="m.absolute", page="|{}|"),
    _function("sign", "-1, 0 or 1; 0 for NaN", page="sgn"),
    _function("floor", "the largest whole number not above x", page="⌊{}⌋"),
    _function("tanh", "the hyperbolic tangent"),
    _function("sigmoid", "1 / (1 + exp(-x))"),
    _function("softplus", "log(1 + exp(x)), which does not overflow"),
    _function("isfinite", "whether x is neither NaN nor infinite", gives="condition", page="finite"),
    _function("rounded", "elements as a parameter of this dtype would be stored, rounded to nearest",
              takes=(("x", "elements"),), c=Named("optgen::rounded<ParamCodec>"), python="t.rounded", page="round"),
    _function("where", "a where the condition holds, else b; both are numbers, or both conditions",
              takes=(("condition", "condition"), ("a", "value"), ("b", "value")), gives="value", c=Ternary()),
    _function("clamp", "x where it lies between low and high, else the nearer one; NaN is handed on",
              takes=(("x", "number"), ("low", "number"), ("high", "number"))),
    _function("min", "the smallest; NaN is handed on",
              takes=NUMBERS, endless=True, c=Named("optgen::minimum"), python="m.minimum"),
    _function("max", "the largest; NaN is handed on",
              takes=NUMBERS, endless=True, c=Named("optgen::maximum"), python="m.maximum"),
)  # fmt: skip
_WINDOWS = (
    _function(
        "push",
        "the window with x in place of the oldest value; one that is not finite is left out, the first fills all",
        takes=(("window", "window"), ("x", "tensor")),
        gives="window",
        beside=("step",),
    ),
    _function(
        "percentile",
        "the value at q percent of the sorted window",
        takes=(("window", "window"), ("q", "tensor")),
    ),
)
_DRAWS = (
    _function("uniform", "a number from 0 to below 1", takes=(), python="t.uniform", beside=("param",)),
    _function("normal", "a normal number of mean 0 and variance 1", takes=(), python="t.normal", beside=("param",)),
)
_OF_PASSES = (
    _function(
        "scale_of",
        "the largest magnitude of a tensor as its scale; 0 where that is below the smallest normal float",
        takes=(("largest", "tensor"),),
    ),
)
EACH: tuple[Over, ...] = ("tensor", "row", "col", "matrix", "channel", "last", "last2", "last3", "last4")
SEVERAL: tuple[Over, ...] = ("group", "all")
_REDUCTIONS = (
    Reduction("sum", (*EACH, *SEVERAL), "numbers", "sum", "the sum"),
    Reduction("mean", EACH, "numbers", "mean", "the sum over the count", is_mean=True),
    Reduction("norm", (*EACH, *SEVERAL), "squares", "‖{}‖", "the root of the sum of squares", is_root=True),
    Reduction("rms", EACH, "squares", "rms", "the root of the mean square", is_mean=True, is_root=True),
    Reduction("var", EACH, "deviations", "var", "the sum of squared distances from the mean over the count less 1"),
    Reduction("std", EACH, "deviations", "std", "the root of the variance", is_root=True),
    Reduction("absmax", (*EACH, *SEVERAL), "magnitudes", "max", "the largest magnitude; 0 of none"),
    Reduction("max", EACH, "greatest", "max", "the greatest; -inf of none"),
    Reduction("min", EACH, "least", "min", "the least; inf of none"),
    Reduction("row_sum", ("row",), "numbers", "sum", "the sum along the last dimension"),
    Reduction("row_mean", ("row",), "numbers", "mean", "the mean along the last dimension", is_mean=True),
    Reduction("col_sum", ("col",), "numbers", "sum", "the sum along the dimension before the last"),
    Reduction("col_mean", ("col",), "numbers", "mean", "the mean along the dimension before the last", is_mean=True),
)
_OF_SHAPES = (
    _function("matmul", "the product [a, c] of a [a, b] and b [b, c]", takes=(("a", "matrix"), ("b", "matrix")),
              python=Infix("@", Binds.PRODUCT)),
    _function("transpose", "the transpose", takes=(("x", "matrix"),)),
    _function("tall", "x [rows, cols] as [long, short]: transposed where it has more columns than rows",
              takes=(("x", "matrix"),)),
    _function("from_tall", "x [long, short] as [rows, cols] again", takes=(("x", "matrix"),), python="t.from_tall"),
    _function("turned", "x [rows, cols] as [kept, reduced]: transposed where `proj_type` asks for it",
              takes=(("x", "matrix"),), python="t.turned"),
    _function("turned_back", "x [kept, reduced] as [rows, cols] again", takes=(("x", "matrix"),), python="t.turned"),
    _function("svd_basis", "the leading right singular vectors of x, one a row, of each the greatest component "
              "positive; 0 where x has none but by rounding", takes=(("x", "matrix"), ("dimension", "dimension"))),
    _function("qr", "the orthogonal factor of x, as large as x; it is unique, since the other has a positive diagonal",
              takes=(("x", "matrix"),)),
    _function("eigenvectors", "the eigenvectors of a symmetric matrix, one a column, that of the greatest value first, "
              "of each the greatest component positive", takes=(("x", "matrix"),)),
    _function("inverse_root", "(x + eps I) to the power of -exponent, of a symmetric matrix; with its eigenvalues "
              "shifted up where the least would be below eps",
              takes=(("x", "matrix"), ("exponent", "tensor"), ("eps", "tensor"))),
    _function("diagonal", "the diagonal of a square matrix, as a column", takes=(("x", "matrix"),)),
    _function("sorted_rows", "the rows of x in the order of a column's numbers, the greatest first",
              takes=(("x", "matrix"), ("by", "matrix"))),
    _function("normal_matrix", "normal numbers of mean 0 and variance 1, which follow from `seed`, the position of the "
              "parameter and the number of the draw",
              takes=(("rows", "dimension"), ("cols", "dimension"), ("draw", "tensor")),
              python="t.normal_matrix", beside=("grad",)),
    _function("size", "the size of a dimension", takes=(("dimension", "dimension"),)),
)  # fmt: skip
_OF_LINES = tuple(
    _function(
        f"{name}_over", f"the {name} over all, each row or each column", takes=(("x", "matrix"), ("over", "dimension"))
    )
    for name in ("sum", "mean", "norm", "rms", "absmax", "max", "min")
)
_NEWTON_SCHULZ = (
    "4 n + 2 n²/m operations a parameter and step of the iteration, n being the smaller and m the greater side",
    "8 + 8 n/m bytes for each element of the largest batch, beside the 4 that a pass leaves",
)  # its products, and their memory
_MATRIX_FUNCTIONS = (
    MatrixFunction("newton_schulz", ("steps", "a", "b", "c", "eps"), "orth",
                   "the nearest orthogonal matrix, by steps X = aX + (bXXᵀ + c(XXᵀ)²)X from X = x / max(norm, eps)",
                   *_NEWTON_SCHULZ),
    MatrixFunction("quintic", ("steps", "eps"), "orth",
                   "the same with five triples of coefficients one after the other, the last again for further steps; "
                   "singular values end within 3 % of 1", *_NEWTON_SCHULZ),
    MatrixFunction("polar_express", ("steps", "eps"), "orth",
                   "the same with the coefficients of Polar Express (Amsel et al. 2025, "
                   "https://arxiv.org/abs/2505.16932), from x / (1.02 norm + eps)", *_NEWTON_SCHULZ),
)  # fmt: skip

_ITERATIONS = tuple(
    _function(row.name, row.doc, takes=(("x", "matrix"), *((name, "tensor") for name in row.settings)))
    for row in _MATRIX_FUNCTIONS
)
OF_SHAPES: Mapping[str, Operation] = {row.name: row for row in _OF_SHAPES}
"""Functions of matrices of any shapes, for rules whose states are such."""
OF_STAGES: Mapping[str, Operation] = {row.name: row for row in (*_OF_SHAPES, *_OF_LINES, *_ITERATIONS)}
"""All functions of matrices as a step on matrices calls them: those, reductions, and those of elements."""
OPERATIONS: Mapping[str, Operation] = {
    row.name: row
    for row in (*_OPERATORS, *_COMPARISONS, *_FUNCTIONS, *_WINDOWS, *_DRAWS, *_OF_PASSES, *OF_STAGES.values())
}
COMPARISONS: Mapping[str, Operation] = {row.name: row for row in _COMPARISONS}
FUNCTIONS: Mapping[str, Operation] = {row.name: row for row in _FUNCTIONS}
WINDOWS: Mapping[str, Operation] = {row.name: row for row in _WINDOWS}
DRAWS: Mapping[str, Operation] = {row.name: row for row in _DRAWS}
"""Random numbers, one for each element. Beside their arguments they have the number of the draw among the rule's."""
OF_PASSES: Mapping[str, Operation] = {row.name: row for row in _OF_PASSES}
"""Operations that passes add to a program, and no equation says."""
REDUCTIONS: Mapping[str, Reduction] = {row.name: row for row in _REDUCTIONS}
MATRIX_FUNCTIONS: Mapping[str, MatrixFunction] = {row.name: row for row in _MATRIX_FUNCTIONS}
CALLED: Mapping[str, Operation | Reduction | MatrixFunction] = {
    **FUNCTIONS,
    **REDUCTIONS,
    **WINDOWS,
    **DRAWS,
    **MATRIX_FUNCTIONS,
    **FUNCTIONS,
}
"""Functions and reductions by name, in the order in which they are listed; `max` and `min` as functions."""
BY_SYNTAX: Mapping[type[ast.AST], Operation] = {
    row.syntax: row for row in OPERATIONS.values() if row.syntax is not None
}
