"""A GPU as torch and kernels share it: torch's primary context, its current stream, modules that stay loaded.

PyCUDA, or cuda-bindings in its place, is imported when the first GPU is asked for, never before.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.building.nvidia import LIBRARY
from optgen.runtime.core.call import FIELDS
from optgen.runtime.cuda.driver import Driver, load_driver

OLDEST = (7, 5)  # compute capability
WARP = 32
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
THREADS = 256  # of a block, as templates/include/optgen/cuda.h has it


class CudaDevice:
    """One GPU.

    Attributes:
        index: Its number, as torch and the driver count.
    """

    def __init__(self, index: int) -> None:
        driver = load_driver()
        driver.init()
        self.index = index
        self.driver: Driver = driver
        self.device: Any = driver.Device(index)
        self.context: Any = self.device.retain_primary_context()
        self._modules: dict[bytes, Any] = {}
        self._functions: dict[tuple[bytes, str], Any] = {}
        self._lock = threading.Lock()
        self._companions: dict[int, tuple[Any, Any]] = {}
        self._copy_streams: tuple[Any, Any] | None = None

    @cached_property
    def capability(self) -> tuple[int, int]:
        """The compute capability."""
        major, minor = self.device.compute_capability()
        return major, minor

    @property
    def arch(self) -> str:
        """Architecture that kernels are compiled for, as `sm_90`."""
        major, minor = self.capability
        return f"sm_{major}{minor}"

    @cached_property
    def processors(self) -> int:
        """The number of multiprocessors."""
        return int(self.device.get_attribute(self.driver.device_attribute.MULTIPROCESSOR_COUNT))

    def blocks(self, tensors: int) -> int:
        """Blocks of a grid that stays: as many as run at a time.

        Args:
            tensors: Number of tensors that a kernel reads or writes element by element; cuda.h has the same rule.
        """
        return self.processors * (2 if tensors > 4 else 3)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The device's context on top of the thread's stack: it may have none yet."""
        self.context.push()
        try:
            yield
        finally:
            self.context.pop()

    # Kernels

    def function(self, cubin: bytes, name: str) -> Any:
        """A kernel of a cubin, which is loaded once."""
        key = hashlib.sha256(cubin).digest()
        with self._lock:
            found = self._functions.get((key, name))
            if found is None:
                with self.entered():
                    if key not in self._modules:
                        self._modules[key] = self.driver.module_from_buffer(cubin)
                    found = self._modules[key].get_function(name)
                    found.prepare("q" * len(FIELDS))
                self._functions[key, name] = found
            return found

    def copy(self, to: int, tensor: Tensor, stream: Any) -> None:
        """Copy a tensor of this device to an address on it."""
        self.driver.memcpy_dtod_async(to, tensor.data_ptr(), tensor.numel() * tensor.element_size(), stream)

    # Streams, as torch has them

    @contextmanager
    def stream(self, *, apart: bool = False) -> Iterator[Any]:
        """Give the stream on which kernels are launched so that they run in the order of torch's current stream.

        That is the default stream itself; next to any other, a stream of our own, which waits for it and is waited for.

        Args:
            apart: Yield our own in any case: one that can wait for events.
        """
        current = torch.cuda.current_stream(self.index)
        if current.cuda_stream == 0 and not apart:
            with self.entered():
                yield None
            return
        own, ours = self._companion(current.cuda_stream)
        ours.wait_stream(current)
        try:
            with self.entered():
                yield own
        finally:
            current.wait_stream(ours)

    def _companion(self, handle: int) -> tuple[Any, Any]:
        """The stream beside one of torch's, as the driver and as torch see it.

        Each has its own, so that no other work is put on one while torch's is recording.
        """
        with self._lock:
            if handle not in self._companions:
                with self.entered(), _allowed_in_captures():
                    own = self.driver.Stream(1)  # does not wait for the default stream
                ours = torch.cuda.ExternalStream(own.handle, device=self.index)  # type: ignore[no-untyped-call]
                self._companions[handle] = own, ours
            return self._companions[handle]

    @property
    def copy_streams(self) -> tuple[Any, Any]:
        """The streams on which paged states come and go, the same for all threads; they wait for events alone."""
        with self._lock:
            if self._copy_streams is None:
                with self.entered():
                    self._copy_streams = self.driver.Stream(1), self.driver.Stream(1)
            return self._copy_streams

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        with self.entered():
            self.driver.Context.synchronize()

    def is_capturing(self) -> bool:
        """Check whether torch's current stream is recording a graph."""
        with torch.cuda.device(self.index):
            return torch.cuda.is_current_stream_capturing()

    def keep_for_stream(self, tensors: Iterable[Tensor]) -> None:
        """Keep the memory of tensors until torch's current stream is done with it, even if they are dropped before."""
        current = torch.cuda.current_stream(self.index)
        for tensor in tensors:
            tensor.record_stream(current)

    def current_stream(self) -> int:
        """The handle of torch's current stream."""
        return int(torch.cuda.current_stream(self.index).cuda_stream)

    # Memory, as torch has it

    def pinned(self, count: int) -> Tensor:
        """Memory of the host that a copy can read while the host goes on: `count` numbers of 8 bytes."""
        return torch.empty(count, dtype=torch.int64, device="cpu", pin_memory=True)

    def has_concurrent_managed_access(self) -> bool:
        """Check whether the host and the device can use managed memory at the same time."""
        return bool(self.device.get_attribute(self.driver.device_attribute.CONCURRENT_MANAGED_ACCESS))

    def tensor_over(self, array: Any) -> Tensor:
        """Managed memory, an array of bytes that numpy has, as a tensor of this device, which keeps it alive.

        Raises:
            RuntimeError: if torch has made a copy of it.
        """
        tensor = torch.as_tensor(_Exported(array), device=torch.device("cuda", self.index))
        if tensor.data_ptr() != array.ctypes.data:
            raise RuntimeError(f"torch {torch.__version__} copies managed memory instead of sharing it")
        return tensor


@contextmanager
def _allowed_in_captures() -> Iterator[None]:
    """Let this thread do meanwhile what a recording stream forbids by default, although it is not recorded."""
    exchange = getattr(ctypes.CDLL(LIBRARY), "cuThreadExchangeStreamCaptureMode", None)
    mode = ctypes.c_int(RELAXED)
    if exchange is None:
        yield
        return
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


class _Exported:
    """An array of bytes as memory of a device."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": "|u1",
            "data": (array.ctypes.data, False),
            "version": 2,
        }


_devices: dict[torch.device, CudaDevice] = {}
_devices_lock = threading.Lock()


def serves(device: torch.device) -> bool:
    """Check whether the cuda target is made for tensors on a device."""
    return device.type == "cuda" or device in _devices


def cuda_device(device: torch.device) -> CudaDevice:
    """The GPU of a torch device.

    Raises:
        ImportError: without PyCUDA and cuda-bindings, or without the driver's library.
    """
    with _devices_lock:
        if device not in _devices:
            _devices[device] = gpu = CudaDevice(device.index)
            # PyCUDA gives up a primary context properly only if it is told to.
            atexit.register(_detach, gpu, os.getpid())
        return _devices[device]


def _detach(gpu: CudaDevice, user: int) -> None:
    """Give up a context at the end of the process that uses it; CUDA does not work in those forked from it."""
    if os.getpid() == user:
        gpu.context.detach()


def register(device: torch.device, gpu: CudaDevice | None) -> None:
    """Let a GPU serve the tensors of a torch device; None takes that back."""
    with _devices_lock:
        if gpu is None:
            _devices.pop(device, None)
        else:
            _devices[device] = gpu
