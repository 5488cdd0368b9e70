"""Fixtures for tests of commands: the catalogue, which most of them compile, is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.compiling import stock_package

from optgen import compiler
from optgen.bench import contenders
from optgen.package_name import STOCK_PACKAGE, is_stock


@pytest.fixture(autouse=True)
def _the_catalogue_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_specs = compiler.compile_specs

    def known(
        paths: Sequence[Path], package: str | None, onto: str | Path | None = None, of: str | None = None
    ) -> compiler.Package:
        is_known = onto is None and package == STOCK_PACKAGE and is_stock(paths)
        return stock_package() if is_known else compile_specs(paths, package, onto, of)

    for module in (compiler, contenders):
        monkeypatch.setattr(module, "compile_specs", known)
