"""Fallback of the cuda target: torch serves, said once; asked for by name, an error says why."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import standin
import torch
from optgen_optim import AdamW8bit
from support.headers import copy_headers

from optgen.runtime.building.cache import CompileError
from optgen.runtime.cuda import cuda_device
from optgen.runtime.engines import cuda_factory
from optgen.runtime.step import target_choice
from optgen.runtime.step.target_choice import choose_target

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _nothing_said_yet(driver: standin.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_choice, "_said", set())


def make(**settings: Any) -> tuple[torch.Tensor, AdamW8bit]:
    param = torch.randn(5000, generator=torch.Generator().manual_seed(1)).requires_grad_()
    param.grad = torch.ones(5000)
    return param, AdamW8bit([param], **settings)


def test_without_pycuda_the_torch_target_serves_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_factory, "why_no_driver", lambda: "PyCUDA is not installed: pip install pycuda")
    with pytest.warns(RuntimeWarning, match=r"pip install pycuda; so the torch target serves"):
        assert choose_target("AdamW", GPU, None) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_target("AdamW", GPU, None) == "torch"
    with pytest.raises(RuntimeError, match=r"AdamW: target='cuda' cannot serve: PyCUDA is not installed: pip install"):
        choose_target("AdamW", GPU, "cuda")


def test_without_nvcc_the_first_step_says_what_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_factory, "find_cuda_compiler", lambda: None)
    monkeypatch.setenv("OPTGEN_NVCC", "/nowhere/nvcc")
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))  # no kernel of an earlier test
    param, opt = make(target="cuda")
    before = param.detach().clone()
    with pytest.raises(CompileError, match=r"(?s)there is no nvcc or NVRTC to build it.*pip install nvidia-cuda-nvrtc"):
        opt.step()
    assert torch.equal(param, before)
    assert not opt.state


def test_an_nvcc_that_fails_shows_its_message_with_file_and_line(tmp_path: Path, monkeypatch) -> None:
    source = Path(AdamW8bit.rule.file).with_name("adam.cu")
    broken = tmp_path / "adam.cu"
    text = source.read_text().replace("double grad_squares =", "duoble grad_squares =", 1)
    broken.write_text(text)
    copy_headers(source, tmp_path)
    line = 1 + text[: text.index("duoble")].count("\n")
    monkeypatch.setattr(type(AdamW8bit.rule), "cuda_source", property(lambda rule: broken))
    param, opt = make(target="cuda")
    before = param.detach().clone()
    with pytest.raises(CompileError, match=rf"adam\.cu:{line}:.*duoble"):
        opt.step()
    assert torch.equal(param, before)
    assert not opt.state


def test_a_kernel_that_cannot_be_built_leaves_the_step_to_torch_unless_captured(monkeypatch) -> None:
    def fails(*_: Any) -> Any:
        raise CompileError("nvcc says no")

    monkeypatch.setattr(cuda_factory, "CudaEngine", fails)
    bucketed = []

    def choose(name: str, device: torch.device, wanted: str | None, dtype: torch.dtype) -> str:
        bucketed.append(wanted)
        return "cuda"

    monkeypatch.setattr("optgen.runtime.step.prepare.choose_target", choose)
    _, opt = make()
    with pytest.warns(RuntimeWarning, match="could not be compiled, so the torch target serves: nvcc says no"):
        opt.step()
    assert opt.engines() == {"torch": 1}
    assert bucketed == [None]
    _, opt = make(capturable=True)
    with pytest.raises(CompileError, match="nvcc says no"):
        opt.step()
    assert not opt.state


def test_a_skipped_first_step_is_skipped_by_torch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is chosen before it is known that its kernels cannot be built."""

    def fails(*_: Any) -> Any:
        raise CompileError("nvcc says no")

    monkeypatch.setattr(cuda_factory, "CudaEngine", fails)
    monkeypatch.setattr("optgen.runtime.step.prepare.choose_target", lambda *_: "cuda")
    param, opt = make()
    assert param.grad is not None
    param.grad.fill_(torch.inf)
    before = param.detach().clone()
    opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(65536.0)
    with pytest.warns(RuntimeWarning, match="nvcc says no"):
        opt.step()
    assert torch.equal(param, before)
    assert not opt.state


def test_a_driver_that_refuses_kernels_leaves_nothing_half_done(
    driver: standin.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels are loaded before the first one runs: here those of the second bucket cannot be."""
    gpu = cuda_device.cuda_device(torch.device("cpu"))
    load = gpu.function

    def refuse(image: bytes, name: str) -> Any:
        loaded = load(image, name)
        if len({image, *seen}) > 1:
            raise gpu.driver.LogicError("device kernel image is invalid")
        seen.add(image)
        return loaded

    seen: set[bytes] = set()
    monkeypatch.setattr(gpu, "function", refuse)
    params = [torch.ones(300, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.bfloat16)]
    for param in params:
        param.grad = torch.ones_like(param)
    opt = AdamW8bit(params, target="cuda")
    with pytest.raises(CompileError, match=r"(?s)the driver does not take the kernels of .*adam\.cu for sm_90.*doctor"):
        opt.step()
    assert all(bool((param == 1).all()) for param in params)
    assert not opt.state
