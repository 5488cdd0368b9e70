"""The C++ headers compiled for the tests: with each compiler found, for this processor and without its extensions."""

from __future__ import annotations

import ctypes
from itertools import product
from pathlib import Path

import pytest
from support.cpp_headers import BUILDS, COMPILERS, Headers, compile_cpp


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Headers]:
    """The headers in each build (BUILDS) of each compiler found; no test runs where there is none.

    Each test goes through all of them, so that what is expected is computed once.
    """
    if not COMPILERS:
        pytest.skip("no C++ compiler was found")
    return [
        built(compiler, build, tmp_path_factory.mktemp("headers")) for compiler, build in product(COMPILERS, BUILDS)
    ]


def built(compiler: str, build: str, folder: Path) -> Headers:
    """The headers in one build."""
    target = folder / "codecs.so"
    compile_cpp(compiler, Path(__file__).with_name("codecs_abi.cpp"), target, "-shared", "-fPIC", *BUILDS[build])
    library = ctypes.CDLL(str(target))
    library.c_finite_absmax.restype = ctypes.c_float
    return Headers(library, f"{compiler} {build}")
