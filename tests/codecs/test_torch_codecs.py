"""The codecs in torch: shapes, special values, and the properties of nearest-code rounding."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, SMALLEST_ABSMAX, WHOLE_TENSOR, Codec, code_book, codec, midpoints
from optgen.runtime.states.torch_codecs import decode, encode, zeros

SHAPES = [(), (0,), (1,), (0, 3), (255,), (256,), (257,), (7, 5, 11), (3, 1000)]
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
BLOCKS = st.lists(FLOATS, min_size=2, max_size=600)
INT8_TENSOR = codec("int8").with_block(WHOLE_TENSOR)
BOOKS = ("int8", "int4", "normal4")
SCALED = [name for name, item in CODECS.items() if item.scaled]
STORED = st.builds(
    lambda name, block: codec(name).with_block(block),
    st.sampled_from(SCALED),
    st.sampled_from([*BLOCK_SIZES, WHOLE_TENSOR]),
)
# All codes of 8-bit floats without a sign, ascending, as they are defined: exponents from -6 on, three bits more.
FP8 = [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 3) for e in range(-6, 9) for m in range(8)][:-1]


def oracle(item: Codec, x: list[float], signed: bool) -> tuple[list[int], list[float]]:
    """The rule, element by element, with numpy's float32; a code as the whole number that it is."""
    codes: list[int] = []
    scales: list[float] = []
    block = item.block if item.block > 0 else len(x)
    for at in range(0, len(x), block):
        values = np.array(x[at : at + block], dtype=np.float32)
        finite = np.isfinite(values)
        absmax = np.float32(np.abs(values[finite]).max(initial=0))
        if absmax < SMALLEST_ABSMAX:
            absmax = np.float32(0)
        scales.append(float(absmax))
        for value, usable in zip(values, finite, strict=True):
            y = np.float32(0)
            if absmax > 0 and usable and (signed or value > 0):
                with np.errstate(under="ignore"):
                    y = min(np.abs(value) * (np.float32(1) / absmax), np.float32(1))
            codes.append(code_of(item.name, y, bool(value < 0), signed))
    return codes, scales


def code_of(name: str, y: np.float32, negative: bool, signed: bool) -> int:
    """The code of a magnitude, by a search or by the formula."""
    if name in BOOKS:
        zero = 127 if name == "int8" else 7
        k = sum(bool(y > np.float32(m)) for m in midpoints(signed, name))
        if not signed:
            return k
        return zero - min(k, zero) if negative else zero + k
    if name == "fp8":
        x = float(y * np.float32(448))
        near = min(range(len(FP8)), key=lambda k: (abs(FP8[k] - x), k % 2))  # of two as near, the even one
        return near + 128 if near and negative and signed else near
    if signed:
        steps = int((y + y) / (np.float32(1) + y) * np.float32(127) + np.float32(0.5))
        return -steps if negative else steps
    return int(np.sqrt(y) * np.float32(255) + np.float32(0.5)) - 128


def codes_in(item: Codec, codes: Tensor, numel: int) -> list[int]:
    """The codes one by one, as whole numbers."""
    if item.packed == 1:
        return codes.view(torch.uint8 if item.name == "fp8" else codes.dtype).flatten().tolist()
    return [half for byte in codes.view(torch.uint8).tolist() for half in (byte >> 4, byte & 15)][:numel]


@settings(max_examples=150, deadline=None)
@given(STORED, BLOCKS, st.booleans())
def test_follows_the_rule(item: Codec, values: list[float], signed: bool) -> None:
    codes, absmax = encode(item, torch.tensor(values, dtype=torch.float32), signed)
    assert absmax is not None
    assert (codes_in(item, codes, len(values)), absmax.tolist()) == oracle(item, values, signed)
    if item.packed == 2 and len(values) % 2:
        assert codes[-1].item() & 15 == 0


def test_fp8_numbers_are_those_of_torch() -> None:
    assert torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).float().tolist() == FP8


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", SCALED)
def test_numbers_of_codes(name: str, signed: bool) -> None:
    """Every code's number by its definition in float64, rounded a few times."""
    item = codec(name).with_block(WHOLE_TENSOR)
    stored = torch.arange(256).to(torch.uint8).view(getattr(torch, item.storage))
    codes = codes_in(item, stored, 512)
    numbers = decode(item, stored, torch.ones(1), signed, (len(codes),)).tolist()
    for code, number in zip(codes, numbers, strict=True):
        if name in BOOKS:
            assert number == code_book(signed, name)[code]
        elif name == "fp8":
            magnitude = FP8[code & 127] / 448 if code & 127 < 127 else float("nan")
            assert number == pytest.approx(
                -magnitude if code > 127 else magnitude, rel=2.0**-22, nan_ok=True
            )  # 2 of 2^-24
        else:
            v = code / 127
            exact = v / (2 - abs(v)) if signed else ((code + 128) / 255) ** 2
            assert number == pytest.approx(exact, rel=2.0**-21)  # at most 6.1 roundings of 2^-24


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", CODECS)
def test_shapes(name: str, signed: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    x = x if signed else x.abs()
    codes, absmax = encode(name, x, signed)
    empty_codes, empty_absmax = zeros(name, shape, signed)
    assert codes.shape == empty_codes.shape == CODECS[name].codes_shape(shape)
    assert codes.dtype == empty_codes.dtype == getattr(torch, CODECS[name].storage)
    assert (absmax is None) == (empty_absmax is None) == (not CODECS[name].scaled)
    if absmax is not None and empty_absmax is not None:
        assert absmax.shape == empty_absmax.shape == (CODECS[name].scales(x.numel()),)
        assert absmax.dtype == empty_absmax.dtype == torch.float32
    decoded = decode(name, codes, absmax, signed, shape)
    assert decoded.dtype == torch.float32
    assert decoded.shape == x.shape
    # The widest gap: from -1 to the least number of the signed 4-bit book, -0.8875.
    assert ((decoded - x).abs() <= 0.11251 * x.abs().max() if x.numel() else decoded == x).all()
    assert torch.equal(decode(name, empty_codes, empty_absmax, signed, shape), torch.zeros(shape))


@pytest.mark.parametrize("name", CODECS)
def test_result_shares_no_memory_and_takes_any_layout(name: str) -> None:
    x = torch.randn(20, 30).t()
    codes, absmax = encode(name, x, True)
    assert codes.is_contiguous()
    assert codes.data_ptr() != x.data_ptr()
    expected = encode(name, x.contiguous(), True)
    assert codes.view(torch.uint8).equal(expected[0].view(torch.uint8))
    decoded = decode(name, codes, absmax, True, (600,))
    assert decoded.data_ptr() != codes.data_ptr()
    assert torch.equal(decoded, decode(name, codes, absmax, True, x.shape).flatten())


@pytest.mark.parametrize("block", [64, WHOLE_TENSOR])
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("signed", [True, False])
def test_values_that_are_not_finite_become_zero(name: str, block: int, signed: bool) -> None:
    item = codec(name).with_block(block)
    x = torch.rand(300) + 0.5
    x[3], x[4], x[299] = float("nan"), float("inf"), -float("inf")
    codes, absmax = encode(item, x, signed)
    assert absmax is not None
    assert torch.isfinite(absmax).all()
    clean = torch.where(torch.isfinite(x), x, 0.0)
    assert codes_in(item, codes, 300) == codes_in(item, encode(item, clean, signed)[0], 300)
    decoded = decode(item, codes, absmax, signed, x.shape)
    if signed or item.bits != 4:  # the sixteenths have no zero
        assert decoded[[3, 4, 299]].tolist() == [0.0, 0.0, 0.0]
    only_nan, scale = encode(item, torch.full((6,), float("nan")), signed)
    assert scale is not None
    assert scale.tolist() == [0.0]
    assert only_nan.view(torch.uint8).equal(zeros(item, (6,), signed)[0].view(torch.uint8))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("signed", [True, False])
def test_smallest_scale(name: str, signed: bool) -> None:
    below, at = np.nextafter(np.float32(SMALLEST_ABSMAX), np.float32(0)), SMALLEST_ABSMAX
    codes, absmax = encode(name, torch.full((4,), float(below)), signed)
    assert absmax is not None
    assert absmax.item() == 0.0
    assert codes.view(torch.uint8).equal(zeros(name, (4,), signed)[0].view(torch.uint8))
    codes, absmax = encode(name, torch.full((4,), at), signed)
    assert absmax is not None
    assert absmax.item() == at
    assert decode(name, codes, torch.ones(1), signed, (4,)).tolist() == [1.0] * 4


def test_decode_without_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="codec 'int8' needs the absmax"):
        decode("int8", torch.zeros(4, dtype=torch.uint8), None, True, (4,))


def tensor_of(values: list[float], signed: bool) -> Tensor:
    x = torch.tensor(values, dtype=torch.float32)
    return x if signed else x.abs()


FINITE = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300)


@settings(max_examples=80, deadline=None)
@given(FINITE, st.booleans())
def test_second_round_trip_changes_nothing(values: list[float], signed: bool) -> None:
    x = tensor_of(values, signed)
    x = torch.cat([x, x.abs().max().reshape(1)])  # so that the scale's element is positive: the book has no -1.0
    codes, absmax = encode(INT8_TENSOR, x, signed)
    decoded = decode(INT8_TENSOR, codes, absmax, signed, x.shape)
    again, same_absmax = encode(INT8_TENSOR, decoded, signed)
    assert absmax is not None
    assert same_absmax is not None
    assert torch.equal(absmax, same_absmax)
    if absmax.item() > 1e-30:  # smaller ones lose bits of decoded values to underflow
        assert torch.equal(codes, again)


@settings(max_examples=80, deadline=None)
@given(FINITE, st.booleans())
def test_larger_values_have_larger_codes(values: list[float], signed: bool) -> None:
    x = tensor_of(values, signed).sort().values
    codes = encode(INT8_TENSOR, x, signed)[0].to(torch.int64)
    assert (codes.diff() >= 0).all()


@settings(max_examples=80, deadline=None)
@given(FINITE, st.booleans())
def test_error_is_at_most_half_the_gap(values: list[float], signed: bool) -> None:
    x = tensor_of(values, signed)
    codes, absmax = encode(INT8_TENSOR, x, signed)
    assert absmax is not None
    if absmax.item() < 1e-30:
        return
    book = torch.tensor(code_book(signed), dtype=torch.float64)
    y = x.double() / absmax.double()
    index = codes.to(torch.int64)
    gap_up = book[(index + 1).clamp(max=255)] - book[index]
    gap_down = book[index] - book[(index - 1).clamp(min=0)]
    # Below the signed book's last value (about -0.993) there is no code to round to.
    slack = torch.where(index == 0, 0.0071 if signed else 0.0, 0.0) + 4e-7 * y.abs()
    error = y - book[index]
    assert (error <= gap_up / 2 + slack).all()
    assert (-error <= gap_down / 2 + slack).all()


@settings(max_examples=80, deadline=None)
@given(FINITE)
def test_zero_and_signs_are_kept(values: list[float]) -> None:
    x = torch.cat([tensor_of(values, True), torch.tensor([0.0, -0.0])])
    codes, absmax = encode("int8", x, True)
    decoded = decode("int8", codes, absmax, True, x.shape)
    assert (decoded[x == 0] == 0).all()
    assert ((decoded == 0) | (decoded.sign() == x.sign())).all()


def test_negative_values_of_an_unsigned_book_become_zero() -> None:
    codes, absmax = encode("int8", torch.tensor([-2.0, 1.0, -1e-3, 0.0]), False)
    assert absmax is not None
    assert absmax.item() == 2.0
    assert decode("int8", codes, absmax, False, (4,)).tolist()[::2] == [0.0, 0.0]
    for name in SCALED:
        codes, absmax = encode(name, torch.tensor([-2.0, 1.0, -1e-3, 0.0]), False)
        assert codes_in(codec(name), codes, 4)[0] == codes_in(codec(name), codes, 4)[3], name


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_reads_our_codes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.randn(4096) if signed else torch.randn(4096).square()
    codes, absmax = encode("int8", x, signed)
    book = torch.tensor(code_book(signed))
    theirs = functional.dequantize_blockwise(codes, absmax=absmax, code=book, blocksize=256)
    assert torch.equal(theirs, decode("int8", codes, absmax, signed, x.shape))


def test_import_makes_no_tensors() -> None:
    code = (
        "import optgen.runtime.states.torch_codecs as c, sys;"
        "sys.exit(c._book.cache_info().currsize + c._ranges.cache_info().currsize)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
