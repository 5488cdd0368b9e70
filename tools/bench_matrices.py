"""A step of Muon on the matrices of GPT-2 small, beside its products alone and beside torch.optim.Muon.

`python tools/bench_matrices.py [--layers N] [--bits 32 8 4] [--torch]`; all run on torch's threads. Times are the least
of several steps, taken in turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import optgen_optim
import torch
from torch import nn

from optgen.runtime.matrix_math import newton_schulz

LAYER = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 8, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help="torch.optim.Muon too, on the matrices of one layer")
    given = parser.parse_args(argv)
    shapes = LAYER * given.layers
    steps: dict[str, Callable[[], object]] = {"products alone": products(shapes)}
    steps |= {f"Muon, {bits} bits": step_of(optgen_optim.Muon, shapes, optim_bits=bits) for bits in given.bits}
    best = timed(steps, given.rounds)
    operations = sum(map(operations_of, shapes))
    lines = [f"{len(shapes)} matrices, {sum(a * b for a, b in shapes):,} parameters, {torch.get_num_threads()} threads"]
    alone = best["products alone"]
    for name, seconds in best.items():
        lines.append(
            f"{name:16} {seconds:8.3f} s  {operations / seconds / 1e9:7.1f} GFLOP/s  {seconds / alone:5.2f} x products"
        )
    if given.torch:
        both = timed({"ours": step_of(optgen_optim.Muon, LAYER), "torch": step_of(torch.optim.Muon, LAYER)}, 1)
        lines.append(f"one layer: torch.optim.Muon {both['torch']:.2f} s, ours {both['ours']:.3f} s")
    sys.stdout.write("\n".join([*lines, ""]))


def operations_of(shape: tuple[int, int]) -> float:
    """Operations of the products of a step: of a matrix with itself, of that with itself, of that with the matrix."""
    n, m = min(shape), max(shape)
    return STEPS * (4.0 * n * n * m + 2.0 * n**3)


def products(shapes: Sequence[tuple[int, int]]) -> Callable[[], object]:
    """The iteration, for matrices of a shape together as a step takes them."""
    batch = [torch.randn(shape) for shape in shapes]
    return lambda: [newton_schulz(x, STEPS, *COEFFICIENTS, 1e-7) for x in batch]


def step_of(
    cls: Callable[..., torch.optim.Optimizer], shapes: Sequence[tuple[int, int]], **settings: int
) -> Callable[[], object]:
    """A step, whose states are there."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = cls(params, **settings)
    return optimizer.step


def timed(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, the least of some rounds in turn; the first, which prepares, is left out."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in found.items()}


if __name__ == "__main__":
    main()
