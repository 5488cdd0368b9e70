"""Kernels for tests of codecs: a tile of a codec written from float32 numbers, and read back in both ways.

A block of the grid has a job of its own: elements from `begin` to `end` of a tensor, in tiles as generated kernels walk
them. What is compiled for a codec depends on the run of a lane, which is 4 or 8.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from standin.texts import cubin
from torch import Tensor

from optgen.runtime.cuda.driver import load_driver
from support.gpu import forget_driver

INCLUDE = Path(__file__).parents[2] / "templates" / "include"
RUNS = (4, 8)
TEXT = """
#include <optgen/cuda.h>
using namespace optgen;

struct Job {
  float* values;
  void* data;
  void* aside;
  float* singles;
  int64_t begin, end, seed;
  uint32_t position, step;
  float new_scale;
};

template <class Codec, int run> __device__ void write(const Job& job) {
  __shared__ Books<Codec> books;
  books.fill();
  const Chunk c{0, 0, job.begin, job.end, 0};
  const int64_t first = first_element<run>(c);
  Tile<Plain<float>, run> from_tile(job.values, nullptr, first);
  Tile<Codec, run> to_tile(job.data, job.aside, first);
  SET_DRAWS
  for_each_tile<run>(c, are_aligned(job.values, job.data) && BESIDE_IS_ALIGNED, [&](const auto& place) {
    const float* const from = from_tile.open(place, books);
    float* const to = to_tile.open_new();
    for (int i = 0; i < LANE; ++i) to[i] = from[i];
    to_tile.measure(place);
    to_tile.close(job.new_scale, place, books);
    from_tile.advance(STRIDE);
    to_tile.advance(STRIDE);
  });
}

template <class Codec, int run> __device__ void read_back(const Job& job) {
  __shared__ Books<Codec> books;
  books.fill();
  const Chunk c{0, 0, job.begin, job.end, 0};
  const int64_t first = first_element<run>(c);
  Tile<Codec, run> from_tile(job.data, job.aside, first);
  Tile<Plain<float>, run> to_tile(job.values, nullptr, first);
  for_each_tile<run>(c, are_aligned(job.values, job.data) && BESIDE_IS_ALIGNED, [&](const auto& place) {
    const float* const from = from_tile.open(place, books);
    float* const to = to_tile.open_new();
    for (int i = 0; i < LANE; ++i) to[i] = from[i];
    to_tile.close(0.0f, place, books);
    from_tile.advance(STRIDE);
    to_tile.advance(STRIDE);
  });
  for (int64_t at = job.begin + threadIdx.x; at < job.end; at += THREADS) {
    job.singles[at] = read<Codec>(job.data, job.aside, at, books);
  }
}

#define KERNELS(name, run, ...)                                                                  \\
  extern "C" __global__ void __launch_bounds__(256) write_##name##_##run(const Job* jobs) {      \\
    write<__VA_ARGS__, run>(jobs[blockIdx.x]);                                                   \\
  }                                                                                              \\
  extern "C" __global__ void __launch_bounds__(256) read_back_##name##_##run(const Job* jobs) {  \\
    read_back<__VA_ARGS__, run>(jobs[blockIdx.x]);                                               \\
  }
"""
OF_STATES = TEXT.replace("SET_DRAWS", "").replace("BESIDE_IS_ALIGNED", "true")
OF_PARAMETERS = TEXT.replace("SET_DRAWS", "to_tile.draws(Draw{uint64_t(job.seed), job.position, job.step});").replace(
    "BESIDE_IS_ALIGNED", "are_aligned(job.aside)"
)


class Job(ctypes.Structure):
    """Work of a block of the grid; addresses are those of the tensor's element 0."""

    _fields_ = (
        ("values", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
        ("aside", ctypes.c_uint64),
        ("singles", ctypes.c_uint64),
        ("begin", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("position", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
        ("new_scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class Kernels:
    """A module, loaded."""

    module: Any

    def run(self, name: str, jobs: Sequence[Job]) -> None:
        """One launch, a block a job."""
        function = self.module.get_function(name)
        function.prepare("P")
        table = (Job * len(jobs))(*jobs)
        function.prepared_call((len(jobs), 1), (256, 1, 1), ctypes.addressof(table))


@contextmanager
def on_device() -> Iterator[None]:
    """The stand-in's context, current meanwhile."""
    forget_driver()
    driver = load_driver()
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        driver.Context.pop()


def load(folder: Path, text: str, names: dict[str, str]) -> Kernels:
    """Kernels of codecs, by a name each."""
    lines = [f"KERNELS({name}, {run}, {codec})" for name, codec in names.items() for run in RUNS]
    image = cubin(folder, text + "\n".join(lines) + "\n", f"-I{INCLUDE}")
    return Kernels(load_driver().module_from_buffer(image))


class Guarded:
    """Bytes between others that nobody may change, `offset` bytes beyond a multiple of 64."""

    GUARD = 64

    def __init__(self, count: int, offset: int = 0, fill: int = 0xA5) -> None:
        self.buffer = torch.full((self.GUARD + offset + count + self.GUARD,), fill, dtype=torch.uint8)
        assert self.buffer.data_ptr() % 64 == 0
        self.begin, self.end, self.fill = self.GUARD + offset, self.GUARD + offset + count, fill

    @property
    def bytes(self) -> Tensor:
        return self.buffer[self.begin : self.end]

    @property
    def address(self) -> int:
        return self.buffer.data_ptr() + self.begin

    def view(self, dtype: torch.dtype) -> Tensor:
        """A copy as numbers."""
        return self.bytes.clone().view(dtype)

    def is_alone(self) -> bool:
        outside = torch.cat([self.buffer[: self.begin], self.buffer[self.end :]])
        return bool((outside == self.fill).all())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, where every NaN is as good as another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point or a.dtype is torch.float8_e4m3fn:
        return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    whole = {2: torch.int16, 4: torch.int32}[a.element_size()]
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(a.view(whole)[~nan], b.view(whole)[~nan])


def floats(values: Tensor) -> Guarded:
    """Numbers as kernels read them."""
    made = Guarded(4 * values.numel())
    made.bytes.view(torch.float32).copy_(values)
    return made
