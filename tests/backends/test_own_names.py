"""Names that generated code has for itself: what a spec gives the same name works all the same, or is refused.

Which names those are is read off the generated code, the headers and the base class; nothing here lists them.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from support.compiling import ROOT, own_package, stock_package

import optgen
from optgen.backends.c_printer import KEYWORDS
from optgen.compiler import check_specs
from optgen.diagnostics import Reporter, SpecError
from optgen.ir.guards import MACROS
from optgen.spec.model import Name
from optgen.spec.names import ATTRIBUTES, OF_BLOCKS, OF_CLASSES, SHARED_MODULE, STORAGE

HEADERS = ROOT / "templates" / "include"
SHARED = """\
storage:
  optim_bits: {default: 32, choices: [32, 8]}
  min_8bit_size: {default: 4096, integer: true}
  block_wise: {default: true}
"""
RULE = """\
name: probe_rule
hyperparameters:
  lr: {default: 1.0}
states:
  size: {shape: tensor}
  rows_of: {shape: row, when: ndim >= 2}
  slow: {init: param, codecs: [fp32]}
blocks:
  step: |
    if ndim >= 2:
        rows_of = rows_of + row_mean(grad * grad)
        grad = grad * rows_of
    size = max(size, norm(grad, over=all))
    slow = slow + 0.1 * (param - slow)
    param = param - lr * grad / (1 + size) + slow - slow
"""
PATTERN = re.compile(str(Name.__metadata__[0].pattern))


def of_python(files: Iterable[str]) -> set[str]:
    """All names in Python modules, whatever they are for, those of arguments and attributes included."""
    return {word for text in files for word in re.findall(r"[A-Za-z]\w*", text)}


def of_kernels(files: Iterable[str]) -> set[str]:
    """Names that kernels call, and all that the headers they include declare or define."""
    called = {word for text in files for word in re.findall(r"\b([a-z]\w*)\s*[(<{]", text)}
    headers = [re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in HEADERS.rglob("*.h")]
    macros = {word for text in headers for word in re.findall(r"OPTGEN_(\w+)", text)}
    declared = {word for text in headers for word in re.findall(r"^[a-z].*?\b([a-z]\w*)\s*\(", text, re.MULTILINE)}
    return {word.lower() for word in (*called, *macros, *declared, *KEYWORDS.split())}


def usable(names: Iterable[str]) -> list[str]:
    """Those that can be given at all, without two that differ in case only."""
    given = (name for name in sorted(names) if PATTERN.fullmatch(name) and len(name) < 40 and name not in OF_BLOCKS)
    return list({name.lower(): name for name in given}.values())


def sums(names: list[str], value: str = "{}") -> Iterator[str]:
    yield "    total_of_all = 0 * grad\n"
    for name in names:
        yield f"    total_of_all = total_of_all + {value.format(name)}\n"
    yield "    param = param - total_of_all\n"


def spec(role: str, names: list[str]) -> str:
    """A rule whose parameter goes down by the number of names, each of which stands for 1."""
    head, step = "name: probe_rule\n", "blocks:\n  step: |\n"
    declared = {"hyper": ("hyperparameters", "{default: 1.0}"), "state": ("states", "{shape: tensor, init: 1}"),
                "group": ("states", "{shape: group, init: 1}"), "flag": ("options", "{default: true}"),
                "input": ("inputs", "{}")}  # fmt: skip
    if role == "class":
        return f"{head}{step}    param = param - grad\nclasses:\n" + "".join(f"  {name}: {{}}\n" for name in names)
    if role == "method":
        methods = "".join(f"  {name}:\n    block: param = param - 1\n" for name in names)
        return f"{head}{step}    param = param - 0 * grad\nmethods:\n{methods}"
    if role == "local":
        return head + step + "".join(f"    {name} = grad / norm(grad)\n" for name in names) + "".join(sums(names))
    section, text = declared[role]
    lines = "".join(sums(names, "{} * grad"))
    if role in ("flag", "input"):
        condition = "if {}:" if role == "flag" else "if {} is not None:"
        value = "grad" if role == "flag" else "{0} * grad"
        lines = "".join(
            f"    {condition.format(name)}\n        total_of_all = total_of_all + {value.format(name)}\n"
            for name in names
        )
        lines = f"    total_of_all = 0 * grad\n{lines}    param = param - total_of_all\n"
    if role in ("state", "group"):
        lines += "".join(f"    {name} = 2 * {name}\n" for name in names)
    return f"{head}{section}:\n" + "".join(f"  {name}: {text}\n" for name in names) + step + lines


def accepted(folder: Path, role: str, names: list[str]) -> list[str]:
    """The names that the check lets through; the others it refuses by name."""
    path = folder / "probe_rule.yaml"
    (folder / "shared.yaml").write_text(SHARED, encoding="utf-8")
    for _ in range(50):
        path.write_text(spec(role, names), encoding="utf-8")
        try:
            check_specs([path], Reporter())
        except SpecError as error:
            refused = {name for d in error.diagnostics for name in re.findall(r"`(\w+)`", d.message)}
            refused |= {d.source_line.split()[0].rstrip(":") for d in error.diagnostics if d.source_line}
            assert refused & set(names), str(error)
            names = [name for name in names if name not in refused]
        else:
            return names
    raise AssertionError("some names are refused only when others are gone")


def train(folder: Path, role: str, names: list[str], target: str) -> None:
    """Step every class of the rule that uses the names."""
    module = optgen.load(folder / "probe_rule.yaml")
    for name in names if role == "class" else ["ProbeRule"]:
        cls = getattr(module, name)
        assert (type(cls), cls.__name__) == (type, name)
        assert issubclass(cls, optgen.runtime.optimizer.Optimizer)
        param = torch.nn.Parameter(torch.zeros(1))
        opt = module.create(name, [param], target=target)
        assert type(opt) is cls
        param.grad = torch.ones(1)
        for given in names if role == "input" else ():
            setattr(opt, given, 1.0)
        opt.step()
        for method in names if role == "method" else ():
            getattr(opt, method)()
        assert param.item() == (-1.0 if role == "class" else -float(len(names)))
        opt.load_state_dict(opt.state_dict())
        kept = opt.state[param] if role == "state" else opt.param_groups[0] if role == "group" else {}
        assert all(float(kept[state]) == 2.0 for state in kept if state in names)


def pieces(names: list[str], role: str) -> Iterator[list[str]]:
    size = {"state": 32, "group": 32, "flag": 100, "input": 100, "class": 100}.get(role, len(names))
    return (names[start : start + size] for start in range(0, len(names), size))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["class", "hyper", "flag", "input", "group", "method", "local"])
def test_names_of_modules(role: str, tmp_path: Path) -> None:
    (tmp_path / "probe_rule.yaml").write_text(RULE, encoding="utf-8")
    (tmp_path / "shared.yaml").write_text(SHARED, encoding="utf-8")
    module = optgen.load(tmp_path / "probe_rule.yaml")
    files = [path.read_text(encoding="utf-8") for path in Path(str(module.__file__)).parent.glob("*.py")]
    opt = module.ProbeRule([torch.nn.Parameter(torch.ones(2))])
    names = of_python(files) | {*dir(opt), *opt.param_groups[0], *keyword.kwlist, *dir(builtins)}
    for piece in pieces(usable(names), role):
        train(tmp_path, role, accepted(tmp_path, role, piece), "torch")


@pytest.mark.slow
@pytest.mark.parametrize("role", ["hyper", "flag", "local", pytest.param("state", marks=pytest.mark.full)])
def test_names_of_kernels(role: str, tmp_path: Path) -> None:
    (tmp_path / "probe_rule.yaml").write_text(RULE, encoding="utf-8")
    (tmp_path / "shared.yaml").write_text(SHARED, encoding="utf-8")
    module = optgen.load(tmp_path / "probe_rule.yaml")
    folder = Path(str(module.__file__)).parent
    files = [path.read_text(encoding="utf-8") for path in folder.glob("*.[ch]*")]
    for piece in pieces(usable(of_kernels(files)), role):
        train(tmp_path, role, accepted(tmp_path, role, piece), "cpu")


def test_no_class_has_a_name_that_its_module_needs() -> None:
    """Over all rules there are: what modules bind, and what of Python's own they use."""
    for package in (stock_package(), own_package()):
        classes = {info.name for info in package.classes}
        for path, text in package.files.items():
            if not path.endswith(".py") or path.endswith("_torch.py") or path == f"{SHARED_MODULE}.py":
                continue  # there are no classes in it
            tree = ast.parse(text)
            bound = {
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            bound |= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            bound |= {
                target.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            own = {name for name in bound | (read & set(dir(builtins))) if not name.startswith("_")}
            assert own - classes <= OF_CLASSES, path


def test_attributes_are_those_of_optimizers() -> None:
    opt = stock_package_class()
    own = opt.rule.blocks.keys() - {"step"}  # type: ignore[attr-defined]
    assert {name for name in dir(opt) if not name.startswith("_")} - own | {"found_inf"} == ATTRIBUTES


def stock_package_class() -> torch.optim.Optimizer:
    import optgen_optim

    return optgen_optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)


def test_what_the_runtime_asks_for_is_storage() -> None:
    """Every setting that the runtime reads by its name, and that a rule could declare."""
    shared = (ROOT / "specs" / "shared.yaml").read_text(encoding="utf-8")
    storage = set(re.findall(r"^  (\w+):", shared.split("\nstorage:\n")[1].split("\nstates:\n")[0], re.MULTILINE))
    read = set()
    for path in (ROOT / "optgen" / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    assert storage & read == STORAGE


def test_macros_are_those_of_headers_and_builds() -> None:
    places = [
        *HEADERS.rglob("*.h"),
        *(ROOT / "optgen" / "runtime" / "engines" / name for name in ("cpu_engine.py", "kernel_engine.py")),
    ]
    found = {
        name.lower()
        for path in places
        for name in re.findall(r"OPTGEN_([A-Z0-9_]+)\b", path.read_text(encoding="utf-8"))
    }
    assert found <= MACROS | {"", "cxx", "cxxflags"}
