"""The C++ headers compiled for the tests: with each compiler, for this processor and plainer ones, and for ARM."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from support.arm import emulated, why_no_arm
from support.cpp_headers import BUILDS, COMPILERS, INCLUDE, Headers, build_flags, compile_cpp
from support.libraries import Native

SOURCE = Path(__file__).with_name("codecs_abi.cpp")


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Headers]]:
    """The headers in each build (BUILDS) of each compiler found, and on ARM; no test runs where there is none.

    Each test goes through all of them, so that what is expected is computed once.
    """
    if not COMPILERS:
        pytest.skip("no C++ compiler was found")
    found = [
        built(compiler, build, tmp_path_factory.mktemp("headers")) for compiler, build in product(COMPILERS, BUILDS)
    ]
    if why_no_arm():
        yield found
    else:
        arm = emulated(SOURCE, tmp_path_factory.mktemp("headers"), f"-I{INCLUDE}", "-fvisibility=default")
        yield [*found, Headers(arm, "ARM")]
        arm.close()


def built(compiler: str, build: str, folder: Path) -> Headers:
    """The headers in one build."""
    target = folder / "codecs.so"
    compile_cpp(compiler, SOURCE, target, "-shared", "-fPIC", *build_flags(compiler, build))
    return Headers(Native(target), f"{compiler} {build}")
