"""The code of one class alone: it holds nothing that the class does not use, compiles, and computes the same bits."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.alone_kernels import Kernel, copies, differing, torch_functions
from support.asked import ask
from support.compiling import ROOT, stock_package
from support.machine import require_compiler
from support.targets import require_standin
from torch import Tensor

from optgen.explanation import TARGETS, ClassInfo, Target
from optgen.runtime.building.nvcc import FLAGS, find_nvcc, why_no_nvcc

SHAPE = (210, 300)  # two chunks of a kernel
HOST = ["-std=c++17", "-fopenmp", "-fsyntax-only", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-trapping-math"]
COMPILERS = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
INCLUDE = f"-I{ROOT / 'templates' / 'include'}"
QUICK = ("AdamW", "AdamW8bit", "AdamW:4", "Lion8bit", "LAMB8bit", "Adafactor")
NOT_MADE = ("PytorchLARS", "SGD8bit")  # the one takes no `target`, the other's defaults leave nothing in 8 bits
IN_USE = {"momentum": 0.9}  # of rules that refuse to go without


def alike(name: str) -> bool:
    """Check whether another class has the same kernel: the host keeps states elsewhere, or has other arguments."""
    return name.startswith("Paged") or name.endswith("32bit")


CASES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.full)
    for name in (*optgen_optim.CLASSES, "AdamW:4", "Lion:4", "LAMB:4")
    if not alike(name)
]
TRAINED = [case for case in CASES if case.values[0] not in NOT_MADE]


@cache
def infos() -> Mapping[str, ClassInfo]:
    """Every class, and those that have the choice also in 4 bits."""
    found = {}
    for info in stock_package().classes:
        found[info.name] = info
        if 4 in info.bits_choices:
            found[f"{info.name}:4"] = info.stored_in(4)
    return found


def test_adamw8bit_is_as_short_as_written_by_hand() -> None:
    lines = {target: infos()["AdamW8bit"].code(target).count("\n") for target in TARGETS}
    assert lines["cpu"] <= 70
    assert lines["cuda"] <= 95
    assert lines["torch"] <= 40


def has_code(name: str, target: Target) -> bool:
    """Check whether a class's code is all of its step: for torch that of a step on matrices is a part of it."""
    return target != "torch" or infos()[name].whole_rule.matrices is None


@pytest.mark.parametrize("name", [name for name in optgen_optim.CLASSES if not has_code(name, "torch")])
def test_a_step_on_matrices_is_shown_for_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of that of the module it computes the same, over steps with and without a new basis."""
    text = infos()[name].code("torch")
    assert not re.search(r"f\.(?!every_|first_step)", text.partition("def matrices")[2])
    shown: dict[str, Any] = {}
    exec(compile(text, f"{name}.py", "exec"), shown)
    cls, results = getattr(optgen_optim, name), []
    often = {key: 2 for key in ("update_proj_gap", "precondition_frequency") if key in cls.rule.hypers}
    for own in (False, True):
        if own:
            monkeypatch.setattr(cls.rule.torch_functions, "matrices", shown["matrices"])
        param = torch.nn.Parameter(torch.ones(12, 20))
        optimizer = cls([param], target="torch", **often)
        for step in range(4):
            param.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_left_to_choose(target: Target) -> None:
    guards = {name for info in infos().values() for name in info.setting.guards}
    for name in (name for name in infos() if not alike(name.partition(":")[0]) and has_code(name, target)):
        text = re.sub(r"^(//|#) .*\n", "", infos()[name].code(target), flags=re.MULTILINE)
        assert not re.search(r"\btemplate\b|\bif constexpr\b|\bOPTGEN_(?!EXPORT)|\bpass\b|\bif\b.*:$", text), name
        assert not guards & set(re.findall(r"\w+", text)), name
        assert max(map(len, text.split("\n"))) <= 120, name


def test_a_class_of_several_passes_has_them_in_order() -> None:
    text = infos()["Adafactor"].code("cpu")
    assert re.findall(r"^namespace (\w+) \{", text, re.MULTILINE) == ["reduce_0", "reduce_1", "apply"]
    assert re.findall(r"^OPTGEN_EXPORT void (\w+)\(", text, re.MULTILINE) == [
        "step_reduce_0",
        "step_reduce_1",
        "step_apply",
    ]


@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", CASES)
def test_cpp_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(infos()[name].code("cpu"), encoding="utf-8")
    for compiler in COMPILERS:
        ask([compiler, *HOST, INCLUDE, str(source)], source)


def test_python_is_formatted_and_has_nothing_unused(tmp_path: Path) -> None:
    for name in optgen_optim.CLASSES:
        if not alike(name):
            (tmp_path / f"{name}.py").write_text(infos()[name].code("torch"), encoding="utf-8")
    for words in (("format", "--check"), ("check", "--select", "E,F,W,I,UP,B,C4,PIE,RET,RUF,SIM")):
        command = [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No module named" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", CASES)
def test_cuda_compiles_without_a_warning_and_spills_nothing(name: str, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip(f"no nvcc that builds: {why_no_nvcc()}")
    source, output = tmp_path / "alone.cu", tmp_path / "alone.cubin"
    source.write_text(infos()[name].code("cuda"), encoding="utf-8")
    strict = ("-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage", "-arch=sm_90", INCLUDE)
    said = ask([*nvcc.command, *FLAGS, *nvcc.flags, *strict, str(source), "-o", str(output)], source, output)
    assert "warning" not in said


class Trained:
    """A class and its code alone, side by side: a parameter after a first step, which the class has made."""

    def __init__(self, name: str, target: str) -> None:
        plain, _, bits = name.partition(":")
        self.info = infos()[name]
        cls = getattr(optgen_optim, plain)
        settings: dict[str, Any] = {"optim_bits": int(bits)} if bits else {}
        accepted = inspect.signature(cls).parameters
        if accepted["lr"].default is inspect.Parameter.empty:
            settings["lr"] = 0.1
        if self.info.rule == "lars":
            settings |= IN_USE
        self.draw = torch.Generator().manual_seed(5)
        self.param = torch.nn.Parameter(torch.randn(SHAPE, generator=self.draw))
        self.optimizer = cls([self.param], target=target, **settings)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self.step()

    def step(self) -> None:
        """A step of the class."""
        self.param.grad = torch.randn(SHAPE, generator=self.draw)
        self.optimizer.step()

    @property
    def state(self) -> Mapping[str, Any]:
        """State of the parameter."""
        return self.optimizer.state[self.param]  # type: ignore[no-any-return]

    def number(self, name: str) -> Any:
        """A setting or a state of the group; None for what is neither."""
        alone = self.info.alone
        own = self.optimizer.param_groups[0].get(name)
        return own if own is not None else alone.settings.get(name, 0.0 if name == "index" else None)

    def compare(self, param: Tensor, state: Mapping[str, Tensor]) -> None:
        """Take the step that the code has taken on copies, and compare all bits."""
        self.step()
        assert differing({"param": param}, {"param": self.param.detach()}, ["param"]) == []
        assert differing(state, self.state, [key for key in state if key in self.state]) == []


@pytest.mark.parametrize("name", TRAINED)
def test_the_torch_functions_compute_what_the_class_does(name: str) -> None:
    trained = Trained(name, "torch")
    functions = torch_functions(trained.info.code("torch"))
    for _ in range(2):
        param, state = trained.param.detach().clone(), copies(trained.state)
        draw = trained.draw.get_state()
        grad = torch.randn(SHAPE, generator=trained.draw)
        trained.draw.set_state(draw)
        sums: dict[str, float] = {}
        for function in (f for n, f in functions.items() if f"{trained.info.rule}_step" in n):
            asked = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
            given = {n: sums.get(n, trained.number(n.removesuffix("_value"))) for n in asked}
            found = function(param, grad, state, **{n: float(value) for n, value in given.items()})
            sums |= {n: float(value) for n, value in (found or {}).items()}
        trained.compare(param, state)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", TRAINED)
def test_the_kernel_computes_what_the_class_does(name: str, target: Target, tmp_path: Path) -> None:
    require_compiler()
    gpu = require_standin() if target == "cuda" else None
    trained = Trained(name, target)
    kernel = Kernel(trained.info.code(target), tmp_path, gpu)
    totals = {total: own for plan in trained.info.alone.plans.values() for total, (_, own) in plan.sums.items()}
    for before in (1.0, 2.0):
        param, state = trained.param.detach().clone(), copies(trained.state)
        draw = trained.draw.get_state()
        grad = torch.randn(SHAPE, generator=trained.draw)
        trained.draw.set_state(draw)

        def number(name: str, found: Mapping[str, float]) -> float:
            return found.get(totals[name], 0.0) if name in totals else float(trained.number(name))

        kernel.step(param, grad, state, before, number)
        trained.compare(param, state)
