"""StableAdamW, GrokAdamW, ADOPT, Adan, Sophia-G, MARS, AdaBelief and Prodigy against their papers and packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from independent_rules import (
    STEPS,
    Rule,
    array,
    assert_inside,
    assert_moved,
    average,
    clipped,
    copies,
    make_grads,
    make_params,
    set_grads,
)
from oracles.ball import Ball, maximum, mean, minimum, norm, sqrt, total

optgen_optim = pytest.importorskip("optgen_optim")


class StableAdamW(Rule):
    """Wortsman et al. 2023, algorithm 2."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in o["betas"])
        v, u = average(s, "v", b1, g), average(s, "u", b2, g * g)
        rms = sqrt(mean(g * g / maximum(u, o["eps"] ** 2)))
        rate = o["lr"] / maximum(1.0, rms)
        decay = rate / o["max_lr"] if o.get("decouple_lr") else rate
        return p - decay * o["weight_decay"] * p - rate * v / (sqrt(u) + o["eps"])


class GrokAdamW(Rule):
    """The update of grokadamw 0.1.2, without its autocast."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = o["betas"]
        if o["gradient_clipping"] > 0:
            g = g * minimum(1.0, o["gradient_clipping"] / (norm(g) + 1e-6))
        train, evaluation = o.get("train_loss"), o.get("eval_loss")
        signal = o.get("grokking_signal", 0.0)
        if train is not None and evaluation is not None and max(train, evaluation) > 0:
            signal = max(0.0, evaluation - train) / max(evaluation, train)
        alpha = o["alpha_init"] * np.exp(-o["grokking_signal_decay_rate"] * signal)
        h = g + o["lamb"] * average(s, "e", float(alpha), g)
        m = average(s, "m", b1 * (1 - o["gamma"]) ** i, h)
        v = average(s, "v", b2, h * h)
        size = o["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t)
        return p * (1 - o["lr"] * o["weight_decay"]) - size * (m / (sqrt(v) + o["eps"]))


class Adopt(Rule):
    """Taniguchi et al. 2024, algorithm 2 with clipping; step 1 is the paper's step 0."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t - 1
        b1, b2 = o["betas"]
        if not o.get("decouple"):
            g = g + o["weight_decay"] * p
        if t == 0:
            s["v"] = g * g
            return p
        n = g / maximum(sqrt(s["v"]), o["eps"])
        if o.get("clip", True):
            n = clipped(n, t ** o.get("clip_exp", 0.25))
        m = average(s, "m", b1, n)
        s["v"] = b2 * s["v"] + (1 - b2) * (g * g)
        if o.get("decouple"):
            p = p * (1 - o["lr"] * o["weight_decay"])
        return p - o["lr"] * m


class Adan(Rule):
    """Xie et al. 2022, algorithm 1, its betas as one minus the paper's, with bias correction."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2, b3 = o["betas"]
        diff = g - s.get("g", g)
        s["g"] = g
        m, v = average(s, "m", b1, g), average(s, "v", b2, diff)
        n = average(s, "n", b3, (g + b2 * diff) * (g + b2 * diff))
        step = (m / (1 - b1**t) + b2 * (v / (1 - b2**t))) / (sqrt(n) / (1 - b3**t) ** 0.5 + o["eps"])
        decay = o["lr"] * o["weight_decay"]
        return p * (1 - decay) - o["lr"] * step if o.get("no_prox") else (p - o["lr"] * step) / (1 + decay)


class SophiaG(Rule):
    """Liu et al. 2023, algorithm 3, with curvature bs times the average of the sampled loss's squared gradient."""

    def update_hessian(self, grads: list[torch.Tensor]) -> None:
        for s, grad in zip(self.states, grads, strict=True):
            g = Ball(array(grad))
            average(s, "h", self.o["betas"][1], g * g)

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o = self.o
        m = average(s, "m", o["betas"][0], g)
        h = maximum(o["rho"] * o["bs"] * s.get("h", Ball(np.zeros(g.shape))), 1e-12)
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * clipped(m / h, 1.0)


class Mars(Rule):
    """Yuan et al. 2024, algorithm 2 with the gradient of the step before; x_0 = x_1 makes the first c the gradient."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        lr, decay, (b1, b2), c = o["lr"], o["weight_decay"], o["betas"], g
        if p.mid.ndim >= 2 or o.get("optimize_1d"):
            c = g + o["gamma"] * (b1 / (1 - b1)) * (g - s.get("g", g))
            s["g"] = g
            c = c / maximum(1.0, norm(c))
        else:
            b1, b2 = o.get("betas_1d", (0.9, 0.95))
            lr = lr * o.get("lr_1d_factor", 1.0)
            decay = o.get("weight_decay_1d", decay)
        m, v = average(s, "m", b1, c), average(s, "v", b2, c * c)
        return p - lr * (m / (1 - b1**t) / (sqrt(v) / (1 - b2**t) ** 0.5 + o["eps"]) + decay * p)


class AdaBelief(Rule):
    """Zhuang et al. 2020, algorithm 2; the rectified rate of Liu et al. 2019, algorithm 2."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = o["betas"]
        if o.get("decoupled_weight_decay", True):
            p = p * (1 - o["lr"] * o["weight_decay"])
        else:
            g = g + o["weight_decay"] * p
        m = average(s, "m", b1, g)
        var = average(s, "s", b2, (g - m) * (g - m)) + o["eps"]
        s["s"] = var
        if o.get("amsgrad"):
            var = s["max"] = maximum(s.get("max", Ball(np.zeros(g.shape))), var)
        m = m / (1 - b1**t)
        if not o.get("rectify"):
            return p - o["lr"] * m / (sqrt(var) / (1 - b2**t) ** 0.5 + o["eps"])
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            return p - o["lr"] * m
        r = (length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length
        return p - o["lr"] * (r * (1 - b2**t)) ** 0.5 * m / (sqrt(var) + o["eps"])


@dataclass(frozen=True)
class Case:
    """A class with its settings, the rule in float64, and a package's class where there is one."""

    name: str
    rule: type[Rule]
    settings: dict[str, Any]
    package: str = ""
    theirs: str = ""
    their_settings: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, self.package, *(f"{k}={v}" for k, v in self.settings.items() if v is True)])

    def build(self, params: list[torch.nn.Parameter], target: str) -> Any:
        return getattr(optgen_optim, self.name)(params, **self.settings, target=target)

    def build_theirs(self, params: list[torch.nn.Parameter]) -> Any:
        given = {self.renamed.get(k, k): v for k, v in self.settings.items() if self.renamed.get(k, k)}
        module = importlib.import_module(self.package)
        return getattr(module, self.theirs)(params, **given, **self.their_settings)


STABLE = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
GROK = {
    "lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "alpha_init": 0.9, "lamb": 2.0, "gamma": 0.1,
    "grokking_signal_decay_rate": 0.1, "gradient_clipping": 10.0,
}  # fmt: skip
ADOPT = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
ADAN = {"lr": 0.02, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SOPHIA = {"lr": 0.02, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1, "bs": 480}
MARS = {"lr": 0.02, "betas": (0.95, 0.99), "eps": 1e-8, "weight_decay": 0.1, "gamma": 0.025}
BELIEF = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.1}
BELIEF_NAMES = {"decoupled_weight_decay": "decoupled_decay"}
CASES = [
    Case("StableAdamW", StableAdamW, STABLE, "optimi", "StableAdamW", {"foreach": False, "triton": False}),
    Case("StableAdamW", StableAdamW, STABLE | {"decouple_lr": True, "max_lr": 0.5, "weight_decay": 0.01},
         "optimi", "StableAdamW", {"foreach": False, "triton": False}),
    Case("GrokAdamW", GrokAdamW, GROK, "grokadamw", "GrokAdamW"),
    Case("GrokAdamW", GrokAdamW, GROK | {"gradient_clipping": 0.0, "grokking_signal": 0.7}, "grokadamw", "GrokAdamW",
         {"grokking_signal_fns": [lambda: 0.7]}, {"grokking_signal": ""}),
    Case("ADOPT", Adopt, ADOPT, "timm.optim", "Adopt", {"clip_exp": 0.25}),
    Case("ADOPT", Adopt, ADOPT | {"decouple": True, "clip_exp": 0.5}, "timm.optim", "Adopt", {},
         {"decouple": "decoupled"}),
    Case("ADOPT", Adopt, ADOPT | {"clip": False, "decouple": True}, "timm.optim", "Adopt", {"clip_exp": None},
         {"clip": "", "decouple": "decoupled"}),
    Case("Adan", Adan, ADAN, "timm.optim", "Adan"),
    Case("Adan", Adan, ADAN | {"no_prox": True}, "timm.optim", "Adan"),
    Case("MARS", Mars, MARS, "timm.optim", "Mars", {"betas_1d": (0.9, 0.95)}),
    Case("MARS", Mars, MARS | {"optimize_1d": True}, "timm.optim", "Mars"),
    Case("MARS", Mars, MARS | {"lr_1d_factor": 0.5, "betas_1d": (0.8, 0.9), "weight_decay_1d": 0.3}),
    Case("AdaBelief", AdaBelief, BELIEF, "timm.optim", "AdaBelief", {"rectify": False}),
    Case("AdaBelief", AdaBelief, BELIEF | {"rectify": True, "decoupled_weight_decay": False},
         "timm.optim", "AdaBelief", {}, BELIEF_NAMES),
    Case("AdaBelief", AdaBelief, BELIEF | {"amsgrad": True, "decoupled_weight_decay": False}),
]  # fmt: skip
# A package of pure Python, where timm would need a torchvision made for the very build of torch. Its ADOPT counts from
# one, and its decay comes before the first step, which the paper leaves out; its MARS begins with a gradient of zeros.
COUNTS_FROM_ONE = {"clip_lambda": lambda step: (step - 1) ** 0.25}
OTHER_PACKAGE = [
    Case("ADOPT", Adopt, ADOPT, "pytorch_optimizer", "ADOPT", COUNTS_FROM_ONE),
    Case("Adan", Adan, ADAN, "pytorch_optimizer", "Adan"),
    Case("Adan", Adan, ADAN | {"no_prox": True}, "pytorch_optimizer", "Adan", {}, {"no_prox": "weight_decouple"}),
    Case("AdaBelief", AdaBelief, BELIEF, "pytorch_optimizer", "AdaBelief"),
    Case("AdaBelief", AdaBelief, BELIEF | {"rectify": True, "decoupled_weight_decay": False}, "pytorch_optimizer",
         "AdaBelief", {}, {"decoupled_weight_decay": "weight_decouple"}),
    Case("AdaBelief", AdaBelief, BELIEF | {"amsgrad": True, "decoupled_weight_decay": False}, "pytorch_optimizer",
         "AdaBelief", {}, {"decoupled_weight_decay": "weight_decouple", "amsgrad": "ams_bound"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ten_steps_are_the_papers(case: Case, target: str) -> None:
    params = make_params()
    before = copies(params)
    opt, rule = case.build(params, target), case.rule(params, **case.settings)
    for t in range(1, STEPS + 1):
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
    assert opt.engines() == {target: len(params)}
    assert_moved(params, before)
    assert_inside(params, rule, case.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*(case for case in CASES if case.package), *OTHER_PACKAGE], ids=str)
def test_ten_steps_of_the_package_are_the_papers(case: Case) -> None:
    pytest.importorskip(case.package)
    params = make_params()
    opt, rule = case.build_theirs(params), case.rule(params, **case.settings)
    for t in range(1, STEPS + 1):
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
    assert_inside(params, rule, f"{case.package} {case.theirs}")


def state_of(opt: Any) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in opt.state[p].items()} for g in opt.param_groups for p in g["params"]]


def resumed(opt: Any, params: list[torch.nn.Parameter], build: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A new optimizer over copies of the parameters, from a checkpoint that went through a file."""
    import io

    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = copies(params)
    other = build(again)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other, again


RESUMED = ("StableAdamW", "GrokAdamW", "ADOPT", "Adan", "MARS", "AdaBelief", "SophiaG", "Prodigy", "Adafactor")


@pytest.mark.parametrize("name", [*RESUMED, "StableAdamW8bit", "GrokAdamW8bit", "ADOPT8bit", "Adan8bit", "MARS8bit",
                                  "AdaBelief8bit", "SophiaG8bit"])  # fmt: skip
def test_a_resumed_run_goes_on_as_if_nothing_was(name: str, target: str) -> None:
    params = make_params()
    before = copies(params)

    def build(values: Any) -> Any:
        return getattr(optgen_optim, name)(values, target=target)

    def train(opt: Any, values: list[torch.nn.Parameter], first: int, last: int) -> None:
        for t in range(first, last + 1):
            torch.manual_seed(t)
            set_grads(values, make_grads(values, t))
            if name.startswith("SophiaG") and t % 3 == 1:
                opt.update_hessian()
            opt.step()

    opt = build(params)
    train(opt, params, 1, 4)
    other, again = resumed(opt, params, build)
    train(opt, params, 5, 8)
    train(other, again, 5, 8)
    assert_moved(params, before)
    for a, b in zip(params, again, strict=True):
        assert torch.equal(a, b)
    for mine, theirs in zip(state_of(opt), state_of(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# GrokAdamW: its losses and its state


def test_grokadamw_takes_losses_of_its_groups(target: str) -> None:
    """The losses are set in the groups between steps, as with the package, and each group has its own."""
    params = make_params()
    half = len(params) // 2
    groups = [{"params": params[:half]}, {"params": params[half:]}]
    opt = optgen_optim.GrokAdamW(groups, **GROK, target=target)
    rules = [GrokAdamW(params[:half], **GROK), GrokAdamW(params[half:], **GROK)]
    for t in range(1, STEPS + 1):
        if t == 3:
            losses = [{"train_loss": 1.0, "eval_loss": 3.0}, {"train_loss": 2.0, "eval_loss": 1.0}]
            for group, rule, values in zip(opt.param_groups, rules, losses, strict=True):
                group.update(values)
                rule.o = rule.o | values
        grads = make_grads(params, t)
        set_grads(params, grads)
        rules[0].step(grads[:half])
        rules[1].step(grads[half:])
        opt.step()
    assert_inside(params[:half], rules[0], "first group")
    assert_inside(params[half:], rules[1], "second group")


def test_grokadamw_keeps_its_state_where_torch_does(target: str) -> None:
    params = make_params()
    opt = optgen_optim.GrokAdamW(params, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    assert "state" not in opt.param_groups[0]
    for number, param in enumerate(params):
        names = {"step", "exp_avg", "exp_avg_sq", "grok_ema"}
        assert set(opt.state[param]) == set(opt.state_dict()["state"][number]) == names
        assert opt.state[param]["grok_ema"].device == param.device
    opt.param_groups[0]["train_loss"] = 1.0
    with pytest.raises(ValueError, match=r"GrokAdamW: train_loss=1\.0 has no effect without eval_loss: set both"):
        opt.step()
    opt.param_groups[0]["eval_loss"] = 2.0
    opt.step()


# Sophia-G: a second kind of gradient


def test_sophia_g_takes_the_curvature_from_sampled_gradients(target: str) -> None:
    params = make_params()
    before = copies(params)
    opt, rule = optgen_optim.SophiaG(params, **SOPHIA, target=target), SophiaG(params, **SOPHIA)
    for t in range(1, STEPS + 1):
        if t % 4 == 1:
            sampled = make_grads(params, t + 1)
            set_grads(params, sampled)
            rule.update_hessian(sampled)
            opt.update_hessian()
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
        assert {float(opt.state[param]["step"]) for param in params} == {t}
    assert_moved(params, before)
    assert_inside(params, rule, "SophiaG")
    for param, s in zip(params, rule.states, strict=True):
        assert (np.abs(array(opt.state[param]["hessian"]) - s["h"].mid) <= s["h"].rad).all()


# Prodigy: one d for all


class Prodigy(Rule):
    """Mishchenko and Defazio 2023, algorithm 4, with the running numerator and the options of prodigyopt."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.first = list(self.params)
        self.d = self.largest = Ball(settings["d0"])
        self.numerator = Ball(0.0)

    def adopt(self, opt: Any) -> None:
        """Go on from an optimizer's values: d is one number for all, whose radius would grow with every element."""
        group = opt.param_groups[0]
        self.d, self.largest, self.numerator = (Ball(group[key]) for key in ("d", "d_max", "d_numerator"))
        params = [p for group in opt.param_groups for p in group["params"]]
        self.params = [Ball(array(p)) for p in params]
        for p, s in zip(params, self.states, strict=True):
            for key, name in (("m", "exp_avg"), ("v", "exp_avg_sq"), ("s", "s")):
                s[key] = Ball(array(opt.state[p][name]).reshape(p.shape))

    def before(self, grads: Any) -> None:
        o, d0 = self.o, self.o["d0"]
        b1, b2 = o["betas"]
        b3 = b2**0.5 if o.get("beta3") is None else o["beta3"]
        self.rate = self.d * o["lr"]
        if o.get("use_bias_correction"):
            self.rate = self.rate * ((1 - b2**self.t) ** 0.5 / (1 - b1**self.t))
        pull = self.d if o.get("safeguard_warmup") else self.rate
        self.numerator, denominator = b3 * self.numerator, Ball(0.0)
        self.decayed = []
        for p, p0, g, s in zip(self.params, self.first, grads, self.states, strict=True):
            g = g if o.get("decouple", True) else g + o["weight_decay"] * p
            average(s, "m", b1, self.d * g)
            average(s, "v", b2, self.d * self.d * g * g)
            s["s"] = b3 * s.get("s", Ball(np.zeros(g.shape))) + self.d / d0 * pull * g
            self.numerator = self.numerator + total(self.d / d0 * self.rate * g * (p0 - p))
            denominator = denominator + total(abs(s["s"]))
        estimate = o["d_coef"] * self.numerator / denominator
        if self.d.mid == d0:
            self.d = maximum(self.d, estimate)
        self.largest = maximum(self.largest, estimate)
        growth = o.get("growth_rate")
        self.d = self.largest if growth is None else minimum(self.largest, growth * self.d)

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o = self.o
        if o.get("decouple", True):
            p = p - o["weight_decay"] * self.rate * p
        return p - self.rate * s["m"] / (sqrt(s["v"]) + self.d * o["eps"])


PRODIGY = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "d0": 1e-3, "d_coef": 1.0}
PRODIGIES = {
    "defaults": PRODIGY,
    "bias correction": PRODIGY | {"use_bias_correction": True, "safeguard_warmup": True, "lr": 0.5, "d_coef": 50.0},
    "growth": PRODIGY | {"growth_rate": 1.5, "d_coef": 50.0},
    "coupled": PRODIGY | {"decouple": False, "beta3": 0.9},
}


def descend(opt: Any, params: list[torch.nn.Parameter], rule: Prodigy) -> None:
    """Ten steps on gradients that agree with each other, so that the estimate grows; each is judged alone."""
    for _ in range(STEPS):
        grads = [torch.sign(param.detach()) + 0.5 for param in params]
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
        assert_inside(params, rule, type(opt).__module__)
        for group in opt.param_groups:
            for key, expected in (("d", rule.d), ("d_max", rule.largest), ("d_numerator", rule.numerator)):
                assert abs(group[key] - expected.mid) <= expected.rad <= 1e-3 * abs(expected.mid), key
        rule.adopt(opt)
    assert opt.param_groups[0]["d"] > 1.05 * rule.o["d0"]


@pytest.mark.parametrize("settings", PRODIGIES.values(), ids=PRODIGIES)
def test_prodigy_is_the_papers(settings: dict[str, Any], target: str) -> None:
    params = make_params()
    half = len(params) // 2
    groups = [{"params": params[:half]}, {"params": params[half:]}]
    opt, rule = optgen_optim.Prodigy(groups, **settings, target=target), Prodigy(params, **settings)
    descend(opt, params, rule)
    assert [group["k"] for group in opt.param_groups] == [STEPS, STEPS]


@pytest.mark.parametrize("settings", PRODIGIES.values(), ids=PRODIGIES)
def test_prodigyopt_is_the_papers(settings: dict[str, Any]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    params = make_params()
    opt, rule = prodigyopt.Prodigy(params, **settings), Prodigy(params, **settings)
    descend(opt, params, rule)


def test_prodigy_with_several_rates_is_refused(target: str) -> None:
    params = make_params()
    message = (
        r"Prodigy: lr is one number for the optimizer and cannot differ by group, .* 1.0 and 0.5; give all of them"
    )
    with pytest.raises(ValueError, match=message):
        optgen_optim.Prodigy([{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 0.5}], target=target)
    opt = optgen_optim.Prodigy([{"params": params[:2], "lr": 0.5}, {"params": params[2:], "lr": 0.5}], target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    opt.param_groups[1]["lr"] = 0.25
    before = copies(params)
    with pytest.raises(ValueError, match="Prodigy: lr is one number for the optimizer"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    opt.param_groups[0]["lr"] = 0.25
    opt.step()


def test_prodigy_at_a_rate_of_zero_does_nothing(target: str) -> None:
    """The first step of a warm-up: prodigyopt leaves parameters, sums and d as they were."""
    params = make_params()
    before = copies(params)
    opt = optgen_optim.Prodigy(params, lr=0.0, weight_decay=0.1, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    group = opt.param_groups[0]
    assert (group["d"], group["d_max"], group["d_numerator"], group["k"]) == (1e-6, 1e-6, 0.0, 0)
    assert not any(opt.state[param][name].any() for param in params for name in ("exp_avg", "exp_avg_sq", "s"))
    group["lr"] = 1.0
    opt.step()
    assert group["k"] == 1
    assert_moved(params, before)


REFUSED = {
    "max_lr is needed": ("StableAdamW", {"decouple_lr": True}, "decouple_lr=True needs max_lr"),
    "max_lr alone": ("StableAdamW", {"max_lr": 0.1}, "max_lr=0.1 has no effect without decouple_lr=True"),
    "one loss": ("GrokAdamW", {"eval_loss": 1.0}, "eval_loss=1.0 has no effect without train_loss"),
    "two signals": (
        "GrokAdamW",
        {"eval_loss": 1.0, "train_loss": 1.0, "grokking_signal": 0.5},
        "grokking_signal takes the place of the losses",
    ),
    "no clip": ("ADOPT", {"clip": False, "clip_exp": 0.3}, "clip_exp=0.3 has no effect with clip=False"),
    "no 1d": ("MARS", {"optimize_1d": True, "lr_1d_factor": 0.5}, "lr_1d_factor and weight_decay_1d have no effect"),
    "amsgrad in 8 bits": ("AdaBelief8bit", {"amsgrad": True}, "does not support amsgrad=True"),
}


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_have_no_effect_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}:? {message}"):
        getattr(optgen_optim, name)(make_params(), **settings)
