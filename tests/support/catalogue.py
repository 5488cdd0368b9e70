"""The classes as the tests see them: what specs/ declares, read without the package, and which oracle each has.

Beside the public classes there are those of tests/specs, rules that the catalogue lacks, by the names `own.CLASS`: they
are compiled when they are asked for.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from oracles.declared import Choice, Hyper, Row, State, another, holds, load_catalogue, load_spec, parsed
from oracles.spec_oracle import SpecOracle

OWN_SPECS = Path(__file__).parents[1] / "specs"
OTHERS = {"ns_coefficients": (2.0, -1.5, 0.5)}  # other values of settings with which few others make sense
OWN = "own."  # the prefix of classes of tests/specs


def rows() -> dict[str, Row]:
    """Every public class."""
    return load_catalogue()


@cache
def own_rows() -> dict[str, Row]:
    """The classes of tests/specs whose rule is not in the catalogue too."""
    known = {row.rule.name for row in rows().values()}
    files = [path for path in sorted(OWN_SPECS.glob("*.yaml")) if path.stem not in known]
    return {f"{OWN}{name}": row for path in files for name, row in load_spec(path).items()}


@cache
def all_rows() -> dict[str, Row]:
    """Every class, those of matrices last: what is spread over all rules is the same for the others without them."""
    return dict(sorted((rows() | own_rows()).items(), key=lambda named: named[1].rule.ndim == 2))


@cache
def computed_rows() -> dict[str, Row]:
    """The classes whose rules the oracle of all rules computes: not those on matrices, of which tests/matrices has
    formulas."""
    table = all_rows()
    return {n: row for n, row in table.items() if not any(s.has_dimensions for s in row.rule.states.values())}


def rules(table: Mapping[str, Row]) -> dict[str, list[str]]:
    """Class names by rule, in their order."""
    result: dict[str, list[str]] = {}
    for name, row in table.items():
        result.setdefault(row.rule.name, []).append(name)
    return result


def each_class(names: Iterable[str] | None = None) -> list[ParameterSet]:
    """Names of classes, by default all; marked `full` where an earlier one has the same rule in the same bits.

    They are made of the same code, and differ in settings, each of which other tests try.
    """
    seen: set[tuple[str, int]] = set()
    found = []
    for name in sorted(rows()) if names is None else names:
        one = rows()[name].rule.name, rows()[name].bits or 32
        found.append(pytest.param(name, marks=[pytest.mark.full] if one in seen else []))
        seen.add(one)
    return found


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name.startswith(OWN):
        optgen = importlib.import_module("optgen")
        module = optgen.load(OWN_SPECS / f"{own_rows()[name].rule.name}.yaml")
        return getattr(module, name.removeprefix(OWN))  # type: ignore[no-any-return]
    return getattr(importlib.import_module("optgen_optim"), name)  # type: ignore[no-any-return]


def shapes_of(name: str, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of parameters as a class takes them: matrices, where its rule takes no others, of as many elements.

    Of a vector they are as near to a square as that number allows; of a tensor of rank three and more its rows.
    """
    if all_rows()[name].rule.ndim != 2:
        return list(shapes)
    return [shape if len(shape) == 2 else _matrix(shape) for shape in shapes]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) > 2:
        return math.prod(shape[:-1]), shape[-1]
    numel = math.prod(shape)
    rows = next((rows for rows in range(math.isqrt(numel), 1, -1) if numel % rows == 0), min(numel, 1))
    return rows, numel // max(rows, 1)


def accepted(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a class, without `params`."""
    parameters = dict(inspect.signature(optimizer_class(name)).parameters)
    del parameters["params"]
    return parameters


def values_of(row: Row, setting: Hyper | Choice) -> tuple[Any, ...]:
    """The values that a setting is tested with: its default, and all others of an option, one other of a number."""
    if isinstance(setting, Choice):
        return setting.choices
    default = setting.default
    if setting.name in OTHERS:
        return (tuple(default), OTHERS[setting.name])
    if setting.required:
        return (another(setting, None), another(setting, another(setting, None)))
    if setting.parts and default is not None:
        default = tuple(default)
    return (default, another(setting, default))


@cache
def _required(name: str) -> tuple[tuple[str, Any], ...]:
    row = all_rows()[name]
    settings = {key: values_of(row, row.rule.settings[key])[0] for key in row.rule.hypers if row.needed(key)}
    for _ in range(4):
        rule = row.refusal(settings)
        if rule is None:
            return tuple((settings | _with_states(row, settings)).items())
        changes = [
            (key, value)
            for key in sorted(rule.names & row.accepted.keys())
            for value in values_of(row, row.accepted[key])
        ]
        # A change that settles it; else the first, which the next rule may complete.
        good = [change for change in changes if row.refusal(settings | dict([change])) is not rule]
        settings |= dict(good[:1])
    raise AssertionError(f"{name}: no settings found that are not refused")


def _with_states(row: Row, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A change with which a class that fixes its bits has a state to keep in them, where it has none without."""
    codec = {8: "int8"}.get(row.bits or 32)
    states = [state for state in row.rule.states.values() if codec and state.takes(codec)]
    if not states or any(exists(row, state, settings) for state in states):
        return {}
    changes = [{key: value} for key, setting in row.accepted.items() for value in values_of(row, setting)]
    return next(
        change
        for change in changes
        if row.refusal(settings | change) is None and any(exists(row, state, settings | change) for state in states)
    )


def exists(row: Row, state: State, settings: Mapping[str, Any], ndim: int = 2) -> bool:
    """Check whether a large parameter of `ndim` dimensions has a state under these settings."""
    if state.when is None:
        return True
    return bool(holds(parsed(state.when), {"ndim": ndim, "numel": 2**20, **row.complete(settings)}))


def required(name: str) -> dict[str, Any]:
    """Arguments without which a class cannot be made."""
    return dict(_required(name))


def make_oracle(name: str, params: list[torch.Tensor], settings: Mapping[str, Any]) -> SpecOracle:
    """The oracle of a class with these (and its default) settings."""
    return SpecOracle(all_rows()[name], params, settings, [param.dtype for param in params])
