"""The arguments of every class beside those of its namesakes elsewhere: docs/migration.md lists every difference.

A script that changes only its import passes what the other class takes, by place or by keyword, and leaves the rest to
defaults.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import optgen_optim as optim
import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
RECORD = Path(__file__).with_name("timm_signatures.txt")  # timm needs torchvision, which tests do not install
LIBRARIES = ("torch.optim", "bitsandbytes.optim", "transformers.optimization")
KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Parameters = Mapping[str, inspect.Parameter]
Difference = tuple[str, str, str, str]  # the library, the class here, the argument, and what is so here


def parameters(cls: type) -> Parameters:
    return inspect.signature(cls).parameters


def own_classes(module: ModuleType) -> Iterator[type]:
    """A library's optimizers, without those that it took from torch."""
    for value in vars(module).values():
        own = inspect.isclass(value) and value.__module__.partition(".")[0] == module.__name__.partition(".")[0]
        if own and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer:
            yield value


def recorded() -> dict[str, Parameters]:
    """The constructors of timm's classes."""
    found = {}
    for line in RECORD.read_text(encoding="utf-8").splitlines()[2:]:
        name, _, arguments = line.partition("(")
        found[name] = inspect.signature(eval(f"lambda {arguments.removesuffix(')')}: None")).parameters
    return found


def anchors() -> dict[tuple[str, str], Parameters]:
    """The arguments of every class of another library that a class here has the name of, in whichever case."""
    known = {name.lower(): name for name in optim.CLASSES}
    others = {("timm.optim", name): found for name, found in recorded().items()}
    for library in LIBRARIES:
        module = pytest.importorskip(library)
        others |= {(library, cls.__name__): parameters(cls) for cls in own_classes(module)}
    return {(at, known[name.lower()]): found for (at, name), found in others.items() if name.lower() in known}


def positional(found: Parameters) -> list[str]:
    return [name for name, parameter in found.items() if parameter.kind in KINDS]


def differences(ours: Parameters, theirs: Parameters) -> Iterator[tuple[str, str]]:
    """Arguments of theirs that ours does not take in the same way, and how it does."""
    places = positional(ours)
    for place, (name, parameter) in enumerate(theirs.items()):
        own = ours.get(name)
        if own is None:
            yield name, "not there"
            continue
        if own.default is inspect.Parameter.empty and parameter.default is not own.default:
            yield name, "required"
        elif own.default != parameter.default:
            there = "none" if parameter.default is inspect.Parameter.empty else f"`{parameter.default}`"
            yield name, f"`{own.default}`, not {there}"
        if parameter.kind in KINDS and own.kind not in KINDS:
            yield name, "by keyword"
        elif parameter.kind in KINDS and places.index(name) != place:
            yield name, "another place"


def computed() -> list[Difference]:
    return [
        (library, name, argument, here)
        for (library, name), theirs in anchors().items()
        for argument, here in differences(parameters(optim.CLASSES[name]), theirs)
    ]


def listed() -> list[Difference]:
    """Differences that the page lists: each row of its table stands for all its classes and arguments."""
    section = PAGE.split("\n## Arguments that differ\n", 1)[1].split("\n## ", 1)[0]
    rows = [re.split(r"\s+\|\s+", line.strip("| ")) for line in section.splitlines() if line.startswith("|")][2:]
    assert all(len(row) == 5 and all(row) for row in rows), "every row has a reason"
    return [
        (library, name, argument, here)
        for library, classes, arguments, here, _ in rows
        for name in classes.split(", ")
        for argument in re.findall(r"`(\w+)`", arguments)
    ]


def test_the_page_lists_every_difference_and_no_other() -> None:
    page, found = Counter(listed()), Counter(computed())
    assert sorted(found - page) == [], "differences that docs/migration.md does not list"
    assert sorted(page - found) == [], "entries of docs/migration.md that are no difference any more"


@pytest.mark.parametrize(("library", "least"), [("torch.optim", 12), ("bitsandbytes.optim", 40), ("timm.optim", 8)])
def test_namesakes_are_found(library: str, least: int) -> None:
    assert len([name for at, name in anchors() if at == library]) >= least


def test_a_difference_is_seen() -> None:
    def ours(params, lr, eps=1e-8, *, beta=0.9, foreach=None):  # type: ignore[no-untyped-def]
        """Arguments of a class here."""

    def theirs(params, lr=0.1, beta=0.9, eps=1e-6, foreach=None, *, fused=None):  # type: ignore[no-untyped-def]
        """Those of another."""

    found = differences(inspect.signature(ours).parameters, inspect.signature(theirs).parameters)
    assert list(found) == [
        ("lr", "required"),
        ("beta", "by keyword"),
        ("eps", "`1e-08`, not `1e-06`"),
        ("eps", "another place"),
        ("foreach", "by keyword"),
        ("fused", "not there"),
    ]


def test_what_is_recorded_of_timm_is_what_it_has() -> None:
    """Read from its source: its package imports torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("timm is not installed")
    version = importlib.metadata.version("timm")
    assert f"timm {version}:" in RECORD.read_text(encoding="utf-8").splitlines()[0], "record its arguments again"
    found = {}
    known = {name.lower() for name in optim.CLASSES}
    for path in (Path(spec.submodule_search_locations[0]) / "optim").glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        numbers = {
            ast.unparse(node.targets[0]): node.value
            for node in body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.lower() in known:
                init = next(x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == "__init__")
                for argument in (*init.args.args, *init.args.kwonlyargs):
                    argument.annotation = None
                init.args.defaults = [numbers.get(ast.unparse(default), default) for default in init.args.defaults]
                del init.args.args[0]
                found[node.name] = f"{node.name}({ast.unparse(init.args)})"
    assert sorted(found.values()) == RECORD.read_text(encoding="utf-8").splitlines()[2:]
