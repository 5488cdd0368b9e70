"""NVIDIA's driver as steps use it: the part of PyCUDA's interface that there is for both PyCUDA and cuda-bindings."""

from __future__ import annotations

from typing import Any, Protocol

from optgen.runtime.building.nvidia import find_driver


class Stream(Protocol):
    """Order of work on a device."""

    @property
    def handle(self) -> int:
        """Its address, as torch knows it too."""

    def wait_for_event(self, event: Any, /) -> None:
        """Let what comes later on this stream wait for an event."""


class Context(Protocol):
    """A device's primary context, which torch uses."""

    @property
    def handle(self) -> int:
        """Its address."""

    def push(self) -> None:
        """Make it this thread's current one."""

    def pop(self) -> Any:
        """Make the one before it current again."""

    def detach(self) -> None:
        """Give it up."""


class Function(Protocol):
    """A kernel."""

    def prepare(self, format: str, /) -> Any:
        """Say what its arguments are, as `struct` does."""

    def prepared_async_call(
        self, grid: tuple[int, int], block: tuple[int, int, int], stream: Any, /, *args: int
    ) -> Any:
        """Launch it on a stream, of which None is the default one."""


class Driver(Protocol):
    """A module: `pycuda.driver`, or `optgen.runtime.cuda.bindings`.

    Attributes:
        Error: What functions raise.
        MemoryError: An `Error`, where there is no memory left.
    """

    Error: type[Exception]
    MemoryError: type[Exception]
    device_attribute: Any
    event_flags: Any
    mem_attach_flags: Any
    Context: Any
    Device: Any
    Stream: Any
    Event: Any
    init: Any
    module_from_buffer: Any
    managed_empty: Any
    pagelocked_empty: Any
    memcpy_dtod_async: Any
    memcpy_dtoh_async: Any
    memcpy_htod_async: Any


def load_driver() -> Any:
    """The driver's module.

    Raises:
        ImportError: if neither PyCUDA nor cuda-bindings works here.
    """
    found = find_driver()
    if found == "cuda-bindings":
        from optgen.runtime.cuda import bindings

        return bindings
    import pycuda.driver

    return pycuda.driver
