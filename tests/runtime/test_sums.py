"""Sums on devices without float64, which the CPU stands for here: their error, and every class's step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import optgen_optim
import pytest
import torch
from support.catalogue import required, rows, rules
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optgen.runtime import sums, torch_math
from runtime.training import snapshot

UNIT = 2.0**-24  # of float32


class NoFloat64(TorchDispatchMode):
    """Refusal of float64 in tensors, but for single numbers, which are the host's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.dtype is torch.float64 and x.numel() > 1:
                raise AssertionError(f"{func} has made float64 of shape {tuple(x.shape)}")
        return result


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU without float64."""
    monkeypatch.setattr(sums, "WITHOUT_FLOAT64", {"cpu"})
    with NoFloat64():
        yield


def numbers(count: int, seed: int = 0) -> Tensor:
    """Of magnitudes that differ by 2^40, with sums that cancel."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * 2.0 ** torch.randint(-20, 20, (count,), generator=generator)
    return torch.cat([values, -values.flip(0) * (1 - 2.0**-12)])[:count]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 65537])
def test_a_sum_of_all_has_the_error_of_48_bits(count: int, no_float64: None) -> None:
    x = numbers(count)
    exact, size = math.fsum(x.tolist()), math.fsum(x.abs().tolist())
    found = sums.total(x)
    assert (found.dtype, found.shape) == (torch.float64, ())
    depth = max(count, 1).bit_length()
    assert abs(float(found) - exact) <= depth**2 * UNIT**2 * size
    squares = math.fsum(v * v for v in x.tolist())
    assert abs(float(sums.total_squares(x)) - squares) <= (depth + 4) ** 2 * UNIT**2 * squares


@pytest.mark.parametrize("dims", [(-1,), (-2,), (0, 2), (-2, -1)])
def test_sums_over_dimensions_are_rounded_once(dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(3 * 41 * 70).reshape(3, 41, 70)
    functions = (sums.sums, sums.squares, sums.means, lambda x, d: sums.roots(x, d, True))
    wide = [function(x, dims) for function in functions]
    size = x.abs().sum(dims, keepdim=True, dtype=torch.float64)
    monkeypatch.setattr(sums, "WITHOUT_FLOAT64", {"cpu"})
    for function, exact in zip(functions, wide, strict=True):
        found = function(x, dims)
        assert (found.dtype, found.shape) == (torch.float32, exact.shape)
        bound = 3 * UNIT * exact.abs() + 2.0**-36 * size
        assert ((found.double() - exact).abs() <= bound).all()


def test_squares_neither_overflow_nor_vanish(no_float64: None) -> None:
    for value in (2.0**100, 2.0**-100, 3.0e38, 1.0e-44):
        x = torch.full((1000,), value)
        exact = 1000 * float(x[0]) ** 2
        assert float(sums.total_squares(x)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_found(value: float, no_float64: None) -> None:
    x = torch.ones(100)
    x[37] = value
    assert str(float(sums.total(x))) == str(value)
    assert str(float(sums.total_squares(x))) == ("nan" if value != value else "inf")
    assert str(float(sums.sums(x, (-1,)))) == str(value)


ONE_OF_EACH = [names[0] for names in rules(rows()).values()]


def trained(name: str, **settings: Any) -> dict[str, Any]:
    params = [
        torch.randn(shape, generator=torch.Generator().manual_seed(7)).requires_grad_()
        for shape in ((30, 40), (130,), (), (4, 5, 6))
    ]
    opt = optgen_optim.CLASSES[name](params, target="torch", **{**required(name), **settings})
    if hasattr(opt, "train"):
        opt.train()
    for step in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        opt.step()
    return snapshot(opt, params)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"percentile_clipping": 20, "max_grad_norm": 0.5, "cautious": True},
    "companded": {"codec": "companded8", "min_8bit_size": 0},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_step_makes_no_float64(name: str, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results are those with float64, but for the rounding of sums to float32."""
    takes = optgen_optim.CLASSES[name].rule
    given = SETTINGS[settings]
    if settings == "companded" and not any(len(state.codecs) > 1 for state in takes.element_states):
        pytest.skip("its states have one codec")
    try:
        wide = trained(name, **given)
    except (TypeError, ValueError) as error:
        pytest.skip(f"it does not take these settings: {error}")
    monkeypatch.setattr(sums, "WITHOUT_FLOAT64", {"cpu"})
    monkeypatch.setattr(torch_math, "EXACT_ROOTS", True)  # where MKL's are not exact, those of the CPU take float64
    with NoFloat64():
        narrow = trained(name, **given)
    torch.testing.assert_close(narrow["params"], wide["params"], rtol=2e-5, atol=1e-6)
