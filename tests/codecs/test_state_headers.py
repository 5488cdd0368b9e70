"""The codecs of states in C++ against those in torch, bit for bit, in every build."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cpp_headers import BUILDS, COMPILERS, ROOT, Headers, build_flags, compile_cpp
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, WHOLE_TENSOR, Codec, code_book, codec, midpoints
from optgen.runtime.states.torch_codecs import decode, encode

SCALES = [1e-45, 1e-40, 1.2e-38, 1e-30, 1e-7, 1e-3, 1.0, 255.0, 1e20, 3e38]
BOOKS = [name for name, item in CODECS.items() if item.scaled]

pytestmark = [pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])]
each_book = pytest.mark.parametrize("name", BOOKS)


def assert_same(builds: list[Headers], item: Codec, x: Tensor, signed: bool) -> None:
    """Codes and scales of a 1-d tensor agree, and so do the numbers that they stand for."""
    expected_codes, expected_absmax = encode(item, x, signed)
    assert expected_absmax is not None
    whole = expected_absmax.item() if item.block == WHOLE_TENSOR else 0.0
    for headers in builds:
        codes, absmax = headers.encode(item, x, signed, whole)
        assert torch.equal(absmax, expected_absmax), headers
        wrong = (codes.view(torch.uint8) != expected_codes.view(torch.uint8)).nonzero().flatten()[:5]
        assert not len(wrong), (
            headers.build,
            [(i.item(), x[item.packed * i].item(), codes[i], expected_codes[i]) for i in wrong],
        )
    assert_same_numbers(builds, item, expected_codes, expected_absmax, signed, len(x))


def assert_same_numbers(
    builds: list[Headers], item: Codec, codes: Tensor, absmax: Tensor, signed: bool, numel: int
) -> None:
    expected = decode(item, codes, absmax, signed, (numel,))
    nan = expected.isnan()
    for headers in builds:
        ours = headers.decode(item, codes, absmax, signed, numel)
        assert torch.equal(ours.isnan(), nan), headers
        assert torch.equal(ours.view(torch.int32)[~nan], expected.view(torch.int32)[~nan]), headers


def blocks_with_scale_one(magnitudes: Tensor, block: int) -> Tensor:
    """The magnitudes, each with both signs, in blocks whose largest element is 1, so that they are not scaled."""
    values = torch.cat([magnitudes, -magnitudes])
    values = torch.nn.functional.pad(values, (0, -len(values) % (block - 1)))
    return torch.nn.functional.pad(values.reshape(-1, block - 1), (0, 1), value=1.0).flatten()


def neighbours(centers: list[float], ulps: int) -> Tensor:
    """All floats of [0, 1] within some units in the last place of the centers."""
    bits = np.array(centers, dtype=np.float32).view(np.int32)[:, None] + np.arange(-ulps, ulps + 1)
    return torch.from_numpy(np.clip(bits, 0, np.float32(1).view(np.int32)).astype(np.int32).view(np.float32).ravel())


def thresholds(name: str, signed: bool) -> list[float]:
    """Magnitudes at which the code changes, and those that codes stand for."""
    if name in ("int8", "int4", "normal4"):
        return [*midpoints(signed, name), *(abs(value) for value in code_book(signed, name))]
    if name == "fp8":
        values = torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).double() / 448
        return [*values.tolist(), *((values[1:] + values[:-1]) / 2).tolist()]
    halves = [q / 2 for q in range(2 * 127 if signed else 2 * 255)]
    return [q / 127 / (2 - q / 127) if signed else (q / 255) ** 2 for q in halves]


@each_book
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_around_every_threshold(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    centers = thresholds(name, signed) + [10.0**-i for i in range(9)] + [2.0**-i for i in range(150)]
    item = codec(name).with_block(block)
    assert_same(builds, item, blocks_with_scale_one(neighbours(centers, 8), block), signed)


@each_book
def test_random_magnitudes(builds: list[Headers], name: str, signed: bool) -> None:
    item = codec(name)
    assert_same(builds, item, blocks_with_scale_one(torch.rand(500_000), item.block), signed)
    # Evenly over the bit patterns from 2**-40 to 1: as many in each binade.
    patterns = torch.randint(0x2B800000, 0x3F800001, (500_000,), dtype=torch.int32)
    assert_same(builds, item, blocks_with_scale_one(patterns.view(torch.float32), item.block), signed)


@each_book
@pytest.mark.parametrize("block", [*BLOCK_SIZES, WHOLE_TENSOR])
def test_random_blocks(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    item = codec(name).with_block(block)
    x = torch.randn(20_003).clamp(-3, 3) / 3
    spread = torch.exp(torch.randn(20_003).clamp(max=0.0) * 6)
    for scale in SCALES:
        assert_same(builds, item, x * spread * scale, signed)
        assert_same(builds, item, (x * spread).square() * scale, signed)


@each_book
@pytest.mark.parametrize("block", [*BLOCK_SIZES, WHOLE_TENSOR])
def test_any_float(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32)
    assert_same(builds, codec(name).with_block(block), bits.view(torch.float32), signed)


@each_book
@pytest.mark.parametrize("block", [*BLOCK_SIZES, WHOLE_TENSOR])
def test_special_values(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    item = codec(name).with_block(block)
    special = torch.tensor([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0, 1, 0x80000001])
    special_floats = special.to(torch.int32).view(torch.float32)
    x = torch.randn(20_000)
    where = torch.randperm(len(x))[:6_000]
    x[where] = special_floats[torch.randint(len(special), (len(where),))]
    assert_same(builds, item, x, signed)
    for value in special_floats:
        assert_same(builds, item, value.expand(300).contiguous(), signed)
        assert_same(builds, item, torch.cat([value.expand(100), torch.tensor([3e38, -1.0])]), signed)


@each_book
@pytest.mark.parametrize("block", [*BLOCK_SIZES, WHOLE_TENSOR])
def test_every_length(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    item = codec(name).with_block(block)
    for n in range(item.packed, 258):
        assert_same([each for each in builds if each.tries(n)], item, torch.randn(n), signed)


@each_book
def test_scale_of_a_larger_tensor(builds: list[Headers], name: str, signed: bool) -> None:
    """With one scale for the tensor, a tile's own largest element is smaller than absmax."""
    assert_same(builds, codec(name).with_block(WHOLE_TENSOR), torch.randn(1280) * torch.logspace(-9, 0, 1280), signed)


@each_book
@pytest.mark.parametrize("block", [32, 256])
def test_decode_every_code(builds: list[Headers], name: str, signed: bool, block: int) -> None:
    item = codec(name).with_block(block)
    order = torch.cat([torch.randperm(256) for _ in range(20)])
    codes = order.to(torch.uint8).view(getattr(torch, item.storage))
    numel = len(codes) * item.packed
    scales = [0.0, 1.0, *SCALES, *torch.rand(200).tolist(), *(torch.randn(500) * 10).exp().tolist()]
    for first in (0, 12, 300):
        absmax = torch.tensor(scales[first:] + scales[:first])[: item.scales(numel)]
        assert_same_numbers(builds, item, codes, absmax, signed, numel)


@contextmanager
def flushing() -> Iterator[None]:
    """Subnormal numbers are taken for 0, as a program may ask the processor to."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@each_book
def test_codes_do_not_depend_on_subnormal_numbers(builds: list[Headers], name: str, signed: bool) -> None:
    item = codec(name)
    centers = thresholds(name, signed) + [2.0**-i for i in range(126)]
    x = blocks_with_scale_one(neighbours(centers, 2), item.block)
    x = torch.where(x.abs() < 2.0**-126, 0.0, x)
    expected, absmax = encode(item, x, signed)
    assert absmax is not None
    numbers = decode(item, expected, absmax, signed, x.shape)
    for headers in builds:
        with flushing():
            codes, _ = headers.encode(item, x, signed)
            decoded = headers.decode(item, expected, absmax, signed, len(x))
        assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8)), headers
        assert torch.equal(decoded, numbers), headers


@pytest.mark.full
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_magnitude(compiler: str, build: str, signed: bool, tmp_path: Path) -> None:
    program = tmp_path / "check_codes"
    compile_cpp(compiler, ROOT / "tools" / "check_codes.cpp", program, *build_flags(compiler, build))
    done = subprocess.run([str(program), str(int(signed))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
