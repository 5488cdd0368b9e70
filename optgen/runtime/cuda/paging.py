"""Memory of the host that a GPU borrows, for states that are large.

Where the host and a device can use managed memory at the same time, a state is an ordinary tensor of the GPU over such
memory; the driver moves its pages, and `bring` asks for them before they are needed. Elsewhere a state is a tensor of
the CPU in pinned memory, and portions of it go through a small buffer on the device.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from optgen.runtime.building.nvidia import LIBRARY
from optgen.runtime.cuda.cuda_device import CudaDevice
from optgen.runtime.cuda.paged_memory import LOANS, Loan, loan_of

ON_DEVICE, ON_HOST = 1, 2  # CUmemLocationType
PREFERRED_LOCATION, ACCESSED_BY = 3, 5  # CUmem_advise
CPU = -1  # the host as a CUdevice, for drivers that have no locations


def _lend(gpu: CudaDevice, size: int, managed: bool) -> Any:
    """New memory of the host, freed with the last tensor over it.

    Raises:
        torch.cuda.OutOfMemoryError: if there is not as much.
    """
    import numpy

    driver = gpu.driver
    try:
        with gpu.entered():
            if managed:
                array = driver.managed_empty(size, numpy.uint8, mem_flags=driver.mem_attach_flags.GLOBAL)
            else:
                array = driver.pagelocked_empty(size, numpy.uint8)
    except driver.MemoryError as error:
        kind = "managed" if managed else "pinned"
        raise torch.cuda.OutOfMemoryError(f"{size} bytes of {kind} host memory cannot be allocated: {error}") from None
    address = array.ctypes.data
    LOANS[address] = Loan(gpu, managed, weakref.ref(array))
    weakref.finalize(array, _take_back, gpu, address, array.base).atexit = False
    return array


def _take_back(gpu: CudaDevice, address: int, allocation: Any) -> None:
    """Free lent memory, in whatever thread the last tensor over it has died, once the GPU is done with it."""
    del LOANS[address]
    with suppress(gpu.driver.Error), gpu.entered():
        gpu.driver.Context.synchronize()
        allocation.free()


def _as_state(memory: Tensor, codes: Tensor) -> Tensor:
    """Bytes as a tensor like `codes`."""
    return memory.view(codes.dtype).view(codes.shape)


@dataclass(frozen=True)
class _Pager:
    """Keeps states in memory of the host.

    Attributes:
        managed: Whether the driver moves that; else it is pinned.
        portion_bytes: Bytes to fetch at once, while the portion before is computed.
        buffered: Whether kernels read and write a buffer, not the states themselves.
    """

    gpu: CudaDevice
    managed: ClassVar[bool]
    portion_bytes: ClassVar[int]
    buffered: ClassVar[bool]

    def holds(self, codes: Tensor) -> bool:
        """Check whether a state lies in such memory, lent to this GPU."""
        loan = loan_of(codes)
        return loan is not None and loan.managed is self.managed and loan.gpu is self.gpu


class ManagedPager(_Pager):
    """Keeps states in managed memory."""

    managed = True
    portion_bytes = 256 << 20
    buffered = False

    def copy(self, codes: Tensor) -> Tensor:
        """A state's codes in managed memory that prefers the host, as a tensor of the GPU.

        Raises:
            torch.cuda.OutOfMemoryError: if there is not as much.
        """
        array = _lend(self.gpu, codes.numel() * codes.element_size(), managed=True)
        address, size = array.ctypes.data, array.nbytes
        with self.gpu.entered():
            _hints().advise(address, size, PREFERRED_LOCATION, None)
            _hints().advise(address, size, ACCESSED_BY, self.gpu.index)
        _as_state(torch.from_numpy(array), codes).copy_(codes)
        return _as_state(self.gpu.tensor_over(array), codes)

    def bring(self, array: Any, begin: int, end: int, to: int, stream: Any) -> None:
        """Ask for the bytes from `begin` to `end` of a state, in the order of a stream."""
        _hints().prefetch(array.ctypes.data + begin, end - begin, self.gpu.index, stream.handle)

    def take_back(self, array: Any, begin: int, end: int, at: int, stream: Any) -> None:
        """Do nothing: pages go back to the host when the device needs their room."""


class StreamedPager(_Pager):
    """Keeps states in pinned memory of the host."""

    managed = False
    portion_bytes = 64 << 20
    buffered = True

    def copy(self, codes: Tensor) -> Tensor:
        """A state's codes in pinned memory, as a tensor of the CPU.

        Raises:
            torch.cuda.OutOfMemoryError: if there is not as much.
        """
        array = _lend(self.gpu, codes.numel() * codes.element_size(), managed=False)
        return _as_state(torch.from_numpy(array), codes).copy_(codes)

    def bring(self, array: Any, begin: int, end: int, to: int, stream: Any) -> None:
        """Copy the bytes from `begin` to `end` of a state to an address on the device, in the order of a stream."""
        self.gpu.driver.memcpy_htod_async(to, array[begin:end], stream)

    def take_back(self, array: Any, begin: int, end: int, at: int, stream: Any) -> None:
        """Copy them back."""
        self.gpu.driver.memcpy_dtoh_async(array[begin:end], at, stream)


Pager = ManagedPager | StreamedPager


def pager_of(gpu: CudaDevice) -> Pager:
    """Pager of a GPU: by managed memory, where the host and the device can use it at the same time."""
    return ManagedPager(gpu) if gpu.has_concurrent_managed_access() else StreamedPager(gpu)


# Parts of the driver without bindings in PyCUDA


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Hints:
    """Hints to the driver about where managed memory lies. Only speed depends on them: a refused hint gives a warning.

    Args:
        library: The driver's. Before CUDA 12.2 it knows devices alone, no locations.
    """

    def __init__(self, library: Any) -> None:
        self.located = hasattr(library, "cuMemPrefetchAsync_v2") and hasattr(library, "cuMemAdvise_v2")
        self.prefetch_function = library.cuMemPrefetchAsync_v2 if self.located else library.cuMemPrefetchAsync
        self.advise_function = library.cuMemAdvise_v2 if self.located else library.cuMemAdvise

    def prefetch(self, address: int, size: int, device: int, stream: int) -> None:
        """Prefetch memory to a device, in the order of a stream."""
        memory = ctypes.c_uint64(address), ctypes.c_size_t(size)
        if self.located:
            flags = ctypes.c_uint(0)
            code = self.prefetch_function(*memory, _Location(ON_DEVICE, device), flags, ctypes.c_void_p(stream))
        else:
            code = self.prefetch_function(*memory, ctypes.c_int(device), ctypes.c_void_p(stream))
        _warn_if_refused("cuMemPrefetchAsync", code)

    def advise(self, address: int, size: int, advice: int, device: int | None) -> None:
        """Advise the driver where memory is best kept, or who reads it; no device means the host."""
        memory = ctypes.c_uint64(address), ctypes.c_size_t(size), ctypes.c_int(advice)
        if self.located:
            place = _Location(ON_HOST, 0) if device is None else _Location(ON_DEVICE, device)
            code = self.advise_function(*memory, place)
        else:
            code = self.advise_function(*memory, ctypes.c_int(CPU if device is None else device))
        _warn_if_refused("cuMemAdvise", code)


@functools.cache
def _hints() -> Hints:
    return Hints(ctypes.CDLL(LIBRARY))


def _warn_if_refused(function: str, code: int) -> None:
    if code:
        message = f"paged states: {function} returned the error {code}; steps are right, but slower"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
