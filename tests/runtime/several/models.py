"""Small models with matrices and what is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WORDS, WIDTH = 30, 8


class Model(nn.Module):
    """An embedding, layers, a norm and a head, which may be the embedding again."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        result: Tensor = self.head(self.norm(x))
        return result


def make_model(tied: bool = False) -> Model:
    """The same weights at every call."""
    torch.manual_seed(3)
    return Model(tied)


def loss_of(model: nn.Module, step: int) -> Tensor:
    words = torch.randint(0, WORDS, (4, 7), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten())


def train(model: nn.Module, *optimizers: Any, first: int = 0, last: int = 3) -> None:
    for step in range(first, last):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()


def matrices_of(model: Model) -> list[Tensor]:
    return [layer.weight for layer in model.layers]


def others_of(model: Model) -> list[Tensor]:
    known = {id(param) for param in matrices_of(model)}
    return [param for param in model.parameters() if id(param) not in known]
