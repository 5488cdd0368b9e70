"""The first class of every rule under its usual settings against the oracle: what is looked at before every commit."""

from __future__ import annotations

import pytest
from support.catalogue import computed_rows, rules

from numerics.cases import axes
from numerics.test_matrix import run

FIRST = [names[0] for names in rules(computed_rows()).values()]


@pytest.mark.parametrize("target", ["cpu", "torch"])
@pytest.mark.parametrize("name", FIRST)
def test_the_usual_settings(name: str, target: str) -> None:
    run({axis: values[0] for axis, values in axes([name], (target,)).items()})
