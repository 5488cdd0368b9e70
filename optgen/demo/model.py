"""A small character-level transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Size:
    """Size of the transformer."""

    alphabet: int
    context: int = 64
    width: int = 160
    heads: int = 5
    layers: int = 2


class Block(nn.Module):
    """Causal attention and a feed-forward network, each behind a layer norm and beside a residual."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.query_key_value = nn.Linear(size.width, 3 * size.width, bias=False)
        self.attention_out = nn.Linear(size.width, size.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(size.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(size.width, 4 * size.width), nn.GELU(), nn.Linear(4 * size.width, size.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + torch.as_tensor(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Predicts the next character at each position."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.characters = nn.Embedding(size.alphabet, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.alphabet, bias=False)
        self.apply(_initialise)

    def forward(self, numbers: Tensor) -> Tensor:
        """Character numbers (batch, length) -> logits (batch, length, alphabet)."""
        x = self.characters(numbers) + self.positions.weight[: numbers.shape[1]]
        return torch.as_tensor(self.head(self.norm(self.blocks(x))))

    def loss(self, numbers: Tensor, following: Tensor) -> Tensor:
        """The mean cross-entropy of the characters that follow, in nats."""
        return functional.cross_entropy(self(numbers).flatten(0, 1), following.flatten())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
