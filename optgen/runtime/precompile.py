"""Compiles the kernels that most steps use, before anyone asks for them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from optgen.codecs import Codec
from optgen.runtime.block import Settings
from optgen.runtime.building.cache import shared_library
from optgen.runtime.building.compilers import Compiler
from optgen.runtime.building.cubins import build_cubin, store_cubin
from optgen.runtime.building.headers import parse_headers
from optgen.runtime.building.nvcc import Nvcc
from optgen.runtime.building.programs import end_all
from optgen.runtime.core.bucket import Bucket
from optgen.runtime.engines.cpu_codecs import codec_library, decoded_beside
from optgen.runtime.engines.kernel_engine import defines
from optgen.runtime.optimizer import Optimizer
from optgen.runtime.rule import Rule
from optgen.runtime.settings.param_groups import DTYPES
from optgen.runtime.settings.storage import choose_codecs, tensorwise

DIMENSIONS = range(5)  # of a parameter: rules treat a matrix, say, otherwise than a vector
STEPS = 61  # numbers of steps, for what happens on some of them only
ENDING_SECONDS = 0.05  # between looks at what still runs once one has failed
STARTS = {"lr": 1e-3, "momentum": 0.9}  # for classes that must be told


@dataclass(frozen=True)
class Specialization:
    """Specialization of a kernel: a rule, and the macros with which it is compiled.

    Attributes:
        beside: The codecs of states that are decoded beside it on the cpu target, each with whether it has a sign.
    """

    rule: Rule
    macros: tuple[tuple[str, str], ...]
    beside: tuple[tuple[Codec, bool], ...] = ()

    @property
    def defines(self) -> dict[str, str]:
        """The macros by name."""
        return dict(self.macros)


def specializations(
    classes: Mapping[str, type[Optimizer]], target: str, dtypes: Iterable[torch.dtype]
) -> list[Specialization]:
    """List the kernels that steps of all classes under their default settings take on a target, each once.

    That is for gradients of the parameters' dtype and for parameters at and below the size from which states have 8
    bits; on GPUs with and without what a gradient scaler and the capture of steps in a CUDA graph add.
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Specialization] = {}
    for optimizer_class in classes.values():
        if optimizer_class.fixed.get("target", target) != target:
            continue
        rule = optimizer_class.rule
        for settings, dtype in product(_settings(optimizer_class, target), dtypes):
            for bucket in _buckets(rule, settings, target, dtype):
                macros = tuple(sorted(defines(rule, bucket).items()))
                beside = tuple(decoded_beside(rule, bucket.codecs))
                found.setdefault((rule.name, macros), Specialization(rule, macros, beside))
    return list(found.values())


def _settings(optimizer_class: Callable[..., Optimizer], target: str) -> Iterator[Settings]:
    """The default settings of a class, with and without what a run adds to them."""
    arguments = inspect.signature(optimizer_class).parameters
    untold = (inspect.Parameter.empty, 0.0)
    given = {name: value for name, value in STARTS.items() if name in arguments and arguments[name].default in untold}
    rule: Rule = optimizer_class.rule  # type: ignore[attr-defined]
    optimizer = optimizer_class([torch.zeros((1,) * (rule.ndim or 1), requires_grad=True)], **given)
    base: Settings = optimizer.defaults
    runs: list[dict[str, Any]] = []
    if target == "cuda":
        runs.append(dict.fromkeys(optimizer.rule.inputs, 1.0))
        runs.append({"capturable": True} if "capturable" in base else {})
    # Every subset of what runs add: nothing, a gradient scaler, capture, both.
    for chosen in product((False, True), repeat=len(runs)):
        added: dict[str, Any] = {}
        for run, taken in zip(runs, chosen, strict=True):
            added.update(run if taken else {})
        yield {**base, **added}


def _buckets(rule: Rule, settings: Settings, target: str, dtype: torch.dtype) -> Iterator[Bucket]:
    """A bucket without members for every number of dimensions, on both sides of `min_8bit_size`."""
    sizes = {1, max(int(settings.get("min_8bit_size", 1)), 1)}
    for numel, dimensions in product(sorted(sizes), DIMENSIONS if rule.ndim is None else (rule.ndim,)):
        if dimensions == 0 and numel > 1:
            continue
        codecs = choose_codecs(rule, settings, torch.Size((numel, *(1,) * (dimensions - 1)) if dimensions else ()))
        steps = range(STEPS if rule.on_step is not None else 1)
        scaled = tensorwise(rule, codecs)
        for flags in dict.fromkeys(rule.flags(settings, dimensions, numel, 0, scaled, step) for step in steps):
            yield Bucket(target, dtype, dtype, torch.device("cpu"), flags, codecs)


def classes_of(package: str, directory: Path) -> dict[str, type[Optimizer]]:
    """The classes of a generated package.

    Args:
        package: The package's name.
        directory: The package's folder.
    """
    directory = directory.resolve()
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    for name in before:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        package, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    try:
        spec.loader.exec_module(module)
        return dict(module.CLASSES)  # imports all, while the package has this name
    finally:
        # Whoever has imported another package of this name keeps it.
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(before)


def compile_libraries(package: str, directory: Path, compiler: Compiler) -> int:
    """Compile every class of a generated package for the cpu target, for float32 and bfloat16 parameters.

    Returns:
        How many libraries that makes.

    Raises:
        CompileError: when a kernel cannot be built.
    """
    wanted = specializations(classes_of(package, directory), "cpu", (torch.float32, torch.bfloat16))

    parse_headers(compiler)
    builds = [partial(shared_library, w.rule.source, w.defines, compiler, w.rule.functions) for w in wanted]
    beside = dict.fromkeys(codec for w in wanted for codec in w.beside)
    builds += [partial(codec_library, codec, signed, compiler) for codec, signed in beside]
    return _at_once(lambda build: build(), builds)


def compile_cubins(package: str, directory: Path, archs: Sequence[str], nvcc: Nvcc) -> int:
    """Compile every class of a generated package for GPUs, into the folder `cubins` of the package.

    Args:
        archs: Architectures that the nvcc builds for.

    Returns:
        How many cubins that makes.

    Raises:
        CompileError: when a kernel cannot be built.
        OSError: when one cannot be written.
    """
    wanted = specializations(classes_of(package, directory), "cuda", DTYPES)

    def build(item: tuple[Specialization, str]) -> None:
        specialization, arch = item
        source, macros = specialization.rule.cuda_source, specialization.defines
        store_cubin(source, macros, arch, build_cubin(source, macros, arch, nvcc))

    return _at_once(build, list(product(wanted, archs)))


def _at_once(build: Callable[[Any], None], items: Sequence[Any]) -> int:
    """Run a compiler on every processor until all is built or one fails; return how many items there were."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(max_workers=processors or 1) as pool:
        running = [pool.submit(build, item) for item in items]
        try:
            for done in running:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(item.done() for item in running):  # a thread may be about to start one more
                end_all()
                time.sleep(ENDING_SECONDS)
            raise
    return len(items)
