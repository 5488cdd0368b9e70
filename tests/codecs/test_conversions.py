"""bf16 and fp16 of dtypes.h and convert.h against torch, in every build."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cpp_headers import Headers
from torch import Tensor

LOADS = [("load_bf16", torch.bfloat16), ("load_fp16", torch.float16), ("fp16_to_float", torch.float16)]
STORES = [("store_bf16", torch.bfloat16), ("store_fp16", torch.float16), ("float_to_fp16", torch.float16)]
QUIET = {torch.bfloat16: 0x40, torch.float16: 0x200, torch.float32: 0x400000}


def bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same(builds: list[Headers], function: str, x: Tensor, expected: Tensor) -> None:
    """Equal bits; for a NaN any of the same sign, a quiet one where a number is stored."""
    nan = expected.isnan()
    for headers in builds:
        ours = headers.convert(function, x, expected.dtype)
        assert torch.equal(ours.isnan(), nan), headers
        assert torch.equal(bits_of(ours)[~nan], bits_of(expected)[~nan]), headers
        assert torch.equal(bits_of(ours)[nan] < 0, bits_of(x)[nan] < 0), headers
        if expected.dtype is not torch.float32:
            assert (bits_of(ours)[nan] & QUIET[ours.dtype]).all(), headers


@pytest.mark.parametrize(("function", "dtype"), LOADS)
def test_load_every_pattern(builds: list[Headers], function: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    assert_same(builds, function, x, x.to(torch.float32))


@pytest.mark.parametrize(("function", "dtype"), STORES)
def test_store_gives_back_every_pattern(builds: list[Headers], function: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    assert_same(builds, function, x.to(torch.float32), x)


@pytest.mark.parametrize(("function", "dtype"), STORES)
def test_store_around_every_tie(builds: list[Headers], function: str, dtype: torch.dtype) -> None:
    """Every value half way between two stored ones, and its neighbours; zero, overflow and NaN among them."""
    x = torch.arange(2**15).to(torch.int16).view(dtype)
    low = x[:-1].to(torch.float32)
    high = x[1:].to(torch.float32)
    usable = low.isfinite() & high.isfinite()
    ties = ((low[usable].double() + high[usable].double()) / 2).float().numpy()
    bits = ties.view(np.int32)[:, None] + np.arange(-3, 4)
    values = torch.from_numpy(bits[bits >= 0].astype(np.int32).view(np.float32))
    largest = torch.finfo(dtype).max
    edge = torch.tensor([largest * f for f in (1.0, 1.0002, 1.0005, 1.001, 1.004, 2.0)], dtype=torch.float32)
    values = torch.cat([values, torch.linspace(65490, 65540, 2001), edge])
    values = torch.cat([values, -values])
    assert_same(builds, function, values, values.to(dtype))


@pytest.mark.parametrize(("function", "dtype"), STORES)
def test_store_random_patterns(builds: list[Headers], function: str, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (2_000_000,), dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    assert_same(builds, function, x, x.to(dtype))


@pytest.mark.parametrize("function", ["load_fp16", "fp16_to_float", "store_fp16", "float_to_fp16"])
def test_every_length(builds: list[Headers], function: str) -> None:
    from_dtype, to_dtype = (
        (torch.float32, torch.float16)
        if "store" in function or function.startswith("float")
        else (torch.float16, torch.float32)
    )
    for n in range(70):
        x = torch.randn(n).to(from_dtype)
        assert_same(builds, function, x, x.to(to_dtype))
