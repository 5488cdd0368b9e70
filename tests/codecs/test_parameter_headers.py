"""Codecs of parameters in C++ against the same in torch, bit for bit, in every build; random numbers likewise."""

from __future__ import annotations

import pytest
import torch
from support.cpp_headers import Headers
from torch import Tensor

from optgen.codecs import PARAMETER_CODECS, ParameterCodec
from optgen.runtime.states.philox import Draw, philox
from optgen.runtime.states.torch_rounding import decode_parameter, encode_parameter

CASES = [
    pytest.param(codec, getattr(torch, dtype), id=f"{codec.name}-{dtype}")
    for codec in PARAMETER_CODECS.values()
    for dtype in codec.dtypes
]
KEPT = [case for case in CASES if case.values[0].compensation]
HALVES = [case for case in CASES if case.values[1] is not torch.float32]
DRAW = Draw(seed=0x0012_3456_789A_BCDE, position=7, step=1000)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bits_of(x: Tensor) -> Tensor:
    return x.view(INTEGERS[x.itemsize])


def assert_same_bits(headers: Headers, ours: Tensor, expected: Tensor, values: Tensor) -> None:
    """Equal bits; any NaN for a NaN."""
    nan = expected.isnan()
    assert torch.equal(ours.isnan(), nan), headers
    wrong = ((bits_of(ours) != bits_of(expected)) & ~nan).nonzero().flatten()[:5]
    assert not len(wrong), (headers.build, [(values[i], ours[i], expected[i]) for i in wrong])


def assert_same(builds: list[Headers], codec: ParameterCodec, x: Tensor, dtype: torch.dtype, draw: Draw = DRAW) -> None:
    expected, expected_beside = encode_parameter(codec, x, dtype, draw)
    numbers = decode_parameter(codec, expected, expected_beside)
    for headers in builds:
        param, beside = headers.encode_parameter(codec, x, dtype, draw)
        assert_same_bits(headers, param, expected, x)
        assert (beside is None) == (expected_beside is None), headers
        if beside is not None and expected_beside is not None:
            assert_same_bits(headers, beside, expected_beside, x)
        assert_same_bits(headers, headers.decode_parameter(codec, expected, expected_beside), numbers, x)


def every_exponent(count: int) -> Tensor:
    """Random float32 bit patterns: as many of each exponent and sign, subnormal numbers and NaN among them."""
    return torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64).to(torch.int32).view(torch.float32)


def special_values() -> Tensor:
    """Zero, the ends of every range, infinities and NaN, with their neighbours."""
    magnitudes = [0, 0x00800000, 0x33000000, 0x33800000, 0x38800000, 0x3F800000, 0x477FE000, 0x477FF000, 0x47800000]
    magnitudes += [0x7F000000, 0x7F7F0000, 0x7F7F8000, 0x7F7FFF80, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000]
    bits = torch.tensor([m + d for m in magnitudes for d in range(-3, 4) if 0 <= m + d <= 0x7FFFFFFF])
    return torch.cat([bits, bits - 2**31]).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_any_float(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    assert_same(builds, codec, every_exponent(500_000), dtype)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_usual_numbers(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    for scale in (1e-6, 1e-4, 1e-2, 1.0, 1e4):
        assert_same(builds, codec, torch.randn(50_001) * scale, dtype)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_special_values(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    special = special_values()
    for step in range(20):  # other random bits beside the same numbers
        assert_same(builds, codec, special, dtype, Draw(step, 1, step + 1))


@pytest.mark.parametrize(("codec", "dtype"), HALVES)
def test_around_every_stored_number(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    """Every number that the dtype holds, every middle between two, and their neighbours."""
    stored = torch.arange(2**15).to(torch.int16).view(dtype).to(torch.float32)
    stored = stored[stored.isfinite()]
    centers = torch.cat([stored, ((stored[1:].double() + stored[:-1].double()) / 2).float()])
    bits = (centers.view(torch.int32)[:, None] + torch.tensor([-1, 0, 1], dtype=torch.int32)).flatten()
    values = bits[bits >= 0].view(torch.float32)
    assert_same(builds, codec, torch.cat([values, -values]), dtype)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_every_length(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    for n in range(258):
        assert_same([each for each in builds if each.tries(n)], codec, torch.randn(n), dtype)


@pytest.mark.parametrize(("codec", "dtype"), KEPT)
def test_any_compensation(builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype) -> None:
    """Read as told, whatever is kept: a checkpoint may hold anything."""
    kept = getattr(torch, codec.compensation_dtype(str(dtype).removeprefix("torch.")))
    param = torch.randint(-(2**15), 2**15, (100_000,)).to(torch.int16).view(dtype)
    beside = torch.randint(0, 256, (100_000 * kept.itemsize,)).to(torch.uint8).view(kept)
    expected = decode_parameter(codec, param, beside)
    for headers in builds:
        assert_same_bits(headers, headers.decode_parameter(codec, param, beside), expected, expected)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_result_does_not_depend_on_subnormal_numbers(
    builds: list[Headers], codec: ParameterCodec, dtype: torch.dtype
) -> None:
    """A program may have asked the processor to take them for 0."""
    x = torch.cat([torch.randn(10_000) * 1e-6, every_exponent(100_000)])
    if codec.name == "kahan":  # what is left of the smallest numbers is subnormal itself
        x = x[~(x.abs() < 2.0**-100)]
    expected, expected_beside = encode_parameter(codec, x, dtype, DRAW)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        stored = [headers.encode_parameter(codec, x, dtype, DRAW) for headers in builds]
    finally:
        torch.set_flush_denormal(False)
    for headers, (param, beside) in zip(builds, stored, strict=True):
        assert_same_bits(headers, param, expected, x)
        if beside is not None and expected_beside is not None:
            assert_same_bits(headers, beside, expected_beside, x)


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


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(builds: list[Headers], counter: list[int], key: int, words: list[int]) -> None:
    for headers in builds:
        assert headers.philox(counter, key) == words, headers


@pytest.mark.parametrize(
    "draw", [Draw(), DRAW, Draw(2**53, 2**32 - 1, 2**32 - 1), Draw(1, 0, 1)], ids=["zero", "usual", "largest", "first"]
)
@pytest.mark.parametrize("at", [0, 256, 2**31 - 256, 2**34 - 256, 2**35 - 256, 2**35 - 96, 2**35, 2**40 + 2**36 + 256])
def test_draws_of_a_tile(builds: list[Headers], draw: Draw, at: int) -> None:
    """Wherever the tile lies: the number of the element has more than 32 bits."""
    blocks = torch.arange(at // 8, at // 8 + 32)
    words = philox(blocks & 0xFFFFFFFF, blocks >> 32, draw.position, draw.step, draw.seed)
    expected = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1).flatten()
    for headers in builds:
        assert torch.equal(headers.draw_tile(draw, at), expected.to(torch.int32)), headers
