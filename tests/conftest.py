"""Fixtures of all tests: the compile cache, random numbers, targets."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.processes import Processes, looks_at_scenario, selected
from filelock import FileLock
from support import fresh
from support.environment import prepare_compiling
from support.machine import why_no_gpu
from support.targets import ready

from optgen.runtime.building.compilers import find_compiler
from optgen.runtime.building.headers import parse_headers


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(20_000, 20, 20)  # a run makes much that stays, and looking through it takes a tenth of the time
    prepare_compiling()
    compiler = None if hasattr(config, "workerinput") else find_compiler()
    if compiler is not None:
        parse_headers(compiler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full product runs only where it is asked for (-m full), tests of GPUs only where there is one.

    Those that look at what processes in the background have done meanwhile come last.
    """
    items.sort(key=looks_at_scenario)
    for item in items:
        if "gpu" in item.keywords and why_no_gpu():
            item.add_marker(pytest.mark.skip(reason=why_no_gpu()))
    if "full" in (config.getoption("markexpr") or ""):
        return
    skipped = [item for item in items if "full" in item.keywords]
    if skipped:
        config.hook.pytest_deselected(items=skipped)
        items[:] = [item for item in items if "full" not in item.keywords]


def pytest_collection_finish() -> None:
    """Keep what has been collected out of garbage collection: it stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of temporary files that all workers of pytest have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def torch_python(run_folder: Path) -> str:
    """A program that is called as Python is, and has torch from the start (support/fresh.py)."""
    with FileLock(run_folder / "torch-python.lock"):
        return fresh.python(run_folder / "torch-python")


@pytest.fixture(scope="session")
def processes(request: pytest.FixtureRequest, run_folder: Path) -> Processes:
    """The processes that run all selected scenarios of tests/distributed; several workers of pytest share them."""
    started = Processes(run_folder / "processes")
    started.begin(selected(request.session.items))
    return started


@pytest.fixture(scope="session", autouse=True)
def _processes_start_ahead(request: pytest.FixtureRequest) -> None:
    """Starts them before the first test, to run while tests do."""
    if selected(request.session.items):
        request.getfixturevalue("processes")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test draws the same numbers, in whatever order tests run."""
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on one thread: several workers of many threads each only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _the_standin_serves_one_test() -> Iterator[None]:
    """Outside of tests that ask for it, target="cuda" is refused for CPU tensors, and its nvcc is not found."""
    nvcc = os.environ.get("OPTGEN_NVCC")
    yield
    cuda_device = sys.modules.get("optgen.runtime.cuda.cuda_device")
    if cuda_device is not None:
        cuda_device.register(torch.device("cpu"), None)
    if nvcc is None:
        os.environ.pop("OPTGEN_NVCC", None)
    else:
        os.environ["OPTGEN_NVCC"] = nvcc


@pytest.fixture(autouse=True)
def _bitsandbytes_forgets() -> Iterator[None]:
    """Forget registrations there: they are for parameters by their `id`, which those of a later test may have."""
    yield
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is not None:
        bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


@pytest.fixture(params=["torch", "cpu"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target of this machine; cpu only where a compiler is found."""
    with ready(request.param) as name:
        yield name
