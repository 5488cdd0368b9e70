"""Random rules on every target against the interpreted equations: numerics/programs.py says what is written.

`OPTGEN_PROGRAMS=5000 pytest tests/numerics/test_random_programs.py` tries as many on each target. A rule that fails is
shown with its settings; its number gives it again.
"""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracles.declared import Row, load_on, load_spec
from oracles.spec_oracle import SpecOracle

from numerics.harness import Duel, targeted
from numerics.programs import STEPS, Case, Rule, case_of, rule_of, stage_of
from optgen.compiler import check_specs, compile_specs
from optgen.diagnostics import Reporter, SpecError
from optgen.emit.writer import write

ASKED = int(os.environ.get("OPTGEN_PROGRAMS", "0"))
COUNTS = {"torch": ASKED or 70, "cpu": ASKED or 25, "cuda": ASKED or 4}
FIRST = {"torch": 0, "cpu": 3000, "cuda": 4000}  # other rules on each target
TOGETHER = {"torch": 10, "cpu": 5, "cuda": 2}  # compiled as one package
BATCHES = [
    pytest.param(target, range(first, min(first + TOGETHER[target], FIRST[target] + count)), id=f"{target}-{first}")
    for target, count in COUNTS.items()
    for first in range(FIRST[target], FIRST[target] + count, TOGETHER[target])
]
SHARE = 0.8  # of numbers whose bound is below a thousandth of them: bounds that admit everything would test nothing


def class_name(rule: Rule) -> str:
    return "".join(part.capitalize() for part in rule.name.split("_"))


def tried(rule: Rule, row: Row, case: Case, cls: type[torch.optim.Optimizer], target: str, seed: int) -> Duel:
    """Steps and methods of a rule, each held against the oracle."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    params = [torch.nn.Parameter(draw(shape, case.dtype)) for shape in case.shapes]
    opt = targeted(cls, params, target, **case.settings)
    oracle = SpecOracle(row, params, case.settings, [case.dtype] * len(params))
    it = Duel(params, opt, oracle, [str(shape) for shape in case.shapes], settled=False)
    for t in range(1, STEPS + 1):
        grads: list[torch.Tensor | None] = [draw(shape, case.grad_dtype) for shape in case.shapes]
        if t == 2 and case.missing is not None:
            grads[case.missing] = None
        it.step(grads)
        it.check_group()
        for name in rule.methods:
            it.call(name, grads)
            it.check_group()
    return it


def package(paths: list[Path], name: str, folder: Path, onto: Path | None = None) -> ModuleType:
    """The package of these rules, or of a rule with stages on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # much of what is written serves nothing
        write(compile_specs(paths, name, onto), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module(name)


def has_too_many_cases(path: Path, onto: Path | None = None) -> bool:
    try:
        check_specs([path], Reporter(), onto)
    except SpecError as error:
        return "error[too-many-cases]" in str(error)
    return False


def tight(it: Duel) -> tuple[int, int]:
    """Number of an oracle's numbers that are bounded by a thousandth of themselves, and of all."""
    assert isinstance(it.oracle, SpecOracle)
    balls = [*it.oracle.balls, *(ball for states in it.oracle.state_balls for ball in states.values())]
    small = sum(int((ball.rad <= 1e-3 * np.abs(ball.mid) + 1e-5).sum()) for ball in balls)
    return small, sum(ball.mid.size for ball in balls)


@pytest.mark.parametrize(("target", "seeds"), BATCHES, indirect=["target"])
def test_rules(target: str, seeds: range, tmp_path: Path) -> None:
    rules = {seed: rule_of(seed) for seed in seeds}
    paths = {seed: tmp_path / f"{rule.name}.yaml" for seed, rule in rules.items()}
    for seed, path in paths.items():
        path.write_text(rules[seed].text)
    # One in a hundred tests more settings at once than a plan can.
    rules = {seed: rule for seed, rule in rules.items() if not has_too_many_cases(paths[seed])}
    module = package([paths[seed] for seed in rules], f"random_{target}_{seeds.start}", tmp_path)
    bounded, whole = 0, 0
    for seed, rule in rules.items():
        row = load_spec(paths[seed])[class_name(rule)]
        case = case_of(seed, row, most=5 if target == "torch" else 2)
        try:
            it = tried(rule, row, case, getattr(module, class_name(rule)), target, seed)
        except Exception as error:
            raise AssertionError(f"rule {seed} on {target}: {error}\n{case}\n{rule.text}") from error
        bounded, whole = (a + b for a, b in zip((bounded, whole), tight(it), strict=True))
    assert len(rules) < TOGETHER["torch"] or bounded >= SHARE * whole


OF_STAGES = {"torch": range(8), "cpu": range(3000, 3003), "cuda": range(4000, 4001)}


@pytest.mark.parametrize(
    ("target", "seed"),
    [pytest.param(target, seed, id=f"{target}-{seed}") for target, seeds in OF_STAGES.items() for seed in seeds],
    indirect=["target"],
)
def test_stages_on_rules(target: str, seed: int, tmp_path: Path) -> None:
    """A random stage around a random rule."""
    rule = rule_of(seed)
    stage = stage_of(seed, "  apply: |" in rule.text)
    paths = [tmp_path / f"{one.name}.yaml" for one in (rule, stage)]
    for path, one in zip(paths, (rule, stage), strict=True):
        path.write_text(one.text)
    if has_too_many_cases(paths[1], paths[0]):
        pytest.skip("more settings are tested at once than a plan can")
    module = package([paths[1]], f"staged_{target}_{seed}", tmp_path, paths[0])
    (name, row), *_ = load_on(paths[0], [paths[1]]).items()
    case = case_of(seed, row, most=5 if target == "torch" else 2)
    try:
        tried(rule, row, case, getattr(module, name), target, seed)
    except Exception as error:
        raise AssertionError(f"rule {seed} on {target}: {error}\n{case}\n{rule.text}\n{stage.text}") from error
