"""The codecs of states on a GPU, by the stand-in: every coding, block and run against torch, bit for bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
import torch
from support.codec_kernels import OF_STATES, RUNS, Guarded, Job, Kernels, floats, load, on_device, same_bits
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, WHOLE_TENSOR, Codec
from optgen.runtime.states.torch_codecs import decode, encode

BOOKS = ("int8", "int4", "normal4", "fp8", "companded8")
BLOCKS = (*BLOCK_SIZES, WHOLE_TENSOR)
CHUNK = 2048  # elements of a block of the grid
FLOATS = torch.finfo(torch.float32)


def name_of(codec: Codec, signed: bool) -> str:
    return f"{codec.name}_{'signed' if signed else 'unsigned'}_{codec.block if codec.block > 0 else 'tensor'}"


@pytest.fixture
def kernels(driver: standin.Driver, tmp_path: Path) -> Iterator[Callable[[str, bool], Kernels]]:
    """The kernels of a coding, in all blocks and runs."""

    def of(book: str, signed: bool) -> Kernels:
        codecs = [CODECS[book].with_block(block) for block in BLOCKS]
        return load(tmp_path, OF_STATES, {name_of(codec, signed): codec.cpp_type(signed) for codec in codecs})

    with on_device():
        yield of


def chunks(numel: int, **fields: Any) -> list[Job]:
    return [Job(begin=begin, end=min(begin + CHUNK, numel), **fields) for begin in range(0, numel, CHUNK)]


def check(kernels: Kernels, codec: Codec, signed: bool, run: int, x: Tensor) -> None:
    """Compare stored x, and x as read back, with torch's codec."""
    name, numel = name_of(codec, signed), x.numel()
    codes, scales = encode(codec, x, signed)
    assert scales is not None
    values, data, aside = floats(x), Guarded(codes.numel()), Guarded(4 * scales.numel())
    fields = {"values": values.address, "data": data.address, "aside": aside.address}
    if codec.block == WHOLE_TENSOR:
        aside.bytes.view(torch.float32).copy_(scales)
        fields["new_scale"] = float(scales)
    kernels.run(f"write_{name}_{run}", chunks(numel, **fields))
    assert same_bits(aside.view(torch.float32), scales)
    wrong = (data.bytes != codes.view(torch.uint8).reshape(-1)).nonzero().reshape(-1)
    assert not wrong.numel(), f"{name}, run {run}: byte {wrong[0]}, {x[wrong[0] : wrong[0] + 2]}"
    opened, singles = Guarded(4 * numel), Guarded(4 * numel)
    fields |= {"values": opened.address, "singles": singles.address}
    kernels.run(f"read_back_{name}_{run}", chunks(numel, **fields))
    expected = decode(codec, codes, scales, signed, x.shape)
    assert same_bits(opened.view(torch.float32), expected)
    assert same_bits(singles.view(torch.float32), expected)
    assert all(guarded.is_alone() for guarded in (values, data, aside, opened, singles))


def neighbours(values: Tensor, ulps: int) -> Tensor:
    """Positive float32 numbers and those up to so many places away."""
    around = torch.arange(-ulps, ulps + 1, dtype=torch.int32)
    return (values.float().view(torch.int32)[:, None] + around).reshape(-1).view(torch.float32)


def edges(codec: Codec, signed: bool) -> Tensor:
    """Magnitudes up to 1 around every number that has a code, and around all that lie between two codes."""
    every = torch.arange(256).to(torch.uint8).view(getattr(torch, codec.storage))
    one = torch.ones(1)
    shape = (256 * codec.packed,)
    known = decode(codec.with_block(WHOLE_TENSOR), every, one, signed, shape).double()
    known = known[known.isfinite() & (known >= 0)].unique()
    steps = torch.arange(1, 256, dtype=torch.float64) - 0.5
    companded = torch.cat([steps / (254 - steps), (steps / 255).square()])
    found = torch.cat([known, (known[1:] + known[:-1]) / 2, companded])
    found = neighbours(found[(found > 0) & (found <= 1)], 3)
    return found[found <= 1]


def in_blocks_of_one(y: Tensor, block: int) -> Tensor:
    """The numbers in blocks that each begin with 1, so that the scales are 1."""
    width = block - 1
    y = torch.nn.functional.pad(y, (0, -y.numel() % width))
    return torch.nn.functional.pad(y.reshape(-1, width), (1, 0), value=1.0).reshape(-1)


def special(block: int) -> Tensor:
    """Blocks of numbers that are seldom met."""
    rows = [
        [0.0, -0.0],
        [float("nan"), float("inf"), -float("inf")],
        [float("inf"), 1.0, -0.5, float("nan")],
        [FLOATS.max, -FLOATS.max, 1e30, -1e38],
        [FLOATS.tiny, -FLOATS.tiny, FLOATS.tiny / 2, 1e-44],
        [FLOATS.tiny / 2, -FLOATS.tiny / 4, 1e-45],
        [1.0, -1.0, 1e-30, -1e-30, 1e-45, -1e-45, -0.0],
        [-3.0, 2.9999998, -2.9999998],
    ]
    filled = torch.zeros(len(rows), block)
    for row, numbers in zip(filled, rows, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
        row[-1] = numbers[-1]
    return filled.reshape(-1)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("book", BOOKS)
def test_every_coding_block_and_run(book: str, signed: bool, kernels: Callable[[str, bool], Kernels]) -> None:
    module = kernels(book, signed)
    source = torch.Generator().manual_seed(7)
    for block in BLOCKS:
        codec = CODECS[book].with_block(block)
        width = block if block > 0 else 256
        y = edges(codec, signed)
        drawn = torch.randn(5 * 256, generator=source) * 10.0 ** torch.randint(-9, 9, (5 * 256,), generator=source)
        if block > 0:
            x = torch.cat([in_blocks_of_one(y, width), -in_blocks_of_one(y, width), special(width), drawn])
            numbers = [x, torch.randn(1003, generator=source)]
        else:
            numbers = [torch.cat([y, -y, torch.ones(1)]), drawn, *special(256).split(256)]
        for run in RUNS:
            for x in numbers:
                check(module, codec, signed, run, x)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("book", BOOKS)
def test_every_byte_is_read(book: str, signed: bool, kernels: Callable[[str, bool], Kernels]) -> None:
    """Those that nobody writes as well, as a loaded state may have them."""
    module = kernels(book, signed)
    codec = CODECS[book]
    shape = (256 * codec.packed,)
    every = torch.arange(256).to(torch.uint8)
    scales = torch.rand(codec.scales(shape[0]), generator=torch.Generator().manual_seed(1)) + 0.5
    expected = decode(codec, every.view(getattr(torch, codec.storage)), scales, signed, shape)
    data, aside = Guarded(256), Guarded(4 * scales.numel())
    data.bytes.copy_(every)
    aside.bytes.view(torch.float32).copy_(scales)
    for run in RUNS:
        opened, singles = Guarded(4 * shape[0]), Guarded(4 * shape[0])
        job = Job(opened.address, data.address, aside.address, singles.address, 0, shape[0])
        module.run(f"read_back_{name_of(codec, signed)}_{run}", [job])
        assert same_bits(opened.view(torch.float32), expected)
        assert same_bits(singles.view(torch.float32), expected)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("book", BOOKS)
def test_every_tail_at_every_address(book: str, signed: bool, kernels: Callable[[str, bool], Kernels]) -> None:
    """0 to 257 elements, aligned or not, between bytes that stay as they are; blocks differ from length to length."""
    module = kernels(book, signed)
    source = torch.Generator().manual_seed(3)
    for block in BLOCKS:
        codec = CODECS[book].with_block(block)
        for run in RUNS:
            jobs, reads, cases = [], [], []
            for numel in range(258):
                x = torch.randn(numel, generator=source)
                codes, scales = encode(codec, x, signed) if numel else (torch.empty(0), torch.empty(codec.scales(0)))
                assert scales is not None
                offset = numel % 16 if numel % 2 else 0
                values, data = floats(x), Guarded(codes.numel(), offset)
                aside, opened = Guarded(4 * scales.numel(), 4 * (numel % 4)), Guarded(4 * numel)
                singles = Guarded(4 * numel)
                if block == WHOLE_TENSOR:
                    aside.bytes.view(torch.float32).copy_(scales)
                fields = {"data": data.address, "aside": aside.address, "begin": 0, "end": numel}
                scale = float(scales) if block == WHOLE_TENSOR else 0.0
                jobs.append(Job(values=values.address, new_scale=scale, **fields))
                reads.append(Job(values=opened.address, singles=singles.address, **fields))
                cases.append((x, codes, scales, values, data, aside, opened, singles))
            module.run(f"write_{name_of(codec, signed)}_{run}", jobs)
            module.run(f"read_back_{name_of(codec, signed)}_{run}", reads)
            for x, codes, scales, *guards in cases:
                _, data, aside, opened, singles = guards
                assert all(guarded.is_alone() for guarded in guards), (codec, run, x.numel())
                if x.numel():
                    assert torch.equal(data.bytes, codes.view(torch.uint8)), (codec, run, x.numel())
                    assert same_bits(aside.view(torch.float32), scales)
                    expected = decode(codec, codes, scales, signed, x.shape)
                    assert same_bits(opened.view(torch.float32), expected)
                    assert same_bits(singles.view(torch.float32), expected)


def test_a_job_is_what_the_kernels_say_it_is() -> None:
    assert ctypes.sizeof(Job) == 72
