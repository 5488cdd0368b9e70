"""The type a state is stored in is the spec's: its first codec without scales, or int8 where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optgen
from optgen.compiler import compile_specs

SPEC = """\
name: probe
hyperparameters:
  lr: {{default: 0.1}}
states:
  kept: {{codecs: [{codecs}]}}
blocks:
  step: |
    kept = 0.5 * kept + grad
    param = param - lr * kept
"""
TYPES = {
    "fp32": torch.float32,
    "bf16, fp32": torch.bfloat16,
    "fp16, fp32, int8": torch.float16,
}


@pytest.mark.parametrize("codecs", TYPES)
def test_the_first_codec_is_the_default(tmp_path: Path, target: str, codecs: str) -> None:
    path = tmp_path / "probe.yaml"
    path.write_text(SPEC.format(codecs=codecs))
    dtype = TYPES[codecs]
    param = torch.nn.Parameter(torch.zeros(3, 300))
    opt = optgen.load(path).Probe([param], target=target)
    kept, value = torch.zeros(3, 300), torch.zeros(3, 300)
    for _ in range(3):
        param.grad = torch.randn(3, 300)
        opt.step()
        new = 0.5 * kept + param.grad
        value = value - 0.1 * new
        kept = new.to(dtype).float()  # the update takes the new value, the state its rounding
    state = opt.state[param]["kept"]
    assert state.dtype is dtype
    assert torch.equal(state.float(), kept)
    torch.testing.assert_close(param.detach(), value, rtol=1e-6, atol=1e-6)
    info = compile_specs([path], "probe").classes[0]
    assert info.state_bytes == dtype.itemsize


def test_eight_bits_where_asked_for(tmp_path: Path, target: str) -> None:
    path = tmp_path / "probe.yaml"
    path.write_text(SPEC.format(codecs="fp16, fp32, int8"))
    param = torch.nn.Parameter(torch.zeros(5000))
    opt = optgen.load(path).Probe([param], target=target, optim_bits=8)
    param.grad = torch.randn(5000)
    opt.step()
    assert opt.state[param]["kept"].dtype is torch.uint8
