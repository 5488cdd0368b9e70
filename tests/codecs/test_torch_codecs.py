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

from optgen.codecs import CODECS, SMALLEST_ABSMAX, ZERO_CODE, code_book, midpoints
from optgen.runtime.torch_codecs import decode, encode, zeros

SHAPES = [(), (0,), (1,), (0, 3), (255,), (256,), (257,), (7, 5, 11), (3, 1000)]
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
BLOCKS = st.lists(FLOATS, min_size=0, max_size=600)


def oracle(x: list[float], signed: bool, block: int) -> tuple[list[int], list[float]]:
    """The rule, element by element, with numpy's float32."""
    codes: list[int] = []
    scales: list[float] = []
    for at in range(0, len(x), block):
        values = np.array(x[at : at + block], dtype=np.float32)
        finite = np.isfinite(values)
        absmax = np.float32(np.abs(values[finite]).max(initial=0))
        if absmax < SMALLEST_ABSMAX:
            absmax = np.float32(0)
        scales.append(float(absmax))
        for value, usable in zip(values, finite, strict=True):
            if absmax == 0 or not usable:
                codes.append(ZERO_CODE[signed])
                continue
            with np.errstate(under="ignore"):
                y = np.abs(value) * (np.float32(1) / absmax)
            k = sum(bool(y > np.float32(m)) for m in midpoints(signed))
            if signed:
                codes.append(127 - min(k, 127) if value < 0 else 127 + k)
            else:
                codes.append(0 if value < 0 else k)
    return codes, scales


@settings(max_examples=60, deadline=None)
@given(BLOCKS, st.booleans())
def test_follows_the_rule(values: list[float], signed: bool) -> None:
    codes, absmax = encode("int8", torch.tensor(values, dtype=torch.float32), signed)
    assert absmax is not None
    assert (codes.tolist(), absmax.tolist()) == oracle(values, signed, 256)
    codes, absmax = encode("int8_tensor", torch.tensor(values, dtype=torch.float32), signed)
    assert absmax is not None
    assert absmax.shape == (1,)
    assert codes.tolist() == oracle(values, signed, max(len(values), 1))[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", CODECS)
def test_shapes(name: str, signed: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    x = x if signed else x.abs()
    codes, absmax = encode(name, x, signed)
    empty_codes, empty_absmax = zeros(name, shape, signed)
    assert codes.shape == empty_codes.shape == x.shape
    assert codes.dtype == empty_codes.dtype == getattr(torch, CODECS[name].storage)
    assert (absmax is None) == (empty_absmax is None) == (not CODECS[name].scaled)
    if absmax is not None and empty_absmax is not None:
        assert absmax.shape == empty_absmax.shape == (CODECS[name].scales(x.numel()),)
        assert absmax.dtype == empty_absmax.dtype == torch.float32
    decoded = decode(name, codes, absmax, signed, shape)
    assert decoded.dtype == torch.float32
    assert decoded.shape == x.shape
    torch.testing.assert_close(decoded, x, rtol=0.01, atol=0.05)
    assert torch.equal(decode(name, empty_codes, empty_absmax, signed, shape), torch.zeros(shape))


@pytest.mark.parametrize("name", CODECS)
def test_result_shares_no_memory_and_takes_any_layout(name: str) -> None:
    x = torch.randn(20, 30).t()
    codes, absmax = encode(name, x, True)
    assert codes.is_contiguous()
    assert codes.data_ptr() != x.data_ptr()
    expected = encode(name, x.contiguous(), True)
    assert torch.equal(codes, expected[0])
    decoded = decode(name, codes, absmax, True, (600,))
    assert decoded.data_ptr() != codes.data_ptr()
    assert torch.equal(decoded, decode(name, codes, absmax, True, x.shape).flatten())


@pytest.mark.parametrize("name", ["int8", "int8_tensor"])
@pytest.mark.parametrize("signed", [True, False])
def test_values_that_are_not_finite_become_zero(name: str, signed: bool) -> None:
    x = torch.rand(300) + 0.5
    x[3], x[4], x[299] = float("nan"), float("inf"), -float("inf")
    codes, absmax = encode(name, x, signed)
    assert absmax is not None
    assert torch.isfinite(absmax).all()
    decoded = decode(name, codes, absmax, signed, x.shape)
    assert decoded[[3, 4, 299]].tolist() == [0.0, 0.0, 0.0]
    clean = torch.where(torch.isfinite(x), x, 0.0)
    assert torch.equal(codes, encode(name, clean, signed)[0])
    only_nan, scale = encode(name, torch.full((5,), float("nan")), signed)
    assert scale is not None
    assert scale.tolist() == [0.0]
    assert only_nan.tolist() == [ZERO_CODE[signed]] * 5


@pytest.mark.parametrize("signed", [True, False])
def test_smallest_scale(signed: bool) -> None:
    below, at = np.nextafter(np.float32(SMALLEST_ABSMAX), np.float32(0)), SMALLEST_ABSMAX
    codes, absmax = encode("int8", torch.full((4,), float(below)), signed)
    assert absmax is not None
    assert absmax.item() == 0.0
    assert codes.tolist() == [ZERO_CODE[signed]] * 4
    codes, absmax = encode("int8", torch.full((4,), at), signed)
    assert absmax is not None
    assert absmax.item() == at
    assert codes.tolist() == [255] * 4


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
    codes, absmax = encode("int8_tensor", x, signed)
    decoded = decode("int8_tensor", codes, absmax, signed, x.shape)
    again, same_absmax = encode("int8_tensor", decoded, signed)
    assert absmax is not None
    assert same_absmax is not None
    assert torch.equal(absmax, same_absmax)
    if absmax.item() > 1e-30:  # smaller ones lose bits of decoded values to underflow
        assert torch.equal(codes, again)


@settings(max_examples=80, deadline=None)
@given(FINITE, st.booleans())
def test_larger_values_have_larger_codes(values: list[float], signed: bool) -> None:
    x = tensor_of(values, signed).sort().values
    codes = encode("int8_tensor", x, signed)[0].to(torch.int64)
    assert (codes.diff() >= 0).all()


@settings(max_examples=80, deadline=None)
@given(FINITE, st.booleans())
def test_error_is_at_most_half_the_gap(values: list[float], signed: bool) -> None:
    x = tensor_of(values, signed)
    codes, absmax = encode("int8_tensor", x, signed)
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
        "import optgen.runtime.torch_codecs as c, sys;"
        "sys.exit(c._book.cache_info().currsize + c._midpoints.cache_info().currsize)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
