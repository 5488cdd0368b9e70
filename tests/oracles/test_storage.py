"""The oracle's codecs and roundings against the package's, which are written by other means: the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from optgen.codecs import BLOCK_SIZES, PARAMETER_CODECS, WHOLE_TENSOR, codec, midpoints
from optgen.runtime.states.philox import Draw
from optgen.runtime.states.torch_codecs import decode, encode
from optgen.runtime.states.torch_rounding import decode_parameter, encode_parameter
from oracles.ball import Ball
from oracles.base import array
from oracles.philox import bits16, philox
from oracles.rounding import ROUNDINGS, decoded, rounding_of
from oracles.storage import CODECS, DTYPES, WHOLE, Quantized, store
from oracles.storage import decode as oracle_decode

LARGEST = torch.finfo(torch.float32).max
SPECIAL = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, LARGEST, -LARGEST, 2.0**-126, -(2.0**-126), 1e-45]


def thresholds(name: str, signed: bool) -> torch.Tensor:
    """Ratios between two codes, and both neighbours of each; 1 among them, so that they are ratios of one block."""
    match name:
        case "int8" | "int4" | "normal4":
            ends = torch.tensor(midpoints(signed, name), dtype=torch.float64)
        case "fp8":
            levels = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
            ends = (levels[1:] + levels[:-1]) / 2 / 448
        case _:
            y = (torch.arange(127 if signed else 255) + 0.5).double() / (127 if signed else 255)
            ends = y / (2 - y) if signed else y * y
    near = ends.float()
    near = torch.cat([near, torch.nextafter(near, torch.zeros(())), torch.nextafter(near, torch.ones(()))])
    return torch.cat([torch.ones(1), near, -near])


def inputs(name: str, signed: bool) -> Iterator[torch.Tensor]:
    """Values with and without a sign, whatever the state has: what is below a state without one is 0."""
    for shape in [(), (1,), (2,), (255,), (257,), (3, 1000)]:
        yield torch.randn(shape)
        yield torch.randn(shape).square() * 1e-6
    sizes = 10.0 ** torch.empty(4096).uniform_(-44, 38)
    yield sizes * torch.randn(4096).sign()
    yield torch.tensor(SPECIAL)
    yield torch.cat([torch.randn(600), torch.tensor(SPECIAL), torch.zeros(300)])
    yield torch.full((300,), 1.1e-38)  # no scale
    yield torch.full((300,), 2.0**-126)  # the smallest
    found = thresholds(name, signed)
    for scale in (1.0, 3.0, 1e-30, 1e38):
        yield found * scale


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block", [None, *BLOCK_SIZES, WHOLE])
@pytest.mark.parametrize("name", CODECS)
def test_codes_and_scales(name: str, block: int | None, signed: bool) -> None:
    whole = codec(name)
    stored = whole if block is None else whole.with_block(WHOLE_TENSOR if block == WHOLE else block)
    certain = total = 0
    for x in inputs(name, signed):
        codes, scales = encode(stored, x, signed)
        assert scales is not None
        ours = Quantized(Ball(array(x)), signed, name, block)
        assert codes.dtype is CODECS[name].dtype
        assert np.array_equal(array(scales), ours.absmax.mid)
        assert not ours.absmax.rad.any()
        levels = CODECS[name].unpack(codes, x.numel(), signed)
        assert (ours.lowest <= levels).all()
        assert (levels <= ours.highest).all()
        certain, total = certain + int((ours.lowest == ours.highest).sum()), total + x.numel()

        back = decode(stored, codes, scales, signed, x.shape)
        read = oracle_decode(codes, scales, signed, name, block, tuple(x.shape))
        assert np.array_equal(array(back), read.mid)
        assert not read.rad.any()
        # what a later step reads lies within what the oracle expects it to
        whole_ball = ours.decoded()
        assert (np.abs(read.mid - whole_ball.mid) <= whole_ball.rad).all()
    assert certain / total > 0.8, "codes are hardly ever certain"


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(name: str) -> None:
    for x in (*(torch.randn(1000) * scale for scale in (1e-44, 1e-39, 1e-6, 1.0, 1e5)), torch.tensor(SPECIAL)):
        codes, scales = encode(name, x, True)
        assert scales is None
        assert codes.dtype is DTYPES[name]
        back = array(decode(name, codes, None, True, x.shape))
        with np.errstate(invalid="ignore"):
            ours = store(Ball(array(x)), DTYPES[name])
        assert np.array_equal(back, ours.mid, equal_nan=True)
        assert np.array_equal(np.signbit(back), np.signbit(ours.mid))


def values(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of all sizes, those that the dtype holds, those halfway between, and their neighbours."""
    held = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    held = held[held.isfinite()].sort().values
    halfway = (held[1:].double() + held[:-1].double()).div(2).float()
    sizes = torch.randn(4096) * 10.0 ** torch.empty(4096).uniform_(-44, 38)
    around = [torch.nextafter(halfway, torch.full((), end)) for end in (-torch.inf, torch.inf)]
    quarter = halfway + (held[1:] - halfway) * torch.rand(halfway.shape)
    edge = torch.tensor([65504.0, 65519.99, 65520.0, 65535.0, 65536.0, 3.3895314e38, 3.3961775e38])
    return torch.cat([torch.randn(4096), sizes, held, halfway, *around, quarter, edge, -edge, torch.tensor(SPECIAL)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_roundings(name: str, dtype: torch.dtype) -> None:
    rounding = rounding_of(name, dtype)
    if rounding is not ROUNDINGS[name]:
        pytest.skip("for bfloat16 alone")
    x = values(dtype)
    draw = Draw(seed=2**53 - 5, position=3, step=70000)
    param, kept = encode_parameter(PARAMETER_CODECS[name], x, dtype, draw)
    with np.errstate(all="ignore"):
        bits = bits16(x.numel(), draw.seed, draw.position, draw.step)
        tensor, value = rounding.stored(Ball(array(x)), dtype, bits)
    assert np.array_equal(array(param), tensor.mid, equal_nan=True)
    assert not tensor.rad.any()
    assert (None if kept is None else kept.dtype) is rounding.kept_dtype(dtype)
    read = array(decode_parameter(PARAMETER_CODECS[name], param, kept))
    assert np.array_equal(read, value.mid, equal_nan=True)
    assert np.array_equal(read, decoded(rounding, array(param), None if kept is None else array(kept)), equal_nan=True)

    # What reads back is stored as itself: an element that takes no part in a step keeps its value.
    with np.errstate(all="ignore"):
        _, again = rounding.stored(Ball(read), dtype, bits16(x.numel(), 1, 2, 3))
    assert np.array_equal(again.mid, read, equal_nan=True)

    # Monotone, as the ends of balls need it: with the same bits for every element.
    ascending = np.sort(array(x)[np.isfinite(array(x))])
    same = np.full(ascending.shape, 0x5A5A)
    with np.errstate(all="ignore"):
        held, worth = rounding.stored(Ball(ascending), dtype, same)
    assert (np.diff(held.mid[np.isfinite(held.mid)]) >= 0).all()
    assert (np.diff(worth.mid[np.isfinite(worth.mid)]) >= 0).all()


def test_spacings() -> None:
    """Decoding differs from a value by half a spacing and float32's rounding at most, somewhere nearly so."""
    x = 1 + np.random.default_rng(1).random(20000)
    for name, rounding in ROUNDINGS.items():
        for dtype in rounding.dtypes:
            if not rounding.draws:
                _, value = rounding.stored(Ball(x), dtype)
                error = np.abs(value.mid - x).max()
                assert rounding.spacing(dtype) / 8 < error <= rounding.spacing(dtype) / 2 + 2.0**-24, (name, dtype)


def test_known_words() -> None:
    """Of the reference implementation, Random123."""
    counters = np.array([[0] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], dtype=np.uint64)
    assert philox(counters[:1], 0)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(counters[1:], 0x299F31D0A4093822)[0].tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    ones = np.full((1, 4), 0xFFFFFFFF, dtype=np.uint64)
    assert philox(ones, 2**64 - 1)[0].tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
