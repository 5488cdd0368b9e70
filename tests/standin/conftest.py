"""Fixtures for tests of the stand-in: the driver, a current context, compiling and loading .cu texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import standin
from standin.texts import Compile, cubin


@pytest.fixture
def driver() -> Iterator[standin.Driver]:
    pytest.importorskip("pycuda")
    loaded = standin.load()
    loaded.reset()
    yield loaded
    loaded.reset()


@pytest.fixture
def drv(driver: standin.Driver) -> ModuleType:
    """PyCUDA's own module, on the stand-in."""
    import pycuda.driver

    pycuda.driver.init()
    return pycuda.driver


@pytest.fixture
def context(drv: ModuleType) -> Iterator[Any]:
    """The primary context of device 0, current during the test."""
    primary = drv.Device(0).retain_primary_context()
    primary.push()
    yield primary
    drv.Context.pop()


@pytest.fixture
def load_kernels(tmp_path: Path, drv: ModuleType, context: Any) -> Compile:
    """Compiles a text, loads it with `module_from_buffer`, returns PyCUDA's module."""

    def load(text: str, *options: str) -> Any:
        return drv.module_from_buffer(cubin(tmp_path, text, *options))

    return load
