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
    """The first value of every axis, and each axis in full around it, with what else a value needs to be valid."""
    starts: list[Case] = [{}, *({name: value} for name, values in axes.items() for value in values[1:])]
    found = [near(start, axes, valid) for start in starts]
    return [case for case in found if case is not None]


def near(start: Case, axes: Axes, valid: Valid) -> Case | None:
    """The usual case with the values of `start`, and as few others as it takes to be valid; None if two are too few."""
    case = {name: values[0] for name, values in axes.items()} | start
    if not valid(start):
        return None
    others = [{name: value} for name in axes if name not in start for value in axes[name] if value != case[name]]
    for change in [{}, *others]:
        if valid(case | change):
            return case | change
    for one, other in combinations(others, 2):
        if valid(case | one | other):
            return case | one | other
    return None


def all_pairs(
    axes: Axes, valid: Valid = _anything, apart: Collection[str] = (), met: Pairs | None = None
) -> list[Case]:
    """A greedy cover: each case takes, axis by axis, the value that meets most pairs which no case has met yet.

    `valid` is asked of partial cases too (axes not named are still open). Pairs that are in no valid case are left out,
    and so are those of two axes that are both among `apart`. Where values meet equally many, the one that has met the
    others least in the cases of `met` is taken; `met` goes on.
    """
    both = [(a, b) for a, b in combinations(axes, 2) if not (a in apart and b in apart)]
    pairs = [(a, x, b, y) for a, b in both for x, y in product(axes[a], axes[b])]
    missing = dict.fromkeys(pairs)  # in order
    cases = []
    while missing:
        a, x, b, y = next(iter(missing))
        case = near({a: x, b: y}, axes, valid)
        if case is None:
            del missing[a, x, b, y]
            continue
        for name in axes:
            if name not in (a, b):
                choices = [case | {name: value} for value in axes[name]]
                choices = [choice for choice in choices if valid(choice)]
                new = [sum(pair in missing for pair in _pairs_with(name, choice, axes)) for choice in choices]
                choices = [choice for choice, count in zip(choices, new, strict=True) if count == max(new)]
                if met is not None and len(choices) > 1:
                    choices.sort(key=lambda choice: met.familiar(choice, name))
                case = choices[0]
        cases.append(case)
        if met is not None:
            met.add(case)
        for (a, x), (b, y) in combinations(case.items(), 2):
            missing.pop((a, x, b, y), None)
    return cases


Pair = tuple[str, Any, str, Any]


class Pairs:
    """Count of the meetings of pairs of values, over axes of the same name in several tables."""

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


def spread(axes: Axes, valid: Valid, met: Pairs, starts: Sequence[Case]) -> list[Case]:
    """A case for each start, with the values elsewhere that have met theirs least; `met` goes on."""
    cases = []
    for start in starts:
        case = near(start, axes, valid)
        if case is None:
            continue
        for name in axes:
            if name not in start:
                choices = [case | {name: value} for value in axes[name]]
                choices.sort(key=lambda choice: met.familiar(choice, name))
                case = next(choice for choice in choices if valid(choice))
        met.add(case)
        cases.append(case)
    return cases


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
