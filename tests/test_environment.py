"""Libraries that tests compare with are there: a missing one would only leave its tests out, which nobody sees."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import setup_venv
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ALL = [Requirement(text) for name in ("test", "oracles") for text in setup_venv.group(name)]
WANTED = [one for one in ALL if one.marker is None or one.marker.evaluate()]
WITHOUT = {canonicalize_name(name) for name in os.environ.get("OPTGEN_TEST_WITHOUT", "").replace(",", " ").split()}
HINT = "tools/setup_venv.py installs it; OPTGEN_TEST_WITHOUT={name} goes without, and leaves its tests out"


@functools.cache
def modules() -> dict[str, list[str]]:
    """The modules that each distribution installs."""
    found: dict[str, list[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for name in distributions:
            found.setdefault(canonicalize_name(name), []).append(module)
    return found


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
def test_a_library_of_the_tests_can_be_imported(wanted: Requirement) -> None:
    name = canonicalize_name(wanted.name)
    if name in WITHOUT:
        pytest.skip(f"OPTGEN_TEST_WITHOUT names {wanted.name}")
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.fail(f"{wanted.name} is not installed: " + HINT.format(name=name))
    assert wanted.specifier.contains(version, prereleases=True)
    if name == "timm":  # without torchvision single modules of it can be imported alone
        return
    for module in modules()[name]:
        if module.isidentifier() and not module.startswith("_"):  # stubs for type checkers are no modules
            importlib.import_module(module)


@pytest.mark.skipif(sys.platform != "linux", reason="PyCUDA is built on Linux only")
@pytest.mark.skipif(
    os.environ.get("OPTGEN_SKIP_PYCUDA", "") not in ("", "0"), reason="OPTGEN_SKIP_PYCUDA goes without PyCUDA"
)
def test_pycuda_is_there() -> None:
    assert importlib.util.find_spec("pycuda"), (
        "PyCUDA is not installed: tools/setup_pycuda.py builds it; OPTGEN_SKIP_PYCUDA=1 goes without"
    )


def test_what_tests_go_without_is_of_the_group() -> None:
    assert {canonicalize_name(one.name) for one in ALL} >= WITHOUT


def test_every_library_of_the_tests_is_pinned() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1].isalpha()]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    for one in map(Requirement, setup_venv.group("test")):
        assert pinned.get(canonicalize_name(one.name), "").startswith("=="), one.name
        assert one.specifier.contains(pinned[canonicalize_name(one.name)].removeprefix("==")), one.name
