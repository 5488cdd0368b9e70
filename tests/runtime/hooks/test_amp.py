"""Mixed precision: torch.amp.GradScaler with every family, on every target."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.catalogue import optimizer_class, rows
from support.compiling import ROOT
from torch import Tensor, nn

import optgen
from optgen.runtime.core.step_inputs import NO_INPUTS, Inputs, SkippedStepError, read_inputs
from optgen.runtime.step.prepare import _check_skipped
from runtime.training import make_params, same, snapshot

SPECS = Path(__file__).parents[2] / "specs"
UNIT = 2.0**-24  # half a unit in the last place of float32, relative
SHAPES = ((40, 30), (7,))
FAMILIES: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "percentile_clipping": 60},
    "AdamW8bit": {"lr": 0.01, "min_8bit_size": 256},
    "LAMB": {"lr": 0.01},
    "LARS": {"lr": 0.1, "momentum": 0.9, "trust_ratio": "lars", "max_unorm": 0.0, "weight_decay": 0.1},
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def make(name: str, target: str, **settings: Any) -> tuple[Any, list[nn.Parameter]]:
    params = make_params(shapes=SHAPES)
    return optimizer_class(name)(params, **{**FAMILIES[name], **settings}, target=target), params


def scaler_of(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


def gradients(step: int) -> list[Tensor]:
    """Normal numbers of a few magnitudes, which powers of two scale without rounding."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) * (1 + step % 3) for shape in SHAPES]


def backward(params: Sequence[Tensor], step: int, scaler: torch.amp.GradScaler | None = None) -> None:
    """Gradients of a loss whose gradients are `gradients(step)`."""
    loss = sum((param * grad).sum() for param, grad in zip(params, gradients(step), strict=True))
    for param in params:
        param.grad = None
    (loss if scaler is None else scaler.scale(loss)).backward()


def plain(name: str, target: str, steps: int, **settings: Any) -> dict[str, Any]:
    """Result of training without a scaler."""
    opt, params = make(name, target, **settings)
    for step in range(steps):
        backward(params, step)
        opt.step()
    return snapshot(opt, params)


def scaled_step(opt: Any, params: Sequence[Tensor], step: int, scaler: torch.amp.GradScaler) -> None:
    backward(params, step, scaler)
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("name", sorted(rows()))
def test_every_class_unscales_by_itself(name: str) -> None:
    assert optimizer_class(name)._step_supports_amp_scaling is True
    assert not hasattr(optimizer_class(name), "grad_scale")  # the scaler multiplies by what it finds there


@each_family
def test_a_power_of_two_changes_nothing(name: str, target: str) -> None:
    """Bit for bit: parameters, states, windows of norms, counters."""
    opt, params = make(name, target)
    scaler = scaler_of(2.0**12)
    for step in range(5):
        scaled_step(opt, params, step, scaler)
    assert same(snapshot(opt, params), plain(name, target, 5))
    assert not hasattr(opt, "grad_scale")
    assert not hasattr(opt, "found_inf")


@each_family
def test_gradients_stay_scaled(name: str, target: str) -> None:
    opt, params = make(name, target)
    scaled_step(opt, params, 0, scaler_of(1024.0))
    for param, grad in zip(params, gradients(0), strict=True):
        assert torch.equal(param.grad, grad * 1024)


@each_family
def test_any_other_scale_is_taken_as_unscale_takes_it(name: str, target: str) -> None:
    """The same float32 product with the same reciprocal as `unscale_`, so that both ways agree bit for bit."""
    opt, params = make(name, target)
    other, theirs = make(name, target)
    first, second = scaler_of(3.0), scaler_of(3.0)
    for step in range(4):
        scaled_step(opt, params, step, first)
        backward(theirs, step, second)
        second.unscale_(other)
        second.step(other)
        second.update()
    assert same(snapshot(opt, params), snapshot(other, theirs))


@pytest.mark.parametrize(
    ("name", "state", "settings", "products"),
    [("AdamW", "exp_avg", {"percentile_clipping": 100}, 1), ("LAMB", "exp_avg", {}, 1),
     ("LARS", "momentum_buffer", {"trust_ratio": "none", "max_unorm": 0.02, "weight_decay": 0.0}, 0)],
)  # fmt: skip
def test_another_scale_is_within_three_roundings(
    name: str, state: str, settings: dict[str, Any], products: int, target: str
) -> None:
    """Three roundings (the scaled gradient, the reciprocal, their product), and the state's own products twice."""
    opt, params = make(name, target, **settings)
    scaled_step(opt, params, 0, scaler_of(3.0))
    expected = plain(name, target, 1, **settings)
    bound = (1 + UNIT) ** (3 + 2 * products) - 1
    differ = False
    for param, states in zip(params, expected["states"], strict=True):
        found, wanted = opt.state[param][state].double(), states[state].double()
        assert ((found - wanted).abs() <= bound * wanted.abs() * (1 + bound)).all()
        differ |= not torch.equal(found, wanted)
    assert differ  # else the scale would have had no part in it


@each_family
def test_bfloat16(name: str, target: str) -> None:
    results = []
    for scaler in (None, scaler_of(256.0)):
        params = make_params(torch.bfloat16, SHAPES)
        opt = optimizer_class(name)(params, **FAMILIES[name], target=target)
        for step in range(3):
            backward(params, step, scaler)
            opt.step() if scaler is None else scaler.step(opt)
            if scaler is not None:
                scaler.update()
        results.append(snapshot(opt, params))
    assert same(*results)


@each_family
@pytest.mark.parametrize("settled", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_an_inf_skips_everything_and_lowers_the_scale(name: str, settled: bool, nonfinite: str, target: str) -> None:
    opt, params = make(name, target, nonfinite=nonfinite)
    scaler = scaler_of(1024.0)
    if settled:
        scaled_step(opt, params, 0, scaler)
    before = snapshot(opt, params)
    backward(params, 1, scaler)
    assert params[0].grad is not None
    params[0].grad.view(-1)[3] = torch.inf
    scaler.step(opt)
    scaler.update()
    assert same(snapshot(opt, params), before)
    assert bool(opt.state) == settled  # not even a state was made
    assert scaler.get_scale() == 512.0
    scaled_step(opt, params, 1, scaler)
    assert {float(opt.state[param]["step"]) for param in params} == {1.0 + settled}


@each_family
def test_clipping_between_unscale_and_step(name: str, target: str) -> None:
    results = []
    for scaler in (None, scaler_of(64.0)):
        opt, params = make(name, target)
        for step in range(3):
            backward(params, step, scaler)
            if scaler is not None:
                scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(params, 0.5)
            opt.step() if scaler is None else scaler.step(opt)
            if scaler is not None:
                scaler.update()
        results.append(snapshot(opt, params))
    assert same(*results)


@pytest.mark.parametrize("skipped", [0, 1])
def test_two_optimizers_with_one_scaler(skipped: int, target: str) -> None:
    """Each skips for its own gradients alone; the scale is lowered for both."""
    pairs = [make(name, target) for name in ("AdamW", "LARS")]
    scaler = scaler_of(8.0)
    for _, params in pairs:
        backward(params, 0, scaler)
    pairs[skipped][1][1].grad[0] = torch.nan
    for opt, _ in pairs:
        scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert not pairs[skipped][0].state
    assert same(snapshot(*pairs[1 - skipped]), plain(("AdamW", "LARS")[1 - skipped], target, 1))


@each_family
def test_steps_with_and_without_a_scaler_take_turns(name: str, target: str) -> None:
    """Each has kernels of its own; both are kept, and both go on with the same states."""
    opt, params = make(name, target)
    scaler = scaler_of(16.0)
    engines = []
    for step in range(6):
        if step % 2:
            backward(params, step)
            opt.step()
        else:
            scaled_step(opt, params, step, scaler)
        engines.append(opt._kept.of_all[0])
    assert engines[0] is engines[2] is engines[4]
    assert engines[1] is engines[3] is engines[5]
    assert [item.key.inputs for item in engines[:2]] == [("grad_scale",), ()]
    assert {engine.bucket.flags.grad_scale_given for engine in engines[0].engines} == {True}
    assert {engine.bucket.flags.grad_scale_given for engine in engines[1].engines} == {False}
    assert same(snapshot(opt, params), plain(name, target, 6))


def test_without_a_scaler_nothing_is_set(target: str) -> None:
    opt, params = make("AdamW", target)
    backward(params, 0)
    assert read_inputs(opt, opt.rule.inputs) is NO_INPUTS
    opt.step(lambda: 3.0)
    assert [prepared.key.inputs for prepared in opt._kept.of_all] == [()]


def test_a_closure_sees_the_scale_that_is_set(target: str) -> None:
    """As by `scaler.step(opt, closure)`: the closure evaluates again, then the step unscales."""
    opt, params = make("LARS", target)
    opt.grad_scale, opt.found_inf = torch.tensor(32.0), torch.tensor(0.0)

    def closure() -> float:
        backward(params, 0, scaler_of(32.0))
        return 7.0

    assert opt.step(closure) == 7.0
    assert same(snapshot(opt, params), plain("LARS", target, 1))


def test_a_scaler_that_is_off_and_one_without_gradients(target: str) -> None:
    opt, params = make("AdamW", target)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaled_step(opt, params, 0, scaler)
    assert same(snapshot(opt, params), plain("AdamW", target, 1))
    for param in params:
        param.grad = None
    scaler = scaler_of(4.0)
    scaler.scale(torch.zeros(()))
    before = snapshot(opt, params)
    scaler.step(opt)
    assert same(snapshot(opt, params), before)


@pytest.mark.parametrize("value", [torch.ones(2), "3", True, torch.tensor(1j)], ids=str)
@pytest.mark.parametrize("attribute", ["grad_scale", "found_inf"])
def test_what_is_no_number_is_refused(attribute: str, value: object) -> None:
    opt, params = make("AdamW", "torch")
    backward(params, 0)
    setattr(opt, attribute, value)
    before = snapshot(opt, params)
    with pytest.raises(TypeError, match=f"AdamW: {attribute} is a number, or a tensor of one element, not "):
        opt.step()
    assert same(snapshot(opt, params), before)


def test_the_scale_is_no_key_of_a_group() -> None:
    param = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="AdamW: grad_scale is set on the optimizer for a step"):
        optimizer_class("AdamW")([{"params": [param], "grad_scale": 2.0}])
    with pytest.raises(TypeError, match="grad_scale"):
        optimizer_class("AdamW")([param], grad_scale=2.0)


# Rules with more than parameters and states of parameters


@cache
def module(name: str) -> ModuleType:
    return optgen.load(SPECS / f"{name}.yaml")


@pytest.mark.parametrize(("file", "name"), [("prodigy", "Prodigy"), ("schedule_free_adamw", "ScheduleFreeAdamW")])
def test_group_and_global_states(file: str, name: str, target: str) -> None:
    """Sums over all parameters see unscaled gradients, and what is one number for a group stays in a skipped step."""
    results = []
    for scaler in (None, scaler_of(128.0)):
        params = make_params(shapes=SHAPES)
        opt = getattr(module(file), name)(params, target=target)
        if hasattr(opt, "train"):
            opt.train()
        for step in range(3):
            if scaler is None:
                backward(params, step)
                opt.step()
                continue
            before = snapshot(opt, params)
            backward(params, step, scaler)
            assert params[1].grad is not None
            params[1].grad[2] = -torch.inf
            scaler.step(opt)
            scaler.update(scaler.get_scale())
            assert same(snapshot(opt, params), before)
            scaled_step(opt, params, step, scaler)
        results.append(snapshot(opt, params))
    assert same(*results)


STARTS = """\
name: starts
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
inputs:
  share: {doc: How much of the gradient to take.}
states:
  first: {init: grad}
blocks:
  step: |
    taken = grad
    if share is not None:
        taken = share * grad
    first = 0.5 * first + 0.5 * taken
    param = param - lr * first
"""


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("specs") / "starts.yaml"
    path.write_text(STARTS, encoding="utf-8")
    return optgen.load(path).Starts


@pytest.mark.parametrize("scale", [torch.tensor(64.0), torch.tensor([64.0], dtype=torch.float64), 64, 64.0], ids=repr)
def test_a_state_begins_with_the_unscaled_gradient(scale: Any, starts: Any, target: str) -> None:
    param = nn.Parameter(torch.zeros(3))
    opt = starts([param], target=target)
    param.grad = torch.tensor([64.0, 128.0, -32.0])
    opt.grad_scale = scale
    opt.step()
    assert opt.state[param]["first"].tolist() == [1.0, 2.0, -0.5]


def test_an_input_of_a_rule(starts: Any, target: str) -> None:
    param = nn.Parameter(torch.zeros(2))
    opt = starts([param], lr=1.0, target=target)
    param.grad = torch.tensor([4.0, 8.0])
    opt.step()
    assert param.tolist() == [-4.0, -8.0]
    opt.share = 0.25
    opt.step()
    assert param.tolist() == [-6.5, -13.0]  # first = 0.5 * 4 + 0.5 * (0.25 * 4) = 2.5
    opt.share = torch.tensor(3.0)
    opt.step()
    assert param.tolist() == [-13.75, -27.5]  # first = 0.5 * 2.5 + 0.5 * 12 = 7.25
    opt.share = None
    opt.step()
    assert param.tolist() == [-19.375, -38.75]  # first = 0.5 * 7.25 + 0.5 * 4 = 5.625


def test_a_rule_without_the_input_leaves_unscaling_to_the_scaler(tmp_path: Path) -> None:
    shared = (ROOT / "specs" / "shared.yaml").read_text(encoding="utf-8")
    start, rest = shared.split("inputs:\n", 1)
    rest = rest.split("storage:\n", 1)[1].replace(
        "    if grad_scale is not None:\n        grad = grad / grad_scale\n", ""
    )
    (tmp_path / "shared.yaml").write_text(f"{start}storage:\n{rest}", encoding="utf-8")
    (tmp_path / "bare.yaml").write_text(STARTS.replace("name: starts", "name: bare"), encoding="utf-8")
    bare = optgen.load(tmp_path / "bare.yaml").Bare
    assert bare._step_supports_amp_scaling is False
    params = make_params(shapes=SHAPES)
    opt = bare(params, lr=1.0, target="torch")
    start_values = [param.detach().clone() for param in params]
    scaled_step(opt, params, 0, scaler_of(4.0))
    for param, start_value, grad in zip(params, start_values, gradients(0), strict=True):
        assert torch.equal(param, start_value - grad)


# Where the host reads


@pytest.mark.parametrize("name", FAMILIES)
def test_the_host_reads_only_where_it_has_a_part(name: str) -> None:
    """`found_inf` on a device is left unread when the cuda target serves every parameter."""
    opt, _ = make(name, "torch")
    unreadable = Inputs({}, torch.zeros((), device="meta"))
    step = opt.rule.blocks["step"]
    _check_skipped(step, unreadable, ["cuda", "cuda"])
    for targets, starts_anew in ((["cuda", "cpu"], False), (["torch"], False), (["cuda"], True)):
        with pytest.raises(RuntimeError):
            _check_skipped(step, unreadable, targets, starts_anew)
        with pytest.raises(SkippedStepError):
            _check_skipped(step, Inputs({}, torch.tensor(2.0)), targets, starts_anew)


def test_the_host_reads_for_states_of_groups() -> None:
    for file, name in (("prodigy", "Prodigy"), ("schedule_free_adamw", "ScheduleFreeAdamW")):
        block = getattr(module(file), name).rule.blocks["step"]
        with pytest.raises(SkippedStepError):
            _check_skipped(block, Inputs({}, torch.tensor(1.0)), ["cuda"])
