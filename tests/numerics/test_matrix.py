"""Every class of the catalogue against its float64 rule: dtypes, targets, storage and options."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from _pytest.mark import ParameterSet
from catalogue import rows
from oracles.storage import DTYPES
from pairs import Case
from targets import GPU, ready

from numerics.cases import paired, product, settings_of, swept
from numerics.harness import NAMES, STEPS, duel, make_grads

optgen_optim = pytest.importorskip("optgen_optim")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {"swept": swept, "paired": paired, "anything": product}
    for name, cases in wanted.items():
        if name in metafunc.fixturenames:
            # The full product is thousands of cases: made only where they are asked for.
            skip = name == "anything" and "full" not in (metafunc.config.getoption("markexpr") or "")
            found = {} if skip else cases()
            metafunc.parametrize(name, [param for key, case in found.items() for param in params_of(key, case)])


def params_of(key: str, case: Case) -> Iterator[ParameterSet]:
    """A case; one of the cuda target twice, on the stand-in and on a GPU."""
    yield pytest.param(case, id=key)
    if case["target"] == "cuda":
        yield pytest.param(case | {"target": GPU}, id=key.replace("-cuda-", "-gpu-", 1), marks=pytest.mark.gpu)


def run(case: Case) -> None:
    """Ten steps, each judged alone (numerics/bounds.py)."""
    dtype = DTYPES[case["dtype"]]
    grad_dtype = DTYPES[case["dtype"] if case["grad_dtype"] == "same" else case["grad_dtype"]]
    with ready(case["target"]) as target:
        it = duel(case["class"], target, dtype, **settings_of(case))
        for t in range(1, STEPS + 1):
            it.step(make_grads(it.params, t, grad_dtype, nonfinite=case["nonfinite"] == "skip"))
        assert it.opt.engines() == {target: len(NAMES)}


def test_every_axis(swept: Case) -> None:
    run(swept)


def test_all_pairs(paired: Case) -> None:
    run(paired)


@pytest.mark.full
def test_full_product(anything: Case) -> None:
    run(anything)


def test_the_table_is_the_package() -> None:
    exported = {
        name
        for name in optgen_optim.__all__
        if isinstance(getattr(optgen_optim, name), type)
        and issubclass(getattr(optgen_optim, name), torch.optim.Optimizer)
    }
    assert exported == set(rows())
