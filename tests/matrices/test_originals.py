"""The formulas in float64 are those of the packages that the rules come from, where these are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrices.small import Rule, apollo, galore, galore_adafactor, is_turned, normal, soap

SHAPES = ((24, 40), (40, 24), (16, 16))
STEPS = 7
SIDES = ("std", "reverse_std", "right", "left")
PROJECTED = {"rank": 4, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std"}


def difference(make: Callable[[list[Any]], Any], rule: Rule, shapes: Any = SHAPES, steps: int = STEPS) -> float:
    """The greatest difference of an optimizer of float64 parameters to the formula, of all parameters."""
    generator = torch.Generator().manual_seed(0)
    drawn = {shape: torch.randn(1 + steps, *shape, generator=generator, dtype=torch.float64) for shape in shapes}
    params = [nn.Parameter(drawn[shape][0].clone()) for shape in shapes]
    opt = make(params)
    for step in range(1, 1 + steps):
        for param, shape in zip(params, shapes, strict=True):
            param.grad = drawn[shape][step].clone()
        opt.step()
    worst = 0.0
    for position, (param, shape) in enumerate(zip(params, shapes, strict=True)):
        values = drawn[shape].numpy()
        right = rule(values[0], list(values[1:]), position)
        worst = max(worst, float(np.abs(param.detach().numpy() - right).max()))
    return worst


@pytest.fixture
def side() -> list[str]:
    """The side that is projected, which a test may change: vectors of that have the signs of ours."""
    return ["std"]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch, side: list[str]) -> None:
    """Decompositions in float64, whose vectors have the signs of ours: both packages cast, and take any sign."""
    decompose = torch.linalg.svd

    def signed(x: Tensor, full_matrices: bool = False) -> Any:
        u, s, vh = decompose(x, full_matrices=full_matrices)
        wide = is_turned(tuple(x.shape), side[0])
        vectors = u.mT if wide else vh
        greatest = torch.take_along_dim(vectors, vectors.abs().argmax(1, keepdim=True), 1)
        signs = torch.where(greatest < 0, -1.0, 1.0)
        return u * signs.mT, s, vh * signs

    monkeypatch.setattr(torch.linalg, "svd", signed)
    monkeypatch.setattr(Tensor, "float", lambda self: self)


@pytest.mark.parametrize("proj_type", SIDES)
def test_galore(exact: None, side: list[str], proj_type: str) -> None:
    package = pytest.importorskip("galore_torch", exc_type=ImportError)
    side[0] = proj_type
    group = {**PROJECTED, "proj_type": proj_type}

    def make(params: list[Any]) -> Any:
        return package.GaLoreAdamW([{"params": params, **group}], weight_decay=0.1, no_deprecation_warning=True)

    assert difference(make, galore(rank=4, gap=3, weight_decay=0.1, proj_type=proj_type)) < 1e-14


@pytest.mark.parametrize("proj_type", SIDES)
@pytest.mark.parametrize("settings", [{}, {"beta1": 0.9}], ids=str)
def test_galore_adafactor(exact: None, side: list[str], settings: dict[str, Any], proj_type: str) -> None:
    package = pytest.importorskip("galore_torch", exc_type=ImportError)
    side[0] = proj_type
    group = {**PROJECTED, "proj_type": proj_type}

    def make(params: list[Any]) -> Any:
        return package.GaLoreAdafactor([{"params": params, **group}], weight_decay=0.1, **settings)

    rule = galore_adafactor(rank=4, gap=3, weight_decay=0.1, proj_type=proj_type, **settings)
    assert difference(make, rule) < 1e-14


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("proj", ["svd", "random"])
def test_apollo(exact: None, proj: str, scale_type: str, front: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("apollo_torch", exc_type=ImportError)
    module = pytest.importorskip("apollo_torch.random_projector", exc_type=ImportError)

    def drawn(shape: tuple[int, int], seed: int, **_: Any) -> Tensor:
        """Our numbers; a seed is a parameter's position, and that of the next draw follows 1000 after it."""
        position, number = (seed - 1) % 1000, (seed - 1) // 1000
        wide = shape[0] > shape[1]
        own = torch.from_numpy(normal(shape[::-1] if wide else shape, position, number))
        return own.mT if wide else own

    monkeypatch.setattr(module, "stable_randn", drawn)
    monkeypatch.setattr(module, "next_seed", lambda seed, adv=0: seed + 1000)
    group = {**PROJECTED, "proj": proj, "scale_type": scale_type, "scale": 4.0}

    def make(params: list[Any]) -> Any:
        return package.APOLLOAdamW([{"params": params, **group}], weight_decay=0.1, scale_front=front)

    rule = apollo(
        rank=4,
        gap=3,
        scale=4.0,
        weight_decay=0.1,
        random=proj == "random",
        channel=scale_type == "channel",
        front=front,
    )
    assert difference(make, rule) < 1e-13


@pytest.mark.parametrize("proj_type", SIDES[1:])
def test_apollo_on_other_sides(exact: None, side: list[str], proj_type: str) -> None:
    """With one factor for all, on matrices of the standard side too; for channels on another side it raises."""
    package = pytest.importorskip("apollo_torch", exc_type=ImportError)
    side[0] = proj_type
    group = {**PROJECTED, "proj_type": proj_type, "proj": "svd", "scale_type": "tensor", "scale": 4.0}

    def make(params: list[Any]) -> Any:
        return package.APOLLOAdamW([{"params": params, **group}], weight_decay=0.1)

    rule = apollo(rank=4, gap=3, scale=4.0, weight_decay=0.1, random=False, channel=False, proj_type=proj_type)
    assert difference(make, rule) < 1e-13


def test_soap() -> None:
    """On square matrices: of others the first basis of the longer side is arbitrary. Its factors are in float32."""
    package = pytest.importorskip("pytorch_optimizer")

    def make(params: list[Any]) -> Any:
        return package.SOAP(params, precondition_frequency=2)

    assert difference(make, soap(frequency=2), ((16, 16), (9, 9))) < 1e-6
