"""Memory that steps on matrices read and leave their numbers in: in place, without copies, and in compiled codecs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.targets import ready
from torch import Tensor, nn

import optgen
from optgen.codecs import CODECS, Codec
from optgen.runtime import torch_math
from optgen.runtime.building.cache import find_compiler
from optgen.runtime.engines.cpu_codecs import FOR_ROOTS, CpuCodecs, codec_library, roots
from optgen.runtime.states import torch_codecs
from optgen.runtime.sums import BLOCK

SPEC = """
name: moving
ndim: 2
hyperparameters: {lr: 0.5}
states:
  first: {shape: [rows, cols], codecs: [fp32]}
  second: {shape: [rows, cols], codecs: [fp32]}
blocks:
  step: |
%s
  apply: |
    param = param - lr * update
"""


def made(folder: Path, *lines: str) -> Any:
    """The class of a rule with these equations as its step."""
    path = folder / "moving.yaml"
    path.write_text(SPEC % "\n".join(f"    {line}" for line in lines))
    return optgen.load(path).Moving


def stepped(cls: Any, target: str, grad: Tensor, steps: int = 1, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The parameter, which begins at 0, and its states."""
    param = nn.Parameter(torch.zeros_like(grad))
    with ready(target) as chosen:
        opt = cls([param], target=chosen, **settings)
        for _ in range(steps):
            param.grad = grad.clone()
            opt.step()
    return param.detach(), opt.state[param]


TARGETS = ("torch", "cpu", "cuda")
GRAD = torch.arange(1.0, 49.0).view(6, 8)


@pytest.mark.parametrize("target", TARGETS)
def test_states_that_change_places(target: str, tmp_path: Path) -> None:
    """The memory of each is read by then: neither is stored before the other's number has left it."""
    cls = made(tmp_path, "earlier = first", "first = second + grad", "second = earlier", "update = 0 * grad")
    _, states = stepped(cls, target, GRAD, steps=3)
    assert torch.equal(states["first"], 2 * GRAD)
    assert torch.equal(states["second"], GRAD)
    cls = made(tmp_path, "earlier = first", "first = second", "second = earlier + grad", "update = 0 * grad")
    _, states = stepped(cls, target, GRAD, steps=3)
    assert torch.equal(states["first"], GRAD)
    assert torch.equal(states["second"], 2 * GRAD)


@pytest.mark.parametrize("target", TARGETS)
def test_a_matrix_that_another_name_has_stays(target: str, tmp_path: Path) -> None:
    lines = ["x = 2 * grad", "kept = transpose(x)", "x = 3 * x", "first = x", "second = transpose(kept)", "update = x"]
    param, states = stepped(made(tmp_path, *lines), target, GRAD)
    assert torch.equal(states["first"], 6 * GRAD)
    assert torch.equal(states["second"], 2 * GRAD)
    assert torch.equal(param, -3 * GRAD)


@pytest.mark.parametrize("target", TARGETS)
def test_a_gradient_that_is_read_again_stays(target: str, tmp_path: Path) -> None:
    """A direction may take the gradient's memory only from where on that is not read."""
    square = "square = matmul(transpose(grad), grad)"
    lines = [square, "second = grad", "first = 0 * grad", "update = matmul(grad, square)"]
    grad = GRAD % 5 - 2  # whole numbers, of which products are exact
    param, states = stepped(made(tmp_path, *lines), target, grad, maximize=True)
    assert torch.equal(states["second"], -grad)
    assert torch.equal(param, 0.5 * (grad @ (grad.mT @ grad)))


@pytest.mark.parametrize("name", ["GaLoreAdamW", "APOLLO", "Dion", "GaLoreAdafactor"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_left_as_they_are(name: str, shape: tuple[int, int], target: str) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(shape))
    grad = torch.randn(shape)
    with ready(target) as chosen:
        opt = getattr(optgen_optim, name)([param], target=chosen, rank=4)
        for _ in range(3):
            param.grad = grad
            before = grad.clone()
            opt.step()
            assert torch.equal(grad, before)


@pytest.mark.parametrize("name", ["GaLoreAdamW", "APOLLO"])
def test_bits_do_not_depend_on_where_gradients_lie(name: str) -> None:
    """Gradients that are parts of larger memory, as those of DDP, begin anywhere."""
    torch.manual_seed(0)
    grad, found = torch.randn(70, 90), []
    for first in (0, 1, 5):
        room = torch.empty(grad.numel() + first)[first:].view(grad.shape)
        param = nn.Parameter(torch.zeros_like(grad))
        opt = getattr(optgen_optim, name)([param], target="cpu", rank=8)
        for _ in range(3):
            param.grad = room.copy_(grad)
            opt.step()
        found.append(param.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("settings", "copies"), [({}, False), ({"maximize": True}, True)])
def test_no_pass_copies_gradients(settings: Any, copies: bool) -> None:
    """A step on matrices reads a gradient that nothing changes where it is."""
    param = nn.Parameter(torch.ones(12, 20))
    param.grad = torch.ones(12, 20)
    opt = optgen_optim.GaLoreAdamW([param], target="cpu", rank=4, **settings)
    for _ in range(2):  # the first has a new basis
        opt.step()
    called = dict.fromkeys(optgen_optim.GaLoreAdamW.rule.functions, 0)

    def count(name: str, function: Any) -> Any:
        def counted(call: int) -> None:
            called[name] += 1
            function(call)

        return counted

    for engine in (engine for prepared in opt._kept.of_all for engine in prepared.engines):
        engine.functions.update({name: count(name, function) for name, function in engine.functions.items()})
    opt.step()
    assert sum(called.values()) == 1 + copies
    assert called["step_apply"] == 1


# Compiled codecs

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")
BLOCKED = [codec for codec in CODECS.values() if codec.block > 0]


@needs_compiler
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("codec", BLOCKED, ids=str)
def test_compiled_codecs_have_the_bits_of_torch(codec: Codec, signed: bool) -> None:
    compiler = find_compiler()
    assert compiler is not None
    compiled = CpuCodecs(optgen_optim.GaLoreAdamW.rule, (CODECS["fp32"], codec, codec), compiler)
    for numel in (1, 2, 255, 256, 257, 70_001):
        if not codec.takes(numel):
            continue
        x = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
        x[:: max(numel // 7, 2)] *= 1e-30
        x[numel // 2] = math.inf if numel > 300 else 0.0
        x = x if signed else x.abs()
        codes, absmax = torch_codecs.encode(codec, x, signed)
        found, scales = compiled.encode(codec, x, signed)
        assert torch.equal(codes.view(torch.uint8), found.view(torch.uint8))
        assert absmax is not None
        assert scales is not None
        assert torch.equal(absmax, scales)
        right = torch_codecs.decode(codec, codes, absmax, signed, (numel,))
        assert torch.equal(compiled.decode(codec, codes, absmax, signed, (numel,)), right)


@needs_compiler
def test_compiled_roots_are_correctly_rounded() -> None:
    compiler = find_compiler()
    assert compiler is not None
    library = codec_library(*FOR_ROOTS, compiler)
    x = torch.rand(3, 70_001, generator=torch.Generator().manual_seed(0)) * 10.0
    x[0, :6] = torch.tensor([0.0, -0.0, math.inf, math.nan, -1.0, 2.0**-140])
    for given in (x, x.mT, x[:, :1], x[:0]):
        right = given.double().sqrt().float()
        assert torch.equal(roots(library, given).nan_to_num(nan=7.0), right.nan_to_num(nan=7.0))


def test_roots_of_an_optimizer_are_those_of_torch_math() -> None:
    """Roots of equations, be they compiled or not."""
    x = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch_math.sqrt(x), x.double().sqrt().float())


# Norms


@pytest.mark.parametrize("over", ["tensor", "row", "col"])
@pytest.mark.parametrize("turned", [False, True])
def test_norms_of_large_matrices(over: str, turned: bool) -> None:
    """They are taken in pieces, in float64."""
    shape = (3 * BLOCK // 500 + 7, 500)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 1e-25
    x = x.mT if turned else x
    dims = {"tensor": (-2, -1), "row": (-1,), "col": (-2,)}[over]
    exact = x.double().square()
    for found, right in (
        (torch_math.norm_over(x, over), exact.sum(dims, keepdim=True).sqrt()),
        (torch_math.rms_over(x, over), exact.mean(dims, keepdim=True).sqrt()),
    ):
        assert found.shape == right.shape
        assert float(((found.double() - right) / right).abs().max()) <= 2.0**-24 * 1.001
