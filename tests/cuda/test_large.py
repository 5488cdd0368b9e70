"""Tensors of more than 2^31 elements: the kernels at chunks that begin so far out, over memory that is small.

A tensor's address is moved back by as much as its chunks begin later, so that the same bytes are meant.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import standin
import torch
from optgen_optim import AdamW, AdamW8bit, LAMB8bit
from support.compiling import ROOT

from optgen.runtime.engines.cuda_engine import CudaEngine
from optgen.runtime.engines.kernel_engine import KernelEngine

HEADER = (ROOT / "templates" / "include" / "optgen" / "call.h").read_text(encoding="utf-8")
COLUMNS = re.search(r"enum BaseColumn \{(.*?)BASE_COLUMNS,", HEADER, flags=re.DOTALL)
assert COLUMNS is not None
BASE_COLUMNS = len(re.findall(r"(?m)^ *[A-Z]\w*,", COLUMNS[1]))  # before those of states
FAR = 2**33 + 2**31  # a multiple of the tile
SIZE = 20_000


def train(cls: Any, dtype: torch.dtype, **settings: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    param = torch.randn(SIZE, generator=generator).to(dtype).requires_grad_()
    opt = cls([param], target="cuda", **settings)
    for _ in range(3):
        param.grad = torch.randn(SIZE, generator=generator).to(dtype)
        opt.step()
    assert opt.engines() == {"cuda": 1}
    return [param.detach(), *opt.state[param].values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [AdamW, AdamW8bit, LAMB8bit])
def test_far_elements_are_the_right_ones(
    cls: Any, dtype: torch.dtype, driver: standin.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = train(cls, dtype)
    cut, table, take = KernelEngine._cut_chunks, KernelEngine._table, KernelEngine._take_addresses

    def cut_far(self: KernelEngine) -> Any:
        chunks = cut(self)
        for place in range(0, len(chunks.numbers), 4):
            chunks.numbers[place + 1] += FAR
            chunks.numbers[place + 2] += FAR
        return chunks

    def table_far(self: KernelEngine) -> Any:
        numbers = table(self)
        numbers[0] -= FAR * self.params[0].element_size()
        column = BASE_COLUMNS
        for state, codec in zip(self.rule.element_states, self.bucket.codecs, strict=True):
            if numbers[column]:
                numbers[column] -= FAR * codec.bits // 8
                numbers[column + 1] -= FAR // codec.block * 4 if codec.block > 0 else 0
            assert state.kind == "element"
            column += 2
        return numbers

    def take_far(self: KernelEngine, grads: Any) -> Any:
        addresses = take(self, grads)
        addresses[0] -= FAR * grads[0].element_size()
        return addresses

    monkeypatch.setattr(CudaEngine, "_cut_chunks", cut_far)
    monkeypatch.setattr(CudaEngine, "_table", table_far)
    monkeypatch.setattr(CudaEngine, "_take_addresses", take_far)
    for ours, theirs in zip(train(cls, dtype), near, strict=True):
        assert torch.equal(ours, theirs)
