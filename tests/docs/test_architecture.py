"""The walks of docs/architecture.md name the files that act, once and in the order in which they act.

A compile, a step, a save and a load are made here, and what they call is noted.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import optgen_optim
import pytest
import torch
from support.compiling import ROOT

from optgen import cli, commands, compiler, distribution, package_name, precompile
from optgen.codecs import BLOCK_SIZES
from optgen.diagnostics import Reporter
from optgen.emit import writer
from optgen.ir.dump import dump
from optgen.runtime.building import cubins
from optgen.runtime.building.compilers import find_compiler
from optgen.runtime.core import sweep
from optgen.runtime.engines.cpu_engine import CpuEngine
from optgen.runtime.engines.cuda_engine import CudaEngine
from optgen.runtime.engines.kernel_engine import KernelEngine
from optgen.spec import nodes

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROW = re.compile(r"(?m)^\| `([\w./]+/[\w.]+\.\w+)`((?: `[\w.]+`)*) \|(.*)\|$")
# What a command would import as it runs.
IMPORTED = (commands, compiler, cubins, distribution, package_name, precompile, writer)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def walk(title: str) -> dict[str, list[str]]:
    """The files of a walk, each with the functions that are named beside it."""
    rows = [(file, re.findall(r"[\w.]+", names)) for file, names, _ in ROW.findall(section(title))]
    assert len(dict(rows)) == len(rows), "a file is named twice"
    return dict(rows)


def besides(title: str) -> set[str]:
    """Files that a walk meets without a place of their own."""
    found = re.search(r"^On the way.*?(?=\n\n|\Z)", section(title), re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([\w./]+\.py)`", found[0])) if found is not None else set()


def called(function: Callable[[], object]) -> list[tuple[str, str]]:
    """List the functions of optgen and of its package that a function calls: (file, name), in order of first calls."""
    codes: dict[int, CodeType] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.setdefault(id(frame.f_code), frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    found = []
    for code in codes.values():
        path = Path(code.co_filename)
        is_ours = path.suffix == ".py" and any(path.is_relative_to(ROOT / top) for top in ("optgen", "generated"))
        if is_ours and code.co_flags & inspect.CO_OPTIMIZED:  # neither a module nor the body of a class
            found.append((path.relative_to(ROOT).as_posix(), code.co_qualname))
    return found


def check_walk(title: str, found: list[tuple[str, str]]) -> None:
    rows, others = walk(title), besides(title)
    for file in (*rows, *others):
        assert (ROOT / file).is_file(), file
    assert rows.keys().isdisjoint(others)
    places = {}
    for file, names in rows.items():
        for name in names:
            # A class stands for its first method.
            at = [i for i, (where, what) in enumerate(found) if where == file and f"{what}.".startswith(f"{name}.")]
            assert at, f"{file}: {name} is not called"
            places.setdefault(file, at[0])
    assert list(places) == sorted(places, key=places.__getitem__), "files act in another order"
    unnamed = {file for file, _ in found if file.startswith("optgen/")} - rows.keys() - others
    assert unnamed == set(), f"the walk of docs/architecture.md, `{title}`, leaves out files that act"


def test_a_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["optgen", "build", str(ROOT / "specs" / "adam.yaml"), "--out", str(tmp_path / "adam_alone")]
    monkeypatch.setattr(sys, "argv", words)
    assert IMPORTED
    nodes._composed.cache_clear()  # what other tests have read is read again

    def build() -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code

    check_walk("A compile", called(build))


def test_a_statement_on_its_way() -> None:
    (planned,) = compiler.check_specs([ROOT / "specs" / "adam.yaml"], Reporter())
    programs = [dump(program) for program in (planned.rule.blocks["step"].program, planned.plans["step"].program)]
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", section("A compile"))
    shown = [text for language, text in blocks if not language]
    assert len(shown) == 2
    for lines, program in zip(shown, programs, strict=True):
        assert set(lines.splitlines()) <= set(program.splitlines())
    assert [item.name for item in planned.plans["step"].passes] == [*(f"reduce_{i}" for i in range(4)), "apply"]
    pieces = 0
    for file, _, said in ROW.findall(section("A compile")):
        if file.startswith("generated/"):
            text = (ROOT / file).read_text(encoding="utf-8")
            for piece in re.findall(r"`([^`]*[=(].*?)`", said):
                pieces += piece != "update = ..."
                assert piece in text or piece == "update = ...", f"{file}: {piece}"
    assert pieces >= 8


def make() -> Any:
    param = torch.nn.Parameter(torch.ones(8, 4))
    param.grad = torch.ones(8, 4)
    return optgen_optim.AdamW([param])


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
def test_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "used", sweep.PLAIN)
    make().step()  # what is imported and compiled for it
    optimizer = make()
    found = called(optimizer.step)
    assert optimizer.engines() == {"cpu": 1}
    check_walk("A step", found)
    first = {file for file, _, said in ROW.findall(section("A step")) if said.startswith(" *first*")}
    kept = called(optimizer.step)
    again = {file for file in first for where, name in kept if where == file and name in walk("A step")[file][:1]}
    assert again == set()


@pytest.mark.parametrize("title", ["A save", "A load"])
def test_a_save_and_a_load(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, other = make(), make()
    optimizer.step()
    saved = optimizer.state_dict()
    act = optimizer.state_dict if title == "A save" else lambda: other.load_state_dict(saved)
    check_walk(title, called(act))


def test_how_a_tensor_is_cut() -> None:
    """The edges on the page are those that engines cut, and the sizes those of the headers."""
    shown = {
        name: [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", edges.partition("   ")[0])]
        for name, edges in re.findall(r"(?m)^(chunk, \w+|band, rows) +(.*)$", section("How a tensor is cut"))
    }
    param = torch.empty(200, 300, device="meta")
    of: Any = SimpleNamespace(params=[param], row_sums=0, col_sums=0, bands=False)
    of.members, of.rule = (
        [SimpleNamespace(param=param, seen=param.shape, shard=None)],
        SimpleNamespace(channels_alone=False),
    )
    for name, engine in (("chunk, cpu", CpuEngine), ("chunk, cuda", CudaEngine)):
        of.chunk = engine.chunk
        of.chunks = KernelEngine._cut_chunks(of)
        assert shown[name] == [0, *of.chunks.numbers[2::4]]
    of.bands, of.col_sums = True, 1
    assert shown["band, rows"] == [0, *(end // 300 for end in KernelEngine._cut_bands(of).numbers[2::4])]
    assert ", ".join(map(str, BLOCK_SIZES[:-1])) + f" or {BLOCK_SIZES[-1]} elements" in PAGE
    headers = ROOT / "templates" / "include" / "optgen"
    for header, constant in (
        ("scales.h", "TILE = 256"),
        ("cuda_memory.h", "TILE = 256"),
        ("cuda_memory.h", "WARP = 32"),
        ("cuda_memory.h", "LANE = TILE / WARP"),
        ("cuda_band.h", "BAND_ROWS = 32"),
    ):
        assert f"constexpr int {constant};" in (headers / header).read_text(encoding="utf-8")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The private names that a module reads of something, and those that it defines."""
    read, defined = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                defined.add(name)
            case (
                ast.Attribute(attr=name)
                | ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_])
            ):
                read.add(name)
            case ast.Import(names=names):
                read.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                read.update((module, *(alias.name for alias in names)))
    return {name for name in read if any(map(is_private, name.split(".")))}, set(filter(is_private, defined))


def test_private_names_of_others_are_those_of_the_table() -> None:
    """Those that optgen has no definition for; names that it uses as well, as `_handle`, cannot be told apart."""
    found = {
        path.relative_to(ROOT).as_posix(): private_names(ast.parse(path.read_text(encoding="utf-8")))
        for path in (ROOT / "optgen").rglob("*.py")
    }
    own = set().union(*(defined for _, defined in found.values()), {"_asdict", "_optgen_overrides"})
    read = {name: file for file, (names, _) in found.items() for name in names - own}
    table = PAGE.partition("**Others' private names are few.**")[2]
    rows = {
        name: file
        for names, file in re.findall(r"(?m)^\| ((?:`[\w.]+` ?)+)\| `([\w./]+)` \|", table)
        for name in re.findall(r"[\w.]+", names)
    }
    assert read.keys() <= rows.keys()
    for name, file in rows.items():
        assert name in found[file][0] or name == "_step_supports_amp_scaling", (file, name)
    assert "torch._dynamo.symbolic_convert" in read
