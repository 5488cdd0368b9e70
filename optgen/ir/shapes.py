"""Shapes of matrices as specs name them: two dimensions each, and what functions of matrices make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optgen.ir.nodes import Call, Expr, MatrixCall, Reduce, Ref, Select

Shape = tuple[str, str]
"""The names of a matrix's rows and columns; "1" is one."""
OWN: Shape = ("rows", "cols")
"""The shape of the parameter."""
TALL: Shape = ("long", "short")
"""Its shape where it is transposed if it has more columns than rows."""
TURNED: Shape = ("kept", "reduced")
"""Its shape where it is transposed if `proj_type` says so, so that the dimension that a projection reduces is last."""
OF_PARAMETER = (*OWN, *TALL, *TURNED)
"""The dimensions that every matrix has; others are hyperparameters, cut to the least of these."""
LINES = {"tensor": ("1", "1"), "row": ("", "1"), "col": ("1", "")}
"""The shapes of reductions over each: an empty dimension is the matrix's own."""


class MisfitError(Exception):
    """Shapes do not fit. The message names both."""


def shown(shape: Shape) -> str:
    """A shape as specs have it."""
    return f"[{shape[0]}, {shape[1]}]"


def size_name(dimension: str) -> str:
    """The name that a dimension's size has among the numbers of a parameter."""
    return dimension if dimension in OWN else f"size_of_{dimension}"


def shape_of(expr: Expr, shapes: Mapping[str, Shape]) -> Shape | None:
    """The shape of an expression, given those of names; None of one that is a number.

    Raises:
        MisfitError: if the shapes of operands do not fit.
    """
    match expr:
        case Ref(name=name):
            return shapes.get(name)
        case Select(then=then, other=other):
            return _alike("the sides of this `if`", shape_of(then, shapes), shape_of(other, shapes))
        case Call(op=op, args=args) if op in _OF_FUNCTIONS:
            return _OF_FUNCTIONS[op]([shape_of(arg, shapes) or _named(arg) for arg in args])
        case Call(op=op, args=args):
            found: Shape | None = None
            for arg in args:
                found = _spread(op, found, shape_of(arg, shapes))
            return found
        case MatrixCall(x=x) | Reduce(x=x):
            return shape_of(x, shapes)
    return None


def _named(arg: Expr) -> Shape:
    """The dimension that an argument names."""
    name = arg.name if isinstance(arg, Ref) else "1"
    return name.removeprefix("size_of_").removeprefix("over_"), "1"


def _alike(what: str, first: Shape | None, second: Shape | None) -> Shape | None:
    if first is None or second is None or first == second:
        return first or second
    raise MisfitError(f"{what} are {shown(first)} and {shown(second)}")


def _spread(op: str, first: Shape | None, second: Shape | None) -> Shape | None:
    """The shape of an operation on each pair of numbers; a dimension of one has the same number for all."""
    if first is None or second is None:
        return first or second
    for a, b in zip(first, second, strict=True):
        if a != b and "1" not in (a, b):
            raise MisfitError(f"the operands of `{op}` are {shown(first)} and {shown(second)}")
    rows, cols = (b if a == "1" else a for a, b in zip(first, second, strict=True))
    return rows, cols


def _product(shapes: Sequence[Shape]) -> Shape:
    (rows, inner), (other, cols) = shapes
    if inner != other:
        raise MisfitError(f"`matmul` takes [a, b] and [b, c], and these are {shown((rows, inner))} and "
                          f"{shown((other, cols))}")  # fmt: skip
    return rows, cols


def _must_be(name: str, wanted: Shape, result: Shape) -> Callable[[Sequence[Shape]], Shape]:
    def check(shapes: Sequence[Shape]) -> Shape:
        if shapes[0] != wanted:
            raise MisfitError(f"`{name}` takes {shown(wanted)}, and this is {shown(shapes[0])}")
        return result

    return check


def _square(name: str, column: bool = False) -> Callable[[Sequence[Shape]], Shape]:
    def check(shapes: Sequence[Shape]) -> Shape:
        rows, cols = shapes[0]
        if rows != cols:
            raise MisfitError(f"`{name}` takes a square matrix, and this is {shown(shapes[0])}")
        return (rows, "1") if column else (rows, cols)

    return check


def _sorted(shapes: Sequence[Shape]) -> Shape:
    x, by = shapes
    if by != (x[0], "1"):
        raise MisfitError(f"`sorted_rows` takes [a, b] and [a, 1], and these are {shown(x)} and {shown(by)}")
    return x


def _lines(shapes: Sequence[Shape]) -> Shape:
    x, (over, _) = shapes
    rows, cols = LINES[over]
    return rows or x[0], cols or x[1]


def _orthogonal(shapes: Sequence[Shape]) -> Shape:
    """A matrix has as many orthogonal columns at most as it has rows."""
    rows, cols = shapes[0]
    if rows != cols and (rows, cols) != TALL and rows not in OF_PARAMETER:
        raise MisfitError(f"`qr` takes a matrix of no more columns than rows, and this is {shown(shapes[0])}")
    return rows, cols


_OF_FUNCTIONS: Mapping[str, Callable[[Sequence[Shape]], Shape | None]] = {
    "matmul": _product,
    "transpose": lambda shapes: (shapes[0][1], shapes[0][0]),
    "tall": _must_be("tall", OWN, TALL),
    "from_tall": _must_be("from_tall", TALL, OWN),
    "turned": _must_be("turned", OWN, TURNED),
    "turned_back": _must_be("turned_back", TURNED, OWN),
    "svd_basis": lambda shapes: (shapes[1][0], shapes[0][1]),
    "qr": _orthogonal,
    "eigenvectors": _square("eigenvectors"),
    "inverse_root": _square("inverse_root"),
    "diagonal": _square("diagonal", column=True),
    "sorted_rows": _sorted,
    "normal_matrix": lambda shapes: (shapes[0][0], shapes[1][0]),
    "size": lambda shapes: None,
    **{f"{name}_over": _lines for name in ("sum", "mean", "norm", "rms", "absmax", "max", "min")},
    **dict.fromkeys(("newton_schulz", "quintic", "polar_express"), lambda shapes: shapes[0]),
}
