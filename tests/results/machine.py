"""Probes of the machine: how it computes what IEEE 754 does not decide, on which results depend besides the code.

Sums of two numbers, products, quotients, comparisons, conversions and moves of bits are the same everywhere. Functions
(`exp`, `pow`) and the order in which many numbers are summed are a library's own. Each of those has a probe, the hash
of what comes of given numbers: machines with the same probes compute the same, and where one differs, cases that use it
cannot be compared.

- torch chooses by the processor how wide its loops are, and thereby the order of sums: `same_loops` of
  support/environment.py has it take those that every processor can run. Which of its operations a case uses is noted
  while the case is recorded.
- The cpu target is compiled with the tests' flags, under which a sum has the order in which it is written, on every
  processor. Loops of codecs that are written for AVX-512 compute the same codes as the others (tests/codecs).
- The cuda target runs on the stand-in for NVIDIA's driver, where PyCUDA is installed and no real driver is.
- Powers and the like on the host are the C library's, for every target.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator

from support.machine import why_no_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optgen.runtime.building.compilers import find_compiler
from optgen.runtime.building.nvidia import is_installed
from results.values import numbers

LIBRARY, COMPILER, STANDIN = "libm", "-O", "stand-in"
DIGITS = 8
SHAPED = ("block+1", "matrix", "matrices", "long")

# torch's operations whose results IEEE 754, or arithmetic on whole numbers, decides.
EXACT = {
    "__lshift__", "__rshift__", "_local_scalar_dense", "_record_function_enter_new", "_record_function_exit",
    "_reshape_alias", "_to_copy", "_unsafe_view", "abs", "add", "all", "amax", "any", "arange", "bitwise_and",
    "bitwise_not", "bitwise_or", "bitwise_xor", "bucketize", "cat", "clamp", "clone", "constant_pad_nd", "copy_",
    "detach",
    "div", "empty", "empty_like", "empty_strided", "eq", "equal", "expand", "fill_", "floor", "full", "full_like", "ge",
    "gt", "index", "index_put_", "isnan", "le", "lift_fresh", "logical_and", "logical_not", "logical_or", "lt",
    "max", "maximum", "minimum", "mul", "ne", "neg", "new_empty", "new_empty_strided", "new_zeros", "ones",
    "ones_like", "permute", "reciprocal", "rsub", "scalar_tensor", "select", "sign", "slice", "sort", "split",
    "sqrt", "squeeze", "stack", "sub", "t", "transpose", "unbind", "unsqueeze", "view", "where", "zero_", "zeros",
    "zeros_like",
}  # fmt: skip
# Those of which neither does.
PROBES: dict[str, Callable[[Tensor], Iterable[Tensor]]] = {
    "sum": lambda x: (x.sum(), *(x.sum(dim=dim) for dim in range(x.dim()))),
    "pow": lambda x: (x.abs() ** 0.9, x.abs() ** -0.8, x**3, 0.9 ** x.abs(), x.abs() ** x.abs()),
}


def probes() -> dict[str, str]:
    """Hashes of what this machine computes, by the name of what it may compute in its own way."""
    found = {name: _hash(_bytes(probe)) for name, probe in PROBES.items()}
    compiler = find_compiler()
    levels = [] if compiler is None else [flag for flag in compiler.flags if flag.startswith("-O")]
    standin = (is_installed("pycuda") or is_installed("cuda.bindings")) and bool(why_no_gpu())
    return {**found, LIBRARY: _hash(_library()), COMPILER: "".join(levels[-1:]), STANDIN: "there" if standin else ""}


def _bytes(probe: Callable[[Tensor], Iterable[Tensor]]) -> Iterator[bytes]:
    for name in SHAPED:
        for values in (numbers(name, 0) / 3.0, numbers(name, 0).double() / 3.0):
            yield from (result.contiguous().numpy().tobytes() for result in probe(values))


def _library() -> Iterator[bytes]:
    """Of the C library's functions of float64, which hosts and kernels call; no rule has one of float32."""
    yield repr([math.pow(1.0 - 2.0**-at, step) for at in range(1, 12) for step in range(1, 40)]).encode()
    points = [at / 64.0 for at in range(1, 400)]
    yield repr([(math.exp(-x), math.log(x), math.pow(x, 0.8), math.pow(x, -0.8)) for x in points]).encode()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:DIGITS]


class Uses(TorchDispatchMode):
    """Notes the operations of torch that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.names.add("mul" if name == "pow" and args[1] == 2 else name)  # as torch computes a square
        return func(*args, **(kwargs or {}))

    def probed(self, target: str) -> tuple[str, ...]:
        """The probes that decide what was computed.

        Raises:
            ValueError: for an operation of which it is not known whether it is exact.
        """
        if target != "torch":
            return (LIBRARY, COMPILER if target == "cpu" else STANDIN)
        unknown = self.names - EXACT - PROBES.keys()
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: to stand in EXACT or PROBES of results/machine.py")
        return (LIBRARY, *sorted(self.names & PROBES.keys()))
