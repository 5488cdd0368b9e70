"""NVIDIA's driver by cuda-bindings, under the names that PyCUDA has: as much of it as steps use (driver.py).

torch's wheels for CUDA bring cuda-bindings; nothing is built when it is installed.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from cuda.bindings import driver as cuda

ARGUMENTS, ARGUMENTS_SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_…


class Error(Exception):
    """A function of the driver that failed, and the driver's word for it."""


class LogicError(Error):
    """A request that is wrong."""


class MemoryError(LogicError):
    """A lack of memory."""


class device_attribute:
    """Attributes of a device."""

    MULTIPROCESSOR_COUNT = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    CONCURRENT_MANAGED_ACCESS = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS
    COMPUTE_CAPABILITY_MAJOR = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    COMPUTE_CAPABILITY_MINOR = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR


class event_flags:
    """Flags of an event."""

    DISABLE_TIMING = 2


class mem_attach_flags:
    """Flags of managed memory."""

    GLOBAL = 1


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver; return its result, if it has one.

    Raises:
        Error: if it fails.
    """
    status, *results = getattr(cuda, name)(*arguments)
    if status != cuda.CUresult.CUDA_SUCCESS:
        known, text = cuda.cuGetErrorString(status)
        said = text.decode("utf-8", "replace") if not int(known) and text else f"error {int(status)}"
        kind = MemoryError if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else LogicError
        raise kind(f"{name} failed: {said}")
    return results[0] if results else None


def init() -> None:
    """Make the driver ready."""
    _call("cuInit", 0)


class Device:
    """A device, by its number."""

    def __init__(self, index: int) -> None:
        self.handle = _call("cuDeviceGet", index)

    def get_attribute(self, attribute: Any) -> int:
        """One of `device_attribute`."""
        return int(_call("cuDeviceGetAttribute", attribute, self.handle))

    def compute_capability(self) -> tuple[int, int]:
        """The major and the minor number."""
        major, minor = device_attribute.COMPUTE_CAPABILITY_MAJOR, device_attribute.COMPUTE_CAPABILITY_MINOR
        return self.get_attribute(major), self.get_attribute(minor)

    def retain_primary_context(self) -> Context:
        """The device's primary context, until it is given up."""
        return Context(int(_call("cuDevicePrimaryCtxRetain", self.handle)), self.handle)


class Context:
    """A primary context."""

    def __init__(self, handle: int, device: Any) -> None:
        self.handle, self._device = handle, device

    def push(self) -> None:
        """Make it this thread's current one."""
        _call("cuCtxPushCurrent", self.handle)

    @staticmethod
    def pop() -> None:
        """Make the one before this thread's current one current again."""
        _call("cuCtxPopCurrent")

    def detach(self) -> None:
        """Give it up."""
        _call("cuDevicePrimaryCtxRelease", self._device)

    @staticmethod
    def get_current() -> int | None:
        """The address of this thread's current context; None without."""
        return int(_call("cuCtxGetCurrent")) or None

    @staticmethod
    def synchronize() -> None:
        """Wait until the current context's device has done all that it was given."""
        _call("cuCtxSynchronize")


class Event:
    """A moment in the order of a stream."""

    def __init__(self, flags: int = 0) -> None:
        self.handle = int(_call("cuEventCreate", flags))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            cuda.cuEventDestroy(self.handle)

    def record(self, stream: Stream | None = None) -> None:
        """Put it on a stream, behind all that is there."""
        _call("cuEventRecord", self.handle, _handle(stream))


class Stream:
    """Order of work on the current context's device."""

    def __init__(self, flags: int = 0) -> None:
        self.handle = int(_call("cuStreamCreate", flags))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            cuda.cuStreamDestroy(self.handle)

    def wait_for_event(self, event: Event) -> None:
        """Let what comes later on this stream wait for an event."""
        _call("cuStreamWaitEvent", self.handle, event.handle, 0)


def _handle(stream: Stream | None) -> int:
    return 0 if stream is None else stream.handle


class Function:
    """A kernel of a module, which it keeps loaded."""

    def __init__(self, module: Module, name: str) -> None:
        self._module = module
        self._handle = int(_call("cuModuleGetFunction", module.handle, name.encode()))
        self._arguments = struct.Struct("")

    def prepare(self, format: str) -> None:
        """Say what its arguments are, as `struct` does."""
        self._arguments = struct.Struct(format)

    def prepared_async_call(
        self, grid: tuple[int, int], block: tuple[int, int, int], stream: Stream | None, *arguments: Any
    ) -> None:
        """Launch it. The driver copies the arguments."""
        packed = ctypes.create_string_buffer(self._arguments.pack(*arguments), self._arguments.size)
        size = ctypes.c_size_t(self._arguments.size)
        parts = ARGUMENTS, ctypes.addressof(packed), ARGUMENTS_SIZE, ctypes.addressof(size), END
        extra = (ctypes.c_void_p * len(parts))(*parts)
        _call("cuLaunchKernel", self._handle, *grid, 1, *block, 0, _handle(stream), 0, ctypes.addressof(extra))

    def prepared_call(self, grid: tuple[int, int], block: tuple[int, int, int], *arguments: Any) -> None:
        """Launch it on the default stream."""
        self.prepared_async_call(grid, block, None, *arguments)


class Module:
    """Machine code that is loaded in the current context, for as long as the process runs."""

    def __init__(self, image: bytes) -> None:
        self.handle = int(_call("cuModuleLoadData", image))

    def get_function(self, name: str) -> Function:
        """A kernel."""
        return Function(self, name)


def module_from_buffer(image: bytes) -> Module:
    """Load machine code."""
    return Module(image)


class _Allocation:
    """Memory that numpy sees as an array of bytes."""

    def __init__(self, address: int, size: int, free: str) -> None:
        self._address, self._free = address, free
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

    def free(self) -> None:
        """Free it: nothing may use it any more."""
        _call(self._free, self._address)


def _array(address: int, size: int, free: str) -> Any:
    import numpy

    return numpy.asarray(_Allocation(address, size, free))


def managed_empty(size: int, dtype: Any, *, mem_flags: int) -> Any:
    """Managed memory of so many bytes, as an array of numpy whose base can free it; `dtype` is uint8."""
    return _array(int(_call("cuMemAllocManaged", size, mem_flags)), size, "cuMemFree")


def pagelocked_empty(size: int, dtype: Any) -> Any:
    """Pinned memory of the host, likewise."""
    return _array(int(_call("cuMemHostAlloc", size, 0)), size, "cuMemFreeHost")


def memcpy_dtod_async(to: int, source: int, size: int, stream: Stream | None) -> None:
    """Copy on a device, in the order of a stream."""
    _call("cuMemcpyDtoDAsync", to, source, size, _handle(stream))


def memcpy_htod_async(to: int, source: Any, stream: Stream | None) -> None:
    """Copy an array of numpy to a device."""
    _call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, _handle(stream))


def memcpy_dtoh_async(to: Any, source: int, stream: Stream | None) -> None:
    """Copy from a device to an array of numpy."""
    _call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, _handle(stream))
