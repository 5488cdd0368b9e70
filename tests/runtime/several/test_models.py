"""for_model: what is a hidden matrix follows from modules and shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import for_model
from torch import nn

import optgen
from runtime.several.models import make_model, train

ROOT = Path(__file__).parents[3]
MUON = ROOT / "specs" / "muon.yaml"
LAYERS = [f"layers.{i}.weight" for i in range(3)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Muon and Adam."""
    folder = tmp_path_factory.mktemp("specs")
    for path in (MUON, *(ROOT / "specs" / f"{name}.yaml" for name in ("adam", "shared", "vocabulary", "functions"))):
        shutil.copy(path, folder)
    return optgen.load(folder)


def matrices(model: nn.Module, **choice: Any) -> list[str]:
    """Names of the parameters that the rule of matrices has."""
    opt = for_model(model, "lion", show=False, **choice)
    found: list[str] = opt.param_groups[0]["param_names"]
    everything = sum(len(group["params"]) for group in opt.param_groups)
    assert everything == sum(param.requires_grad for param in model.parameters())
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_heads(tied: bool) -> None:
    assert matrices(make_model(tied)) == LAYERS


def test_a_head_that_is_not_the_last() -> None:
    model = make_model()
    wrapped = nn.ModuleList([model, nn.Identity()])  # its head is known by its shape
    assert matrices(wrapped) == [f"0.{name}" for name in LAYERS]


def test_layers_of_the_shape_of_an_embedding() -> None:
    model = nn.ModuleDict({"position": nn.Embedding(8, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))})
    assert matrices(model) == ["layers.0.weight", "layers.1.weight"]


def test_a_perceptron() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    assert matrices(model) == ["0.weight", "2.weight"]


def test_norms_of_matrices_and_raw_parameters() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.norm = nn.LayerNorm((4, 8))
            self.place = nn.Parameter(torch.zeros(4, 8))

    raw = ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert matrices(Block()) == ["place", *raw]
    assert matrices(Block(), exclude=["pl?ce"]) == raw
    assert matrices(Block(), exclude=[nn.MultiheadAttention], include=["*in_proj_weight"]) == [
        "place",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]
    with pytest.raises(ValueError, match="exclude has 'nowhere', which matches no parameter"):
        matrices(Block(), exclude=["nowhere"])


def test_a_rule_that_takes_matrices_alone(package: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    opt = package.for_model(model, "muon", "adam", lr=1e-3)
    assert opt.param_groups[0]["param_names"] == ["2.weight", "3.weight"]
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["rule", "parameters", "shape", "number", "elements", "what"]
    assert ["Muon", "*.weight", "4", "x", "4", "1", "16", "matrix"] in shown
    assert ["Adam", "*.weight", "4", "x", "1", "x", "3", "x", "3", "1", "36", "4", "dimensions"] in shown
    assert ["Adam", "*.weight", "2", "x", "6", "1", "12", "head"] in shown
    assert ["Adam", "*.bias", "4", "2", "8", "vector"] in shown
    with pytest.raises(
        ValueError, match=r"Muon takes matrices, and '0\.weight' .* of which no setting says what its matrices are"
    ):
        package.for_model(model, "muon", "adam", include=["0.weight"], show=False)


def test_muon_trains_beside_another_rule(package: Any) -> None:
    model, other = make_model(), make_model()
    train(model, package.for_model(model, {"rule": "muon", "bits": 8}, "adam", lr=1e-2, show=False))
    alone = [package.Muon([layer.weight for layer in other.layers], lr=1e-2, optim_bits=8)]
    rest = [p for p in other.parameters() if not any(p is layer.weight for layer in other.layers)]
    train(other, *alone, package.Adam(rest, lr=1e-2))
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_what_has_no_matrix() -> None:
    with pytest.raises(ValueError, match="no hidden matrix that is trained"):
        for_model(nn.LayerNorm(3), "lion")
    with pytest.raises(TypeError, match="takes a model"):
        for_model([torch.nn.Parameter(torch.ones(2, 2))], "lion")  # type: ignore[arg-type]
