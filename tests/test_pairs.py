"""The generator of test cases."""

from __future__ import annotations

from itertools import combinations, product

from support.pairs import all_pairs, full_product, label, one_at_a_time

AXES = {"class": list("abcdef"), "dtype": [32, 16, 8], "flag": [False, True], "other": [False, True], "n": [1, 2, 3]}


def no_flag_in_8_bits(case: dict) -> bool:
    return not (case.get("flag") and case.get("dtype") == 8)


def test_every_valid_pair_is_met() -> None:
    cases = all_pairs(AXES, no_flag_in_8_bits)
    for (a, xs), (b, ys) in combinations(AXES.items(), 2):
        for x, y in product(xs, ys):
            assert any(case[a] == x and case[b] == y for case in cases) == no_flag_in_8_bits({a: x, b: y})


def test_few_cases_all_valid_each_once() -> None:
    cases = all_pairs(AXES, no_flag_in_8_bits)
    assert all(no_flag_in_8_bits(case) for case in cases)
    assert len({label(case) for case in cases}) == len(cases) <= 24
    assert len(list(full_product(AXES))) == 6 * 3 * 2 * 2 * 3


def test_one_at_a_time() -> None:
    cases = one_at_a_time(AXES)
    assert len(cases) == 1 + sum(len(values) - 1 for values in AXES.values())


def test_label() -> None:
    base = {"dtype": 32, "flag": False}
    assert label(base, base) == "defaults"
    assert label({"dtype": 8, "flag": True}, base) == "dtype=8-flag"
