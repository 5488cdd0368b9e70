"""Contenders of a benchmark: generated classes, with the memory traffic that a step of each needs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optgen.bench.cases import Case, Shape
from optgen.bench.driving import (
    NEEDED,
    CannotBeMadeError,
    Made,
    arguments,
    begin_training,
    bits_of,
    starting_settings,
)
from optgen.compiler import compile_specs
from optgen.diagnostics import suggest
from optgen.errors import UserError
from optgen.explanation import ClassInfo
from optgen.package_name import STOCK_PACKAGE
from optgen.paths import specs_dir
from optgen.schedule.plan import Plan
from optgen.schedule.traffic import Setting, state_bytes, traffic

SETTINGS: Mapping[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
PerElement = Callable[[Shape, str], float | None]


def unknown(_: Shape, __: str) -> float | None:
    """Traffic of an optimizer of which none is known: None."""
    return None


@dataclass(frozen=True)
class Contender:
    """An optimizer to measure.

    Attributes:
        make: Builds it.
        traffic: Bytes per parameter that a step must move for a tensor of a shape and dtype.
        capturable: Builds one whose steps a CUDA graph can record, if there is one.
        states: Bytes per parameter that it keeps for a tensor of a shape and dtype.
        scratch: Memory that a step makes besides, as a share of the bytes of all parameters.
    """

    name: str
    make: Make
    traffic: PerElement
    ours: bool = False
    capturable: Make | None = None
    states: PerElement = unknown
    scratch: float = 0.0

    def bytes_moved(self, case: Case) -> float | None:
        """The bytes that one step of `case` must move, or None if that is not known."""
        return _total(self.traffic, case)

    def bytes_kept(self, case: Case) -> float | None:
        """The bytes of states that `case` needs, or None if that is not known."""
        return _total(self.states, case)


def _total(each: PerElement, case: Case) -> float | None:
    total = 0.0
    for shape in case.shapes:
        one = each(shape, case.dtype)
        if one is None:
            return None
        total += one * math.prod(shape)
    return total


@dataclass(frozen=True)
class Catalogue:
    """The classes of a generated package, and what the compiler knows of each."""

    made: Mapping[str, Made]
    infos: Mapping[str, ClassInfo]


@cache
def stock_classes() -> tuple[ClassInfo, ...]:
    """Classes that come with optgen as the compiler describes them, compiled once a process."""
    return compile_specs([specs_dir()], STOCK_PACKAGE).classes


def catalogue(specs: Sequence[Path] = ()) -> Catalogue:
    """The classes of some specs, by default those that come with optgen.

    Raises:
        SpecError: mistakes in the specs.
        UserError: the stock package is not there.
    """
    compiled = compile_specs(specs, STOCK_PACKAGE).classes if specs else stock_classes()
    infos = {info.name: info for info in compiled}
    if specs:
        from optgen.loading import load

        return Catalogue(load(*specs).CLASSES, infos)
    try:
        package = importlib.import_module(STOCK_PACKAGE)
    except ImportError as error:
        raise UserError(
            f"{STOCK_PACKAGE} cannot be imported ({error}): run `optgen build specs/` in a checkout"
        ) from error
    return Catalogue(package.CLASSES, infos)


@dataclass(frozen=True)
class Wanted:
    """A class to measure with its states in so many bits, and the settings that it is made with."""

    info: ClassInfo
    made: Made
    bits: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name in the table; it has the bits where they are not the class's usual ones."""
        return self.info.name if self.bits == self.info.bits else f"{self.info.name} in {self.bits} bits"

    @property
    def base(self) -> str:
        """Name of the class in a library without classes for bits: `PagedAdamW8bit` is `AdamW`."""
        return self.info.name.removeprefix("Paged").removesuffix("32bit").removesuffix("8bit")

    @property
    def public_name(self) -> str:
        """Name in a library that has a class for these bits."""
        return self.info.name if self.bits == self.info.bits else f"{self.base}{self.bits}bit"

    def bytes_of(self, measure: Callable[[Plan, Setting], float], bits: int | None = None) -> PerElement:
        """Bytes per parameter of a step, or of states, from the plan; in other bits, if they are given."""

        @lru_cache(maxsize=4096)
        def each(shape: Shape, dtype: str) -> float:
            setting = setting_for(self.info, bits or self.bits, self.settings, shape, dtype)
            return measure(self.info.plans["step"], setting)

        return each


def wanted(known: Catalogue, names: Sequence[str], bits: Sequence[int] = ()) -> list[Wanted]:
    """Classes by name, each in its own bits or in all of those that are given.

    Raises:
        UserError: if the class does not exist, or cannot be made with these settings.
    """
    found = []
    for name in dict.fromkeys(names):
        if name not in known.infos or name not in known.made:
            hint = suggest(name, known.infos) or f"there are {', '.join(known.infos)}"
            raise UserError(f"there is no class `{name}`: {hint}")
        info, made = known.infos[name], known.made[name]
        try:
            offered = bits_of(made)
            for choice in bits or (info.bits,):
                if choice not in offered:
                    shown = ", ".join(str(one) for one in offered)
                    raise UserError(f"{name} stores its states in {shown} bits, not in {choice}")
                found.append(Wanted(info, made, choice, settings_of(made, choice)))
        except CannotBeMadeError as error:
            raise UserError(str(error)) from error
    return found


def settings_of(made: Made, bits: int) -> dict[str, Any]:
    """Settings that a class is measured with: those of SETTINGS that it takes, and those that its rule requires.

    Raises:
        CannotBeMadeError: nothing that is known makes it.
    """
    known = arguments(made)
    usual = {**SETTINGS, **NEEDED.get(made.rule.name, {})}
    if "optim_bits" not in known:
        bits = made.bits if made.bits is not None else 32
    try:
        settings = starting_settings(made, bits, **{name: value for name, value in usual.items() if name in known})
    except CannotBeMadeError:
        settings = starting_settings(made, bits)
    return settings


def our_contender(wanted: Wanted) -> Contender:
    """A generated class as something to measure."""

    def maker(**more: Any) -> Make:
        def make(params: list[Tensor]) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = wanted.made(params, **wanted.settings, **more)
            begin_training(optimizer)
            return optimizer

        return make

    return Contender(
        wanted.name,
        maker(),
        wanted.bytes_of(traffic),
        ours=True,
        capturable=maker(capturable=True) if "capturable" in arguments(wanted.made) else None,
        states=wanted.bytes_of(state_bytes),
    )


def setting_for(info: ClassInfo, bits: int, settings: Mapping[str, Any], shape: Shape, dtype: str) -> Setting:
    """Setting of a class for one tensor: small ones keep 32-bit states, and a rule may depend on the number of
    dimensions."""
    numel = math.prod(shape)
    least = info.whole_rule.storage.get("min_8bit_size")
    if bits < 16 and least is not None and numel < int(str(least.default)):
        bits = 32
    found = info.stored_in(bits).given(settings).setting
    facts = {"ndim": len(shape), "numel": numel, "index": 0}
    guards = {
        name: guard.holds(facts[guard.subject])
        for name, guard in info.whole_rule.guards.guards.items()
        if guard.about == "fact"
    }
    return replace(found, guards={**found.guards, **guards}, param=dtype, grad=dtype)
