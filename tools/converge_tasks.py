"""Tasks of training: a byte-level language model on Python's help texts, a convolution net on scikit-learn's digits.

A seed decides the untrained model and the order of the batches; what the loss is measured on is always the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from optgen.demo.model import Size, Transformer
from optgen.demo.text import batch

Pair = tuple[Tensor, Tensor]
BYTES = 256
TEXT_SIZE = Size(alphabet=BYTES, context=32, width=64, heads=4, layers=1)
TEXT_BATCH, DIGITS_BATCH = 16, 32
HELD_OUT = 0.2  # share of the data
EVALUATED_TEXTS = 128


class Data(Protocol):
    """Data that a model is trained on."""

    @property
    def held_out(self) -> Pair:
        """Inputs and labels that the loss is measured on."""

    def batch(self, generator: torch.Generator) -> Pair:
        """Inputs and labels of a step."""


@dataclass(frozen=True)
class Texts:
    """Stretches of a text, byte by byte."""

    training: Tensor
    held_out: Pair

    def batch(self, generator: torch.Generator) -> Pair:
        """Stretches from random places."""
        return batch(self.training, TEXT_BATCH, TEXT_SIZE.context, generator)


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits."""

    images: Tensor
    labels: Tensor
    held_out: Pair

    def batch(self, generator: torch.Generator) -> Pair:
        """Images drawn with replacement."""
        chosen = torch.randint(len(self.images), (DIGITS_BATCH,), generator=generator)
        return self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Task:
    """A model and its data.

    Attributes:
        steps: Number of steps of a full run.
        model: Makes an untrained model from torch's random numbers.
        data: Loads the data; the same each time.
    """

    name: str
    steps: int
    model: Callable[[], nn.Module]
    data: Callable[[], Data]


def loss(model: nn.Module, pair: Pair) -> Tensor:
    """The mean cross-entropy of the labels, one or many of each input."""
    inputs, labels = pair
    logits: Tensor = model(inputs)
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def sampled(model: nn.Module, pair: Pair, generator: torch.Generator) -> Pair:
    """The inputs with labels drawn from the model's own predictions, as Gauss-Newton estimates want them."""
    inputs, labels = pair
    with torch.no_grad():
        chances = model(inputs).flatten(0, -2).softmax(-1)
    return inputs, torch.multinomial(chances, 1, generator=generator).view(labels.shape)


@cache
def load_texts() -> Texts:
    """Python's own help topics as bytes, in a fixed random order."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(0).shuffle(names)
    text = "\n\n".join(topics[name].strip() for name in names).encode()
    numbers = torch.tensor(list(text), dtype=torch.long)
    split = int(len(numbers) * (1 - HELD_OUT))
    generator = torch.Generator().manual_seed(0)
    return Texts(numbers[:split], batch(numbers[split:], EVALUATED_TEXTS, TEXT_SIZE.context, generator))


@cache
def load_digits() -> Digits:
    """The 1797 images of handwritten digits that scikit-learn carries: 8 x 8, from 0 to 16, scaled to -1 to 1."""
    from sklearn.datasets import load_digits as load

    found = load()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(found.target, dtype=torch.long)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    split = int(len(images) * (1 - HELD_OUT))
    learnt, kept = order[:split], order[split:]
    return Digits(images[learnt], labels[learnt], (images[kept], labels[kept]))


def small_convolutions() -> nn.Module:
    """Two convolutions and two linear layers; all but the first and the last hold more than 4096 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("text", 600, lambda: Transformer(TEXT_SIZE), load_texts),
        Task("digits", 600, small_convolutions, load_digits),
    )
}
