"""The targets that tests run on: what each needs here, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch

from support.machine import require_compiler, skip_without_driver, why_no_gpu

if TYPE_CHECKING:
    from support.gpu import StandinDevice

GPU = "gpu"  # the cuda target on a real device, where tests call the one on the stand-in "cuda"


def require_standin() -> StandinDevice:
    """Let the stand-in, as it is at first, serve CPU tensors with target="cuda" until the test ends; or skip it."""
    skip_without_driver()
    import standin

    from support.gpu import forget_driver, install_standin

    require_compiler()
    if not why_no_gpu():
        pytest.skip("the stand-in cannot be loaded beside a real driver: `pytest -m gpu` runs this on the GPU")
    device = install_standin()
    forget_driver()
    standin.load().reset()
    return device


@contextmanager
def ready(target: str) -> Iterator[str]:
    """All that a test of a target needs, or a skip; yields what the setting `target` is to be.

    For "gpu" whatever tensor the test makes meanwhile lies on the GPU.
    """
    if target == GPU:
        with torch.device("cuda"):
            yield "cuda"
        return
    if target == "cuda":
        require_standin()
    elif target == "cpu":
        require_compiler()
    yield target
