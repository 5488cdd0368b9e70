"""All pairs: few cases in which every two values of different axes meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]
Valid = Callable[[Case], bool]


def _anything(case: Case) -> bool:
    return True


def full_product(axes: Axes, valid: Valid = _anything) -> Iterator[Case]:
    """Every valid combination."""
    for values in product(*axes.values()):
        case = dict(zip(axes, values, strict=True))
        if valid(case):
            yield case


def one_at_a_time(axes: Axes, valid: Valid = _anything) -> list[Case]:
    """The first value of every axis, and each axis in full around it."""
    base = {name: values[0] for name, values in axes.items()}
    varied = [base] + [base | {name: value} for name, values in axes.items() for value in values[1:]]
    return [case for case in varied if valid(case)]


def all_pairs(axes: Axes, valid: Valid = _anything, apart: Collection[str] = ()) -> list[Case]:
    """A greedy cover: each case takes, axis by axis, the value that meets most pairs which no case has met yet.

    `valid` is asked of partial cases too (axes not named are still open). Pairs that are in no valid case are left out,
    and so are those of two axes that are both among `apart`.
    """
    both = [(a, b) for a, b in combinations(axes, 2) if not (a in apart and b in apart)]
    pairs = [(a, x, b, y) for a, b in both for x, y in product(axes[a], axes[b])]
    missing = {pair: None for pair in pairs if valid({pair[0]: pair[1], pair[2]: pair[3]})}  # in order
    cases = []
    while missing:
        a, x, b, y = next(iter(missing))
        case = _complete({a: x, b: y}, axes, missing, valid)
        if case is None:  # the pair itself is valid, but no case that holds it
            del missing[a, x, b, y]
            continue
        cases.append(case)
        for (a, x), (b, y) in combinations(case.items(), 2):
            missing.pop((a, x, b, y), None)
    return cases


Pair = tuple[str, Any, str, Any]


def _complete(start: Case, axes: Axes, missing: Collection[Pair], valid: Valid) -> Case | None:
    """`start` with a value for every other axis, or None if there is no valid one."""
    open_axes = [name for name in axes if name not in start]
    if not open_axes:
        return {name: start[name] for name in axes}
    name = open_axes[0]
    choices = [start | {name: value} for value in axes[name]]
    choices.sort(key=lambda case: -sum(pair in missing for pair in _pairs_with(name, case, axes)))
    for choice in choices:
        if valid(choice) and (case := _complete(choice, axes, missing, valid)) is not None:
            return case
    return None


class Pairs:
    """How often pairs of values have met, over axes of the same name in several tables."""

    def __init__(self) -> None:
        self._met: Counter[tuple[str, Any, str, Any]] = Counter()

    def add(self, case: Case) -> None:
        self._met.update((a, x, b, y) for (a, x), (b, y) in combinations(sorted(case.items()), 2))

    def familiar(self, case: Case, name: str) -> tuple[int, int]:
        """Of the pairs with the value of `name`: how many have met, and how often all together."""
        mine = case[name]
        sides = [(name, mine, b, y) if name < b else (b, y, name, mine) for b, y in case.items() if b != name]
        counts = [self._met[side] for side in sides]
        return sum(count > 0 for count in counts), sum(counts)


def each_value(axes: Axes, valid: Valid, met: Pairs) -> list[Case]:
    """Few cases in which every value of every axis is once, of values that make most new pairs; `met` goes on."""
    missing = {(name, value) for name, values in axes.items() for value in values}
    order = sorted(axes, key=lambda name: -len(axes[name]))
    cases: list[Case] = []
    while missing:
        start = next((name, value) for name in order for value in axes[name] if (name, value) in missing)
        case = _fill(dict([start]), order, axes, missing, valid, met)
        missing.discard(start)
        if case is not None:
            met.add(case)
            missing -= set(case.items())
            cases.append({name: case[name] for name in axes})
    return cases


def _fill(case: Case, order: Sequence[str], axes: Axes, missing: Any, valid: Valid, met: Pairs) -> Case | None:
    """`case` with a value for every other axis: one that is missing, then one that makes most new pairs."""
    open_axes = [name for name in order if name not in case]
    if not open_axes:
        return case
    name = open_axes[0]
    choices = [case | {name: value} for value in axes[name]]
    choices.sort(key=lambda choice: (-((name, choice[name]) in missing), met.familiar(choice, name)))
    for choice in choices:
        if valid(choice) and (found := _fill(choice, order, axes, missing, valid, met)) is not None:
            return found
    return None


def _pairs_with(name: str, case: Case, axes: Axes) -> Iterator[Pair]:
    """The pairs of a case with one of its values, each in the order of the axes."""
    after = False
    for other in axes:
        if other == name:
            after = True
        elif other in case:
            yield (name, case[name], other, case[other]) if after else (other, case[other], name, case[name])


def label(case: Case, base: Case | None = None) -> str:
    """A readable test id: the values that differ from `base`."""
    named = {name: value for name, value in case.items() if base is None or value != base[name]}
    return "-".join(_part(name, value) for name, value in named.items()) or "defaults"


def _part(name: str, value: Any) -> str:
    return name if value is True else f"no_{name}" if value is False else f"{name}={value}"
