"""The functions of the equation language for floats and tensors alike.

Floats follow IEEE 754 where Python would raise: 1 / 0 is inf, 0 / 0 and the root of -1 are NaN. Elements and rows are
float32, numbers of a tensor are float64 tensors without dimensions, numbers known before the step are floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import SMALLEST_ABSMAX
from optgen.runtime import sums
from optgen.runtime.dimensions import kind_dims
from optgen.runtime.dimensions import spread_shape as spread_shape
from optgen.runtime.matrix_math import newton_schulz as newton_schulz
from optgen.runtime.matrix_math import polar_express as polar_express
from optgen.runtime.matrix_math import quintic as quintic
from optgen.runtime.matrix_shapes import absmax_over as absmax_over
from optgen.runtime.matrix_shapes import diagonal as diagonal
from optgen.runtime.matrix_shapes import eigenvectors as eigenvectors
from optgen.runtime.matrix_shapes import inverse_root as inverse_root
from optgen.runtime.matrix_shapes import max_over as max_over
from optgen.runtime.matrix_shapes import mean_over as mean_over
from optgen.runtime.matrix_shapes import min_over as min_over
from optgen.runtime.matrix_shapes import norm_over as norm_over
from optgen.runtime.matrix_shapes import product as product
from optgen.runtime.matrix_shapes import qr as qr
from optgen.runtime.matrix_shapes import rms_over as rms_over
from optgen.runtime.matrix_shapes import sorted_rows as sorted_rows
from optgen.runtime.matrix_shapes import sum_over as sum_over
from optgen.runtime.matrix_shapes import svd_basis as svd_basis
from optgen.runtime.matrix_shapes import tall as tall
from optgen.runtime.matrix_shapes import times as times
from optgen.runtime.matrix_shapes import transpose as transpose

NAN = math.nan
INF = math.inf
Value = Any


def _has_exact_roots() -> bool:
    """Detects whether torch rounds square roots of the CPU correctly: MKL's do not on processors of AMD."""
    x = torch.arange(1.0, 65.0, dtype=torch.float32, device="cpu")
    return torch.equal(torch.sqrt(x), torch.sqrt(x.double()).float())


EXACT_ROOTS = _has_exact_roots()


def number(value: Value) -> float:
    """A setting as a float; one that is not given is NaN."""
    return NAN if value is None else float(value)


def unread(value: Value) -> float | Tensor:
    """A setting as a float, but a tensor on a GPU as it is: the host would have to wait for its number."""
    return value if isinstance(value, Tensor) and value.device.type != "cpu" else number(value)


def _like(value: Value, other: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=other.dtype, device=other.device)


def divide(a: float, b: float) -> float:
    """a / b of floats."""
    try:
        return a / b
    except ZeroDivisionError:
        return NAN if a == 0.0 or a != a else math.copysign(INF, a) * math.copysign(1.0, b)


def remainder(a: Value, b: Value) -> Value:
    """a % b, of the sign of b; NaN where b is 0 or a infinite."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.remainder(a, b)
    if b == 0.0 or math.isinf(a):
        return NAN
    rest = math.fmod(a, b)
    return rest + b if rest != 0.0 and (rest < 0.0) != (b < 0.0) else rest


def power(a: Value, b: Value) -> Value:
    """a ** b."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if isinstance(b, float) and b == 2.0:
            return a * a
        return a**b
    try:
        result = math.pow(a, b)
    except ZeroDivisionError:
        return INF
    except OverflowError:
        return INF
    except ValueError:
        return INF if a == 0.0 else NAN
    return result


def sqrt(x: Value) -> Value:
    """The square root."""
    if not isinstance(x, Tensor):
        return math.sqrt(x) if x >= 0.0 else NAN
    if EXACT_ROOTS or x.dtype is not torch.float32 or x.device.type != "cpu":
        return torch.sqrt(x)
    return _roots_by_float64(x) if x.requires_grad else exact_roots(x)


def _roots_by_float64(x: Tensor) -> Tensor:
    return torch.sqrt(x.double()).float()  # it has more than twice the digits, so that one rounding decides


exact_roots: Callable[[Tensor], Tensor] = _roots_by_float64
"""Square roots of float32, correctly rounded; an engine that has compiled faster ones puts them here."""


@contextmanager
def traceable() -> Iterator[None]:
    """Take operations of torch alone: what is compiled beside them would not be seen by what records a graph."""
    global exact_roots
    kept, exact_roots = exact_roots, _roots_by_float64
    try:
        yield
    finally:
        exact_roots = kept


def rsqrt(x: Value) -> Value:
    """One over the square root."""
    return 1.0 / sqrt(x) if isinstance(x, Tensor) else divide(1.0, sqrt(x))


def exp(x: Value) -> Value:
    """e to the power of x."""
    if isinstance(x, Tensor):
        return torch.exp(x)
    try:
        return math.exp(x)
    except OverflowError:
        return INF


def log(x: Value) -> Value:
    """The natural logarithm."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0.0 else -INF if x == 0.0 else NAN


def tanh(x: Value) -> Value:
    """The hyperbolic tangent."""
    return torch.tanh(x) if isinstance(x, Tensor) else math.tanh(x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x) if isinstance(x, Tensor) else 1.0 / (1.0 + exp(-x))


def softplus(x: Value) -> Value:
    """log(1 + exp(x)), without overflow."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return x if x != x else max(x, 0.0) + math.log1p(exp(-abs(x)))


def floor(x: Value) -> Value:
    """The largest whole number not above x."""
    if isinstance(x, Tensor):
        return torch.floor(x)
    return float(math.floor(x)) if math.isfinite(x) else x


def absolute(x: Value) -> Value:
    """The magnitude."""
    return abs(x)


def sign(x: Value) -> Value:
    """-1, 0 or 1; 0 for NaN."""
    if isinstance(x, Tensor):
        return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)
    return float(x > 0) - float(x < 0)


def isfinite(x: Value) -> Value:
    """True where x is neither infinite nor NaN."""
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def minimum(a: Value, b: Value) -> Value:
    """The smaller one; NaN if either is."""
    if isinstance(a, Tensor):
        return torch.minimum(a, _like(b, a).to(a.dtype) if not _wider(b, a) else b)
    if isinstance(b, Tensor):
        return minimum(b, a)
    return a if a < b or a != a else b


def maximum(a: Value, b: Value) -> Value:
    """The larger one; NaN if either is."""
    if isinstance(a, Tensor):
        return torch.maximum(a, _like(b, a).to(a.dtype) if not _wider(b, a) else b)
    if isinstance(b, Tensor):
        return maximum(b, a)
    return a if a > b or a != a else b


def clamp(x: Value, low: Value, high: Value) -> Value:
    """x, but no less than low and no more than high; NaN if one is."""
    return minimum(maximum(x, low), high)


def _wider(b: Value, a: Tensor) -> bool:
    return isinstance(b, Tensor) and b.dim() > a.dim()


def where(condition: Value, a: Value, b: Value) -> Value:
    """a where the condition holds, else b."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    kept = next((x.dtype for x in (a, b) if isinstance(x, Tensor) and x.dim() > 0), None)
    alone = torch.float64 if sums.has_float64(condition.device) else torch.float32
    dtype = kept or (torch.float32 if condition.dim() else alone)
    a, b = (torch.as_tensor(x, dtype=dtype, device=condition.device) for x in (a, b))
    return torch.where(condition, a, b)


def both(a: Value, b: Value) -> Value:
    """a and b."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a & b
    if isinstance(a, Tensor):
        return a if b else torch.zeros_like(a)
    if isinstance(b, Tensor):
        return both(b, a)
    return bool(a and b)


def either(a: Value, b: Value) -> Value:
    """a or b."""
    return negate(both(negate(a), negate(b)))


def negate(a: Value) -> Value:
    """The negation of a condition."""
    return ~a if isinstance(a, Tensor) else not a


# Reductions: sums, and the squares in sums of squares, are float64, if the device has it (sums.py); the engine rounds
# those of rows and columns once they are those of the whole tensor.


def total(x: Tensor) -> Tensor:
    """The sum of all numbers."""
    return sums.total(x)


def total_squares(x: Tensor) -> Tensor:
    """The sum of the squares of all numbers."""
    return sums.total_squares(x)


def largest(x: Tensor) -> Tensor:
    """The largest of numbers that are not negative; 0 of none."""
    return sums.wide(x.max() if x.numel() else x.new_zeros(()))


def greatest(x: Tensor) -> Tensor:
    """The greatest of all numbers; -inf of none."""
    return sums.wide(_greatest(x, tuple(range(x.dim())), -INF).reshape(()))


def _greatest(x: Tensor, dims: tuple[int, ...], of_none: float) -> Tensor:
    """The greatest along dimensions, which are kept; both zeros are 0."""
    dtype = torch.float64 if sums.has_float64(x.device) else torch.float32
    if x.numel():
        return x.amax(dims, keepdim=True).to(dtype) + 0.0
    shape = [1 if at in dims or at - x.dim() in dims else size for at, size in enumerate(x.shape)]
    return torch.full(shape, of_none, dtype=dtype, device=x.device)


def row_total(x: Tensor) -> Tensor:
    """Sums along the last dimension, kept as (..., rows, 1)."""
    return sums.sums(x, (-1,))


def row_squares(x: Tensor) -> Tensor:
    """Sums of squares along the last dimension, kept as (..., rows, 1)."""
    return sums.squares(x, (-1,))


def col_total(x: Tensor) -> Tensor:
    """Sums along the dimension before the last, kept as (..., 1, cols)."""
    return sums.sums(x, (-2,))


def row_largest(x: Tensor) -> Tensor:
    """The largest of numbers that are not negative along the last dimension, kept as (..., rows, 1); 0 of none."""
    return _greatest(x, (-1,), 0.0)


def row_greatest(x: Tensor) -> Tensor:
    """The greatest along the last dimension, kept as (..., rows, 1); -inf of none."""
    return _greatest(x, (-1,), -INF)


def col_squares(x: Tensor) -> Tensor:
    """Sums of squares along the dimension before the last, kept as (..., 1, cols)."""
    return sums.squares(x, (-2,))


def col_largest(x: Tensor) -> Tensor:
    """The largest of numbers that are not negative along the dimension before the last; 0 of none."""
    return _greatest(x, (-2,), 0.0)


def col_greatest(x: Tensor) -> Tensor:
    """The greatest along the dimension before the last, kept as (..., 1, cols); -inf of none."""
    return _greatest(x, (-2,), -INF)


def total_of(x: Tensor, kind: str) -> Tensor:
    """Sums over all dimensions but those of a kind, which are kept (dimensions.py)."""
    return sums.sums(x, _others(x, kind)).float()


def largest_of(x: Tensor, kind: str) -> Tensor:
    """The largest of numbers that are not negative over all dimensions but those of a kind; 0 of none."""
    return _greatest(x, _others(x, kind), 0.0).float()


def greatest_of(x: Tensor, kind: str) -> Tensor:
    """The greatest over all dimensions but those of a kind; -inf of none."""
    return _greatest(x, _others(x, kind), -INF).float()


def _others(x: Tensor, kind: str) -> tuple[int, ...]:
    kept = kind_dims(kind, x.dim())
    return tuple(dim for dim in range(x.dim()) if dim not in kept)


def scale_of(largest: Tensor) -> Tensor:
    """The largest magnitude of a tensor or a block as the scale of its codes; 0 if below float32's smallest normal."""
    return torch.where(largest >= SMALLEST_ABSMAX, largest, 0.0)


# Windows


def whole_steps(steps: float) -> int:
    """A number of steps as a whole number; 0 for what is none."""
    return int(steps) if 0.0 <= steps < 2.0**53 else 0


def push(window: Tensor, value: Tensor, step: float) -> Tensor:
    """The window with a value in slot `step % n`; the first finite value fills it, others never enter."""
    entry = value.float() if isinstance(value, Tensor) else torch.tensor(value, device=window.device)
    slot = torch.arange(window.numel(), device=window.device) == whole_steps(step) % window.numel()
    mask = torch.where(torch.isfinite(window[0]), slot, torch.ones_like(slot)) & torch.isfinite(entry)
    return torch.where(mask, entry, window)


def percentile(window: Tensor, q: float) -> Tensor:
    """The entry below which `q` percent of the window lie; NaN where `q` is."""
    n, part = window.numel(), float(q)
    if math.isnan(part):
        return sums.wide(torch.full((), math.nan, device=window.device))
    rank = math.floor(min(max(part * n / 100.0, 0.0), n - 1.0))
    return sums.wide(window.sort().values[rank])
