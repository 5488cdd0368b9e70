"""Memory that a step on matrices takes beside its states: as `optgen explain` says it, and given back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from optgen_optim import Muon
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optgen.operations import MATRIX_FUNCTIONS as DESCRIBED
from optgen.runtime.matrix_math import MATRIX_FUNCTIONS

SETTINGS = {"newton_schulz": (5, 3.4445, -4.775, 2.0315, 1e-7), "quintic": (5, 1e-7), "polar_express": (5, 1e-7)}


class Recorder(TorchDispatchMode):
    """Records the bytes of tensors that operations make, as long as they live.

    Attributes:
        live: Those of now.
        peak: The most that there were at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given | self._known.keys():
                storage = x.untyped_storage()
                self._known[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.live)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def described(name: str, count: int, rows: int, cols: int) -> float:
    """Bytes that the description of a function says, of a batch of matrices."""
    text, n, m = DESCRIBED[name].room, min(rows, cols), max(rows, cols)
    assert text.startswith("8 + 8 n/m bytes for each element of the largest batch")
    return (8 + 8 * n / m) * count * n * m


@pytest.mark.parametrize("shape", [(3, 64, 96), (2, 96, 64), (1, 64, 64), (1, 16, 400)])
@pytest.mark.parametrize("name", list(MATRIX_FUNCTIONS))
def test_a_function_takes_what_is_said(name: str, shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with Recorder() as recorder:
        MATRIX_FUNCTIONS[name](x, *SETTINGS[name])
    room, norms = described(name, *shape), 4 * 2 * shape[0]
    assert room <= recorder.peak <= room + norms
    assert recorder.live == 0


@pytest.mark.parametrize("bits", [32, 8])
def test_a_step_takes_that_of_its_largest_batch(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine matrices in four batches; the first step makes the states and the memory that passes share."""
    monkeypatch.setattr("optgen.runtime.step.prepare.BATCH", 3 * 24 * 40)
    shapes = [(24, 40)] * 7 + [(40, 24)] * 2
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    opt = Muon(params, optim_bits=bits, target="cpu")
    for step in range(2):
        for index, (param, shape) in enumerate(zip(params, shapes, strict=True)):
            param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(9 * step + index))
        with Recorder() as recorder:
            opt.step()
    room = described("newton_schulz", 3, 24, 40)
    assert room <= recorder.peak <= room + 4 * 2 * 3
    assert recorder.live == 0
