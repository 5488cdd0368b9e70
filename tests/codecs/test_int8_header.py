"""int8.h against the codec in torch, bit for bit, in every build."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_headers import BUILDS, COMPILERS, ROOT, Headers, compile_cpp
from torch import Tensor

from optgen.codecs import code_book, midpoints
from optgen.runtime.torch_codecs import decode, encode

SCALES = [1e-45, 1e-40, 1.2e-38, 1e-30, 1e-7, 1e-3, 1.0, 255.0, 1e20, 3e38]


def assert_same(headers: Headers, x: Tensor, signed: bool) -> None:
    """Codes and scales of a 1-d tensor agree."""
    codes, absmax = headers.encode(x, signed)
    expected_codes, expected_absmax = encode("int8", x, signed)
    assert expected_absmax is not None
    assert torch.equal(absmax, expected_absmax)
    wrong = (codes != expected_codes).nonzero().flatten()[:5]
    assert not len(wrong), [(x[i].item(), codes[i].item(), expected_codes[i].item()) for i in wrong]


def blocks_with_scale_one(magnitudes: Tensor) -> Tensor:
    """The magnitudes, each with both signs, in blocks whose largest element is 1, so that they are not scaled."""
    values = torch.cat([magnitudes, -magnitudes])
    values = torch.nn.functional.pad(values, (0, -len(values) % 255))
    return torch.nn.functional.pad(values.reshape(-1, 255), (0, 1), value=1.0).flatten()


def neighbours(centers: list[float], ulps: int) -> Tensor:
    """All floats of [0, 1] within some units in the last place of the centers."""
    bits = np.array(centers, dtype=np.float32).view(np.int32)[:, None] + np.arange(-ulps, ulps + 1)
    return torch.from_numpy(np.clip(bits, 0, np.float32(1).view(np.int32)).astype(np.int32).view(np.float32).ravel())


@pytest.mark.parametrize("signed", [True, False])
def test_around_every_threshold(headers: Headers, signed: bool) -> None:
    centers = [*midpoints(signed), *(abs(value) for value in code_book(signed))]
    centers += [10.0**-i for i in range(9)] + [2.0**-i for i in range(150)]
    assert_same(headers, blocks_with_scale_one(neighbours(centers, 8)), signed)


@pytest.mark.parametrize("signed", [True, False])
def test_random_magnitudes(headers: Headers, signed: bool) -> None:
    assert_same(headers, blocks_with_scale_one(torch.rand(1_000_000)), signed)
    # Evenly over the bit patterns from 2**-40 to 1: as many in each binade.
    patterns = torch.randint(0x2B800000, 0x3F800001, (1_000_000,), dtype=torch.int32)
    assert_same(headers, blocks_with_scale_one(patterns.view(torch.float32)), signed)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("signed", [True, False])
def test_random_blocks(headers: Headers, signed: bool, scale: float) -> None:
    x = torch.randn(100_003).clamp(-3, 3) / 3
    spread = torch.exp(torch.randn(100_003).clamp(max=0.0) * 6)
    assert_same(headers, x * spread * scale, signed)
    assert_same(headers, (x * spread).square() * scale, signed)


@pytest.mark.parametrize("signed", [True, False])
def test_any_float(headers: Headers, signed: bool) -> None:
    bits = torch.randint(-(2**31), 2**31, (300_000,), dtype=torch.int64).to(torch.int32)
    assert_same(headers, bits.view(torch.float32), signed)


@pytest.mark.parametrize("signed", [True, False])
def test_special_values(headers: Headers, signed: bool) -> None:
    special = torch.tensor([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0, 1, 0x80000001])
    special_floats = special.to(torch.int32).view(torch.float32)
    x = torch.randn(20_000)
    where = torch.randperm(len(x))[:6_000]
    x[where] = special_floats[torch.randint(len(special), (len(where),))]
    assert_same(headers, x, signed)
    for value in special_floats:
        assert_same(headers, value.expand(300).contiguous(), signed)
        assert_same(headers, torch.cat([value.expand(100), torch.tensor([3e38, -1.0])]), signed)


@pytest.mark.parametrize("signed", [True, False])
def test_every_length_and_nothing_beyond(headers: Headers, signed: bool) -> None:
    for n in range(257):
        x = torch.randn(n)
        expected, absmax = encode("int8_tensor", x, signed)
        assert absmax is not None
        assert headers.finite_absmax(x) == absmax.item()
        codes = torch.full((n + 64,), 7, dtype=torch.uint8)
        headers.encode_block(x, absmax.item(), signed, codes, n)
        assert torch.equal(codes[:n], expected), n
        assert (codes[n:] == 7).all(), n
        out = torch.full((n + 64,), 7.5)
        headers.decode_block(expected, absmax.item(), signed, out, n)
        assert torch.equal(out[:n], decode("int8_tensor", expected, absmax, signed, (n,))), n
        assert (out[n:] == 7.5).all(), n


@pytest.mark.parametrize("signed", [True, False])
def test_scale_of_a_larger_tensor(headers: Headers, signed: bool) -> None:
    """With one scale for the tensor, a block's own largest element is smaller than absmax."""
    x = torch.randn(1280) * torch.logspace(-9, 0, 1280)
    expected, absmax = encode("int8_tensor", x, signed)
    assert absmax is not None
    codes = torch.empty_like(expected)
    for at in range(0, 1280, 256):
        headers.encode_block(x[at : at + 256], absmax.item(), signed, codes[at : at + 256], 256)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("signed", [True, False])
def test_decode_every_code(headers: Headers, signed: bool) -> None:
    codes = torch.arange(256).to(torch.uint8)
    for absmax in [0.0, 1.0, *SCALES, *torch.rand(200).tolist(), *(torch.randn(50) * 10).exp().tolist()]:
        scale = torch.tensor([absmax])
        order = torch.randperm(256)
        out = torch.empty(256)
        headers.decode_block(codes[order], scale.item(), signed, out, 256)
        expected = decode("int8_tensor", codes[order], scale, signed, (256,))
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32)), absmax


@pytest.mark.full
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_magnitude(compiler: str, build: str, tmp_path: Path) -> None:
    program = tmp_path / "check_int8"
    compile_cpp(compiler, ROOT / "tools" / "check_int8.cpp", program, *BUILDS[build])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
