"""The C++ headers compiled for the tests: with each compiler found, for this processor and without its extensions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from support.cpp_headers import BUILDS, COMPILERS, Headers, compile_cpp


@pytest.fixture(scope="session", params=[f"{compiler} {build}" for compiler in COMPILERS for build in BUILDS])
def headers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Headers:
    """The headers in each build (BUILDS) of each compiler found; no test runs where there is none."""
    compiler, build = request.param.split()
    target = tmp_path_factory.mktemp("headers") / "codecs.so"
    compile_cpp(compiler, Path(__file__).with_name("codecs_abi.cpp"), target, "-shared", "-fPIC", *BUILDS[build])
    library = ctypes.CDLL(str(target))
    library.c_finite_absmax.restype = ctypes.c_float
    return Headers(library)
