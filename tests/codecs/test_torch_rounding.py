"""Codecs of parameters, and random numbers, in torch: the properties that they are there for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optgen.codecs import PARAMETER_CODECS
from optgen.runtime.states.philox import MULTIPLIERS, WEYL, Draw, philox
from optgen.runtime.states.torch_rounding import compensation_of, decode_parameter, encode_parameter

# Of the reference implementation, Random123: counter, key, words.
KNOWN = [
    ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
HALVES = [torch.bfloat16, torch.float16]


def by_whole_numbers(counter: list[int], key: int) -> list[int]:
    """Philox4x32-10 in Python's own whole numbers."""
    a, b, c, d = counter
    first, second = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = right >> 32 ^ b ^ first, right & 0xFFFFFFFF, left >> 32 ^ d ^ second, left & 0xFFFFFFFF
        first, second = first + WEYL[0] & 0xFFFFFFFF, second + WEYL[1] & 0xFFFFFFFF
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: list[int], key: int, words: list[int]) -> None:
    assert by_whole_numbers(counter, key) == words
    if key < 2**63:  # a seed is at most 2^53
        low, high = torch.tensor([counter[0]]), torch.tensor([counter[1]])
        assert [word.item() for word in philox(low, high, counter[2], counter[3], key)] == words


def test_bits_of_elements() -> None:
    """Element e has 16 bits of the block of counter e // 8, whatever the tensor's length."""
    draw = Draw(seed=2**53, position=3, step=2**24)
    bits = draw.bits16(1003, "cpu")
    assert bits.shape == (1003,)
    assert bits.dtype == torch.int32
    for element in (0, 1, 7, 8, 1000, 1002):
        words = by_whole_numbers([element // 8, 0, 3, 2**24], 2**53)
        assert bits[element] == words[element % 8 // 2] >> 16 * (element % 2) & 0xFFFF
    assert torch.equal(draw.bits16(17, "cpu"), bits[:17])
    others = [Draw(1, 3, 2**24), Draw(2**53, 4, 2**24), Draw(2**53, 3, 1)]
    assert all((other.bits16(1003, "cpu") != bits).float().mean() > 0.99 for other in others)
    assert draw.bits16(0, "cpu").shape == (0,)


def stored_neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of the dtype next to x, toward zero and away from it, as float64."""
    near = x.abs().to(dtype)
    bits = near.view(torch.int16)
    down = torch.where(near.double() > x.double().abs(), bits - 1, bits)
    sign = torch.where(x < 0, -1.0, 1.0).double()
    return sign * down.view(dtype).double(), sign * (down + 1).to(torch.int16).view(dtype).double()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3])
def test_stochastic_rounding_has_the_right_mean(dtype: torch.dtype, scale: float) -> None:
    """One of the two neighbours, the farther with the probability that makes the mean exact.

    The mean of n independent draws of a number with fraction f between its neighbours has the variance f (1 - f) / n in
    units of their distance, at most 1 / 4n, and the draws of 2^-16 (2^-13 for normal fp16) shift it by less than one of
    those. Hoeffding: the mean is off by t or more with probability 2 exp(-2 n t^2); with t = 4 / sqrt(n) that is
    2 exp(-32) = 2.6e-14 for each of 1000 numbers.
    """
    codec, n = PARAMETER_CODECS["stochastic"], 4096
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    low, high = stored_neighbours(x, dtype)
    rounded, _ = encode_parameter(codec, x.repeat(n), dtype, Draw(seed=5, position=1, step=1))
    results = rounded.double().reshape(n, -1)
    assert ((results == low) | (results == high)).all()
    fraction = (x.double() - low) / (high - low)
    up = (results == high).double().mean(dim=0)
    assert ((up - fraction).abs() <= 4 / math.sqrt(n) + 2.0**-13).all()
    # Over all numbers together the bound is narrower: 4 / sqrt(1000 n) is 0.002.
    assert abs((up - fraction).mean()) <= 4 / math.sqrt(1000 * n) + 2.0**-13


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_keeps_what_is_exact(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = every.to(torch.float32)
    for step in range(5):
        rounded, beside = encode_parameter(PARAMETER_CODECS["stochastic"], x, dtype, Draw(1, 2, step + 1))
        assert beside is None
        nan = every.isnan()
        assert torch.equal(rounded.view(torch.int16)[~nan], every.view(torch.int16)[~nan])
        assert rounded[nan].isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_of_what_is_too_large(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest * (1 + 2.0**-12), -largest * (1 + 2.0**-12), math.inf, -math.inf, math.nan]).repeat(1000)
    rounded, _ = encode_parameter(PARAMETER_CODECS["stochastic"], x, dtype, Draw(1, 2, 3))
    first = rounded.float().reshape(-1, 5)
    assert set(first[:, 0].tolist()) == {largest, math.inf}
    assert set(first[:, 1].tolist()) == {-largest, -math.inf}
    assert first[:, 2].eq(math.inf).all()
    assert first[:, 3].eq(-math.inf).all()
    assert first[:, 4].isnan().all()


def any_float(count: int) -> Tensor:
    bits = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64)
    return bits.to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("name", ["split8", "split16"])
def test_split_weights_give_the_number_back(name: str) -> None:
    """All of a float32, or of one that is rounded to 24 bits, unless bf16 cannot hold its upper half."""
    codec = PARAMETER_CODECS[name]
    x = any_float(1_000_000)
    param, beside = encode_parameter(codec, x, torch.bfloat16, Draw())
    back = decode_parameter(codec, param, beside)
    usable = x.abs() < float.fromhex("0x1.fep127")  # half a step below what rounds to infinity
    if name == "split16":
        expected = x
    else:  # 16 bits of significand: to nearest, ties to even, by dividing whole numbers
        bits = x.view(torch.int32).numpy().astype(np.int64)
        rest = bits & 0xFF
        up = (rest > 128) | ((rest == 128) & (bits >> 8 & 1 == 1))
        expected = torch.from_numpy(((bits >> 8) + up << 8).astype(np.int32)).view(torch.float32)
    assert torch.equal(back.view(torch.int32)[usable], expected.view(torch.int32)[usable])
    special = torch.tensor([math.inf, -math.inf, math.nan, torch.finfo(torch.float32).max])
    param, beside = encode_parameter(codec, special, torch.bfloat16, Draw())
    assert param.float().tolist()[:2] == [math.inf, -math.inf]
    assert param[2].isnan()
    assert beside is not None
    assert beside.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", HALVES)
def test_kahan_keeps_twice_the_bits(dtype: torch.dtype) -> None:
    """Decoding gives the number, rounded once to the digits of both parts: exact where those suffice."""
    codec = PARAMETER_CODECS["kahan"]
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    x = torch.randn(200_000)
    param, beside = encode_parameter(codec, x, dtype, Draw())
    assert beside is not None
    assert torch.equal(param, x.to(dtype))
    back = decode_parameter(codec, param, beside)
    # The rest is at most half a step of the parameter; half a step of the rest again is that much smaller, and at least
    # half of fp16's least number, 2^-24. The sum is rounded to float32.
    bound = 2.0 ** (-2 * digits) * x.double().abs() + (2.0**-25 if dtype is torch.float16 else 0.0)
    assert ((back.double() - x.double()).abs() <= bound + 2.0**-24 * x.double().abs()).all()
    coarse = (x * 2**8).round() / 2**8  # few enough digits for both together
    assert torch.equal(decode_parameter(codec, *encode_parameter(codec, coarse, dtype, Draw())), coarse)
    special = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38])
    param, beside = encode_parameter(codec, special, dtype, Draw())
    assert beside is not None
    assert beside.tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["kahan", "split8", "split16"])
def test_small_updates_are_not_lost(name: str) -> None:
    """A thousand updates, each too small for bf16 to show, add up."""
    codec = PARAMETER_CODECS[name]
    param, beside = encode_parameter(codec, torch.ones(4), torch.bfloat16, Draw())
    plain = param.clone()
    for _ in range(1000):
        param, beside = encode_parameter(
            codec, decode_parameter(codec, param, beside) + 2.0**-12, torch.bfloat16, Draw()
        )
        plain = (plain.float() + 2.0**-12).to(torch.bfloat16)
    assert plain.tolist() == [1.0] * 4
    # Multiples of 2^-12 up to 1.25 have 13 digits: 8 and more kept beside suffice.
    assert decode_parameter(codec, param, beside).tolist() == [1 + 1000 * 2.0**-12] * 4


@pytest.mark.parametrize("name", ["kahan", "split8", "split16"])
def test_compensation_of_any_parameter(name: str) -> None:
    """Compensation of float32 numbers beside a given bf16 parameter, if they match it; nothing wraps if they do not."""
    codec = PARAMETER_CODECS[name]
    x = torch.randn(10_000)
    param, beside = encode_parameter(codec, x, torch.bfloat16, Draw())
    again = compensation_of(codec, x, param)
    assert again is not None
    assert beside is not None
    assert torch.equal(again, beside)
    far = compensation_of(codec, x, (x * 2).to(torch.bfloat16))
    assert far is not None
    assert (decode_parameter(codec, (x * 2).to(torch.bfloat16), far).abs() <= (x * 2.01).abs()).all()
