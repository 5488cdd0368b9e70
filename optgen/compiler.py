"""The pipeline: load, parse, check, schedule, render.

Input: paths of specs. Output: a `Package`, texts by path, with what is known of each class.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optgen import __version__
from optgen.abi import ABI, series
from optgen.backends.base import Backend, Rendering
from optgen.backends.c_block import block_text
from optgen.backends.c_rule import RuleBackend
from optgen.backends.c_stages import CommonStages
from optgen.backends.cpu import CpuBackend
from optgen.backends.cuda import CudaBackend
from optgen.backends.layout import import_lines, import_order, listing_order
from optgen.backends.python import PythonBackend
from optgen.backends.python_classes import ClassSpec
from optgen.backends.python_shared import SharedParts
from optgen.backends.quoting import c_comment, python_comment
from optgen.backends.torch import CommonTorchStages, TorchBackend
from optgen.diagnostics import Diagnostic, Reporter
from optgen.emit.environment import render
from optgen.emit.writer import MARK
from optgen.explanation import ClassInfo
from optgen.ir.formula import FormulaTooLargeError
from optgen.ir.functions import Function, parse_functions
from optgen.ir.nodes import Program
from optgen.ir.refusals import Refusal, build_refusal
from optgen.ir.rule import WholeRule, build_rule, readers
from optgen.ir.usage import check_use
from optgen.log import logger
from optgen.passes.pipeline import run_passes
from optgen.prose import Prose
from optgen.schedule.plan import Plan
from optgen.schedule.planner import beyond, plan
from optgen.spec.composition import load_on
from optgen.spec.loader import LoadedSpec, SpecSet, load_specs

MAX_PASSES = 32
LOG = logger(__name__)


@dataclass(frozen=True)
class Common:
    """Parts that the rules of a package share: of their classes, and stages for each kind of target."""

    classes: SharedParts
    kernels: CommonStages
    torch: CommonTorchStages

    def renderings(self, rule: WholeRule) -> tuple[Rendering, ...]:
        """The files of it.

        Args:
            rule: Any rule of the package.
        """
        return (self.classes.render(), *self.kernels.renderings(rule), *self.torch.renderings())


@dataclass(frozen=True)
class PlannedRule:
    """A rule with its plans and classes: all that is rendered for it."""

    rule: WholeRule
    plans: Mapping[str, Plan]
    classes: tuple[ClassSpec, ...]

    def renderings(self, common: Common) -> tuple[Rendering, ...]:
        """The rule's files, one a backend."""
        python, torch = PythonBackend(self.classes, common.classes), TorchBackend(common.torch)
        backends: tuple[Backend, ...] = (python, torch, RuleBackend(common.kernels), CpuBackend(), CudaBackend())
        return tuple(backend.render(self.rule, self.plans) for backend in backends)


@dataclass(frozen=True)
class Package:
    """A generated package.

    Attributes:
        files: Texts by path, relative to the package's directory.
        classes: The public classes in the order of the table.
        warnings: Warnings about the specs.
    """

    name: str | None
    files: Mapping[str, str]
    classes: tuple[ClassInfo, ...]
    warnings: tuple[Diagnostic, ...]


def compile_specs(
    paths: Sequence[Path], package: str | None, onto: str | Path | None = None, of: str | None = None
) -> Package:
    """Compile specs to a package.

    Args:
        paths: Spec files, and folders of them; with `onto` files of stages, in their order.
        package: The package's name; None if they belong to none: there is no `__init__.py` then, and no module of a
            class.
        onto: What the stages are put on: a rule or class of optgen's own specs, or the path of specs.
        of: A class whose rule alone is compiled; there is none if no class has the name.

    Raises:
        SpecError: all mistakes of all files at once.
        UserError: optgen has no rule and no class of that name.
    """
    reporter, begun = Reporter(), time.perf_counter()
    rules = check_specs(paths, reporter, onto, of)
    common = common_parts(rules)
    renderings = {planned.rule.name: planned.renderings(common) for planned in rules}
    files = {r.path: _emit(planned.rule.path, r) for planned in rules for r in renderings[planned.rule.name]}
    if rules:
        rule = rules[0].rule
        files |= {r.path: _emit(rule.shared_path, r) for r in common.renderings(rule)}
    infos = tuple(
        ClassInfo(
            planned.rule,
            planned.plans,
            spec,
            None if package is None else f"{package}.{planned.rule.name}",
            tuple(r.path for r in renderings[planned.rule.name]),
        )
        for planned in rules
        for spec in planned.classes
    )
    files["py.typed"] = ""
    if package is not None:
        files["__init__.py"] = _package_module(package, rules)
    LOG.info("compiled %s in %.1f s", ", ".join(planned.rule.name for planned in rules), time.perf_counter() - begun)
    return Package(package, dict(sorted(files.items())), infos, reporter.diagnostics)


def check_specs(
    paths: Sequence[Path], reporter: Reporter, onto: str | Path | None = None, of: str | None = None
) -> tuple[PlannedRule, ...]:
    """Load, parse, check and schedule specs, or stages put `onto` some; warnings are left in `reporter`.

    With `of`, the name of a class, of all rules only its own is compiled; there is none if no class has the name.

    Raises:
        SpecError: all mistakes of all files at once.
        UserError: optgen has no rule and no class that `onto` names.
    """
    specs = load_specs(paths, reporter, partial=True) if onto is None else load_on(paths, onto, reporter)
    functions: dict[str, Function] = {}
    for text in specs.functions:
        functions |= parse_functions(text, functions, reporter)
    asked = specs.rules.keys() if of is None else {one.rule for name, one in specs.classes.items() if name == of}
    rules = []
    for name, loaded in specs.rules.items():
        if name not in asked:
            continue
        try:
            rule = build_rule(loaded, specs.shared, functions, reporter)
            if rule is None:
                continue
            if not any(map(reporter.errors_in, loaded.paths)):
                check_use(rule, loaded, specs.shared, reporter)
            programs = {n: run_passes(b.program, b.active, rule.guards, b.exchanges) for n, b in rule.blocks.items()}
            if not _are_feasible(programs.values(), loaded, reporter):
                continue
            plans = {n: plan(program) for n, program in programs.items()}
        except FormulaTooLargeError:
            if not any(map(reporter.errors_in, loaded.paths)):  # else they may be why, as too many states
                message, where = "the conditions of this rule have too many cases", loaded.locate("blocks", "step")
                reporter.error("too-many-cases", message, where, "test fewer settings together")
            continue
        rules.append(PlannedRule(rule, plans, _classes(specs, name, rule, reporter)))
    reporter.raise_if_any()
    return tuple(rules)


def _are_feasible(programs: Iterable[Program], loaded: LoadedSpec, reporter: Reporter) -> bool:
    """Check that every block takes few enough passes; each of them repeats those before."""
    late = [let for program in programs if (let := beyond(program, MAX_PASSES - 1)) is not None]
    for let in late:
        message = f"this waits for more than {MAX_PASSES - 1} passes over memory, one for each reduction of another"
        where = let.location or loaded.locate("blocks", "step")
        reporter.error("too-many-passes", message, where, f"a step is at most {MAX_PASSES} passes")
    return not late


def _classes(specs: SpecSet, name: str, rule: WholeRule, reporter: Reporter) -> tuple[ClassSpec, ...]:
    settings = readers(rule.hypers, rule.options, rule.storage)
    result = []
    for class_name, entry in specs.classes.items():
        if entry.rule != name:
            continue
        refusals: list[Refusal] = []
        for placed in specs.refusals_of(class_name):
            refusal = build_refusal(placed.refused, placed.when, settings, reporter)
            if refusal is not None:
                refusals.append(replace(refusal, name=placed.name))
        result.append(ClassSpec(class_name, entry, tuple(refusals)))
    return tuple(result)


def common_parts(rules: Sequence[PlannedRule]) -> Common:
    """Collect the parts that the rules of a package share."""
    refusals = {one.rule.name: [refusal for spec in one.classes for refusal in spec.refusals] for one in rules}
    plans = [(planned.rule, name, plan) for planned in rules for name, plan in planned.plans.items()]
    return Common(
        SharedParts([planned.rule for planned in rules], refusals),
        CommonStages(block_text(*block) for block in plans),
        CommonTorchStages((name, plan) for _, name, plan in plans),
    )


def _emit(path: Prose, rendering: Rendering) -> str:
    is_python = rendering.path.endswith(".py")
    comment = python_comment if is_python else c_comment
    head = comment(MARK + " from " + path + "; change that file and run `optgen build`.")
    text = f"{head}\n{render(rendering.template, rendering.context)}"
    if is_python:
        ast.parse(text.encode())  # as bytes: a file may name its encoding
    return text


def _package_module(package: str, rules: Sequence[PlannedRule]) -> str:
    modules = sorted(
        (planned.rule.name, sorted((spec.name for spec in planned.classes), key=import_order)) for planned in rules
    )
    classes = [(name, module) for module, names in modules for name in names]
    text = render(
        "python/package.py.j2",
        {
            "abi": ABI,
            "version": series(__version__),
            "title": f"Optimizers of {package}: one class a rule and precision.",
            "imports": [line for module, names in modules for line in import_lines(f".{module}", names, 4)],
            "classes": classes,
            "exports": sorted(
                [
                    *dict(classes),
                    *("CLASSES", "CombinedOptimizer", "GlobalOptimManager", "StoredAnewWarning", "create", "for_model"),
                ],
                key=listing_order,
            ),
        },
    )
    return f"{python_comment(f'{MARK} from the specs; change them and run `optgen build`.')}\n{text}"
