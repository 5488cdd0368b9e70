"""Names of all scenarios, and those that others need."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from distributed.scenarios.world import Scenario

PACKAGE = "distributed.scenarios"
MODULES = tuple(
    f"{PACKAGE}.{name}"
    for name in (
        "parts",
        "collectives",
        "agreement",
        "engines",
        "precisions",
        "catalogue",
        "matrices",
        "checkpoints",
        "several",
        "checkpoints_fsdp1_zero",
        "cuda",
        "docs",
    )
)
SIZES = (4, 2, 1)  # of processes, in this order: what some have saved others load


class Key(NamedTuple):
    """A scenario: for how many processes, of which module, by which name."""

    size: int
    module: str
    name: str

    def __str__(self) -> str:
        """An id of letters, digits, `_` and `-`, such as 4-checkpoints-save-columns-8-bits."""
        return f"{self.size}-{self.module.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)}"


def every(modules: Iterable[str] = MODULES) -> dict[Key, Scenario]:
    """All scenarios of some modules, in the order in which they run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.optim uses what torch.jit no longer recommends
        found = {module: importlib.import_module(module).SCENARIOS for module in modules}
    return {
        Key(size, module, name): scenario
        for size in SIZES
        for module, scenarios in found.items()
        for name, scenario in scenarios.get(size, {}).items()
    }


def with_needed(chosen: Iterable[Key]) -> list[Key]:
    """Some scenarios, and all that these need, in the order in which they run."""
    wanted = set(chosen)
    scenarios = every({key.module: None for key in wanted})
    for key in reversed(scenarios):  # a scenario comes after those that it needs
        if key in wanted:
            wanted |= {Key(size, key.module, name) for size, name in scenarios[key].needs}
    assert wanted <= scenarios.keys(), wanted - scenarios.keys()
    return [key for key in scenarios if key in wanted]
