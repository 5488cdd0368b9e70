"""Work of the host in steps of the cuda target, on the stand-in: it reads nothing, so steps can be captured in graphs
and follow a gradient scaler by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import standin
import torch
from runtime.step.test_exchanges import cls
from runtime.training import same, snapshot
from support.catalogue import optimizer_class, rows, rules
from support.cuda_training import CASES, SHAPES, draw, new, train
from support.gpu import StandinDevice
from support.targets import require_standin

from optgen.runtime import torch_math
from optgen.runtime.cuda import cuda_device, graph_capture
from optgen.runtime.settings import seen
from optgen.runtime.settings import validation as runtime_settings

HOST = torch.device("cpu")


@pytest.fixture
def driver() -> Iterator[standin.Driver]:
    require_standin()
    loaded = standin.load()
    yield loaded
    loaded.reset()


# What the host never reads

READS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__")


@contextmanager
def nothing_is_read() -> Iterator[None]:
    """Every way to a tensor's values on the host is closed meanwhile."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the host read a tensor")

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.fixture
def numbers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the host every tensor lies on a GPU, settings and inputs too."""
    for module in (graph_capture, seen, runtime_settings):
        monkeypatch.setattr(module, "on_device", lambda value: isinstance(value, torch.Tensor))
    number = torch_math.number
    unread = lambda value: value if isinstance(value, torch.Tensor) else number(value)  # noqa: E731
    monkeypatch.setattr(torch_math, "unread", unread)
    monkeypatch.setattr(graph_capture, "_on_gpu", lambda group: True)


# A class of each rule. The host keeps states of groups, and reads what they follow from; it counts the steps of a rule
# of which it decides what happens on some steps only. Adafactor has no lr at first.
STOCK = [
    names[0]
    for names in rules(rows()).values()
    if names[0] != "Adafactor"
    and optimizer_class(names[0]).rule.blocks["step"].commit is None
    and optimizer_class(names[0]).rule.on_step is None
]


@pytest.mark.parametrize("name", STOCK)
def test_a_step_reads_nothing(name: str, driver: standin.Driver) -> None:
    """The first, later ones, one with other settings, one of fewer parameters."""
    opt, params = new(name, SHAPES[2:6])
    for step in range(5):
        if step == 3:
            opt.param_groups[0]["lr"] = 0.5
        if step < 4:
            grads = draw([param.shape for param in params], step)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        else:
            params[0].grad = None
        with nothing_is_read():
            opt.step()
    assert [int(opt.state[param]["step"]) for param in params] == [4, 5, 5, 5]


SCALED = {name: settings for name, settings in CASES.items() if name != "Adafactor"}
UNREAD = {name: settings for name, settings in SCALED.items() if name != "SomeSteps"}
# Not among what is captured below: sums over all parameters are torch's, which records them on a real GPU only.
ALL = {"AdamW-max_grad_norm": ("AdamW", {"max_grad_norm": 1.0, "cautious": True})}


def test_exchanged_states_follow_a_scaler(driver: standin.Driver) -> None:
    """The host reads whether a step counts, and the next one takes addresses anew; results are those of the CPU."""
    params, others = ([value.requires_grad_() for value in draw(SHAPES, 99)] for _ in range(2))
    opt, plain = (cls()(own, target=target) for own, target in ((params, "cuda"), (others, "cpu")))
    opt.found_inf = torch.tensor(0.0)
    for step, skipped in enumerate([False, False, True, False, True, False, False, False]):
        for param, other, grad in zip(params, others, draw(SHAPES, step), strict=True):
            param.grad, other.grad = grad, grad
        opt.found_inf.fill_(float(skipped))
        opt.step()
        if not skipped:
            plain.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-6, atol=1e-7)
        for name in ("now", "before"):
            torch.testing.assert_close(opt.state[param][name], plain.state[other][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", UNREAD | ALL)
@pytest.mark.usefixtures("numbers_on_a_gpu")
def test_a_scaler_is_followed_unread(case: str, driver: standin.Driver) -> None:
    """A step with found_inf leaves everything as it was, counts too; a power of two as scale changes nothing."""
    name, settings = (CASES | ALL)[case]
    opt, params = new(name, SHAPES, **settings)
    plain, theirs = new(name, SHAPES, **settings)
    opt.grad_scale, opt.found_inf = torch.tensor(64.0), torch.tensor(0.0)
    for step, skipped in enumerate([True, False, True, False, False]):
        for param, other, grad in zip(params, theirs, draw(SHAPES, step), strict=True):
            param.grad, other.grad = grad * 64, grad
        opt.found_inf.fill_(float(skipped))
        before = snapshot(opt, params)
        with nothing_is_read():
            opt.step()
        if not skipped:
            plain.step()
        elif step:
            assert same(snapshot(opt, params), before)
        else:
            assert same(snapshot(opt, params)["params"], before["params"])
            assert {float(opt.state[param]["step"]) for param in params} == {0.0}
    assert same(snapshot(opt, params), snapshot(plain, theirs))


# Capture


@pytest.fixture
def capturable(driver: standin.Driver, numbers_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> StandinDevice:
    """The stand-in's device with a stream that can record; to the host its tensors lie on a GPU."""
    device = StandinDevice(0)
    with device.entered():
        device.current = device.driver.Stream()
    monkeypatch.setitem(cuda_device._devices, HOST, device)
    monkeypatch.setattr(graph_capture, "is_capturing", device.is_capturing)
    return device


@contextmanager
def capturing(device: StandinDevice, driver: standin.Driver) -> Iterator[standin.Capture]:
    device.capturing = True
    try:
        with device.entered(), driver.capture(device.current) as graph:
            yield graph
    finally:
        device.capturing = False


@pytest.mark.parametrize("case", SCALED)
def test_replays_are_steps(case: str, capturable: StandinDevice, driver: standin.Driver) -> None:
    """n replays are n steps, with gradients and lr as they are at each."""
    name, settings = CASES[case]
    opt, params = new(name, SHAPES, capturable=True, **settings)
    plain, theirs = new(name, SHAPES, **settings)
    grads = draw(SHAPES, 0)
    for param, other, grad in zip(params, theirs, grads, strict=True):
        param.grad = other.grad = grad
    for each in (opt, plain):
        each.step()
    before = snapshot(opt, params)
    driver.clear_logs()
    with nothing_is_read(), capturing(capturable, driver) as graph:
        opt.step()
    assert driver.launches() == []
    assert same(snapshot(opt, params), before)
    for replay in range(1, 5):
        for grad, fresh in zip(grads, draw(SHAPES, replay), strict=True):
            grad.copy_(fresh)
        if replay == 3:
            opt.param_groups[0]["lr"].fill_(0.5)
            plain.param_groups[0]["lr"] = 0.5
        with capturable.entered():
            graph.replay()
        plain.step()
        ours, expected = snapshot(opt, params), snapshot(plain, theirs)
        assert same(ours["params"], expected["params"]), replay
        assert same(ours["states"], expected["states"]), replay
    assert {float(opt.state[param]["step"]) for param in params} == {5.0}


@pytest.mark.parametrize(
    "why", ["capturable=False", "is the first with these parameters", "lr of param group 0 was set"]
)
def test_what_cannot_be_captured_is_refused_and_changes_nothing(
    why: str, capturable: StandinDevice, driver: standin.Driver
) -> None:
    opt, params = new("AdamW8bit", SHAPES, capturable=why != "capturable=False")
    for param, grad in zip(params, draw(SHAPES, 0), strict=True):
        param.grad = grad
    if "first" not in why:
        opt.step()
    if "lr of" in why:
        opt.param_groups[0]["lr"] = 0.5
    before = snapshot(opt, params)
    driver.clear_logs()
    with capturing(capturable, driver) as graph, pytest.raises(RuntimeError, match=f"AdamW8bit: .*{why}"):
        opt.step()
    assert same(snapshot(opt, params), before)
    with capturable.entered():
        graph.replay()  # an empty one
    assert driver.launches() == []


def test_new_gradients_before_a_capture_need_another_step(capturable: StandinDevice, driver: standin.Driver) -> None:
    """A state that was put in another place since the last step: its address cannot be sent while recording."""
    opt, params = new("AdamW", SHAPES[2:4], capturable=True)
    train(opt, params, 1)
    opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].clone()
    before = snapshot(opt, params)
    with capturing(capturable, driver), pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        opt.step()
    assert same(snapshot(opt, params), before)
