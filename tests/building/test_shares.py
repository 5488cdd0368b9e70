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
SOURCE = """\
#include <optgen/cpu.h>
OPTGEN_EXPORT int64_t first_of_thread(const optgen::Call* call, int64_t thread) {
  return optgen::first_of_thread(*call, optgen::work_of(*call), thread);
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
    made.first_of_thread.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    made.first_of_thread.restype = ctypes.c_int64
    return made


def shares(library: ctypes.CDLL, sizes: list[int], threads: int, first: int = 0) -> list[list[int]]:
    """Sizes of the chunks that each thread has."""
    table = array("q", [0] * 4 * first)
    for size in sizes:
        table.extend((0, 0, size, 0))
    call = Call(chunks=len(sizes), first=first, threads=threads, chunk_table=table.buffer_info()[0])
    edges = [library.first_of_thread(ctypes.addressof(call), thread) for thread in range(threads + 1)]
    assert (edges[0], edges[-1]) == (0, len(sizes))
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
