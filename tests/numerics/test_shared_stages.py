"""Shared stages around every rule: max_grad_norm, cautious, the clamps of the trust ratio.

Bounds are those of oracles/ball.py, whose derivation is in bounds.py. Where a test says "the same bits": kernels are
compiled without contraction, so that a gradient that was scaled beforehand is as good as one that a stage scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.ball import HOST, ULP, Ball, maximum, minimum, norm, sqrt, where
from oracles.base import array
from runtime.training import same
from support.catalogue import optimizer_class, rows

from numerics.bounds import assert_within
from numerics.harness import set_grads, targeted

SHAPES = ((5000,), (40, 30), (7,), ())
LIMIT = 1.5
BETAS = {"betas": (0.0, 0.9)}  # exp_avg is then the very gradient that the rule gets
CLIPPED: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW8bit": {"lr": 0.01, "min_8bit_size": 256},
    "Adam": {"lr": 0.01, "weight_decay": 0.1, "percentile_clipping": 50},
    "LAMB": {"lr": 0.01, "weight_decay": 0.1},
    "LARS": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
}


def params_of(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def grads_of(step: int, size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator, device="cpu") * size for shape in SHAPES]


def take(opt: Any, params: list[torch.nn.Parameter], grads: list[Any]) -> None:
    set_grads(params, grads)
    opt.step()


def everything(opt: Any, params: list[torch.nn.Parameter]) -> list[Any]:
    return [[param.detach() for param in params], [dict(opt.state[param]) for param in params]]


def seen(target: str, grads: list[Any], groups: int = 1, **settings: Any) -> list[torch.Tensor]:
    """The gradients as the rule gets them."""
    params = params_of()
    given: Any = params if groups == 1 else [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    opt = targeted(optimizer_class("AdamW"), given, target, **BETAS, **settings)
    take(opt, params, grads)
    return [opt.state[param]["exp_avg"].clone() for param in params if param in opt.state]


# max_grad_norm


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("size", "limit"), [(1e-3, LIMIT), (1.0, LIMIT), (1e4, LIMIT), (1e-5, 1e-4)])
def test_max_grad_norm_is_that_of_torch(size, limit, groups, target) -> None:
    """The norm is that of all groups together. Squares and the product are rounded to float32, the scale once.

    In the last case the 1e-6 that torch adds to the norm is a thousandth of it.
    """
    grads = grads_of(1, size)
    twins = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64, device="cpu")) for shape in SHAPES]
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.double()
    whole = float(torch.nn.utils.clip_grad_norm_(twins, limit))
    assert (whole > limit) == (size != 1e-3)
    for found, twin, grad in zip(seen(target, grads, groups, max_grad_norm=limit), twins, grads, strict=True):
        wanted = array(twin.grad)
        # ULP / 2 each for the root of a sum of rounded squares, the rounded scale, the product; nothing if it is 1.
        radius = np.abs(wanted) * (1.5 * ULP * (1 + ULP) + 10_000 * HOST) + 2.0**-149
        assert_within(found, Ball(wanted, radius if whole > limit else 0.0), "gradient")
        assert torch.equal(found.cpu(), grad) == (whole <= limit)


@pytest.mark.parametrize("name", CLIPPED)
def test_max_grad_norm_gives_every_rule_the_scaled_gradients(name, target) -> None:
    """The same bits as with gradients that are scaled beforehand, in 8 bits and before percentile clipping too."""
    cls, settings = optimizer_class(name), CLIPPED[name]
    pair = [(params_of(), extra) for extra in ({"max_grad_norm": LIMIT}, {}, {})]
    opts = [targeted(cls, params, target, **settings, **extra) for params, extra in pair]
    for step in range(1, 4):
        grads = grads_of(step, 0.01 if step == 2 else 1.0)
        scaled = seen(target, grads, max_grad_norm=LIMIT)
        for opt, (params, _), own in zip(opts, pair, (grads, scaled, grads), strict=True):
            take(opt, params, own)
    results = [everything(opt, params) for opt, (params, _) in zip(opts, pair, strict=True)]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_max_grad_norm_acts_on_unscaled_gradients_and_before_maximize_matters_not(target) -> None:
    grads = grads_of(1)
    expected = seen(target, grads, max_grad_norm=LIMIT)
    ascending = seen(target, [-grad for grad in grads], max_grad_norm=LIMIT, maximize=True)
    assert same(expected, ascending)
    params = params_of()
    opt = targeted(optimizer_class("AdamW"), params, target, **BETAS, max_grad_norm=LIMIT)
    opt.grad_scale, opt.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    take(opt, params, [grad * 1024 for grad in grads])
    assert same(expected, [opt.state[param]["exp_avg"] for param in params])


def test_max_grad_norm_takes_only_parameters_of_the_step(target) -> None:
    grads: list[Any] = grads_of(1)
    grads[0] = None
    whole = float(torch.stack([grad.double().norm() for grad in grads[1:]]).norm())
    limit = whole / 2
    for found, grad in zip(seen(target, grads, max_grad_norm=limit), grads[1:], strict=True):
        wanted = array(grad) * (limit / (whole + 1e-6))
        assert_within(found, Ball(wanted, np.abs(wanted) * 2 * ULP + 2.0**-149), "gradient")


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_norm_that_is_not_finite(bad, target) -> None:
    """Handed on as torch does; with nonfinite="skip" that of the finite gradients."""
    grads = grads_of(1)
    grads[1][0, 0] = bad
    twins = [torch.nn.Parameter(torch.zeros(shape, device="cpu")) for shape in SHAPES]
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(twins, LIMIT)
    for found, twin in zip(seen(target, grads, max_grad_norm=LIMIT), twins, strict=True):
        assert np.array_equal(array(found), array(twin.grad), equal_nan=True)
    finite = [torch.where(torch.isfinite(grad), grad, 0.0) for grad in grads]
    skipped = seen(target, grads, max_grad_norm=LIMIT, nonfinite="skip")
    assert same(skipped, seen(target, finite, max_grad_norm=LIMIT))


def test_max_grad_norm_is_one_number(target) -> None:
    params = params_of()
    opt = targeted(optimizer_class("AdamW"), [{"params": params[:2]}, {"params": params[2:]}], target)
    with pytest.raises(ValueError, match="AdamW: max_grad_norm is one number for the optimizer and cannot differ"):
        opt.override(params[0], max_grad_norm=1.0)
    for step in (1, 2):
        opt.param_groups[1]["max_grad_norm"] = 1.0
        before = everything(opt, params)
        message = "AdamW: max_grad_norm is one number for the optimizer and cannot differ by group, and groups have "
        with pytest.raises(ValueError, match=message):
            take(opt, params, grads_of(step))
        assert same(before, everything(opt, params))
        opt.param_groups[1]["max_grad_norm"] = 0.0
        take(opt, params, grads_of(step))
    for group in opt.param_groups:
        group["max_grad_norm"] = LIMIT
    take(opt, params, grads_of(3))


# cautious


def masked(update: Ball, grad: np.ndarray) -> Ball:
    """Formula of the paper's algorithm 1 and of its authors' code: the share counts as 1e-3 at least."""
    agrees = update.mid * grad > 0
    unsure = (np.abs(update.mid) <= update.rad) & (update.rad > 0)
    assert not unsure.any()
    return update * where(agrees, Ball(1.0) / Ball(max(float(agrees.mean()), 1e-3)), 0.0)


def adam_update(state: dict[str, Any], t: int, betas: tuple[float, float], eps: float) -> Ball:
    """From the averages as they are stored."""
    first, second = Ball(array(state["exp_avg"])), Ball(array(state["exp_avg_sq"]))
    return first / (1 - betas[0] ** t) / (sqrt(second) / (1 - betas[1] ** t) ** 0.5 + eps)


ADAM = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-3}
RULES: dict[str, dict[str, Any]] = {
    "AdamW": {**ADAM, "weight_decay": 0.1},
    "Adam": {**ADAM, "weight_decay": 3.0},  # coupled: the decay turns the sign of many gradients
    "LAMB": {**ADAM, "weight_decay": 0.1},
    "LARS": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "max_unorm": 0.02},
}


def scaled_by_norms(name: str, param: Ball, update: Ball, settings: dict[str, Any]) -> Ball:
    over, of = norm(param), norm(update)
    if name == "LARS":
        limit = settings["max_unorm"] * over
        return update if not (limit.mid > 0 and of.mid > limit.mid) else limit / of * update
    if name != "LAMB" or not (over.mid > 0 and of.mid > 0):
        return update
    ratio = over / of
    ratio = maximum(ratio, settings.get("min_trust_ratio", 0.0))
    high = settings.get("max_trust_ratio", 0.0)
    return (minimum(ratio, high) if high else ratio) * update


def expected(name: str, before: torch.Tensor, state: dict[str, Any], grad: Any, t: int, s: dict[str, Any]) -> Ball:
    """The parameter after a step, from its states after that step and its value before it."""
    param, lr, decay = Ball(array(before)), s["lr"], s["weight_decay"]
    update = Ball(array(state["momentum_buffer"])) if name == "LARS" else adam_update(state, t, s["betas"], s["eps"])
    if name == "LAMB":
        update = update + decay * param
    if s.get("cautious"):
        update = masked(update, array(grad))
    update = scaled_by_norms(name, param, update, s)
    if name == "AdamW":
        param = param * (1 - lr * decay)
    return param - lr * update


def judge(name: str, target: str, steps: int = 3, **settings: Any) -> None:
    settings = {**RULES[name], **settings}
    params = params_of()
    opt = targeted(optimizer_class(name), params, target, **settings)
    for t in range(1, steps + 1):
        before, grads = [param.detach().clone() for param in params], grads_of(t)
        take(opt, params, grads)
        for param, old, grad in zip(params, before, grads, strict=True):
            assert_within(param, expected(name, old, opt.state[param], grad, t, settings), f"{name}, step {t}")


@pytest.mark.parametrize("name", RULES)
def test_cautious(name, target) -> None:
    """The mask follows the gradient before coupled decay, and norms are those of the masked update."""
    judge(name, target, cautious=True)


@pytest.mark.parametrize("name", RULES)
def test_without_cautious_the_reference_holds_too(name, target) -> None:
    """The tests above compare with the rule itself but for the mask."""
    judge(name, target)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01])
def test_few_elements_that_agree(share, target) -> None:
    """The divisor is 1e-3 at least; where none agrees, nothing moves."""
    size = 4000
    param = torch.nn.Parameter(torch.zeros(size))
    settings = {"lr": 1.0, "momentum": 0.9, "max_unorm": 0.0, "cautious": True}
    opt = targeted(optimizer_class("LARS"), [param], target, **settings)
    take(opt, [param], [torch.ones(size, device="cpu")])
    start = param.detach().clone()
    assert float(start[0]) == -1.0
    grad = torch.full((size,), -0.1, device="cpu")
    grad[: int(share * size)] = 0.1
    take(opt, [param], [grad])
    wanted = where(array(grad) > 0, Ball(array(opt.state[param]["momentum_buffer"])) / max(share, 1e-3), 0.0)
    assert_within(param, Ball(array(start)) - wanted, "param")


def test_cautious_hands_nan_on(target) -> None:
    param = torch.nn.Parameter(torch.ones(300))
    opt = targeted(optimizer_class("AdamW"), [param], target, cautious=True)
    grad = torch.ones(300, device="cpu")
    grad[5] = torch.nan
    take(opt, [param], [grad])
    assert torch.isnan(param).nonzero().flatten().tolist() == [5]


# The clamps of the trust ratio


@pytest.mark.parametrize(
    "clamps",
    [{"max_trust_ratio": 0.5}, {"min_trust_ratio": 20.0}, {"min_trust_ratio": 0.9, "max_trust_ratio": 1.1}],
    ids=str,
)
@pytest.mark.parametrize("cautious", [False, True])
def test_clamps(clamps, cautious, target) -> None:
    judge("LAMB", target, cautious=cautious, **clamps)


def test_clamps_change_the_result_and_leave_zeros_alone(target) -> None:
    results = []
    for clamps in ({}, {"min_trust_ratio": 50.0}, {"max_trust_ratio": 0.01}):
        param, zeros = torch.nn.Parameter(torch.ones(500)), torch.nn.Parameter(torch.zeros(500))
        opt = targeted(optimizer_class("LAMB"), [param, zeros], target, lr=0.01, **clamps)
        take(opt, [param, zeros], [torch.ones(500, device="cpu")] * 2)
        results.append((param.detach(), zeros.detach()))
    plain, high, low = results
    assert not torch.equal(plain[0], high[0])
    assert not torch.equal(plain[0], low[0])
    assert float(zeros.detach()[0]) != 0
    assert torch.equal(plain[1], high[1])
    assert torch.equal(plain[1], low[1])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("AdamW", {"min_trust_ratio": 0.1}, "AdamW: min_trust_ratio=0.1 has no effect without trust_ratio='lamb'"),
        ("AdamW", {"max_trust_ratio": 1.0}, "AdamW: max_trust_ratio=1.0 has no effect without trust_ratio='lamb'"),
        ("LAMB8bit", {"max_trust_ratio": 1.0, "trust_ratio": "none"}, "has no effect without trust_ratio='lamb'"),
        ("LAMB", {"min_trust_ratio": 2.0, "max_trust_ratio": 1.0}, "min_trust_ratio=2.0 is above max_trust_ratio=1.0"),
        ("LAMB", {"min_trust_ratio": -1.0}, "min_trust_ratio"),
        ("AdamW", {"max_grad_norm": -1.0}, "max_grad_norm"),
    ],
)
def test_what_would_not_act_is_refused(name, settings, message) -> None:
    params = params_of()
    with pytest.raises(ValueError, match=message):
        optimizer_class(name)(params, **settings)
    opt: Any = optimizer_class(name)(params)
    if "max_grad_norm" not in settings:
        with pytest.raises(ValueError, match=message):
            opt.override(params[0], **settings)


@pytest.mark.parametrize("name", [name for name, row in rows().items() if row.rule == "lars"])
def test_a_rule_without_this_ratio_has_no_clamps(name) -> None:
    with pytest.raises(TypeError, match="max_trust_ratio"):
        optimizer_class(name)(params_of(), lr=0.1, momentum=0.9, max_trust_ratio=1.0)
