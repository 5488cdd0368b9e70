"""Refusals of classes: for every rule of every class, settings that meet it, and the error that is then raised.

The settings are searched among those of the matrix (numerics/cases.py leaves out what is refused here).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from oracles.declared import Choice, Hyper, Refusal, Row, another
from support.catalogue import all_rows, optimizer_class, required, shapes_of, values_of

pytest.importorskip("optgen_optim")


def values(row: Row, name: str) -> list[Any]:
    """Values to try a setting with: those of the matrix, the class's default, the end of its range."""
    setting = row.accepted[name]
    found = list(values_of(row, setting))
    if name in row.changed:
        found.append(row.changed[name])
    found += [value[::-1] for value in found if isinstance(value, tuple)]
    if isinstance(setting, Hyper) and not setting.parts:
        found += [setting.low] if not setting.low_open else []
        found += [another(setting, value) for value in found if isinstance(value, float) and setting.low < value]
    return list(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in found))


def meeting(name: str, row: Row, rule: Refusal) -> dict[str, Any] | None:
    """Few settings for which this is the first rule that a class meets, or None if its settings never do."""
    parts = {part: whole for whole, hyper in row.rule.hypers.items() for part in hyper.parts}
    asked = {parts.get(each, each) for each in rule.names} & row.accepted.keys()
    # A rule before it may be met at the defaults of what only that one asks for.
    before = {parts.get(each, each) for other in row.rule.refusals if other.names & rule.names for each in other.names}
    for names in (sorted(asked), sorted(asked | (before & row.accepted.keys()))):
        tried = product(*(values(row, each) for each in names))
        candidates = [required(name) | dict(zip(names, chosen, strict=True)) for chosen in tried]
        for settings in sorted(candidates, key=lambda found: _unusual(row, found)):
            if row.refusal(settings) is rule:
                return settings
    return None


def _unusual(row: Row, settings: dict[str, Any]) -> int:
    return sum(value != row.default(key) for key, value in settings.items())


def rules() -> list[Any]:
    cases = []
    for name, row in all_rows().items():
        for index, rule in enumerate((*row.refusals, *row.rule.refusals)):
            if rule.on == "construct" and not (rule.names & set(row.rule.inputs)):
                cases.append(pytest.param(name, rule, id=f"{name}-{index}"))
    return cases


@pytest.mark.parametrize(("name", "rule"), rules())
def test_refused_with_its_message(name, rule) -> None:
    row = all_rows()[name]
    settings = meeting(name, row, rule)
    if settings is None:
        others = [other for other in all_rows() if all_rows()[other].rule is row.rule]
        reached = any(meeting(other, all_rows()[other], rule) for other in others)
        assert reached, f"no class of {row.rule.name} meets {rule.message!r}"
        return  # what this class fixes keeps it from the rule
    with pytest.raises(rule.exception) as caught:
        optimizer_class(name)([torch.nn.Parameter(torch.ones(shapes_of(name, [(3,)])[0]))], **settings)
    assert type(caught.value) is rule.exception
    shown = {key: row.complete(settings)[key] for key in row.complete(settings)}
    assert str(caught.value) == rule.message.format_map({**_as_stored(row, shown), "name": row.name})


def _as_stored(row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a class holds them when it speaks: choices and whole numbers as they are, other numbers as given."""
    whole = {key for key, setting in row.rule.settings.items() if isinstance(setting, Hyper) and setting.integer}
    return {key: int(value) if key in whole and value is not None else value for key, value in settings.items()}


def test_every_setting_has_another_value_in_its_range() -> None:
    for name, row in all_rows().items():
        for key, setting in row.accepted.items():
            found = values_of(row, setting)
            if isinstance(setting, Choice):
                assert len(set(found)) == len(found)
                continue
            assert len(set(found)) == 2, f"{name}: {key}"
            for value in found:
                for part in value if isinstance(value, tuple) else (value,):
                    inside = part is None or (
                        (setting.low < part or (setting.low == part and not setting.low_open))
                        and (part < setting.high or (part == setting.high and not setting.high_open))
                    )
                    assert inside, f"{name}: {key}={value}"
