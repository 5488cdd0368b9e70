"""Muon and its kin beside the packages that have them: equations in float64, without their casts to bfloat16.

The equations are those of specs/, as the oracle reads them; that kernels compute them is tested in numerics.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from oracles.spec_oracle import SpecOracle
from support.catalogue import rows
from torch import Tensor, nn

SHAPES = ((12, 20), (20, 12), (9, 9))
STEPS = 4
DECAY = {"lr": 0.02, "weight_decay": 0.1}


@cache
def timm_folder() -> str | None:
    spec = importlib.util.find_spec("timm")
    return None if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations[0]


def timm_muon() -> Any:
    """Their class, of one module: the package needs torchvision."""
    folder = timm_folder()
    if folder is None:
        pytest.skip("timm is not installed")
    for name, path in (("timm", folder), ("timm.optim", f"{folder}/optim")):
        if name not in sys.modules:
            sys.modules[name] = made = ModuleType(name)
            made.__path__ = [path]
    return importlib.import_module("timm.optim.muon").Muon


def of_pytorch_optimizer(name: str) -> Any:
    return getattr(pytest.importorskip("pytorch_optimizer"), name)


ORIGINAL = {"ns_coefficients": "original", "nesterov": True}
CASES: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "timm": ("Muon", DECAY | {"adjust_lr_fn": "match_rms_adamw"}, timm_muon, DECAY | ORIGINAL),
    "timm, quintic": (
        "Muon",
        DECAY | {"adjust_lr_fn": "spectral", "ns_schedule": "quintic", "nesterov": False},
        timm_muon,
        DECAY | {"adjust_lr_fn": "rms_to_rms"},
    ),
    "timm's AdaMuon": (
        "AdaMuon",
        DECAY | {"eps": 1e-7},
        timm_muon,
        DECAY | ORIGINAL | {"algo": "adamuon", "betas": (0.9, 0.95), "eps": 1e-7},
    ),
    "pytorch_optimizer": ("Muon", DECAY, lambda: of_pytorch_optimizer("Muon"), DECAY | {"use_muon": True}),
    "pytorch_optimizer's NorMuon": (
        "NorMuon",
        DECAY,
        lambda: of_pytorch_optimizer("NorMuon"),
        DECAY | {"use_muon": True},
    ),
}


def numbers(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def in_float64(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Let the packages compute in float64 where they name bfloat16."""
    if "pytorch_optimizer" in case:  # it names the dtype in default arguments, which an import fixes
        matrix = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
        for made in vars(matrix).values():
            if isinstance(made, FunctionType) and torch.bfloat16 in (made.__defaults__ or ()):
                wide = tuple(torch.float64 if value is torch.bfloat16 else value for value in made.__defaults__)
                monkeypatch.setattr(made, "__defaults__", wide)
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self)
    monkeypatch.setattr(torch, "bfloat16", torch.float64)
    monkeypatch.delitem(sys.modules, "timm.optim.muon", raising=False)  # it names the dtype in a default argument


@pytest.mark.parametrize("case", CASES)
def test_the_equations_are_theirs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings, find, given = CASES[case]
    in_float64(monkeypatch, case)
    made = find()
    params = [nn.Parameter(x) for x in numbers(0)]
    given = dict(given)
    groups = [{"params": params, "use_muon": True}] if given.pop("use_muon", False) else params
    theirs = made(groups, **given)
    ours = SpecOracle(rows()[name], numbers(0), settings)
    for step in range(STEPS):
        for param, grad in zip(params, numbers(step + 1), strict=True):
            param.grad = grad.clone()
        theirs.step()
        ours.step(numbers(step + 1))
    assert_equal(params, ours)


def assert_equal(params: list[nn.Parameter], ours: SpecOracle) -> None:
    for param, found, start in zip(params, ours.params, numbers(0), strict=True):
        moved = np.abs(param.detach().numpy() - start.numpy()).max()
        assert np.abs(param.detach().numpy() - found).max() < 1e-9 * moved


def test_clipped_heads_are_those_of_pytorch_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and queries with rotary positions, of 4, 4 and 3 heads; and a matrix of no attention."""
    theirs_of = of_pytorch_optimizer("MuonClip")
    in_float64(monkeypatch, "pytorch_optimizer")
    shapes, heads = ((12, 20), (20, 12), (9, 9), (6, 8)), (4, 4, 3)

    def made(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    params = [nn.Parameter(x) for x in made(0)]
    groups = [
        {"params": [param], "use_muon": True, "attention_name": str(count), "qk_clip": role}
        for param, role, count in zip(params, ("query", "key", "query_rotary"), heads, strict=False)
    ]
    theirs = theirs_of([*groups, {"params": params[3:], "use_muon": True}], **DECAY, qk_clip_alpha=0.3)
    exponents = zip(made(0), (0.3, 0.7, 1.0, 1.0), strict=True)
    kinds = [SpecOracle(rows()["MuonClip"], [x], DECAY | {"qk_exponent": exponent}) for x, exponent in exponents]
    for step in range(STEPS):
        logits = {str(n): 60.0 * torch.arange(1, n + 1, dtype=torch.float64) + step for n in set(heads)}
        for param, grad in zip(params, made(step + 1), strict=True):
            param.grad = grad.clone()
        theirs.step(attention_max_logits=logits)
        for ours, grad, count in zip(kinds, made(step + 1), (*heads, 0), strict=True):
            if count:
                ours.give(0, "max_logits", logits[str(count)].repeat_interleave(len(grad) // count))
            ours.step([grad])
    for param, ours, start in zip(params, kinds, made(0), strict=True):
        moved = np.abs(param.detach().numpy() - start.numpy()).max()
        # Their logits are in float32.
        assert np.abs(param.detach().numpy() - ours.params[0]).max() < 1e-6 * moved
