"""AnyPrecision AdamW against AdamW in float64, and against the published update in its own arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

optim = pytest.importorskip("optgen_optim")

STEPS = 50
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
LAST_PLACE = 2.0**-8  # of bfloat16: half of it, over the number, at most


def gradients(shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(shape, generator=generator) + 0.5).bfloat16() for _ in range(STEPS)]


def adamw(start: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    """Algorithm 2 of Loshchilov and Hutter 2019 in float64."""
    beta1, beta2 = SETTINGS["betas"]
    param, first, second = start.double(), torch.zeros_like(start.double()), torch.zeros_like(start.double())
    for t, grad in enumerate(grads, 1):
        first = beta1 * first + (1 - beta1) * grad.double()
        second = beta2 * second + (1 - beta2) * grad.double() ** 2
        update = first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + SETTINGS["eps"])
        param = param - SETTINGS["lr"] * (update + SETTINGS["weight_decay"] * param)
    return param


def published(start: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    """The update with Kahan summation as published, every tensor in bfloat16 but the averages; decay left out."""
    beta1, beta2 = SETTINGS["betas"]
    param, kept = start.clone(), torch.zeros_like(start)
    first, second = torch.zeros_like(start, dtype=torch.float32), torch.zeros_like(start, dtype=torch.float32)
    for t, grad in enumerate(grads, 1):
        first = beta1 * first + (1 - beta1) * grad.float()
        second = beta2 * second + (1 - beta2) * grad.float() ** 2
        change = SETTINGS["lr"] / (1 - beta1**t) * first / (second.sqrt() / (1 - beta2**t) ** 0.5 + SETTINGS["eps"])
        kept = (kept.float() - change).bfloat16()
        before = param.clone()
        param = param + kept
        kept = kept + (before - param)
    return param


def run(start: torch.Tensor, grads: list[torch.Tensor], target: str, **settings: Any) -> tuple[torch.Tensor, Any]:
    param = torch.nn.Parameter(start.clone())
    opt = optim.AnyPrecisionAdamW([param], **{**SETTINGS, "variance_dtype": torch.float32, **settings}, target=target)
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
    return param.detach(), opt.state[param]


def test_kahan_summation_follows_float64(target: str) -> None:
    """Compensation beside the parameter is at most half its last place, and is rounded to bfloat16 once a step."""
    start = torch.randn(5000).bfloat16()
    grads = gradients((5000,))
    param, state = run(start, grads, target, use_kahan_summation=True)
    expected = adamw(start, grads)
    largest = torch.maximum(start.double().abs(), expected.abs()) + SETTINGS["lr"] * STEPS
    error = (param.double() + state["compensation"].double() - expected).abs()
    # A step rounds what is kept (half a last place of half a last place), and about twenty float32 operations.
    assert (error <= STEPS * largest * (LAST_PLACE**2 + 20 * 2.0**-24)).all()
    plain, _ = run(start, grads, target)
    assert (plain.double() - expected).abs().mean() > 10 * error.mean()


def test_kahan_summation_is_the_published_one(target: str) -> None:
    """Both follow the exact sum, as above, a parameter being within half its last place of its sum; the published one
    rounds every change to bfloat16 as well, by at most half a last place of its size, below 1.5 lr."""
    start = torch.randn(5000).bfloat16()
    grads = gradients((5000,))
    param, _ = run(start, grads, target, use_kahan_summation=True, weight_decay=0.0)
    other = published(start, grads)
    apart = (param.float() - other.float()).abs()
    sizes = param.float().abs() + other.float().abs()
    largest = start.float().abs() + sizes + SETTINGS["lr"] * STEPS
    sums = 2 * STEPS * largest * (LAST_PLACE**2 + 20 * 2.0**-24)
    assert (apart <= LAST_PLACE * sizes + sums + STEPS * LAST_PLACE * 1.5 * SETTINGS["lr"]).all()
    assert (apart == 0).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_have_the_dtypes_asked_for(dtype: torch.dtype, target: str) -> None:
    start = torch.randn(300).bfloat16()
    names = ("momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
    for name, key in zip(names, ("exp_avg", "exp_avg_sq", "compensation"), strict=True):
        _, state = run(start, gradients((300,))[:2], target, use_kahan_summation=True, **{name: dtype})
        assert state[key].dtype is dtype


def test_what_other_classes_do_otherwise_is_refused() -> None:
    param = torch.nn.Parameter(torch.ones(3).bfloat16())
    with pytest.raises(TypeError, match="optim_bits"):
        optim.AnyPrecisionAdamW([param], optim_bits=8)
    with pytest.raises(ValueError, match="rounding='kahan' is for; leave one of them out"):
        optim.AnyPrecisionAdamW([param], use_kahan_summation=True, rounding="kahan")
    with pytest.raises(ValueError, match="momentum_dtype must be one of 'float32', 'bfloat16', 'float16'"):
        optim.AnyPrecisionAdamW([param], momentum_dtype=torch.int8)
