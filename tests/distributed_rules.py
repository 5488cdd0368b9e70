"""Every rule of the catalogue under every engine: what docs/distributed.md says that it serves, and no more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optgen_optim
from distributed_bounds import STEPS
from distributed_matrix import ENGINES, SHAPES, Engine
from distributed_scenarios import furthest
from distributed_steps import World, gradients, starts, train_plain
from support.catalogue import required

RULES = {cls.rule.name: name for name, cls in reversed([(n, getattr(optgen_optim, n)) for n in optgen_optim.CLASSES])}


# What an engine leaves no way to compute: rows and columns of flat shards; sums over all parameters, or positions.
REFUSED = {"fsdp1": {"adafactor"}, "zero": {"prodigy", "grokadamw"}}


def every_rule(world: World, engine: str) -> dict[str, float]:
    """How far each is from one process; those of REFUSED say that they cannot."""
    run: Engine = ENGINES[engine][0]
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    found: dict[str, float] = {}
    refused = set()
    for rule, name in RULES.items():
        try:
            results, _ = run(world, partial(_made, name), grads)
        except (ValueError, RuntimeError) as error:
            assert "cannot be had" in str(error) or "depends on the position" in str(error), f"{name}: {error}"
            refused.add(rule)
            continue
        try:
            found[rule] = furthest(results, train_plain(partial(_made, name), begin, grads), begin, STEPS)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert refused == REFUSED.get(engine, set()), refused
    return found


def _made(name: str, params: Any) -> Any:
    optimizer = getattr(optgen_optim, name)(params, **required(name), target="torch")
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


SCENARIOS: dict[int, dict[str, Callable[[World], Any]]] = {
    2: {f"every rule, {engine}": partial(every_rule, engine=engine) for engine in ENGINES}
}
