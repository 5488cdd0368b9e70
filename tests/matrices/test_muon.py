"""Functions of matrices, in Muon and its kin: on every target, in few bits, against float64 and torch.optim.Muon."""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optgen_optim import Muon, Muon4bit, Muon8bit, NorMuon
from support.compiling import stock_classes
from support.targets import ready
from torch import Tensor, nn

import optgen
from matrices.oracle import ORIGINAL, POLAR_EXPRESS, QUINTIC, MuonOracle, orthogonal
from optgen import operations
from optgen.runtime.matrix_math import MATRIX_FUNCTIONS

SHAPES = ((24, 40), (40, 24), (16, 16), (1, 30), (30, 1))
TARGETS = ("torch", "cpu", "cuda")
STEPS = 3


def numbers(seed: int, shapes: Any = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def trained(
    cls: Any, target: str, shapes: Any = SHAPES, steps: int = STEPS, **settings: Any
) -> tuple[list[Tensor], Any]:
    params = [nn.Parameter(x) for x in numbers(0, shapes)]
    with ready(target) as chosen:
        opt = cls(params, target=chosen, **settings)
        for step in range(steps):
            for param, grad in zip(params, numbers(step + 1, shapes), strict=True):
                param.grad = grad
            opt.step()
    return [param.detach() for param in params], opt


def assert_alike(found: list[Tensor], oracles: list[MuonOracle]) -> None:
    for param, oracle in zip(found, oracles, strict=True):
        worst = np.abs(param.double().numpy() - oracle.param).max()
        assert worst <= oracle.error, (tuple(param.shape), worst, oracle.error)


def followed(shapes: Any = SHAPES, **settings: Any) -> list[MuonOracle]:
    oracles = [MuonOracle(x.double().numpy(), **settings) for x in numbers(0, shapes)]
    for step in range(STEPS):
        for oracle, grad in zip(oracles, numbers(step + 1, shapes), strict=True):
            oracle.step(grad.double().numpy())
    return oracles


ITERATIONS = {
    "constant": {"table": (ORIGINAL,) * 5},
    "quintic": {"table": QUINTIC},
    "polar_express": {"table": POLAR_EXPRESS, "safety": 1.02},
}


@pytest.mark.parametrize("target", TARGETS)
def test_follows_the_formula(target: str) -> None:
    found, _ = trained(Muon, target)
    assert_alike(found, followed())


@pytest.mark.parametrize("scale", ["match_rms_adamw", "spectral"])
@pytest.mark.parametrize("iteration", ITERATIONS)
def test_iterations_and_scales(iteration: str, scale: str) -> None:
    found, _ = trained(Muon, "torch", ns_schedule=iteration, adjust_lr_fn=scale, nesterov=False)
    assert_alike(found, followed(**ITERATIONS[iteration], scale=scale, nesterov=False))


def test_the_bound_tells_iterations_apart() -> None:
    """Another table of coefficients, a step less, or one coefficient changed by 1.5 % do not pass the bound."""
    x = numbers(7, [(24, 40)])[0].double().numpy()
    right = orthogonal(x, (ORIGINAL,) * 5)
    for other in ((ORIGINAL,) * 4, QUINTIC, (*(ORIGINAL,) * 4, (3.4445, -4.775, 2.0))):
        assert np.abs(orthogonal(x, other).value - right.value).max() > right.error


def test_is_torchs_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon, whose cast to bfloat16 is left out, over the same steps."""
    module = pytest.importorskip("torch.optim._muon")
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self)
    shapes = SHAPES[:3]
    params = [nn.Parameter(x.double()) for x in numbers(0, shapes)]
    theirs = module.Muon(params)
    for step in range(STEPS):
        for param, grad in zip(params, numbers(step + 1, shapes), strict=True):
            param.grad = grad.double()
        theirs.step()
    for param, oracle in zip(params, followed(shapes), strict=True):
        assert np.abs(param.detach().numpy() - oracle.param).max() < 1e-13
    found, _ = trained(Muon, "cpu", shapes)
    assert_alike(found, followed(shapes))


FEW_BITS = ({"optim_bits": 8}, {"optim_bits": 4}, {"optim_bits": 8, "block_wise": False}, {"optim_bits": 16})
EVERYTHING = {
    "max_grad_norm": 1.0, "percentile_clipping": 50, "cautious": True, "trust_ratio": "lamb", "max_unorm": 0.1,
    "nonfinite": "skip", "maximize": True,
}  # fmt: skip


@pytest.mark.parametrize("settings", [*FEW_BITS, EVERYTHING], ids=str)
def test_targets_agree(settings: dict[str, Any]) -> None:
    """Each matrix has a shape of its own here, so that every target takes the very same products."""
    small = {"min_8bit_size": 0} if "optim_bits" in settings else {}
    results = [trained(Muon, target, **settings, **small) for target in TARGETS]
    (first, opt), *others = results
    for found, other in others:
        for index, (a, b) in enumerate(zip(first, found, strict=True)):
            assert torch.equal(a, b), (other.param_groups[0]["target"], SHAPES[index])
        for entry, theirs in zip(opt.state.values(), other.state.values(), strict=True):
            for key in entry:
                assert torch.equal(entry[key].cpu(), theirs[key].cpu()), key


@pytest.mark.parametrize("target", TARGETS)
def test_rows_of_an_orthogonal_matrix(target: str) -> None:
    """NorMuon, whose rows are divided by the root of an average of the orthogonal matrix's: against float64."""
    found, opt = trained(NorMuon, target, SHAPES[:3], lr=0.02)
    for param, start, index in zip(found, numbers(0), range(3), strict=False):
        value, buffer, second = start.double().numpy(), 0.0, 0.0
        error = 0.0
        for step in range(STEPS):
            grad = numbers(step + 1)[index].double().numpy()
            buffer = 0.95 * buffer + 0.05 * grad
            found_ = orthogonal(0.05 * grad + 0.95 * buffer, (ORIGINAL,) * 5)
            o = found_.value
            second = 0.95 * second + 0.05 * (o**2).mean(1, keepdims=True)
            rows, cols = o.shape
            normalized = o / (np.sqrt(second) + 1e-10)
            size, scale = np.linalg.norm(o), np.sqrt(max(1.0, rows / cols))
            value = value - 0.02 * normalized * (size / (np.linalg.norm(normalized) + 1e-10)) * scale
            # Rows keep their directions: a change of o by e changes a row, its divisor and both norms by no more each.
            least = np.sqrt(second).min()
            error += 0.02 * scale * 4 * found_.error * size / np.linalg.norm(normalized) / least
        assert np.abs(param.double().numpy() - value).max() <= error
    assert [tuple(entry["second_momentum"].shape) for entry in opt.state.values()] == [(24,), (40,), (16,)]


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_edges(target: str) -> None:
    """A zero gradient moves nothing; a matrix of rank one gets no noise; an empty one is no trouble."""

    zero, low, empty = nn.Parameter(torch.ones(8, 6)), nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.ones(0, 5))
    opt = Muon([zero, low, empty], lr=1.0, weight_decay=0.0, target=target)
    zero.grad, empty.grad = torch.zeros(8, 6), torch.zeros(0, 5)
    u, v = torch.randn(64, 1), torch.randn(1, 64)
    low.grad = u @ v
    opt.step()
    assert torch.equal(zero, torch.ones(8, 6))
    s = torch.linalg.svdvals(low.detach().double())
    assert 0.5 < s[0] < 1.3
    assert s[1] < 1e-4


def test_equal_shapes_are_one_batch_in_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets hold matrices of one shape up to a size; those that run in turn store their elements in one place."""
    monkeypatch.setattr("optgen.runtime.step.prepare.BATCH", 3 * 24 * 40)
    shapes = [(24, 40)] * 7 + [(40, 24)] * 2
    found, opt = trained(Muon, "cpu", shapes)
    (prepared,) = opt._kept.of_all
    assert [len(engine.members) for engine in prepared.engines] == [3, 3, 1, 2]
    places = {next(iter(engine.matrices.values())).data_ptr() for engine in prepared.engines}
    assert len(places) == 1
    assert max(engine.matrix_elements for engine in prepared.engines) == 3 * 24 * 40
    assert_alike(found, followed(shapes))


def test_groups_have_settings_of_their_own() -> None:
    """Steps of the iteration are a setting: of a group, and changed between two steps."""

    results = {}
    for target in ("torch", "cpu"):
        params = [nn.Parameter(x) for x in numbers(0, [(20, 30)] * 3)]
        opt = Muon([{"params": params[:2]}, {"params": params[2:], "ns_steps": 1}], target=target)
        for step, steps in enumerate((5, 2)):
            opt.param_groups[0]["ns_steps"] = steps
            for param, grad in zip(params, numbers(step + 1, [(20, 30)] * 3), strict=True):
                param.grad = grad
            opt.step()
        results[target] = [param.detach() for param in params]
    start, grads = numbers(0, [(20, 30)] * 3), [numbers(step + 1, [(20, 30)] * 3) for step in range(2)]
    for index, counts in ((0, (5, 2)), (2, (1, 1))):
        oracle = MuonOracle(start[index].double().numpy())
        for grad, count in zip(grads, counts, strict=True):
            oracle.table = (ORIGINAL,) * count
            oracle.step(grad[index].double().numpy())
        for found in results.values():
            assert_alike([found[index]], [oracle])


def test_resumes_bit_for_bit() -> None:

    whole, _ = trained(Muon, "cpu", optim_bits=8, min_8bit_size=0)
    half, first = trained(Muon, "cpu", steps=2, optim_bits=8, min_8bit_size=0)
    params = [nn.Parameter(x.clone()) for x in half]
    opt = Muon(params, target="cpu", optim_bits=8, min_8bit_size=0)
    opt.load_state_dict(first.state_dict())
    for param, grad in zip(params, numbers(STEPS), strict=True):
        param.grad = grad
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_within_backward(target: str) -> None:
    results: list[Any] = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 20, bias=False), nn.Tanh(), nn.Linear(20, 12, bias=False))
        opt = Muon(model.parameters(), fused_backward=fused, target=target)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(4, 12)).square().mean().backward()
            opt.step()
        results.append([param.detach().clone() for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_vectors_are_refused() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"Muon takes matrices, and 'bias' has the shape \(3,\), which is no matrix"):
        Muon(model.named_parameters())
    with pytest.raises(ValueError, match="number 1 of the param group has the shape"):
        Muon(model.parameters())
    opt = Muon([model.weight])
    with pytest.raises(ValueError, match="give it to another optimizer"):
        opt.add_param_group({"params": [model.bias]})
    assert len(opt.param_groups) == 1


SUM_OF_ALL = """
name: shrunk
hyperparameters: {lr: 1e-1}
ndim: 2
blocks:
  step: |
    orthogonal = quintic(grad, 5, 1e-7)
    param = param - lr * orthogonal / norm(orthogonal, over=all)
"""


def test_a_norm_over_all_matrices(tmp_path: Path) -> None:
    """Every matrix must be there before any of them is used: then each has memory of its own."""
    path = tmp_path / "shrunk.yaml"
    path.write_text(SUM_OF_ALL)
    cls = optgen.load(path).Shrunk
    (first, _), (second, opt) = (trained(cls, target, [(20, 30), (30, 20)], 1) for target in ("torch", "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (prepared,) = opt._kept.of_all
    assert len({next(iter(engine.matrices.values())).data_ptr() for engine in prepared.engines}) == 2
    moved = [
        a.double().numpy() - b.double().numpy() for a, b in zip(first, numbers(0, [(20, 30), (30, 20)]), strict=True)
    ]
    assert np.sqrt(sum((x**2).sum() for x in moved)) == pytest.approx(0.1, rel=1e-5)


def test_the_language_has_what_the_runtime_computes() -> None:
    """Names and arguments, in their order."""
    computed = {name: tuple(signature(function).parameters) for name, function in MATRIX_FUNCTIONS.items()}
    assert computed == {name: ("x", *row.settings) for name, row in operations.MATRIX_FUNCTIONS.items()}


def in_bfloat16(theirs: Any, ours: Any, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix before training, and after it by a class of torch and by ours."""
    start = numbers(0, [shape])[0]
    params = [nn.Parameter(start.clone()) for _ in range(2)]
    made = [cls([param]) for cls, param in zip((theirs, ours), params, strict=True)]
    for step in range(STEPS):
        for param, opt in zip(params, made, strict=True):
            param.grad = numbers(step + 1, [shape])[0]
            opt.step()
    return start, *(param.detach() for param in params)


@pytest.mark.parametrize("target", ["torch", "cpu"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_products_in_bfloat16_are_torchs(target: str, nesterov: bool) -> None:
    """Within a rounding of bfloat16 of the movement, and much nearer than with products in float32."""
    module = pytest.importorskip("torch.optim._muon")
    for shape in SHAPES[:3]:
        theirs = partial(module.Muon, nesterov=nesterov)
        ours = partial(Muon, nesterov=nesterov, target=target)
        start, wanted, found = in_bfloat16(theirs, partial(ours, matrix_dtype="bfloat16"), shape)
        apart = (found - wanted).norm()
        assert apart <= 2.0**-8 * (wanted - start).norm()
        _, _, single = in_bfloat16(theirs, ours, shape)
        assert (single - wanted).norm() > 8 * apart


def test_the_momentum_is_no_orthogonal_matrix() -> None:
    """torch's class, with bfloat16 gradients and without Nesterov, normalises the momentum itself in place."""
    for dtype in ("float32", "bfloat16"):
        for target in ("torch", "cpu"):
            param = nn.Parameter(numbers(0, [(24, 40)])[0].bfloat16())
            opt = Muon([param], nesterov=False, matrix_dtype=dtype, target=target, codec="bf16")
            buffer = torch.zeros(24, 40, dtype=torch.float64)
            for step in range(STEPS):
                param.grad = grad = 10 * numbers(step + 1, [(24, 40)])[0].bfloat16()
                kept = grad.clone()
                buffer = 0.95 * buffer + 0.05 * grad.double()
                opt.step()
                assert param.grad is grad
                assert torch.equal(grad, kept), "a gradient stays as it is"
            found = opt.state[param]["momentum_buffer"].double()
            assert found.norm() == pytest.approx(buffer.norm(), rel=2.0**-7)


def test_what_has_no_gradient_stays() -> None:
    """It neither moves by its momentum nor decays, as in other implementations that give it a gradient of zero."""
    for target in ("torch", "cpu"):
        params = [nn.Parameter(x) for x in numbers(0, [(6, 8)] * 2)]
        opt = Muon(params, target=target)
        for param, grad in zip(params, numbers(1, [(6, 8)] * 2), strict=True):
            param.grad = grad
        opt.step()
        before = params[1].detach().clone()
        params[1].grad = None
        opt.step()
        assert torch.equal(params[1], before)


def test_the_same_in_every_run() -> None:
    for settings in ({}, {"optim_bits": 8, "min_8bit_size": 0}, {"matrix_dtype": "bfloat16"}):
        results = [trained(Muon, "cpu", [(48, 64)] * 3 + [(64, 30)], **settings)[0] for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_few_bits_take_what_is_planned() -> None:
    """Bytes a parameter, measured, of a matrix of 1024 x 1024."""
    for cls, most in ((Muon, 4.0), (Muon8bit, 1.04), (Muon4bit, 0.57)):
        param = nn.Parameter(torch.zeros(1024, 1024))
        opt = cls([param], ns_steps=0)
        param.grad = torch.zeros(1024, 1024)
        opt.step()
        kept = sum(x.untyped_storage().nbytes() for key, x in opt.state[param].items() if key != "step")
        assert kept / param.numel() == pytest.approx(stock_classes()[cls.__name__].state_bytes)
        assert kept / param.numel() <= most


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_in_a_graph_and_under_a_scaler(target: str) -> None:
    """torch.compile's step, and a gradient scaler's by a power of two, are the plain ones bit for bit."""
    plain, _ = trained(Muon, target)
    params = [nn.Parameter(x) for x in numbers(0)]
    opt = Muon(params, target=target)
    step = torch.compile(opt.step, backend="aot_eager", fullgraph=True)
    for number in range(STEPS):
        for param, grad in zip(params, numbers(number + 1), strict=True):
            param.grad = grad
        step()
    assert all(torch.equal(a, b) for a, b in zip(plain, params, strict=True))
    scaled = [nn.Parameter(x) for x in numbers(0)]
    opt, scaler = Muon(scaled, target=target), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(STEPS):
        for param, grad in zip(scaled, numbers(number + 1), strict=True):
            param.grad = grad * 1024
        scaler.scale(torch.zeros(()))
        scaler.step(opt)
        scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


def test_goes_on_from_torchs_checkpoint() -> None:
    """Within a rounding of bfloat16, in which its products are."""
    module = pytest.importorskip("torch.optim._muon")
    theirs = [nn.Parameter(x) for x in numbers(0, SHAPES[:3])]
    other = module.Muon(theirs)
    for step in range(STEPS):
        for param, grad in zip(theirs, numbers(step + 1, SHAPES[:3]), strict=True):
            param.grad = grad
        if step == 1:
            params = [nn.Parameter(param.detach().clone()) for param in theirs]
            opt = Muon(params, matrix_dtype="bfloat16", target="torch")
            opt.load_state_dict(other.state_dict())
        if step:
            for param, grad in zip(params, numbers(step + 1, SHAPES[:3]), strict=True):
                param.grad = grad
            opt.step()
        other.step()
    start = numbers(0, SHAPES[:3])
    for ours, wanted, begin in zip(params, theirs, start, strict=True):
        assert (ours - wanted).norm() <= 2.0**-8 * (wanted - begin).norm()


def test_is_not_recorded() -> None:
    with ready("cuda") as target:
        param = nn.Parameter(torch.ones(6, 8))
        opt = Muon([param], capturable=True, target=target)
        param.grad = torch.ones(6, 8)
        with pytest.raises(RuntimeError, match="capturable=True is not for functions of matrices, whose settings"):
            opt.step()
    assert not opt.state
    assert torch.equal(param, torch.ones(6, 8))


def test_one_process_has_all_of_the_work() -> None:
    """distribute_matrices=True is about others, and there are none; within backward it is refused."""
    alone, asked = (train_muon(distribute_matrices=given) for given in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(alone, asked, strict=True))
    with pytest.raises(ValueError, match="fused_backward=True does not go with distribute_matrices=True"):
        Muon([nn.Parameter(torch.ones(3, 3))], fused_backward=True, distribute_matrices=True)


def train_muon(**settings: Any) -> list[nn.Parameter]:
    params = [nn.Parameter(x) for x in numbers(0, SHAPES[:3])]
    opt = Muon(params, target="torch", **settings)
    for param, grad in zip(params, numbers(1, SHAPES[:3]), strict=True):
        param.grad = grad
    opt.step()
    return params
