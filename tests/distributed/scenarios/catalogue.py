"""Every rule of the catalogue under every engine: what docs/distributed.md says that it serves, and no more."""

from __future__ import annotations

from functools import partial
from typing import Any

import optgen_optim
from support.catalogue import required

from distributed.scenarios.bounds import STEPS
from distributed.scenarios.parts import furthest
from distributed.scenarios.precisions import ENGINES, SHAPES, Engine
from distributed.scenarios.world import Scenario, Scenarios, World, gradients, starts, train_plain

# The first class of each that takes a step of its own: one within backward takes none of several processes.
CLASSES = {name: getattr(optgen_optim, name) for name in reversed(list(optgen_optim.CLASSES))}
RULES = {cls.rule.name: name for name, cls in CLASSES.items() if not cls.fixed.get("fused_backward")}


# Steps on matrices of their own dimensions.
STEPS_ON_MATRICES = {"apollo", "dion", "galore", "galore_adafactor", "shampoo", "soap"}

# These draw matrices by a parameter's position, which is that among a process's own in ZeroRedundancyOptimizer.
DRAWN = {"apollo", "dion"}

# What an engine leaves no way to compute: rows and columns of flat shards; sums over all parameters, or positions.
REFUSED = {
    "fsdp1": {"adafactor", "muon", "normuon", "adamuon", "muonclip"} | STEPS_ON_MATRICES,
    "zero": {"prodigy", "grokadamw"},
}


def every_rule(world: World, engine: str) -> dict[str, float]:
    """Distance of each from one process; those of REFUSED say that they cannot."""
    run: Engine = ENGINES[engine][0]
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    found: dict[str, float] = {}
    refused = set()
    for rule, name in RULES.items():
        try:
            results, made = run(world, partial(_made, name), grads)
        except (ValueError, RuntimeError) as error:
            whys = (
                "cannot be",
                "depends on the position",
                "keeps flat shards, which are no matrices: use fully_shard",
                "takes whole matrices",
            )
            assert any(why in str(error) for why in whys), f"{name}: {error}"
            refused.add(rule)
            continue
        own = list(range(len(SHAPES)))
        if engine == "zero" and rule in DRAWN:
            own = [SHAPES.index(tuple(param.shape)) for group in made.param_groups for param in group["params"]]
        at_first, each_step = [begin[i] for i in own], [[step[i] for i in own] for step in grads]
        try:
            wanted = train_plain(partial(_made, name), at_first, each_step)
            found[rule] = furthest([results[i] for i in own], wanted, at_first, STEPS)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert refused == REFUSED.get(engine, set()), refused
    return found


def _made(name: str, params: Any) -> Any:
    made = getattr(optgen_optim, name)
    if made.rule.ndim is not None:
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        every = [param for group in groups for param in group["params"]]
        params = [param for param in every if param.ndim == made.rule.ndim] or every
    optimizer = made(params, **required(name), target="torch")
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


SCENARIOS: Scenarios = {2: {engine: Scenario(partial(every_rule, engine=engine)) for engine in ENGINES}}
