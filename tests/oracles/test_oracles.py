"""The oracles themselves: against torch.optim and bitsandbytes where those are right, else a second derivation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from oracles import (
    AdafactorOracle,
    AdamOracle,
    AdEMAMixOracle,
    LambOracle,
    LarsOracle,
    NovoGradOracle,
    Oracle,
    ProdigyOracle,
    RAdamOracle,
    ScheduleFreeAdamWOracle,
    StableAdamWOracle,
)
from oracles.ball import Ball, sqrt, where
from oracles.storage import Quantized, code_book, decode, encode, published_book, store

SHAPES = [(5, 3), (7,), (), (2, 3, 4)]
STEPS = 12


def starting_values() -> list[torch.Tensor]:
    values = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    values[1].zero_()
    return values


def gradients() -> list[list[torch.Tensor]]:
    return [[torch.randn(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(STEPS)]


def train(oracle: Oracle, history: Sequence[Sequence[torch.Tensor]]) -> list[list[np.ndarray]]:
    """All parameters after every step, the start included."""
    trail = [list(oracle.params)]
    for grads in history:
        oracle.step(grads)
        trail.append(list(oracle.params))
    return trail


def train_torch(optimizer: Callable[..., torch.optim.Optimizer], values, history, **settings) -> list[np.ndarray]:
    params = [torch.nn.Parameter(value.clone()) for value in values]
    opt = optimizer(params, **settings)
    for grads in history:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(param.dtype)
        opt.step()
    return [param.detach().double().numpy() for param in params]


def assert_equal(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], rtol: float = 1e-12) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=1e-14)


DECAY = {"lr": 0.01, "weight_decay": 0.1}
MOMENTUM = {"momentum": 0.9, "weight_decay": 0.1, "lr": 0.01}
UNCLIPPED = {"max_unorm": 0.0}
TORCH = {
    "adamw": (AdamOracle, torch.optim.AdamW, DECAY, {}),
    "adamw-amsgrad-maximize": (AdamOracle, torch.optim.AdamW, DECAY | {"amsgrad": True, "maximize": True}, {}),
    "adam": (AdamOracle, torch.optim.Adam, DECAY, {"decoupled": False}),
    "adam-amsgrad": (AdamOracle, torch.optim.Adam, DECAY | {"amsgrad": True}, {"decoupled": False}),
    "radam": (RAdamOracle, torch.optim.RAdam, DECAY, {}),
    "radam-decoupled": (RAdamOracle, torch.optim.RAdam, DECAY | {"decoupled_weight_decay": True}, {}),
    "lars-as-sgd": (LarsOracle, torch.optim.SGD, MOMENTUM, UNCLIPPED),
    "lars-as-sgd-dampening": (LarsOracle, torch.optim.SGD, MOMENTUM | {"dampening": 0.3}, UNCLIPPED),
    "lars-as-sgd-nesterov": (LarsOracle, torch.optim.SGD, MOMENTUM | {"nesterov": True}, UNCLIPPED),
    "lars-as-sgd-plain": (LarsOracle, torch.optim.SGD, DECAY, UNCLIPPED),
    "lamb-as-adamw": (LambOracle, torch.optim.AdamW, DECAY, {"trust_ratio": "none"} | UNCLIPPED),
    "lamb-as-adam": (LambOracle, torch.optim.Adam, DECAY, {"trust_ratio": "none", "adam_w_mode": False} | UNCLIPPED),
}


@pytest.mark.parametrize("case", TORCH.values(), ids=TORCH)
def test_equals_torch(case) -> None:
    oracle, optimizer, settings, ours_only = case
    values, history = starting_values(), gradients()
    ours = train(oracle(values, **settings, **ours_only), history)[-1]
    assert_equal(ours, train_torch(optimizer, values, history, **settings))


def test_adafactor_equals_torch_where_the_rules_agree() -> None:
    values, history = starting_values(), gradients()
    ours = train(AdafactorOracle(values, eps=(0.0, 1e-3)), history)[-1]
    theirs = train_torch(torch.optim.Adafactor, values, history, lr=1e-2, weight_decay=0.0)
    assert_equal(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("schedules", [{}, {"t_alpha": 5, "t_beta3": 8}], ids=["constant", "schedules"])
def test_ademamix_equals_bitsandbytes(schedules) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    values = [torch.randn(64), torch.randn(8, 8)]
    history = [[torch.randn_like(value) for value in values] for _ in range(STEPS)]
    ours = train(AdEMAMixOracle(values, **schedules), history)[-1]
    for mine, other in zip(ours, train_torch(bnb.optim.AdEMAMix, values, history, **schedules), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_lamb_steps_are_a_share_of_the_parameter() -> None:
    values, history = starting_values(), gradients()
    trail = train(LambOracle(values, lr=0.1, weight_decay=0.1), history)
    for before, after in pairwise(trail):
        for old, new in zip(before, after, strict=True):
            size = np.linalg.norm(old)
            assert size == 0 or np.linalg.norm(new - old) == pytest.approx(0.1 * size)
    adam = train(AdamOracle(values, lr=0.1), history[:1])[-1]
    assert_equal(trail[1][1:2], adam[1:2])  # the tensor of zeros takes the plain step


def test_lars_steps_are_clipped_to_a_share_of_the_parameter() -> None:
    values, history = starting_values(), gradients()
    for before, after in pairwise(train(LarsOracle(values, lr=1.0, momentum=0.9, max_unorm=0.02), history)):
        for old, new in zip(before, after, strict=True):
            size = np.linalg.norm(old)
            assert size == 0 or np.linalg.norm(new - old) <= 0.02 * size * (1 + 1e-9)


def test_stable_adamw_is_adamw_at_a_lowered_rate() -> None:
    oracle = StableAdamWOracle([torch.ones(50)], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    m = v = np.zeros(50)
    param = np.ones(50)
    for t in range(1, STEPS):
        grad = np.random.default_rng(t).normal(size=50) * t**3
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        first, second = m / (1 - 0.9**t), v / (1 - 0.99**t)
        rate = 0.1 / max(1.0, math.sqrt(np.mean(grad**2 / second)))
        assert t == 1 or rate < 0.1
        param = param - rate * first / (np.sqrt(second) + 1e-6)
        oracle.step([grad])
        assert_equal(oracle.params, [param])


def test_schedule_free_eval_is_the_weighted_average_of_the_iterates() -> None:
    settings = {"warmup_steps": 4, "r": 1.0, "weight_decay": 0.1, "lr": 0.05}
    oracle = ScheduleFreeAdamWOracle([torch.randn(9)], **settings)
    iterates, weights = [], []
    for t in range(1, STEPS):
        oracle.step([np.random.default_rng(t).normal(size=9)])
        rate = 0.05 * min(1, t / 4)
        iterates.append(oracle.states[0]["z"])
        weights.append(t * rate**2)
        y = oracle.params[0]
        oracle.eval()
        x = np.average(iterates, axis=0, weights=weights)
        assert_equal(oracle.params, [x])
        assert_equal([y], [0.9 * x + 0.1 * iterates[-1]])
        oracle.train()
        assert_equal(oracle.params, [y])


@pytest.mark.parametrize("averaging", [False, True])
def test_novograd_momentum_is_a_sum_of_normalised_gradients(averaging) -> None:
    values, history = [torch.randn(3, 4)], [[torch.randn(3, 4)] for _ in range(STEPS)]
    trail = train(NovoGradOracle(values, lr=0.1, weight_decay=0.1, grad_averaging=averaging), history)
    squares = [float((grads[0].double() ** 2).sum()) for grads in history]
    terms = []
    for t, (grads, (before, after)) in enumerate(zip(history, pairwise(trail), strict=True)):
        second = 0.98**t * squares[0] + sum(0.02 * 0.98 ** (t - i) * squares[i] for i in range(1, t + 1))
        terms.append(grads[0].double().numpy() / (math.sqrt(second) + 1e-8) + 0.1 * before[0])
        momentum = sum((0.05 if averaging else 1) * 0.95 ** (t - i) * term for i, term in enumerate(terms))
        assert_equal(after, [before[0] - 0.1 * momentum])


@pytest.mark.parametrize("settings", [{}, {"safeguard_warmup": True, "lr": 0.5}, {"growth_rate": 1.5, "d_coef": 2.0}])
def test_prodigy_estimate_is_a_ratio_of_weighted_sums(settings) -> None:
    lr, coef, d0 = settings.get("lr", 1.0), settings.get("d_coef", 1.0), 1e-3
    oracle = ProdigyOracle([torch.full((6,), 3.0), torch.full((2, 2), -2.0)], d0=d0, **settings)
    start = np.concatenate([param.reshape(-1) for param in oracle.params])
    d, largest, seen = d0, d0, []
    for _ in range(STEPS):
        here = np.concatenate([param.reshape(-1) for param in oracle.params])
        oracle.step([param + 0.1 for param in oracle.params])  # the gradient of a parabola
        pull = d if settings.get("safeguard_warmup") else d * lr
        seen.append((d / d0 * d * lr * (here + 0.1) @ (start - here), d / d0 * pull * (here + 0.1)))
        decays = math.sqrt(0.999) ** np.arange(len(seen))[::-1]
        above = sum(decay * product for decay, (product, _) in zip(decays, seen, strict=True))
        below = np.abs(sum(decay * weighted for decay, (_, weighted) in zip(decays, seen, strict=True))).sum()
        guess = coef * above / below
        d = max(d, guess) if d == d0 else d
        largest = max(largest, guess)
        d = min(largest, d * settings.get("growth_rate", math.inf))
        assert float(oracle.group["d"].mid) == pytest.approx(d, rel=1e-12)
    assert d > d0


# the tools they are built of


@pytest.mark.parametrize("signed", [True, False])
def test_code_book_is_bitsandbytes_but_for_last_places(signed) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    book = functional.create_dynamic_map(signed, 7, 8).numpy()
    assert (book == published_book(signed)).all()
    assert np.abs(book.view(np.int32) - code_book(signed).astype(np.float32).view(np.int32)).max() <= 2


@pytest.mark.parametrize("signed", [True, False])
def test_encode_is_the_nearest_entry(signed) -> None:
    values = np.random.default_rng(0).uniform(-1 if signed else 0, 1, 5000) ** 3
    nearest = np.abs(values[:, None] - code_book(signed)).min(axis=1)
    codes = encode(values, np.ones(values.size), signed)
    np.testing.assert_allclose(np.abs(values - code_book(signed)[codes]), nearest, atol=1e-8)


def test_quantized_round_trip_and_special_values() -> None:
    values = np.array([0.0, 1.0, -2.0, np.nan, np.inf, 1e-3])
    quantized = Quantized(Ball(values), signed=True)
    assert quantized.absmax.mid == 2.0
    assert (quantized.codes[[0, 3, 4]] == 127).all()
    assert quantized.codes[2] == 0  # there is no -1.0
    codes = torch.from_numpy(quantized.codes.astype(np.uint8))
    read_back = decode(codes, torch.from_numpy(quantized.absmax.mid), signed=True)
    assert_equal([quantized.decoded().mid], [read_back.mid])


def test_balls_hold_float32() -> None:
    a, b = torch.randn(2000), torch.randn(2000)
    single = torch.where(a > 0, (a.abs() + 1e-3).sqrt() / (b * 0.3 + 2.5) - a * 0.7, a - b)
    x, y = Ball(a.double().numpy()), Ball(b.double().numpy())
    exact = where(x.mid > 0, sqrt(abs(x) + 1e-3) / (y * 0.3 + 2.5) - x * 0.7, x - y)
    error = np.abs(single.double().numpy() - exact.mid)
    assert (error <= exact.rad).all()
    assert (exact.rad <= 1e-5).mean() > 0.99  # and are not vacuous


def test_unsure_branches_hold_both_sides() -> None:
    both = where(True, 1.0, 3.0, unsure=True)
    assert both.low <= 1.0 <= 3.0 <= both.high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_store_spans_both_roundings(dtype) -> None:
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    stored = store(Ball(1 + step, 1e-7), dtype)  # halfway between two values
    assert stored.rad == 2 * step
