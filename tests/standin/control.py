"""Loading the stand-in, and what tests set and read of it."""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.build import library, nvcc, nvrtc

SIZE_MAX = ctypes.c_size_t(-1).value
KINDS = ("device", "managed", "host")
THREAD_LOCAL_CAPTURE = 1
GIB = 1 << 30


class DriverError(RuntimeError):
    """A function of the driver that this module calls itself returned an error; `code` is its CUresult."""

    def __init__(self, function: str, code: int, message: str) -> None:
        super().__init__(f"{function} failed: {message}")
        self.code = code


@dataclass(frozen=True)
class Order:
    """In which order the threads of a block, or the blocks of a grid, begin.

    Backwards, a warp also runs ahead of the others as far as it can; otherwise warps take turns at every collective.
    """

    kind: int
    seed: int = 0


forward = Order(0)
backward = Order(1)


def shuffled(seed: int) -> Order:
    """A random order, the same for the same seed; the threads of each block are shuffled differently."""
    return Order(2, seed)


@dataclass(frozen=True)
class Launch:
    """A kernel that ran, in a replay if `replayed`. `stream` is a handle, `arguments` are its parameters' bytes."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    stream: int
    shared_bytes: int
    arguments: bytes
    replayed: bool


@dataclass(frozen=True)
class Allocation:
    """Live memory: `kind` is device (cuMemAlloc), managed (cuMemAllocManaged) or host (cuMemHostAlloc)."""

    pointer: int
    bytes: int
    kind: str
    device: int


@dataclass(frozen=True)
class Prefetch:
    """A cuMemPrefetchAsync. Location types are CUmemLocationType: 1 is a device, 2 the host."""

    pointer: int
    bytes: int
    location_type: int
    location_id: int
    stream: int


@dataclass(frozen=True)
class Advice:
    """A cuMemAdvise; `advice` is a CUmem_advise: 3 sets the preferred location, 5 says who accesses."""

    pointer: int
    bytes: int
    advice: int
    location_type: int
    location_id: int


# Mirrored from driver/control.h.
class _AllocationRecord(ctypes.Structure):
    _fields_ = (("pointer", c_uint64), ("bytes", c_uint64), ("kind", c_int64), ("device", c_int64))


class _PrefetchRecord(ctypes.Structure):
    _fields_ = (
        ("pointer", c_uint64),
        ("bytes", c_uint64),
        ("location_type", c_int64),
        ("location_id", c_int64),
        ("stream", c_uint64),
    )


class _AdviceRecord(ctypes.Structure):
    _fields_ = (
        ("pointer", c_uint64),
        ("bytes", c_uint64),
        ("advice", c_int64),
        ("location_type", c_int64),
        ("location_id", c_int64),
    )


class _LaunchRecord(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint64 * 3),
        ("block", c_uint64 * 3),
        ("stream", c_uint64),
        ("shared_bytes", c_uint64),
        ("replayed", c_uint64),
        ("argument_bytes", c_uint64),
        ("name", c_char * 256),
    )


class Capture:
    """Captured work of a stream: a graph that can be replayed once `Driver.capture` has ended."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver = driver
        self._stream = stream
        self._executable = c_void_p()
        self._error: DriverError | None = None

    def replay(self, stream: object = None) -> None:
        """Run the captured work, with the arguments of then, on the stream (default: the one that captured).

        A context must be current. Raises DriverError if the work fails, if the capture is not valid, because an
        operation that cannot be captured was tried, or if it has not ended.
        """
        if self._error is not None:
            raise self._error
        handle = self._stream if stream is None else stream_handle(stream)
        self._driver.call("cuGraphLaunch", self._executable, c_void_p(handle))

    def _end(self) -> None:
        graph = c_void_p()
        try:
            self._driver.call("cuStreamEndCapture", c_void_p(self._stream), ctypes.byref(graph))
            self._driver.call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, c_uint64(0))
            self._driver.call("cuGraphDestroy", graph)
        except DriverError as error:
            self._error = error


class Driver:
    """The loaded stand-in. Its settings and logs belong to the process; `reset` makes them as they were at first.

    Attributes:
        path: The libcuda.so.1.
        nvcc: The program that compiles for it.
    """

    def __init__(self, path: Path, nvcc: Path) -> None:
        self.path = path
        self.nvcc = nvcc
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name in ("allocations", "prefetches", "advices", "launches"):
            getattr(self._library, f"standin_{name}").restype = c_size_t

    def reset(self) -> None:
        """Default settings, forward orders, no memory limit, empty logs. Contexts and memory stay."""
        self.configure()
        self.set_order()
        self.fail_after(None)
        self.clear_logs()

    def configure(
        self,
        *,
        devices: int = 1,
        compute_capability: tuple[int, int] = (9, 0),
        multiprocessors: int = 4,
        concurrent_managed_access: bool = True,
        device_memory: int = 8 * GIB,
    ) -> None:
        """Say what the devices are, all alike; what is not given takes its default."""
        self._library.standin_configure(
            c_int(devices),
            c_int(compute_capability[0]),
            c_int(compute_capability[1]),
            c_int(multiprocessors),
            c_int(concurrent_managed_access),
            c_size_t(device_memory),
        )

    def set_order(self, threads: Order = forward, blocks: Order = forward) -> None:
        """Set in which order threads and blocks begin, and threads go on after a barrier, in launches from now on."""
        self._library.standin_set_order(
            c_int(threads.kind), c_uint64(threads.seed), c_int(blocks.kind), c_uint64(blocks.seed)
        )

    @contextmanager
    def order(self, threads: Order = forward, blocks: Order = forward) -> Iterator[None]:
        """As `set_order`, with forward orders again afterwards."""
        self.set_order(threads, blocks)
        try:
            yield
        finally:
            self.set_order()

    def launches(self) -> list[Launch]:
        """The kernels that ran since the logs were cleared, replayed ones too; not those only captured."""
        found = []
        for number, record in enumerate(self._records("launches", _LaunchRecord)):
            arguments = ctypes.create_string_buffer(record.argument_bytes)
            self._library.standin_launch_arguments(c_size_t(number), arguments)
            found.append(
                Launch(
                    record.name.decode(),
                    tuple(record.grid),
                    tuple(record.block),
                    record.stream,
                    record.shared_bytes,
                    arguments.raw,
                    bool(record.replayed),
                )
            )
        return found

    def prefetches(self) -> list[Prefetch]:
        """The prefetches since the logs were cleared."""
        records = self._records("prefetches", _PrefetchRecord)
        return [Prefetch(r.pointer, r.bytes, r.location_type, r.location_id, r.stream) for r in records]

    def advices(self) -> list[Advice]:
        """The advice on managed memory since the logs were cleared."""
        records = self._records("advices", _AdviceRecord)
        return [Advice(r.pointer, r.bytes, r.advice, r.location_type, r.location_id) for r in records]

    def clear_logs(self) -> None:
        """Forget launches, prefetches and advice."""
        self._library.standin_clear_logs()

    def live_allocations(self) -> list[Allocation]:
        """Allocations that were not yet freed, by address."""
        records = self._records("allocations", _AllocationRecord)
        return [Allocation(r.pointer, r.bytes, KINDS[r.kind], r.device) for r in records]

    def fail_after(self, limit: int | None) -> None:
        """Let only `limit` bytes more be live than now: what exceeds them is out of memory. None lifts the limit."""
        self._library.standin_fail_after(c_size_t(SIZE_MAX if limit is None else limit))

    @contextmanager
    def capture(self, stream: object) -> Iterator[Capture]:
        """Make a stream (a handle, or an object with one) capture what is put on it, instead of running it.

        Meanwhile the null stream and whatever may wait for the device are refused, and make the capture invalid; the
        error comes from that call, and again from `Capture.replay`.
        """
        handle = stream_handle(stream)
        self.call("cuStreamBeginCapture_v2", c_void_p(handle), c_int(THREAD_LOCAL_CAPTURE))
        captured = Capture(self, handle)
        try:
            yield captured
        finally:
            captured._end()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver API with ctypes values; raises DriverError."""
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(c_int(code), ctypes.byref(text))
            raise DriverError(function, code, (text.value or b"").decode())

    def _records(self, name: str, record: type[ctypes.Structure]) -> list[Any]:
        function = getattr(self._library, f"standin_{name}")
        count = function(None, c_size_t(0))
        records = (record * count)()
        return list(records)[: function(records, c_size_t(count))]


def stream_handle(stream: object) -> int:
    """The handle of a stream: itself if it is a number."""
    return stream if isinstance(stream, int) else int(stream.handle)  # type: ignore[attr-defined]


_driver: Driver | None = None
_driver_lock = threading.Lock()


def load() -> Driver:
    """Load the stand-in as this process's CUDA driver, and make its nvcc optgen's (OPTGEN_NVCC).

    Further calls return the same object. STANDIN_COMPILER=nvrtc takes
    the stand-in for NVRTC. Under `sanitized_run` the driver with AddressSanitizer is loaded.

    Raises RuntimeError if another driver is loaded, BuildError if the stand-in cannot be built.
    """
    global _driver
    with _driver_lock:
        if _driver is None:
            _refuse_other_drivers()
            sanitize = os.environ.get("STANDIN_SANITIZE") == "1"
            portable = os.environ.get("STANDIN_UCONTEXT") == "1"
            _driver = Driver(library(sanitize=sanitize, portable=portable), nvcc(sanitize=sanitize))
            if sanitize:
                os.environ.pop("LD_PRELOAD", None)  # not for compilers
        os.environ["OPTGEN_NVCC"] = compiler()
        return _driver


def compiler() -> str:
    """The stand-in for nvcc, or for NVRTC where STANDIN_COMPILER asks for it, as OPTGEN_NVCC names it."""
    sanitize = os.environ.get("STANDIN_SANITIZE") == "1"
    if os.environ.get("STANDIN_COMPILER") == "nvrtc":
        return nvrtc_command(nvrtc(sanitize))
    return str(nvcc(sanitize))


def nvrtc_command(nvrtc: Path) -> str:
    """The command line of a library of NVRTC."""
    from optgen.runtime.building.nvrtc import command

    return shlex.join(command(nvrtc))


def _refuse_other_drivers() -> None:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    for line in maps.splitlines():
        _, slash, path = line.partition("/")
        if slash and Path(path).name.startswith("libcuda.so"):
            raise RuntimeError(f"a CUDA driver is loaded already, /{path}: the stand-in can only be loaded before it")
    if "pycuda._driver" in sys.modules:
        raise RuntimeError("PyCUDA is imported already: the stand-in can only be loaded before it")
