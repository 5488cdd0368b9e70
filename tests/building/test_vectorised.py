"""g++ vectorises the loop over elements of every pass that a step takes: one it gives up on runs several times longer.

What the compiler says of its own work is looked at, so no time is measured. One class stands for each rule here, in 32
and in 8 bits; most are left to `make test-all`.
"""

from __future__ import annotations

import inspect
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.asked import ask
from support.headers import copy_headers

from optgen.paths import include_dir
from optgen.runtime.building.compilers import Compiler, compiler_candidates
from optgen.runtime.building.entries import words
from optgen.runtime.engines.kernel_engine import defines
from optgen.runtime.precompile import STARTS

LOOP = "#pragma omp simd"
VECTORISED = re.compile(r":(\d+):\d+: optimized: loop vectorized using (\d+) byte vectors")
KEPT = {("adafactor", 32), ("adam", 8), ("adan", 8), ("adopt", 8), ("rprop", 32)}  # loops that took some doing


def compiler() -> Compiler | None:
    """g++ on a processor with wide registers, if there is one."""
    found = (candidate.compiler for candidate in compiler_candidates())
    return next((each for each in found if each is not None and each.family == "gcc"), None)


def cases() -> Iterator[Any]:
    seen = set()
    for name, optimizer_class in optgen_optim.CLASSES.items():
        if optimizer_class.fixed.get("target", "cpu") == "cpu" and (rule := optimizer_class.rule.name) not in seen:
            seen.add(rule)
            for bits in (32, 8):
                marks = () if (rule, bits) in KEPT else pytest.mark.full
                yield pytest.param(name, bits, id=f"{name}-{bits}", marks=marks)


def stepped(name: str, bits: int) -> Any:
    """An optimizer of the class after a step; skipped if no state of it takes so few bits."""
    optimizer_class = optgen_optim.CLASSES[name]
    param = torch.zeros(64, 512, requires_grad=True)
    param.grad = torch.ones_like(param)
    arguments = inspect.signature(optimizer_class).parameters
    settings = {k: v for k, v in STARTS.items() if k in arguments and arguments[k].default in (arguments[k].empty, 0.0)}
    try:
        storage = {"optim_bits": bits} if bits != 32 else {}
        optimizer = optimizer_class([param], **settings, **storage)
    except (TypeError, ValueError) as refusal:
        pytest.skip(str(refusal))
    optimizer.step()
    assert optimizer.engines() == {"cpu": 1}
    return optimizer


def alone(source: Path, function: str, folder: Path) -> Path:
    """The source with one pass of all: what the compiler says of a loop is then said of that pass."""
    lines = source.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("OPTGEN_EXPORT") or f" {function}(" in line]
    assert sum(line.startswith("OPTGEN_EXPORT") for line in kept) == 1
    copy = folder / f"{function}.cpp"
    copy.write_text("\n".join(kept), encoding="utf-8")
    copy_headers(source, folder)
    return copy


def loop(source: Path, block: str) -> range:
    """The lines of a block's loop over elements."""
    lines = source.read_text(encoding="utf-8").splitlines()
    start = next(i for i in range(lines.index(f"namespace {block} {{"), len(lines)) if "const auto element" in lines[i])
    pragma = next(i for i in range(start, len(lines)) if lines[i].startswith(LOOP))
    first = next(i for i in range(pragma, len(lines)) if lines[i].lstrip().startswith("for ("))
    indent = len(lines[first]) - len(lines[first].lstrip())
    last = next(i for i in range(first, len(lines)) if lines[i] == " " * indent + "}")
    return range(start + 1, last + 2)  # what the loop calls is a part of it


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no wide registers known")
@pytest.mark.parametrize(("name", "bits"), list(cases()))
def test_every_loop_over_elements_is_vectorised(name: str, bits: int, tmp_path: Path) -> None:
    gcc = compiler()
    if gcc is None:
        pytest.skip("no g++")
    engine = stepped(name, bits)._kept.of_all[0].engines[0]
    rule, bucket = engine.rule, engine.bucket
    for item in rule.blocks["step"].passes:
        if not rule.blocks["step"].runs(item, bucket.flags):
            continue
        source, output = alone(rule.source, item.function, tmp_path), tmp_path / "kernel.so"
        command = [gcc.path, *gcc.arguments, *gcc.flags, f"-I{include_dir()}", *words(defines(rule, bucket))]
        command += [str(source), "-fopt-info-vec-optimized", "-o", str(output)]
        lines = [line for line in ask(command, source, output).splitlines() if line.startswith(str(source))]
        vectorised = {int(match[1]) for line in lines for match in VECTORISED.finditer(line)}
        assert vectorised.intersection(loop(source, "step")), item.function
