"""Division of a step's work among threads: all of it, each chunk once, and as much for each."""

from __future__ import annotations

import ctypes
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.machine import require_compiler

from optgen.runtime.building.cache import find_compiler, shared_library
from optgen.runtime.core.call import Call

CHUNK = 128 * 256
LATE = 60.0  # seconds after which a thread that waits for the other's chunks gives up
SOURCE = """\
#include <chrono>
#include <optgen/cpu.h>
using namespace optgen;

OPTGEN_EXPORT void edges(const Call* call, int64_t* out) {
  Share* const shares = new Share[call->threads];
  divide(*call, shares);
  for (int64_t t = 0; t < call->threads; ++t) {
    out[2 * t] = shares[t].next;
    out[2 * t + 1] = shares[t].end;
  }
  delete[] shares;
}

// A pass whose first chunk ends once all others have, or late. Counts how often each chunk was run; true if not late.
OPTGEN_EXPORT int64_t wait_in_first(const Call* call, int64_t* runs, double late) {
  int64_t ended = 0;
  bool in_time = true;
  run_pass<BASE_COLUMNS, int>(
      *call, [](const Call&, const Tensor&) { return 0; },
      [&](const Call&, const Tensor&, const Chunk& c, int) {
        const auto begun = std::chrono::steady_clock::now();
        while (c.index == 0 && in_time && __atomic_load_n(&ended, __ATOMIC_ACQUIRE) < call->chunks - 1)
          in_time = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() < late;
        ++runs[c.index];
        __atomic_fetch_add(&ended, 1, __ATOMIC_RELEASE);
      },
      [](const Call&, const Tensor&) {});
  return in_time;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    require_compiler()
    compiler = find_compiler()
    assert compiler is not None
    source = tmp_path_factory.mktemp("shares") / "shares.cpp"
    source.write_text(SOURCE, encoding="utf-8")
    made = shared_library(Path(source), {}, compiler)
    made.edges.argtypes, made.edges.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    made.wait_in_first.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_double]
    made.wait_in_first.restype = ctypes.c_int64
    return made


def shares(library: ctypes.CDLL, sizes: list[int], threads: int, first: int = 0) -> list[list[int]]:
    """Sizes of the chunks that each thread has."""
    table = array("q", [0] * 4 * first)
    for size in sizes:
        table.extend((0, 0, size, 0))
    call = Call(chunks=len(sizes), first=first, threads=threads, chunk_table=table.buffer_info()[0])
    found = array("q", [0] * 2 * threads)
    library.edges(ctypes.addressof(call), found.buffer_info()[0])
    edges = [*found[::2], found[-1]]
    assert (edges[0], edges[-1]) == (0, len(sizes))
    assert found[1::2] == array("q", edges[1:])
    assert edges == sorted(edges)
    return [sizes[begin:end] for begin, end in pairwise(edges)]


@pytest.mark.parametrize(
    ("sizes", "threads", "expected"),
    [
        ([CHUNK] * 4, 2, [2, 2]),
        ([CHUNK] * 3, 1, [3]),
        ([CHUNK], 2, [1, 0]),
        ([], 2, [0, 0]),
        ([CHUNK, CHUNK, 1000], 2, [1, 2]),
        ([CHUNK] * 30 + [100] * 1000, 2, [19, 1011]),  # a large tensor before many small ones
        ([100] * 1000 + [CHUNK] * 30, 2, [1011, 19]),
        ([100] * 10, 3, [3, 4, 3]),
    ],
)
def test_threads_have_as_much_to_do(library: ctypes.CDLL, sizes: list[int], threads: int, expected: list[int]) -> None:
    assert [len(own) for own in shares(library, sizes, threads)] == expected


def test_no_thread_has_more_than_its_share_and_half_a_chunk(library: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        count, threads = (int(torch.randint(1, 60, (), generator=generator)) for _ in range(2))
        sizes = torch.randint(1, CHUNK + 1, (count,), generator=generator).tolist()
        parts = shares(library, sizes, threads, first=3)
        work = [[size // 256 + 1 for size in own] for own in parts]
        share = sum(map(sum, work)) / threads
        largest = max(max(own, default=0) for own in work)
        assert max(map(sum, work)) <= share + largest


def test_a_thread_that_is_done_takes_the_chunks_of_one_that_is_held_up(library: ctypes.CDLL) -> None:
    count = 9
    chunks = array("q", [number for i in range(count) for number in (0, i * CHUNK, (i + 1) * CHUNK, 0)])
    table, runs, number = array("q", [0] * 100), array("q", [0] * count), array("q", [0])
    call = Call(
        tensors=1,
        chunks=count,
        threads=2,
        table=table.buffer_info()[0],
        chunk_table=chunks.buffer_info()[0],
        grads=number.buffer_info()[0],
        scratch=number.buffer_info()[0],
    )
    assert library.wait_in_first(ctypes.addressof(call), runs.buffer_info()[0], LATE)
    assert runs.tolist() == [1] * count
