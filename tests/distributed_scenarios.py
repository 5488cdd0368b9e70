"""What processes do together, to be held against one process: see distributed_steps.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
from distributed_steps import World, gradients, starts, train_parts, train_plain
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

STEPS = 4
# Uneven ones, one with empty parts, a vector, one of four dimensions.
SHAPES = [(10, 7), (3, 5), (9,), (6, 4, 3, 3)]

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 1e-2}),
    "adamw_clipped": ("AdamW", {"lr": 1e-2, "max_grad_norm": 1.0, "percentile_clipping": 50}),
    "lamb": ("LAMB", {"lr": 1e-2, "weight_decay": 1e-2}),
    "lars": ("LARS", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}),
    "adafactor": ("Adafactor", {"beta1": 0.9}),
    "stable_adamw": ("StableAdamW", {"lr": 1e-2}),
}


def maker(name: str, **more: Any) -> Callable[[list[Tensor]], Any]:
    """What makes an optimizer of a case."""
    cls, settings = CLASSES[name]
    return lambda params: getattr(optgen_optim, cls)(params, **{**settings, **more})


def furthest(results: list[Tensor], wanted: list[Tensor], begin: list[Tensor]) -> float:
    """The largest difference, in units of float32's last place at the largest number on the way, a step."""
    worst = 0.0
    for a, b, c in zip(results, wanted, begin, strict=True):
        assert a.shape == b.shape
        scale = max(b.abs().max().item(), c.abs().max().item()) * 2.0**-23 * STEPS
        worst = max(worst, (a - b).abs().max().item() / scale)
    return worst


def placements_of(kind: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[Any]]:
    """The mesh's shape () for all processes in a row, and the placements of a parameter."""
    last = Shard(max(len(shape) - 1, 0))
    match kind:
        case "rows":
            return (), [Shard(0)]
        case "columns":
            return (), [last]
        case "both":
            return (2, 2), [Shard(0), last]
        case "replicated":
            return (2, 2), [Replicate(), Shard(0)]
    raise AssertionError(kind)


def against_one(world: World, case: str, kind: str, target: str) -> float:
    """Every parameter divided in the same way."""
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    make = maker(case, target=target)
    shape, _ = placements_of(kind, SHAPES[0])
    placed = [placements_of(kind, own)[1] for own in SHAPES]
    results, optimizer = train_parts(make, begin, grads, world.mesh(*shape), placed)
    assert optimizer.engines() == {target: len(SHAPES)}, optimizer.engines()
    return furthest(results, train_plain(make, begin, grads), begin)


def _matrix(kinds: list[str]) -> dict[str, Callable[[World], Any]]:
    return {
        f"{case} {kind} {target}": partial(against_one, case=case, kind=kind, target=target)
        for case in CLASSES
        for kind in kinds
        for target in ("torch", "cpu")
    }


SCENARIOS: dict[int, dict[str, Callable[[World], Any]]] = {
    2: _matrix(["rows"]),
    4: _matrix(["rows", "columns", "both", "replicated"]),
}
