"""No argument is accepted and then ignored: each changes what a step does, or is refused.

Here that is tried for a class of each rule of bitsandbytes and torch, and for all their classes that the arguments
reach the settings which the rule reads. For all rules the matrix shows it: its oracle takes every setting of a rule at
other values than the default, and follows what the spec says of them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.catalogue import accepted, optimizer_class, required, rows, rules, shapes_of
from support.machine import require_compiler

from numerics.harness import set_grads

pytest.importorskip("optgen_optim")

SIZE = 600
# The usual value first: one with which the argument has something to act on; then another one.
VALUES: dict[str, tuple[Any, Any]] = {
    "lr": (0.01, 0.02),
    "betas": ((0.9, 0.999), (0.8, 0.9)),
    "eps": (1e-8, 1e-2),
    "weight_decay": (0.1, 0.0),
    "amsgrad": (False, True),
    "optim_bits": (32, 8),
    "args": (None, SimpleNamespace(percentile_clipping=20)),
    "min_8bit_size": (0, 4096),
    "percentile_clipping": (100, 20),
    "block_wise": (True, False),
    "bias_correction": (True, False),
    "adam_w_mode": (True, False),
    "max_unorm": (0.0, 1e-4),
    "momentum": (0.9, 0.5),
    "dampening": (0.0, 0.5),
    "nesterov": (False, True),
    "trust_coefficient": (1e-3, 1e-2),
    "max_grad_norm": (0.0, 0.5),
    "min_trust_ratio": (0.0, 1e6),
    "max_trust_ratio": (0.0, 0.01),
    "cautious": (False, True),
    "maximize": (False, True),
    "skip_zeros": (False, True),
    "nonfinite": ("propagate", "skip"),
    "decoupled_weight_decay": (False, True),
    "lr_decay": (0.0, 0.5),
    "initial_accumulator_value": (0.0, 0.5),
    "centered": (False, True),
    "alpha": (0.9, 0.5),
    "t_alpha": (None, 8),
    "t_beta3": (None, 8),
    "momentum_decay": (4e-3, 0.5),
    "rho": (0.9, 0.5),
    "etas": ((0.5, 1.2), (0.4, 1.5)),
    "step_sizes": ((1e-6, 50), (0.011, 50)),
    "lambd": (0.1, 0.0),
    "t0": (2.0, 1.0),
    "target": ("torch", "cpu"),
    "capturable": (False, True),
    "fused_backward": (False, True),
    "clip_by_last_norm": (False, True),
    "fused": (None, True),
    "differentiable": (False, True),
    "codec": ("auto", "fp8"),
    "block_size": (0, 64),
    "rounding": ("nearest", "kahan"),
    "seed": (0, 1),
}
TRIED = (
    "adam", "lamb", "lars", "sgd", "adagrad", "rmsprop", "lion", "ademamix",
    "nadam", "radam", "adamax", "adadelta", "rprop", "asgd",
)  # fmt: skip
FIRST = [names[0] for rule, names in rules(rows()).items() if rule in TRIED]
TRUST_RATIO = {"lamb": ("lamb", "none"), "lars": ("none", "lars")}
LAMB_UNORM = (1.0, 0.5)  # with trust_ratio="lamb", 1 or more never binds
NO_EFFECT_ON_CPU = {"is_paged", "foreach"}  # documented: all memory of a CPU is ordinary, and foreach is torch's alone


def values_of(name: str, argument: str) -> tuple[Any, Any]:
    rule = rows()[name].rule.name
    if argument == "trust_ratio":
        return TRUST_RATIO.get(rule, ("none", "lamb"))
    if argument == "betas" and rule == "ademamix":
        return (0.9, 0.999, 0.99), (0.9, 0.999, 0.9)
    if argument == "optim_bits" and rows()[name].bits == accepted(name)["optim_bits"].default == 8:
        return 8, 32
    if argument == "max_unorm" and rule == "lamb":
        return LAMB_UNORM
    assert argument in VALUES, f"{name} takes {argument}, which this test does not know"
    return VALUES[argument]


def context(name: str, argument: str) -> dict[str, Any]:
    """Settings of a class under which `argument` is not idle."""
    known = accepted(name)
    usual = {key: values_of(name, key)[0] for key in known if key not in NO_EFFECT_ON_CPU}
    if argument == "trust_coefficient":
        usual["trust_ratio"] = "lars"
    if argument == "clip_by_last_norm":
        usual["max_grad_norm"] = values_of(name, "max_grad_norm")[1]
    if argument in ("min_trust_ratio", "max_trust_ratio"):
        usual["trust_ratio"] = "lamb"
    if rows()[name].bits == 32 and not rows()[name].torch_only:
        usual["min_8bit_size"] = VALUES["min_8bit_size"][0]
    return usual


def gradient(t: int, argument: str) -> torch.Tensor:
    """Gradients of changing size with zeros, and with NaN for `nonfinite`."""
    grad = torch.randn(SIZE) * (1 + t % 3)
    grad[::7] = 0
    grad[1::50] = 0 if t > 1 else 1
    if argument == "nonfinite":
        grad[3] = torch.nan
    return grad


def result(name: str, settings: dict[str, Any], argument: str, in_8_bits: bool) -> dict[str, Any]:
    """All that seven steps leave behind: RAdam rectifies from the sixth on.

    A 32-bit class gets to 8 bits by an override, as its arguments are for.
    """
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(SIZE))
    opt: Any = optimizer_class(name)([param], **settings)
    if in_8_bits and rows()[name].bits == 32:
        opt.override(param, optim_bits=8)
    for t in range(1, 8):
        set_grads([param], [gradient(t, argument)])
        opt.step()
    param.grad = None
    param.sum().backward()
    return {"param": param.detach(), "freed": param.grad is None, "engines": opt.engines(), **opt.state[param]}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if not isinstance(x, torch.Tensor):
            return bool(x == y)
        return x.dtype == y.dtype and x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)

    return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "argument" in metafunc.fixturenames:
        cases = []
        for name, row in rows().items():
            if name not in FIRST:
                continue
            for argument in sorted(accepted(name).keys() - NO_EFFECT_ON_CPU):
                for bits in [8] if row.bits == 8 else [32, 8] if "min_8bit_size" in accepted(name) else [32]:
                    cases.append(pytest.param(name, argument, bits, id=f"{name}-{argument}-{bits}"))
        metafunc.parametrize(("name", "argument", "bits"), cases)


def test_no_argument_is_ignored(name, argument, bits) -> None:
    if argument == "target":
        require_compiler()
    settings = context(name, argument)
    if bits == 8 and "optim_bits" in settings and rows()[name].bits is None and argument != "optim_bits":
        settings["optim_bits"] = 8
    if bits == 32 and argument in ("block_wise", "min_8bit_size"):
        pytest.skip("of 8-bit storage: acts through overrides, tested in 8 bits")
    usual = result(name, settings, argument, bits == 8)
    changed = settings | {argument: values_of(name, argument)[1]}
    try:
        other = result(name, changed, argument, bits == 8)
    except (ValueError, NotImplementedError):
        return  # refused, not ignored
    except RuntimeError as error:
        assert argument == "capturable", error
        return  # refused, not ignored
    assert not same(usual, other), f"{name}({argument}={changed[argument]!r}) changed nothing"


@pytest.mark.parametrize("name", [name for name, row in rows().items() if row.rule.name in TRIED])
def test_every_argument_reaches_the_settings(name) -> None:
    def settings_with(argument: str, place: int) -> dict[str, Any]:
        arguments = context(name, argument) | {argument: values_of(name, argument)[place]}
        opt = optimizer_class(name)([torch.nn.Parameter(torch.zeros(SIZE))], **arguments)
        return {**opt.defaults, "target": opt.param_groups[0]["target"]}

    for argument in sorted(accepted(name).keys() - NO_EFFECT_ON_CPU):
        usual = settings_with(argument, 0)
        try:
            other = settings_with(argument, 1)
        except (ValueError, NotImplementedError):
            continue  # refused, not ignored
        assert usual != other, f"{name}({argument}={values_of(name, argument)[1]!r}) reaches nothing"


ARGS = {
    "optim_bits": (8, lambda opt, p: opt.state[p]["exp_avg"].dtype == torch.uint8),
    "min_8bit_size": (10_000, lambda opt, p: opt.state[p]["exp_avg"].dtype == torch.float32),
    "percentile_clipping": (5, lambda opt, p: "gnorm_vec" in opt.state[p]),
    "block_wise": (False, lambda opt, p: opt.state[p]["exp_avg_absmax"].numel() == 1),
    "skip_zeros": (True, lambda opt, p: float(p.detach()[0]) == 1.0),
    "max_unorm": (1e-6, lambda opt, p: float((p.detach() - 1).norm()) < 1e-3),
}


@pytest.mark.parametrize("attribute", ARGS)
def test_args_take_precedence(attribute) -> None:
    value, seen = ARGS[attribute]
    param = torch.nn.Parameter(torch.ones(SIZE))
    bits = 8 if attribute in ("min_8bit_size", "block_wise") else 32
    opposite = {"optim_bits": bits, "min_8bit_size": 0, "percentile_clipping": 100}
    args = SimpleNamespace(**{attribute: value}, something_else="ignored")
    opt = optimizer_class("AdamW")([param], lr=0.1, weight_decay=0.0, args=args, **opposite)
    param.grad = torch.ones(SIZE)
    param.grad[0] = 0
    opt.step()
    assert seen(opt, param)


# per-parameter overrides


def step_once(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> None:
    set_grads(params, [torch.randn(param.shape) for param in params])
    opt.step()


def test_override_keeps_one_parameter_in_32_bits() -> None:
    params = [torch.nn.Parameter(torch.randn(5000)) for _ in range(2)]
    opt: Any = optimizer_class("AdamW8bit")(params)
    opt.override(params[1], optim_bits=32)
    step_once(opt, params)
    assert [opt.state[param]["exp_avg"].dtype for param in params] == [torch.uint8, torch.float32]


def test_group_keys_override() -> None:
    params = [torch.nn.Parameter(torch.ones(5000)) for _ in range(3)]
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "optim_bits": 32},
        {"params": params[2:], "lr": 0.0, "weight_decay": 0.0},
    ]
    opt = optimizer_class("AdamW")(groups, lr=0.1, optim_bits=8)
    step_once(opt, params)
    assert [opt.state[param]["exp_avg"].dtype for param in params] == [torch.uint8, torch.float32, torch.uint8]
    assert (params[2] == 1).all()
    assert (params[0] != 1).any()


def test_betas_as_a_string() -> None:
    results = []
    for betas in ((0.5, 0.75), "(0.5, 0.75)"):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(50))
        opt = optimizer_class("AdamW")([param], betas=betas)
        for _ in range(2):
            step_once(opt, [param])
        results.append(param.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("name", sorted(rows()))
def test_required_arguments_are_enough(name) -> None:
    param = torch.nn.Parameter(torch.ones(shapes_of(name, [(10,)])[0]))
    opt: Any = optimizer_class(name)([param], **required(name))
    if "train" in opt.rule.blocks:
        opt.train()
    step_once(opt, [param])
    assert torch.isfinite(param).all()
