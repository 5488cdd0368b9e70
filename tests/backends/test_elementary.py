"""exp, log, tanh, sigmoid, softplus and powers in kernels: errors, special values, and loops that are vectorised.

The references are numpy's in float64, which are off by less than a billionth of a unit in float32's last place.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.arm import emulated, why_no_arm
from support.asked import ask
from support.cpp_headers import BUILDS, COMPILERS, FLAGS, INCLUDE, compile_cpp
from support.libraries import Library, Native

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
SOURCE = Path(__file__).with_name("elementary_abi.cpp")
NAMES = ("exp", "log", "tanh", "sigmoid", "softplus")
EXPONENTS = (0.3, -0.5, 0.25, 2.0, 3.0, -3.0, 0.0, 100.0, -77.25, 1e-3, 16777217.0, 1e30, np.inf, -np.inf, np.nan)
BASES = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1.0001, np.inf, -np.inf, np.nan, 1e-40, -3.0)
TINY = 2.0**-149


def sigmoid(x: Doubles) -> Doubles:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


# The reference, and the largest error in units of the last place: what the header's author measured over all floats,
# rounded up.
REFERENCES: dict[str, tuple[Callable[[Doubles], Doubles], float]] = {
    "exp": (np.exp, 1.0),
    "log": (np.log, 1.0),
    "tanh": (np.tanh, 1.5),
    "sigmoid": (sigmoid, 2.0),
    "softplus": (lambda x: np.logaddexp(x, 0.0), 2.0),
}


def everywhere() -> Floats:
    """Floats of each sign and exponent: thousands between two powers of 2, zeros, infinities and NaN among them."""
    return np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)


def special() -> Floats:
    edges = [0, 2**-149, 2**-126, 87.33655, 88.72283, 88.72284, 89, 103.27892, 103.97208, 104, 1, np.inf, np.nan]
    return np.array([*edges, *(-x for x in edges)], dtype=np.float32)


def errors(got: Floats, wanted: Doubles) -> Doubles:
    """In units in the last place of the exact results; infinity where one is NaN or infinite and the other is not."""
    with np.errstate(all="ignore"):
        single = wanted.astype(np.float32)
        unit = np.maximum(np.exp2(np.floor(np.log2(np.abs(wanted))) - 23), TINY)
        off = np.abs(got - wanted) / unit
    same = (got == single) | (np.isnan(got) & np.isnan(single))
    return np.where(np.isfinite(got) & np.isfinite(single), off, np.where(same, 0.0, np.inf))


class Functions:
    def __init__(self, library: Library) -> None:
        self.library = library

    def __call__(self, name: str, x: Floats, *exponent: float) -> Floats:
        given = torch.tensor(x)
        result = torch.empty_like(given)
        self.library.call(f"c_{name}", given, result, len(x), *exponent)
        return result.numpy()


@pytest.fixture(scope="module", params=COMPILERS)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Functions]:
    folder = tmp_path_factory.mktemp("elementary")
    for build, flags in BUILDS.items():
        compile_cpp(request.param, SOURCE, folder / f"{build}.so", "-shared", "-fPIC", *flags)
    return {build: Functions(Native(folder / f"{build}.so")) for build in BUILDS}


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Functions]:
    if why_no_arm():
        pytest.skip(why_no_arm())
    library = emulated(SOURCE, tmp_path_factory.mktemp("arm"), f"-I{INCLUDE}", "-fvisibility=default")
    yield Functions(library)
    library.close()


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_within_two_units(builds: dict[str, Functions], name: str) -> None:
    reference, most = REFERENCES[name]
    for x in (everywhere(), special()):
        with np.errstate(all="ignore"):
            off = errors(builds["native"](name, x), reference(x.astype(np.float64)))
        worst = int(np.argmax(off))
        assert off[worst] <= most, f"{name}({float(x[worst]).hex()}) is off by {off[worst]} units"


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_powers_are_the_nearest_or_next_to_it(builds: dict[str, Functions], exponent: float) -> None:
    for x in (everywhere()[::7], special(), np.array(BASES, dtype=np.float32)):
        with np.errstate(all="ignore"):
            exact = np.power(x.astype(np.float64), np.float64(np.float32(exponent)))
        got = builds["native"]("power", x, exponent)
        off = errors(got, exact)
        worst = int(np.argmax(off))
        assert off[worst] <= 0.51, f"{float(x[worst]).hex()} ** {exponent} is off by {off[worst]} units"
        zeros = exact == 0
        assert (np.signbit(got) == np.signbit(exact))[zeros].all()


@pytest.mark.parametrize("base", BASES)
def test_powers_of_one_base(builds: dict[str, Functions], base: float) -> None:
    for exponent in special():
        with np.errstate(all="ignore"):
            exact = np.power(np.float64(np.float32(base)), np.float64(exponent))
        got = builds["native"]("power", np.array([base], dtype=np.float32), float(exponent))
        assert errors(got, np.array([exact]))[0] <= 0.51, (base, exponent, got, exact)


def assert_same(name: str, one: Functions, others: Iterable[Functions]) -> None:
    x = np.concatenate([everywhere()[::11], special()])
    exponents = ((0.3,), (-2.0,)) if name == "power" else ((),)
    for exponent in exponents:
        expected = one(name, x, *exponent)
        for other in others:
            got = other(name, x, *exponent)
            same = (expected.view(np.int32) == got.view(np.int32)) | (np.isnan(expected) & np.isnan(got))
            assert same.all(), x[~same][:5]


@pytest.mark.parametrize("name", [*NAMES, "power"])
def test_all_builds_compute_the_same_bits(builds: dict[str, Functions], name: str) -> None:
    native, *others = builds.values()
    assert_same(name, native, others)


@pytest.mark.parametrize("name", [*NAMES, "power"])
def test_arm_computes_the_same_bits(builds: dict[str, Functions], on_arm: Functions, name: str) -> None:
    assert_same(name, builds["native"], [on_arm])


@pytest.mark.skipif(shutil.which("g++") is None, reason="asks g++ what it has vectorised")
@pytest.mark.parametrize("width", ["-mavx2", "-mavx512f -mavx512dq -mavx512bw -mavx512vl"])
def test_loops_are_vectorised(tmp_path: Path, width: str) -> None:
    flags = ["-O3", *width.split(), "-fopt-info-vec-optimized", f"-I{INCLUDE}", "-c", str(SOURCE)]
    said = ask(["g++", *FLAGS, *flags, "-o", str(tmp_path / "object.o")], SOURCE, tmp_path / "object.o")
    lines = set(re.findall(r"elementary_abi\.cpp:(\d+):\d+: optimized: loop vectorized", said))
    assert len(lines) == len(NAMES) + 1
