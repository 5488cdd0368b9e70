"""Steps of rules of matrices on those of GPT-2 small, beside their products alone and beside torch.optim.Muon.

`python tools/bench_matrices.py [--layers N] [--bits 32 8 4] [--threads N]`; all run on torch's threads. Times are the
least of several steps, taken in turn. Products of GaLore and APOLLO alone are those of a step between two bases: of a
matrix with its basis, and back. `ONEDNN_MAX_CPU_ISA=AVX2` before it takes away the processor's instructions for
bfloat16.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import optgen_optim
import torch
from torch import Tensor, nn

from optgen.runtime.matrix_math import newton_schulz

LAYER = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5
RANK = 128
PARTS = ("muon", "torch", "projected")
PROJECTED = ("GaLoreAdamW", "APOLLO")
Work = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 8, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    shapes = LAYER * given.layers
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    lines = [
        f"{len(shapes)} matrices, {sum(a * b for a, b in shapes):,} parameters, {given.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}{f', instructions up to {limit}' if limit else ''}"
    ]
    if "muon" in given.only:
        lines += table("Muon", muon(shapes, given.bits, given.rounds), sum(map(of_iteration, shapes)))
    if "torch" in given.only:
        lines += table("torch.optim.Muon, one layer", beside_torch(given.rounds), sum(map(of_iteration, LAYER)))
    for name in PROJECTED if "projected" in given.only else ():
        times = projected(name, shapes, given.bits, 3 * given.rounds)
        lines += table(f"{name} of rank {RANK}, one basis", times, sum(map(of_projection, shapes)))
    sys.stdout.write("\n".join([*lines, ""]))


def table(title: str, times: dict[str, float], operations: float) -> list[str]:
    """Rows of a table, the first of which is what others are compared with."""
    alone = next(iter(times.values()))
    rows = [
        f"  {name:28} {1000 * seconds:9.1f} ms  {operations / seconds / 1e9:7.1f} GFLOP/s  {seconds / alone:6.2f} x"
        for name, seconds in times.items()
    ]
    return ["", title, *rows]


def muon(shapes: Sequence[tuple[int, int]], bits: Sequence[int], rounds: int) -> dict[str, float]:
    """Times of the products alone, of steps, and of steps without them."""
    steps: dict[str, Work] = {"products alone, float32": products(shapes, torch.float32)}
    for each in bits:
        steps[f"a step, {each} bits"] = step_of(optgen_optim.Muon, shapes, optim_bits=each)
        steps[f"its passes over elements, {each}"] = step_of(optgen_optim.Muon, shapes, optim_bits=each, ns_steps=0)
    return timed(steps, rounds)


def beside_torch(rounds: int) -> dict[str, float]:
    """Times of torch's class, whose products are of bfloat16, and of ours in both dtypes."""
    steps: dict[str, Work] = {
        "torch.optim.Muon": step_of(torch.optim.Muon, LAYER),
        "products alone, bfloat16": products(LAYER, torch.bfloat16),
    }
    for dtype in ("float32", "bfloat16"):
        steps[f"ours, {dtype}"] = step_of(optgen_optim.Muon, LAYER, matrix_dtype=dtype)
    return timed(steps, rounds)


def projected(name: str, shapes: Sequence[tuple[int, int]], bits: Sequence[int], rounds: int) -> dict[str, float]:
    """Times of products alone, and of steps between two bases."""
    steps: dict[str, Work] = {"products alone": projections(shapes)}
    if name == "APOLLO":
        steps["its own, to the basis"] = projections(shapes, back=False)
    for each in bits:
        steps[f"a step, {each} bits"] = step_of(getattr(optgen_optim, name), shapes, optim_bits=each, rank=RANK)
    return timed(steps, rounds)


def of_iteration(shape: tuple[int, int]) -> float:
    """Operations of the products of a step: of a matrix with itself, of that with itself, of that with the matrix."""
    n, m = min(shape), max(shape)
    return STEPS * (4.0 * n * n * m + 2.0 * n**3)


def of_projection(shape: tuple[int, int]) -> float:
    """Operations of a product with a basis, and of one back."""
    return 4.0 * shape[0] * shape[1] * RANK


def products(shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Work:
    """The iteration, for matrices of a shape together as a step takes them."""
    batch = [torch.randn(shape).to(dtype) for shape in shapes]
    return lambda: [newton_schulz(x, STEPS, *COEFFICIENTS, 1e-7) for x in batch]


def projections(shapes: Sequence[tuple[int, int]], back: bool = True) -> Work:
    """Products with a basis on the side of the shorter dimension, and back."""
    matrices = [torch.randn(shape) for shape in shapes]
    tall = [x if x.shape[0] >= x.shape[1] else x.mT for x in matrices]
    bases = [torch.randn(RANK, x.shape[1]) for x in tall]
    room = [torch.empty_like(x) for x in matrices]
    into = [x if x.shape[0] >= x.shape[1] else x.mT for x in room]

    def one(x: Tensor, basis: Tensor, out: Tensor) -> None:
        low = x @ basis.mT
        if back:
            torch.mm(low, basis, out=out)

    return lambda: [one(*each) for each in zip(tall, bases, into, strict=True)]


def step_of(
    cls: Callable[..., torch.optim.Optimizer], shapes: Sequence[tuple[int, int]], **settings: int | str
) -> Work:
    """A step, whose states are there."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for _ in range(2):  # gradients come and go in a training: the allocator then keeps memory for matrices
        for param in params:
            param.grad = torch.randn_like(param)
    optimizer = cls(params, **settings)
    optimizer.step()
    return optimizer.step


def timed(steps: dict[str, Work], rounds: int) -> dict[str, float]:
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
