"""The training data: the help texts that come with Python, as characters."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Text:
    """A text as numbers of characters, split into a part to learn from and one that is held out."""

    training: Tensor
    held_out: Tensor
    alphabet: str


def load_text() -> Text:
    """Python's own help topics: some 700,000 characters of technical English.

    Topics are shuffled (always alike) before the text is split, so that both parts hold some of everything.
    Characters that occur fewer than 20 times become `?`.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(0).shuffle(names)
    text = "\n\n".join(topics[name].strip() for name in names)
    counts = {character: text.count(character) for character in set(text)}
    alphabet = "".join(sorted({"?"} | {character for character, count in counts.items() if count >= 20}))
    number = {character: index for index, character in enumerate(alphabet)}
    numbers = torch.tensor([number.get(character, number["?"]) for character in text], dtype=torch.long)
    split = int(len(numbers) * (1 - HELD_OUT_SHARE))
    return Text(numbers[:split], numbers[split:], alphabet)


def batch(numbers: Tensor, size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random stretches of the text and the characters that follow each of theirs: two tensors (size, length)."""
    starts = torch.randint(len(numbers) - length - 1, (size,), generator=generator)
    positions = starts[:, None] + torch.arange(length + 1)
    stretches = numbers[positions]
    return stretches[:, :-1], stretches[:, 1:]
