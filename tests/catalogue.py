"""The public classes as the tests see them: the table of specs/variants.yaml, signatures, and which oracle each has."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from oracles import AdamOracle, LambOracle, LarsOracle, Oracle

SPECS = Path(__file__).parents[1] / "specs"
FULL_AXES = ("AdamW", "LAMB", "LARS")  # one class of each family, tested axis by axis in full

# What a settings dictionary may hold that is no rule's: oracles take these as codec, or not at all.
STORAGE = {"optim_bits", "block_wise", "min_8bit_size", "is_paged", "args"}


@dataclass(frozen=True)
class Row:
    """A class: its family, what it fixes."""

    name: str
    family: str
    bits: int | None
    paged: bool
    decoupled: bool
    block_wise: bool
    torch_only: bool

    def effective_bits(self, settings: Mapping[str, Any]) -> int:
        return self.bits or int(settings.get("optim_bits", 32))

    def codec(self, settings: Mapping[str, Any]) -> str:
        if self.effective_bits(settings) == 32:
            return "fp32"
        return "int8" if settings.get("block_wise", self.block_wise) else "int8_tensor"


@cache
def rows() -> dict[str, Row]:
    """Every class of the catalogue, from the table alone."""
    table = yaml.safe_load((SPECS / "variants.yaml").read_text())["variants"]
    return {
        name: Row(
            name=name,
            family=row["family"],
            bits=row.get("bits"),
            paged=row.get("paged", False),
            decoupled=row.get("set", {}).get("decoupled_weight_decay", True),
            block_wise=row.get("block_wise", True),
            torch_only=row.get("target") == "torch",
        )
        for name, row in table.items()
    }


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    return getattr(importlib.import_module("optgen_optim"), name)  # type: ignore[no-any-return]


def accepted(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a class, without `params`."""
    parameters = dict(inspect.signature(optimizer_class(name)).parameters)
    del parameters["params"]
    return parameters


def required(name: str) -> dict[str, Any]:
    """Arguments without which a class cannot be made."""
    needed = {key: 0.01 for key, argument in accepted(name).items() if argument.default is inspect.Parameter.empty}
    if rows()[name].family == "lars" and not rows()[name].torch_only:
        needed["momentum"] = 0.9
    return needed


def make_oracle(name: str, params: list[torch.Tensor], settings: Mapping[str, Any]) -> Oracle:
    """The oracle of a class with these (and its default) settings."""
    row = rows()[name]
    rule = {key: value for key, value in settings.items() if key not in STORAGE}
    common = {
        "param_dtype": params[0].dtype,
        "codec": row.codec(settings),
        "min_8bit_size": settings.get("min_8bit_size", 4096),
    }
    match row.family:
        case "adam":
            decay = {"weight_decay": 1e-2 if row.decoupled else 0.0, "decoupled": row.decoupled}
            return AdamOracle(params, **common, **{**decay, **rule})
        case "lamb":
            return LambOracle(params, **common, **rule)
        case "lars":
            return LarsOracle(params, **common, **rule)
    raise ValueError(f"no oracle for family {row.family}")
