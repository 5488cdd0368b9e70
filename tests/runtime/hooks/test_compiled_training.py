"""A whole training step compiled: forward, backward, `step` and the clearing of gradients, by inductor too.

A compiler may fuse the model's own arithmetic and add up in another order, so that a step is looked at in two parts.
The gradients that the compiled function has left are within the roundings of float32 of those in float64, as eager
ones are: a sum of products in which no path from input to gradient takes more than `ROUNDINGS` operations lies within
((1 + 2**-24)**ROUNDINGS - 1) times the same sum of absolute values, in whatever order it is taken. And from those
gradients an optimizer without torch.compile makes the same parameters and states, bit for bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from torch import Tensor, nn

from runtime.training import GUARDS_NUMBERS, same, snapshot

dynamo = pytest.importorskip("torch._dynamo")
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.slow,
]
STEPS = 4
BATCH, IN, HIDDEN, OUT = 8, 16, 32, 4
# Products and sums of the two layers with their biases, the loss and its gradient, and back to the first weights.
FORWARD = IN + 2
ROUNDINGS = FORWARD + (HIDDEN + 2) + 4 + (OUT + 1) + (BATCH + 1)
MARGIN = (1 + 2.0**-24) ** ROUNDINGS - 1


def make_model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def loss_of(model: nn.Module, data: Tensor) -> Tensor:
    result: Tensor = model(data).square().mean()
    return result


def formulas(params: list[Tensor], data: Tensor, mask: Tensor) -> list[Tensor]:
    """Loss and gradients, of float64."""
    w1, b1, w2, b2 = params
    hidden = (data @ w1.T + b1) * mask
    y = hidden @ w2.T + b2
    dy = 2 * y / y.numel()
    dh = (dy @ w2) * mask
    return [y.square().mean(), dh.T @ data, dh.sum(0), dy.T @ hidden, dy.sum(0)]


def assert_rounded(found: list[Tensor], params: list[Tensor], data: Tensor) -> None:
    """Loss and gradients lie within the roundings of float32 of those in float64."""
    params, data = [param.double() for param in params], data.double()
    sizes, size = [param.abs() for param in params], data.abs()
    before = data @ params[0].T + params[1]
    mask = before > 0
    unsure = ((1 + 2.0**-24) ** FORWARD - 1) * (size @ sizes[0].T + sizes[1])
    assert (before.abs() > unsure).all(), "so near to 0 that rounding could decide for ReLU: take other data"
    exact, largest = formulas(params, data, mask), formulas(sizes, size, mask)
    for value, wanted, bound in zip(found, exact, largest, strict=True):
        assert ((value.double() - wanted).abs() <= MARGIN * bound).all()
        assert wanted.abs().max() > 100 * MARGIN * bound.max(), "the bound says something"


def scheduled(opt: Any) -> None:
    """Another rate, as schedulers set it."""
    for group in opt.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].mul_(0.5)
        else:
            group["lr"] *= 0.5


RULES: dict[str, Any] = {
    "AdamW": lambda params, target: AdamW(params, lr=0.01, weight_decay=0.1, target=target),
    "lr as a tensor": lambda params, target: AdamW(params, lr=torch.tensor(0.01), target=target),
    "AdamW8bit": lambda params, target: AdamW8bit(params, lr=0.01, min_8bit_size=64, target=target),
}


GRAPHS = ("one graph", "torch's breaks")
# inductor compiles C++, which takes seconds: of its cases these are part of `make test`.
QUICK = {("one graph", "AdamW8bit"), ("torch's breaks", "lr as a tensor")}
CASES = [("aot_eager", graphs, rule) for graphs in GRAPHS for rule in RULES] + [
    pytest.param("inductor", graphs, rule, marks=() if (graphs, rule) in QUICK else pytest.mark.full)
    for graphs in GRAPHS
    for rule in RULES
]


@pytest.mark.parametrize(("backend", "graphs", "rule"), CASES)
def test_forward_backward_step_and_clearing(backend: str, graphs: str, rule: str, target: str) -> None:
    """All of it is one graph where torch traces backward; otherwise it breaks at zero_grad and backward, no more."""
    whole = graphs == "one graph"
    if whole and not hasattr(dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace backward")
    model, twin = make_model(), make_model()
    params, others = list(model.parameters()), list(twin.parameters())
    opt, other = RULES[rule](params, target), RULES[rule](others, target)
    batches = [torch.randn(BATCH, IN, generator=torch.Generator().manual_seed(i)) for i in range(STEPS + 1)]

    def train(data: Tensor) -> Tensor:
        if whole:  # zero_grad itself is not traced by torch
            for param in params:
                param.grad = None
        else:
            opt.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        opt.step()
        return loss.detach()

    train(batches[-1])  # the first step's states are made outside of a graph that computes their gradients
    loss_of(twin, batches[-1]).backward()
    other.step()
    assert same(snapshot(opt, params), snapshot(other, others))
    counter = CompileCounterWithBackend(backend)
    settings = {"trace_autograd_ops": True} if whole else {}
    function = torch.compile(train, backend=counter, fullgraph=whole)
    for step, data in enumerate(batches[:STEPS]):
        before = [param.detach().clone() for param in params]
        with dynamo.config.patch(error_on_recompile=step > 0, **settings):
            loss = function(data)
        grads = [param.grad.detach().clone() for param in params if param.grad is not None]
        assert_rounded([loss, *grads], before, data)
        other.zero_grad()
        eager = loss_of(twin, data)
        eager.backward()
        assert_rounded([eager.detach(), *(param.grad for param in others)], before, data)
        for param, grad in zip(others, grads, strict=True):
            param.grad = grad
        other.step()
        if isinstance(opt.param_groups[0]["lr"], Tensor) or not GUARDS_NUMBERS:
            scheduled(opt)
            scheduled(other)
        assert same(snapshot(opt, params), snapshot(other, others)), f"step {step}"
    assert counter.frame_count == (1 if whole else 2), "compiled again"
    calls = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
    assert calls.count("optgen.step.default") == 1
    reasons = list(dynamo.utils.counters["graph_break"])
    assert len(reasons) == (0 if whole else 2), reasons
    assert all("zero_grad" in reason or "backward()" in reason for reason in reasons)


@pytest.mark.parametrize("rule", RULES)
def test_the_operator_passes_every_check_of_torch(rule: str, target: str) -> None:
    from torch.testing._internal.optests.generate_tests import DEFAULT_TEST_UTILS

    from optgen.runtime.hooks.compiled_step import step_operator

    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    assert {*DEFAULT_TEST_UTILS} == {*checks}
    model = make_model()
    params = list(model.parameters())
    opt = RULES[rule](params, target)
    loss_of(model, torch.ones(BATCH, IN)).backward()
    opt.step()
    before = snapshot(opt, params)
    lr = opt.param_groups[0]["lr"]
    arguments = (
        [param.detach().clone() for param in params],
        [value.clone() for param in params for value in opt.state[param].values()],
        [torch.ones_like(param) for param in params],
        [lr.clone()] if isinstance(lr, Tensor) else [],
        list(range(len(params))),
        "0.lr" if isinstance(lr, Tensor) else "",
        opt._handle,
    )
    result = torch.library.opcheck(step_operator, arguments, test_utils=checks)
    assert result == dict.fromkeys(checks, "SUCCESS")
    assert same(snapshot(opt, params), before), "copies were stepped, not the optimizer's own"
