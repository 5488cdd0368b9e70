"""The torch target compiled by torch.compile, as on devices without kernels; here on the CPU, where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from optgen_optim import LAMB, AdamW, AdamW8bit

from optgen.runtime import torch_math
from optgen.runtime.building import notice
from optgen.runtime.engines import torch_graphs
from runtime.training import same, snapshot

SHAPES = ((20, 30), ())


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch_graphs, "_passes", {})
    monkeypatch.setattr(notice, "_said", set())
    yield
    torch._dynamo.reset()


def train(cls: Any, monkeypatch: pytest.MonkeyPatch, compiled: bool, steps: int = 4, **settings: Any) -> Any:
    monkeypatch.setenv("OPTGEN_TORCH_COMPILE", str(int(compiled)))
    generator = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    opt = cls(params, target="torch", **{"lr": 1e-2, **settings})
    for step in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        if step == 2:
            opt.param_groups[0]["lr"] = 3e-3
        opt.step()
    return snapshot(opt, params)


CANNOT = "torch.compile cannot compile an optimizer's step here; its operations run one by one: "


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on standard error but for the one of what takes long."""
    return [line for line in capfd.readouterr().err.splitlines() if not line.startswith("compiling ")]


@pytest.mark.parametrize(
    ("device", "wanted", "forced", "answer"),
    [
        ("mps", None, None, True),
        ("xpu", None, None, True),
        ("cuda", None, None, True),  # where the cuda target cannot serve
        ("cpu", None, None, False),
        ("mps", "torch", None, False),
        ("mps", None, "0", False),
        ("cpu", "torch", "1", True),
    ],
)
def test_where(
    device: str, wanted: str | None, forced: str | None, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPTGEN_TORCH_COMPILE", raising=False)
    if forced is not None:
        monkeypatch.setenv("OPTGEN_TORCH_COMPILE", forced)
    assert torch_graphs.compiles(torch.device(device), wanted) is answer


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "settings"), [(AdamW8bit, {"min_8bit_size": 0}), (LAMB, {"max_grad_norm": 1.0})])
def test_steps_are_those_of_single_operations(
    cls: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the last bit of float32; one more step, or another lr, compiles nothing new.

    Roots that an engine of rules of matrices has compiled are none of torch's operations, and are left out of graphs.
    """
    monkeypatch.setattr(torch_math, "exact_roots", lambda x: torch.from_numpy(np.sqrt(x.numpy())))
    plain = train(cls, monkeypatch, False, **settings)
    made = []
    compile_graph = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **how: made.append(1) or compile_graph(*args, **how))
    graphed = train(cls, monkeypatch, True, **settings)
    assert torch_graphs._passes
    assert None not in torch_graphs._passes.values()
    assert len(made) == len(torch_graphs._passes)
    passes = 1 if cls is AdamW8bit else 2 + 1  # sums of the gradients, a norm of each parameter, the update
    assert len(made) <= len(SHAPES) * passes
    torch.testing.assert_close(graphed["params"], plain["params"], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_traced_runs_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A percentile of a window is read by the host."""
    plain = train(AdamW, monkeypatch, False, percentile_clipping=20)
    assert same(train(AdamW, monkeypatch, True, percentile_clipping=20), plain)
    (line,) = said(capfd)
    assert line.startswith(CANNOT)


@pytest.mark.parametrize("rounding", ["stochastic"])
def test_random_rounding_runs_one_by_one(rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(AdamW, monkeypatch, False)
    monkeypatch.setattr(torch_graphs, "_traced", lambda *_: pytest.fail("it is traced"))
    param = torch.ones(7, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    monkeypatch.setenv("OPTGEN_TORCH_COMPILE", "1")
    AdamW([param], target="torch", rounding=rounding).step()
    assert plain


def test_a_compiler_that_fails_changes_nothing_and_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def compile_graph(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no compiler of this kind\nand more")

        return run

    plain = train(AdamW8bit, monkeypatch, False, min_8bit_size=0)
    monkeypatch.setattr(torch, "compile", compile_graph)
    assert same(train(AdamW8bit, monkeypatch, True, min_8bit_size=0), plain)
    assert said(capfd) == [f"{CANNOT}no compiler of this kind"]


def test_no_more_are_compiled_than_a_process_may(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(AdamW, monkeypatch, False)
    monkeypatch.setattr(torch_graphs, "MOST", 0)
    assert same(train(AdamW, monkeypatch, True), plain)
