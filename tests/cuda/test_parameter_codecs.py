"""Roundings of parameters on a GPU, by the stand-in: each against torch, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
import torch
from support.codec_kernels import OF_PARAMETERS, RUNS, Guarded, Job, Kernels, floats, load, on_device, same_bits
from torch import Tensor

from optgen.codecs import PARAMETER_CODECS
from optgen.runtime.states.philox import Draw, philox
from optgen.runtime.states.torch_rounding import decode_parameter, encode_parameter

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PAIRS = [(codec, dtype) for codec in PARAMETER_CODECS.values() for dtype in codec.dtypes]
CASES = [pytest.param(codec, dtype, id=f"{codec.name}-{dtype}") for codec, dtype in PAIRS]
CHUNK = 2048
SEEDS = (0, 1, 2**53)


@pytest.fixture
def kernels(driver: standin.Driver, tmp_path: Path) -> Iterator[Kernels]:
    with on_device():
        names = {f"{codec.name}_{dtype}": codec.cpp_type(dtype) for codec, dtype in PAIRS}
        yield load(tmp_path, OF_PARAMETERS, names)


def numbers() -> Tensor:
    """All exponents with either sign, what lies around ties of either dtype, and what is not finite."""
    source = torch.Generator().manual_seed(11)
    bits = torch.randint(-(2**31), 2**31, (6000,), generator=source).to(torch.int32)
    upper = torch.randint(-(2**15), 2**15, (2000,), generator=source).to(torch.int32) << 16
    near = upper + torch.randint(-2, 3, (2000,), generator=source).to(torch.int32)
    ties = torch.cat([near + 0x8000, near + 0x80, near + 0x1000, near])
    halves = torch.randn(2000, generator=source) * 2.0 ** torch.randint(-28, 18, (2000,), generator=source)
    last = torch.tensor([0.0, -0.0, 65504.0, 65519.0, 65520.0, -65535.0, 2.0**-14, -(2.0**-24), 2.0**-25, 3.0e-45])
    large = torch.tensor([3.4028235e38, -3.4e38, 3.39e38, float("inf"), -float("inf"), float("nan"), -float("nan")])
    quiet = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7F80FFFF], dtype=torch.int32).view(torch.float32)
    return torch.cat([bits.view(torch.float32), ties.view(torch.float32), halves, last, large, quiet])


def where_one_bit_decides(draw: Draw, first: int) -> Tensor:
    """Numbers from element `first` on whose fraction is what the draw decides at, or one off."""
    random = draw.bits16(first + 2000, "cpu")[first:]
    off = torch.arange(2000) % 3 - 1
    subnormal = (torch.arange(2000) % 200 + (random + off) / 2.0**16).float() * 2.0**-24
    of_bf16 = (0x3F800000 + (0x10000 - random + off)).to(torch.int32).view(torch.float32)
    of_fp16 = (0x3F800000 + (0x2000 - (random >> 3) + off)).to(torch.int32).view(torch.float32)
    place = torch.arange(2000) % 7
    return torch.where(place < 2, subnormal, torch.where(place < 4, of_bf16, of_fp16))


def jobs(numel: int, **fields: Any) -> list[Job]:
    return [Job(begin=begin, end=min(begin + CHUNK, numel), **fields) for begin in range(0, numel, CHUNK)]


def of_draw(draw: Draw) -> dict[str, int]:
    return {"seed": draw.seed, "position": draw.position, "step": draw.step}


def stored(param: Tensor, kept: Tensor | None, offset: int = 0) -> tuple[Guarded, Guarded]:
    """Room for a parameter and for what is kept beside it."""
    beside = 0 if kept is None else kept.numel() * kept.element_size()
    shift = 0 if kept is None else offset * kept.element_size()
    return Guarded(param.numel() * param.element_size(), offset * param.element_size()), Guarded(beside, shift)


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_every_rounding(codec: Any, dtype: str, kernels: Kernels) -> None:
    for number, seed in enumerate(SEEDS if codec.name == "stochastic" else SEEDS[:1]):
        draw = Draw(seed, 3 + number, 2**24 + number)
        values = numbers()
        values = torch.cat([values, where_one_bit_decides(draw, values.numel())])
        param, kept = encode_parameter(codec, values, DTYPES[dtype], draw)
        expected = decode_parameter(codec, param, kept)
        for run in RUNS:
            data, aside = stored(param, kept)
            x, opened, singles = floats(values), Guarded(4 * values.numel()), Guarded(4 * values.numel())
            fields = {"data": data.address, "aside": aside.address if kept is not None else 0, **of_draw(draw)}
            kernels.run(f"write_{codec.name}_{dtype}_{run}", jobs(values.numel(), values=x.address, **fields))
            assert same_bits(data.view(param.dtype), param)
            assert kept is None or same_bits(aside.view(kept.dtype), kept)
            fields |= {"values": opened.address, "singles": singles.address}
            kernels.run(f"read_back_{codec.name}_{dtype}_{run}", jobs(values.numel(), **fields))
            assert same_bits(opened.view(torch.float32), expected)
            assert same_bits(singles.view(torch.float32), expected)
            assert all(guarded.is_alone() for guarded in (data, aside, x, opened, singles))


@pytest.mark.parametrize(("codec", "dtype"), CASES)
def test_every_tail_at_every_address(codec: Any, dtype: str, kernels: Kernels) -> None:
    """0 to 257 elements, aligned or not, between bytes that stay as they are."""
    for run in RUNS:
        writes, reads, cases = [], [], []
        for numel in range(258):
            values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
            draw = Draw(numel, numel + 1, 5)
            param, kept = encode_parameter(codec, values, DTYPES[dtype], draw)
            data, aside = stored(param, kept, numel % 8 if numel % 2 else 0)
            x, opened, singles = floats(values), Guarded(4 * numel), Guarded(4 * numel)
            fields = {"data": data.address, "aside": aside.address if kept is not None else 0, "begin": 0, "end": numel}
            writes.append(Job(values=x.address, **fields, **of_draw(draw)))
            reads.append(Job(values=opened.address, singles=singles.address, **fields))
            cases.append((param, kept, x, data, aside, opened, singles))
        kernels.run(f"write_{codec.name}_{dtype}_{run}", writes)
        kernels.run(f"read_back_{codec.name}_{dtype}_{run}", reads)
        for param, kept, *guards in cases:
            assert all(guarded.is_alone() for guarded in guards), (codec, run, param.numel())
            _, data, aside, opened, singles = guards
            assert same_bits(data.view(param.dtype), param), (codec, run, param.numel())
            assert kept is None or same_bits(aside.view(kept.dtype), kept), (codec, run, param.numel())
            expected = decode_parameter(codec, param, kept)
            assert same_bits(opened.view(torch.float32), expected)
            assert same_bits(singles.view(torch.float32), expected)


@pytest.mark.parametrize("begin", [8 * 2**32 - 256, 8 * 2**32, 8 * (2**33 + 5 * 32)])
def test_draws_far_into_a_tensor(begin: int, kernels: Kernels) -> None:
    """Beyond the lower word of the counter, of a tensor that has no memory before its last elements."""
    numel = 512
    values = torch.randn(numel, generator=torch.Generator().manual_seed(2))
    blocks = torch.arange(begin // 8, (begin + numel) // 8, dtype=torch.int64)
    words = philox(blocks & 0xFFFFFFFF, blocks >> 32, 9, 4, 77)
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1).reshape(-1)
    expected = ((values.view(torch.int32) + halves.to(torch.int32)) >> 16).to(torch.int16).view(torch.bfloat16)
    for run in RUNS:
        x, data = floats(values), Guarded(2 * numel)
        places = {"values": (x.address - 4 * begin) % 2**64, "data": (data.address - 2 * begin) % 2**64}
        job = Job(begin=begin, end=begin + numel, seed=77, position=9, step=4, **places)
        kernels.run(f"write_stochastic_bfloat16_{run}", [job])
        assert same_bits(data.view(torch.bfloat16), expected)
        assert data.is_alone()


def test_draws_are_the_published_numbers() -> None:
    """The known answers of Philox4x32-10 (Random123's kat_vectors), of what kernels are compared with."""
    words = philox(torch.tensor([0xFFFFFFFF]), torch.tensor([0xFFFFFFFF]), 0xFFFFFFFF, 0xFFFFFFFF, 2**64 - 1)
    assert [int(word) for word in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
