"""Random numbers that follow from where they are used: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers:
As Easy as 1, 2, 3", section 3.3), a function of a key and a counter.

The key is the seed; the counter is (element // 8, position of the parameter, number of the step). Its 128 bits are
eight numbers of 16 bits, the lower half of each word first, for eight neighbouring elements. So a draw is the same on
every target, for any number of threads, and whichever part of a tensor is computed.

Initial values are drawn at the step 0, from a block for each element: (element, with the number of the draw above its
first 48 bits, position of the parameter, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optgen.runtime.sums import has_float64

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """Source of the random draws of a parameter in a step.

    Attributes:
        seed: 0 to 2^53.
        position: The parameter's among all parameters of the optimizer.
        step: The number of the step, from 1.
        elements: The numbers of the elements, int64, where they are not the first ones.
    """

    seed: int = 0
    position: int = 0
    step: int = 0
    elements: Tensor | None = None

    def bits16(self, numel: int, device: torch.device | str) -> Tensor:
        """16 random bits for each of the first `numel` elements, or of `elements`, as int32."""
        if self.elements is not None:
            return self._bits16_of(self.elements.reshape(-1))
        blocks = torch.arange(-(-numel // 8), dtype=torch.int64, device=device)
        words = philox(blocks & WORD, blocks >> 32, self.position, self.step, self.seed)
        halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
        return halves.reshape(-1)[:numel].to(torch.int32)

    def _bits16_of(self, elements: Tensor) -> Tensor:
        blocks = elements >> 3
        words = torch.stack(philox(blocks & WORD, blocks >> 32, self.position, self.step, self.seed), dim=-1)
        word = words.gather(-1, (elements >> 1 & 3).unsqueeze(-1)).squeeze(-1)
        return (word >> 16 * (elements & 1) & 0xFFFF).to(torch.int32)

    def uniform(self, number: int, numel: int, device: torch.device | str) -> Tensor:
        """Numbers from 0 to below 1 for initial values, multiples of 2^-24, as float32 of shape (numel,)."""
        first, _ = self._words(number, numel, device)
        return (first >> 8).to(torch.float32) * 2.0**-24

    def normal(self, number: int, numel: int, device: torch.device | str) -> Tensor:
        """Normal numbers for initial values, of mean 0 and variance 1, as float32 of shape (numel,).

        Of two uniform numbers, by Box and Muller 1958, in float64.
        """
        first, second = self._words(number, numel, device)
        if not has_float64(first.device):
            first, second = first.cpu(), second.cpu()
        length = ((first + 1).double() * 2.0**-32).log().mul(-2).sqrt()
        return (length * (second.double() * (2 * math.pi * 2.0**-32)).cos()).float().to(device)

    def normal_in(self, step: int, numel: int, device: torch.device | str) -> Tensor:
        """Normal numbers of a step, which share no block with its rounding, as float32 of shape (numel,)."""
        return replace(self, step=step).normal(1, numel, device)

    def _words(self, number: int, numel: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Two words for each of the first `numel` elements, or of `elements`."""
        elements = torch.arange(numel, dtype=torch.int64, device=device) if self.elements is None else self.elements
        elements = elements.reshape(-1)
        high = (elements >> 32) + (number << 16)
        first, second, _, _ = philox(elements & WORD, high, self.position, self.step, self.seed)
        return first, second


def philox(low: Tensor, high: Tensor, third: int, fourth: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of a counter's block; counters as int64 tensors of 32-bit words."""
    a, b = low, high
    c, d = torch.full_like(low, third & WORD), torch.full_like(low, fourth & WORD)
    key0, key1 = seed & WORD, seed >> 32
    for _ in range(ROUNDS):
        high0, low0 = _product(a, MULTIPLIERS[0])
        high1, low1 = _product(c, MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0, key1 = key0 + WEYL[0] & WORD, key1 + WEYL[1] & WORD
    return a, b, c, d


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and lower word of a product of 64 bits, which wraps in int64 without losing any."""
    product = word * multiplier
    return product >> 32 & WORD, product & WORD
