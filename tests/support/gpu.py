"""The GPU that tests of the cuda target run on: a real one, or the stand-in, whose memory is that of CPU tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.building import nvidia
from optgen.runtime.cuda import cuda_device
from optgen.runtime.cuda.cuda_device import CudaDevice


class StandinDevice(CudaDevice):
    """A GPU of the stand-in driver, which serves CPU tensors.

    Attributes:
        current: Stand-in for torch's current stream: None, or one of the driver's.
        capturing: Whether it records.
    """

    current: Any = None
    capturing = False

    @contextmanager
    def stream(self, *, apart: bool = False) -> Iterator[Any]:
        with self.entered():
            yield self.own if apart and self.current is None else self.current

    @functools.cached_property
    def own(self) -> Any:
        """A stream of our own, as there is one beside torch's default stream."""
        with self.entered():
            return self.driver.Stream(1)

    def keep_for_stream(self, tensors: Iterable[Tensor]) -> None:
        pass

    def current_stream(self) -> int:
        return 0 if self.current is None else int(self.current.handle)

    def is_capturing(self) -> bool:
        return self.capturing

    def pinned(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device="cpu")

    def tensor_over(self, array: Any) -> Tensor:
        return torch.from_numpy(array)


def forget_driver() -> None:
    """Forget what was found out before there was a driver."""
    nvidia.why_no_pycuda.cache_clear()
    nvidia.why_no_bindings.cache_clear()


@functools.cache
def _standin_device() -> StandinDevice:
    return StandinDevice(0)


def install_standin() -> StandinDevice:
    """Let the stand-in serve CPU tensors with target="cuda"; the same device every time."""
    import standin

    standin.load()
    forget_driver()
    device = torch.device("cpu")
    if not cuda_device.serves(device):
        cuda_device.register(device, _standin_device())
    found = cuda_device.cuda_device(device)
    assert isinstance(found, StandinDevice)
    return found
