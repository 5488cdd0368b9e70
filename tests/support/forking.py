"""Steps in processes that were forked from one that steps; prints JSON, a word a way: "" or what went wrong.

python forking.py
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from optgen_optim import AdamW8bit
from torch.utils.data import DataLoader, Dataset

from optgen.runtime.building.entries import Kernel, Loader
from optgen.runtime.building.programs import Output

SECONDS = 60  # a child that hangs is ended
SIZES = (10, 200_000)  # on the calling thread; on two


def new(size: int) -> AdamW8bit:
    """An optimizer of one parameter, with a gradient."""
    param = torch.nn.Parameter(torch.linspace(-1, 1, size))
    param.grad = torch.linspace(2, -1, size)
    return AdamW8bit([param], target="cpu", min_8bit_size=0)


def stepped(optimizer: AdamW8bit) -> torch.Tensor:
    """A copy of its parameter after a step."""
    optimizer.step()
    (param,) = optimizer.param_groups[0]["params"]
    return param.detach().clone()


def forked(work: Callable[[], bool]) -> str:
    """Does `work` in a forked process; returns "" if that says yes, else what came of it."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        status = 2
        try:
            status = 0 if work() else 3
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else f"the child ended with {code}"


def same(size: int, expected: torch.Tensor) -> bool:
    """Check whether a new optimizer's step, here, gives what it gave elsewhere."""
    return torch.equal(stepped(new(size)), expected)


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Another thread works, over and over."""
    done = threading.Event()

    def over_and_over() -> None:
        while not done.is_set():
            work()

    thread = threading.Thread(target=over_and_over)
    thread.start()
    yield
    done.set()
    thread.join()


class Stepping(Dataset[torch.Tensor]):
    """Every item is a parameter after a step."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(2)  # a worker begins with one
        return stepped(new(SIZES[index]))


def child_of_a_build(folder: str) -> str:
    """Forks while another thread builds a kernel, into a cache of its own, that the child asks for too."""
    building, forked_already = threading.Event(), threading.Event()
    os.register_at_fork(after_in_parent=forked_already.set)

    def build(output: Path, _: Path) -> Output:
        building.set()
        forked_already.wait()
        output.write_bytes(b"kernel")
        return Output((), 0, "")

    kernel = Kernel(
        source=Path("kernel.cpp"),
        compiler="c++",
        key=lambda: "0" * 32,
        name=lambda key: f"forked-{key}.so",
        build=build,
        load=lambda _, content: content,
        advice="",
        unloadable=str,
    )
    loader = Loader[bytes]()
    os.environ["OPTGEN_CACHE_DIR"] = folder
    thread = threading.Thread(target=loader.get, args=(kernel,))
    thread.start()
    building.wait()
    found = forked(lambda: loader.get(kernel) == b"kernel")
    thread.join()
    return found


def main() -> None:
    """Goes every way."""
    torch.set_num_threads(2)
    found = {}
    found["before the first step"] = forked(lambda: all(torch.isfinite(stepped(new(size))).all() for size in SIZES))
    expected = {size: stepped(new(size)) for size in SIZES}
    for size in SIZES:
        found[f"after a step of {size}"] = forked(lambda size=size: same(size, expected[size]))
        optimizer = new(size)
        optimizer.step()
        found[f"an optimizer of {size} goes on"] = forked(
            lambda optimizer=optimizer: bool(stepped(optimizer).isfinite().all())
        )
        found[f"two generations of {size}"] = forked(
            lambda size=size: same(size, expected[size]) and not forked(lambda: same(size, expected[size]))
        )
    large = max(SIZES)
    inner = new(large)
    inner.register_step_pre_hook(
        lambda *_: found.update({"within a step": forked(lambda: same(large, expected[large]))})
    )
    inner.step()
    with in_background(new(large).step):
        for _ in range(5):
            found["during a step of another thread"] = forked(lambda: same(large, expected[large]))
    found["the parent goes on"] = "" if same(large, expected[large]) else "other numbers"
    items = list(
        DataLoader(Stepping(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=SECONDS)
    )
    right = all(map(torch.equal, items, expected.values()))
    found["workers of a DataLoader"] = "" if right else "other numbers"
    worker = multiprocessing.get_context("fork").Process(target=stepped, args=(new(large),))
    worker.start()
    worker.join(SECONDS)
    found["multiprocessing"] = "" if worker.exitcode == 0 else f"the process ended with {worker.exitcode}"
    with tempfile.TemporaryDirectory() as folder:
        found["during a build"] = child_of_a_build(folder)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
