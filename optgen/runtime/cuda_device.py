"""A GPU as torch and PyCUDA share it: torch's primary context, its current stream, modules that stay loaded.

PyCUDA is imported when the first GPU is asked for, never before.
"""

from __future__ import annotations

import atexit
import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.call import FIELDS

OLDEST = (7, 5)  # compute capability
WARP = 32
THREADS = 256  # of a block, as templates/include/optgen/cuda.h has it
BLOCKS = 3  # of a multiprocessor, likewise


class CudaDevice:
    """One GPU.

    Attributes:
        index: Its number, as torch and the driver count.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver as driver

        driver.init()
        self.index = index
        self.driver: Any = driver
        self.device: Any = driver.Device(index)
        self.context: Any = self.device.retain_primary_context()
        self._modules: dict[bytes, Any] = {}
        self._functions: dict[tuple[bytes, str], Any] = {}
        self._lock = threading.Lock()
        self._companions: dict[int, tuple[Any, Any]] = {}

    @cached_property
    def capability(self) -> tuple[int, int]:
        """The compute capability."""
        major, minor = self.device.compute_capability()
        return major, minor

    @property
    def arch(self) -> str:
        """What kernels are compiled for, as `sm_90`."""
        major, minor = self.capability
        return f"sm_{major}{minor}"

    @cached_property
    def processors(self) -> int:
        """The number of multiprocessors."""
        return int(self.device.get_attribute(self.driver.device_attribute.MULTIPROCESSOR_COUNT))

    @property
    def blocks(self) -> int:
        """Blocks of a grid that stays."""
        return self.processors * BLOCKS

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The device's context on top of PyCUDA's stack: a thread may have none yet."""
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
    def stream(self) -> Iterator[Any]:
        """What kernels are launched on so that they run in the order of torch's current stream.

        That is the default stream itself; next to any other, PyCUDA's own stream, which waits for it and is waited for.
        """
        current = torch.cuda.current_stream(self.index)
        if current.cuda_stream == 0:
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
        """The stream beside one of torch's, as PyCUDA and as torch see it.

        Each has its own, so that no other work is put on one while torch's is recording.
        """
        with self._lock:
            if handle not in self._companions:
                with self.entered():
                    own = self.driver.Stream(1)  # does not wait for the default stream
                ours = torch.cuda.ExternalStream(own.handle, device=self.index)  # type: ignore[no-untyped-call]
                self._companions[handle] = own, ours
            return self._companions[handle]

    def is_capturing(self) -> bool:
        """Whether torch's current stream is recording a graph."""
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
        return torch.empty(count, dtype=torch.int64, pin_memory=True)


_devices: dict[torch.device, CudaDevice] = {}
_devices_lock = threading.Lock()


def serves(device: torch.device) -> bool:
    """Whether the cuda target is made for tensors there."""
    return device.type == "cuda" or device in _devices


def cuda_device(device: torch.device) -> CudaDevice:
    """The GPU of a torch device.

    Raises:
        ImportError: without PyCUDA, or without the driver's library.
    """
    with _devices_lock:
        if device not in _devices:
            _devices[device] = gpu = CudaDevice(device.index)
            # PyCUDA gives up a primary context properly only if it is told to.
            atexit.register(gpu.context.detach)
        return _devices[device]


def register(device: torch.device, gpu: CudaDevice | None) -> None:
    """Let a GPU serve the tensors of a torch device; None takes that back."""
    with _devices_lock:
        if gpu is None:
            _devices.pop(device, None)
        else:
            _devices[device] = gpu
