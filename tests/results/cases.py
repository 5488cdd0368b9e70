"""Trainings that are hashed: the matrix of numerics/cases.py, and every class in every storage and dtype.

Three sets, each within the next:

- `quick`, which every `make test` holds: on torch every class as it is by default, and one of EVERY other cases; on the
  cpu target the kernels that tests/numerics compiles anyway;
- `core`: on torch, which compiles nothing, every class in every dtype and storage, each setting alone, and all pairs of
  a rule's own settings with everything; on the cpu target, and the cuda target on the stand-in, every class as it is by
  default, and of each rule all pairs of its own settings and each shared one, spread so that over all rules nearly
  every pair of those meets;
- `whole`: also all pairs of what rules share, and on each target every rule in every dtype and storage.

Which settings there are is read from specs/, and no rule is named here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from numerics.cases import COMPILED, DTYPES, axes, compiled, full, paired, settings_of, storages, valid
from oracles.declared import Choice, Hyper, Row, is_off
from support.catalogue import OWN, all_rows, required, rules
from support.pairs import Axes, Pairs, all_pairs, full_product, near, one_at_a_time, spread
from support.pairs import Case as Values

from optgen.runtime.hooks.fused_backward import ACCUMULATE
from results.training import Case, class_of

HALVED = ("lr", "weight_decay")  # in the second param group
SETS = ("quick", "core", "whole")
EVERY = 20


def cases(name: str, targets: Sequence[str] | None = None) -> list[Case]:
    """The cases of a set on some targets, or on all, each once, those of a rule together."""
    made = {"quick": _quick, "core": _core, "whole": _whole}
    found: dict[str, Case] = {}
    for each in SETS[: SETS.index(name) + 1]:
        for case in made[each]():
            if targets is None or case.target in targets:
                found.setdefault(case.label, replace(case, set=each))
    return sorted(found.values(), key=lambda case: (case.target, _rule(case)))


def _rules() -> dict[str, list[str]]:
    """Class names by rule, without rules of matrices: products are a library's, which differ between processors."""
    return {rule: names for rule, names in rules(all_rows()).items() if all_rows()[names[0]].rule.ndim != 2}


def _kept(found: Mapping[str, Values]) -> Iterator[Values]:
    return (values for values in found.values() if all_rows()[values["class"]].rule.ndim != 2)


def _rule(case: Case) -> str:
    return all_rows()[f"{OWN}{case.name}" if case.spec else case.name].rule.name


def of(values: Values, special: bool = False) -> Case:
    """The training that stands for a case of the matrix."""
    row = all_rows()[values["class"]]
    settings = settings_of(values)
    return Case(
        values["class"].removeprefix(OWN),
        values["target"],
        values["dtype"],
        values["dtype"] if values["grad_dtype"] == "same" else values["grad_dtype"],
        _spec(values["class"]),
        settings,
        {} if special else _second(row, settings),
        {name: values[name] for name in row.rule.inputs if values[name] is not None},
        tuple(name for name in row.rule.methods if name != ACCUMULATE),  # which not all settings go with
        _beginning(row.rule.name),
        special,
    )


def _second(row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that differ in the second group, without another branch of the code."""
    found = {}
    for name in HALVED:
        setting = row.accepted.get(name)
        value = settings.get(name, None if setting is None else row.default(name))
        if isinstance(setting, Hyper) and not setting.is_global and isinstance(value, float) and value > 0:
            found[name] = value / 2
    return found


def _spec(name: str) -> str:
    """The file of tests/specs that a class is loaded from, or ""."""
    return f"{all_rows()[name].rule.name}.yaml" if name.startswith(OWN) else ""


@cache
def _beginning(rule: str) -> str:
    """The method without which a rule does not step, or ""."""
    (name, *_) = _rules()[rule]
    for method in ("", *all_rows()[name].rule.methods):
        made = class_of(name.removeprefix(OWN), _spec(name))
        opt = made([torch.zeros(1, requires_grad=True)], **required(name))
        if method:
            getattr(opt, method)()
        try:
            opt.step()
        except RuntimeError:
            continue
        return method
    raise AssertionError(f"{name}: no method lets it step")


def _usual(names: list[str], target: str) -> tuple[dict[str, tuple[Any, ...]], Values]:
    whole = axes(names, (target,))
    return whole, {name: values[0] for name, values in whole.items()}


def _compiled_names(names: list[str]) -> list[str]:
    return [name for name in names if not all_rows()[name].torch_only]


def _product(target: str, names: list[str], dtypes: tuple[str, ...], ways: tuple[str, ...]) -> Iterator[Values]:
    """Classes by dtypes and storages, everything else as usual, or as near to it as is valid."""
    whole, _ = _usual(names, target)
    for values in full_product({"class": tuple(names), "dtype": dtypes, "storage": ways}):
        case = near(values, whole, valid)
        if case is not None:
            yield case


def _defaults(target: str, names: list[str]) -> Iterator[Values]:
    """Each class with nothing but what it must be told, and small states stored as large ones."""
    whole, usual = _usual(names, target)
    for name in names:
        row = all_rows()[name]
        plain = {key: row.default(key) for key in row.rule.settings if key in whole and not row.needed(key)}
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        small = {"min_8bit_size": 0} if "min_8bit_size" in whole else {}
        way = next(way for way in storages() if valid({"class": name, "storage": way}))
        case = {**usual, "class": name, "storage": way, **plain, **required(name), **small}
        yield {**case, **dict.fromkeys(row.rule.inputs)}


def _quick() -> Iterator[Case]:
    for names in _rules().values():
        yield from map(of, _defaults("torch", names))
    yield from list(_on_torch())[::EVERY]
    yield from (of(values) for values in _kept(compiled()) if values["target"] == "cpu")


def _on_torch() -> Iterator[Case]:
    yield from map(of, _kept(paired()))
    for names in _rules().values():
        whole, _ = _usual(names, "torch")
        for values in _defaults("torch", names):
            yield from (of({**values, "dtype": dtype}, special=True) for dtype in DTYPES)
        yield from map(of, _product("torch", names, DTYPES, tuple(storages())))
        yield from map(of, one_at_a_time(whole, valid))


def _core() -> Iterator[Case]:
    yield from _on_torch()
    yield from (of(values) for values in _kept(compiled()) if values["target"] == "cuda")
    for target in COMPILED:
        met = Pairs()
        for names in map(_compiled_names, _rules().values()):
            yield from _on_compiled(target, names, met)


def _on_compiled(target: str, names: list[str], met: Pairs) -> Iterator[Case]:
    """Of a rule, for which a kernel is compiled in each of its few forms."""
    whole, usual = _usual(names, target)
    plain = list(_defaults(target, names))
    yield from map(of, plain)
    yield of(plain[0], special=True)
    rule = all_rows()[names[0]].rule
    own = {name: values for name, values in whole.items() if name in rule.own}
    branching = {name for name, values in own.items() if _branches(rule.settings[name], values)}
    branched = {name: values if name in branching else values[:1] for name, values in own.items()}
    starts = all_pairs({"class": _unlike(names), **branched}, valid, ("class",))
    found = spread(whole, valid, met, starts)
    found += spread(
        whole, valid, met, list(_unmet(whole, [name for name in whole if name not in ("class", "storage")], found))
    )
    yield from map(of, found)
    alone = {name: values[:1] if name in branching else values for name, values in own.items()}
    yield from map(of, one_at_a_time({name: (value,) for name, value in usual.items()} | alone, valid))


def _unmet(whole: Axes, names: Collection[str], met: Sequence[Values]) -> Iterator[Values]:
    """Few cases, as far as they are decided, with all values of some axes that are in no other case."""
    left = [(name, value) for name in names for value in whole[name] if all(case[name] != value for case in met)]
    while left:
        start: Values = {}
        for name, value in left:
            if name not in start and near({**start, name: value}, whole, valid) is not None:
                start[name] = value
        if not start:
            return  # no case can have what is left
        yield start
        left = [(name, value) for name, value in left if start.get(name) != value]


def _unlike(names: list[str]) -> tuple[str, ...]:
    """The first of the classes that fix the same options."""
    return tuple({str(all_rows()[name].set): name for name in reversed(names)}.values())[::-1]


def _branches(setting: Hyper | Choice, values: tuple[Any, ...]) -> bool:
    """Check whether a kernel may have other statements for one of the values than for another."""
    return isinstance(setting, Choice) or any(value is None or is_off(setting, value) for value in values)


def _whole() -> Iterator[Case]:
    yield from map(of, _kept(full()))
    for target in COMPILED:
        met = Pairs()
        for names in map(_compiled_names, _rules().values()):
            whole, _ = _usual(names, target)
            rule = all_rows()[names[0]].rule
            shared = [name for name in whole if name not in rule.own and name not in rule.inputs]
            yield from map(of, all_pairs(whole, valid, shared, met))
            yield from map(of, _product(target, names[:1], DTYPES, tuple(storages())))
