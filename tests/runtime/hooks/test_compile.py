"""torch.compile over training steps: the results of the step without it, bit for bit, and no break but torch's own.

"aot_eager" hands operators copies of what they change and brings them back, "inductor" hands them the real tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.catalogue import optimizer_class, required, rows
from torch import Tensor, nn

from runtime.training import GUARDS_NUMBERS, same, snapshot

dynamo = pytest.importorskip("torch._dynamo")
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

# What torch says of itself while it compiles.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
STEPS = 4
CLASSES: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW8bit": {"lr": 0.01, "min_8bit_size": 256},
    "LAMB": {"lr": 0.01, "max_grad_norm": 0.5},
    "Prodigy": {},
    "AdamWScheduleFree": {"lr": 0.01},
}
HOST = ("Prodigy", "AdamWScheduleFree")  # with states of a group, which a graph cannot hold


class Run:
    """A small model, its optimizer, and everything that a function to be compiled needs."""

    def __init__(self, name: str, **settings: Any) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
        ndim = optimizer_class(name).rule.ndim  # type: ignore[attr-defined]
        self.params = [param for param in self.model.parameters() if ndim in (None, param.ndim)]
        self.data = torch.randn(8, 16)
        self.optimizer: Any = optimizer_class(name)(self.params, **{**CLASSES.get(name, {}), **settings})
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()

    def loss(self) -> Tensor:
        result: Tensor = self.model(self.data).square().mean()
        return result

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()

    def found(self) -> dict[str, Any]:
        return snapshot(self.optimizer, self.params)


def breaks() -> list[str]:
    """Reasons for which graphs were broken."""
    return [reason for reason, count in dynamo.utils.counters["graph_break"].items() for _ in range(count)]


def own_breaks() -> list[str]:
    """Those among them that are not torch's own."""
    return [reason for reason in breaks() if "zero_grad" not in reason and "backward()" not in reason]


def compared(
    name: str, make: Callable[[Run], Callable[[], Any]], backend: Any = "aot_eager", fullgraph: bool = False, **own: Any
) -> tuple[list[Any], list[Any]]:
    """Results of a function step by step, and the state in the end: without torch.compile, and with it."""
    results = []
    for compiled in (False, True):
        run = Run(name, **{key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()})
        function = make(run)
        if compiled:
            function = torch.compile(function, backend=backend, fullgraph=fullgraph)
        results.append([*[function() for _ in range(STEPS)], run.found()])
    return results[0], results[1]


@pytest.mark.parametrize("name", CLASSES)
def test_forward_backward_and_step_in_one_function(name: str, target: str) -> None:
    def make(run: Run) -> Callable[[], Any]:
        def train() -> Tensor:
            run.optimizer.zero_grad()
            loss = run.loss()
            loss.backward()
            run.optimizer.step()
            return loss.detach()

        return train

    assert same(*compared(name, make, target=target))
    assert all("torch.compiler.disable" in reason for reason in own_breaks())
    assert bool(own_breaks()) == (name in HOST)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64], ids=str)
def test_a_step_is_one_operator_for_every_lr(dtype: torch.dtype | None) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for compiled in (False, True):
        run = Run("AdamW", lr=0.01 if dtype is None else torch.tensor(0.01, dtype=dtype))

        def advance(run: Run = run) -> None:
            run.optimizer.step()

        step = torch.compile(advance, backend=counter, fullgraph=True) if compiled else advance
        for _ in range(STEPS):
            run.backward()
            step()
            for group in run.optimizer.param_groups:  # as a scheduler does
                group["lr"] = group["lr"] * 0.5 if dtype is None else group["lr"].mul_(0.5)
        results.append(run.found())
    assert same(*results)
    if dtype is not None or not GUARDS_NUMBERS:
        assert counter.frame_count == (2 if dtype is torch.float64 else 1)  # torch starts again with float64 scalars
    calls = [str(node.target) for node in counter.graphs[-1].graph.nodes if node.op == "call_function"]
    assert [call for call in calls if "grad" not in call] == ["optgen.step.default"]


def stepped(name: str, compiled: bool, fullgraph: bool = False, **settings: Any) -> dict[str, Any]:
    """State after some steps, the step itself compiled before the first."""
    run = Run(name, **settings)
    step = run.optimizer.step
    if compiled:
        step = torch.compile(step, backend="aot_eager", fullgraph=fullgraph)
    for _ in range(STEPS):
        run.backward()
        step()
    return run.found()


@pytest.mark.parametrize("name", ["AdamW8bit", "Adagrad", "Rprop", "ASGD"])
def test_the_step_itself_from_the_first_one_on(name: str, target: str) -> None:
    """Also where a state starts with a setting."""
    assert same(stepped(name, False, target=target), stepped(name, True, fullgraph=True, target=target))


@pytest.mark.parametrize("name", HOST)
def test_what_no_graph_can_hold_says_why_where_no_break_is_allowed(name: str) -> None:
    run = Run(name, target="torch")
    run.backward()
    before = run.found()
    why = "the rule keeps numbers of a param group, which a graph cannot hold, since they are not tensors; leave"
    with pytest.raises(dynamo.exc.Unsupported, match=why):
        torch.compile(run.optimizer.step, backend="aot_eager", fullgraph=True)()
    assert same(run.found(), before)


def test_a_state_does_not_start_with_a_tensor_that_the_graph_changes_before() -> None:
    def make(run: Run) -> Callable[[], Any]:
        def train() -> None:
            run.optimizer.param_groups[0]["lr"].mul_(0.5)
            run.optimizer.step()

        run.backward()
        return train

    lr = torch.tensor(0.01)
    results = compared("Rprop", make, target="torch", lr=lr)
    assert same(*results)
    run = Run("Rprop", target="torch", lr=lr)
    with pytest.raises(dynamo.exc.Unsupported, match="take a first step before"):
        torch.compile(make(run), backend="aot_eager", fullgraph=True)()


@pytest.mark.full
@pytest.mark.parametrize("name", rows())
def test_every_class(name: str) -> None:
    """In one graph where the rule keeps nothing of a group; else with a break, or told why there has to be one."""
    settings = required(name) | ({} if rows()[name].torch_only else {"target": "torch"})
    plain = stepped(name, False, **settings)
    assert same(plain, stepped(name, True, **settings))
    dynamo.reset()
    rule: Any = optimizer_class(name).rule  # type: ignore[attr-defined]
    if rule.blocks["step"].commit is None:
        assert same(plain, stepped(name, True, fullgraph=True, **settings))
    else:
        with pytest.raises(dynamo.exc.Unsupported):
            stepped(name, True, fullgraph=True, **settings)


def test_what_the_function_changes_before_the_step_is_seen(target: str) -> None:
    """A graph applies what it changes in Python's objects when it has run: too late for a step in its midst."""

    def make(run: Run) -> Callable[[], Any]:
        def train() -> None:
            run.backward()
            for group in run.optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
            run.optimizer.step()

        return train

    plain, compiled = compared("AdamW", make, target=target)
    assert plain[-1]["groups"][0]["lr"] == 0.01 * 0.5**STEPS
    assert same(plain, compiled)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_tensors_that_the_graph_changes_around_the_step(backend: str) -> None:
    """Gradients clipped and lr changed in place before, parameters and states read after: in one graph."""
    lr = torch.tensor(0.01)  # float32: torch 2.13 itself loses changes in place of a float64 scalar of the CPU

    def make(run: Run) -> Callable[[], Any]:
        group = run.optimizer.param_groups[0]

        def step() -> tuple[Tensor, Tensor, Tensor]:
            before = run.params[0].detach() * 2
            for param in run.params:
                param.grad.mul_(0.5)
            group["lr"].mul_(0.5)
            run.optimizer.step()
            return before, run.params[0].detach() * 2, run.optimizer.state[run.params[0]]["exp_avg"] * 2

        return step

    results = []
    for compiled in (False, True):
        run = Run("AdamW", lr=lr.clone())
        step = make(run)
        if compiled:
            step = torch.compile(step, backend=backend, fullgraph=True)
        run.backward()
        run.optimizer.step()
        seen: list[Any] = []
        for _ in range(STEPS):
            run.backward()
            seen.append(step())
        results.append([seen, run.found()])
    assert same(*results)
    assert not breaks()


def test_backward_within_the_graph() -> None:
    """Gradients are in the graph alone where torch traces backward too: `param.grad` has those of before."""
    if not hasattr(dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace backward")

    results = []
    for compiled in (False, True):
        run = Run("AdamW")

        def train(run: Run = run) -> Tensor:
            loss = run.loss()
            for param, grad in zip(run.params, torch.autograd.grad(loss, run.params), strict=True):
                param.grad = grad
            run.optimizer.step()
            return loss.detach()

        run.backward()
        run.optimizer.step()
        with dynamo.config.patch(trace_autograd_ops=True):
            function = torch.compile(train, backend="aot_eager", fullgraph=True) if compiled else train
            results.append([*[function() for _ in range(STEPS)], run.found()])
    assert same(*results)


def test_fused_backward(target: str) -> None:
    """Hooks of autograd are called while the function runs, and what they do is not traced."""

    def make(run: Run) -> Callable[[], Any]:
        def train() -> Tensor:
            loss = run.loss()
            loss.backward()
            run.optimizer.step()
            return loss.detach()

        return train

    assert same(*compared("AdamW", make, target=target, fused_backward=True))
    assert all("torch.compiler.disable" in reason for reason in own_breaks())


def test_closures_and_methods(target: str) -> None:
    def make(run: Run) -> Callable[[], Any]:
        def closure() -> Tensor:
            run.optimizer.zero_grad()
            loss = run.loss()
            loss.backward()
            return loss.detach()

        def train() -> Tensor:
            run.optimizer.train()
            loss = run.optimizer.step(closure).detach()
            run.optimizer.eval()
            return loss

        return train

    assert same(*compared("AdamWScheduleFree", make, target=target))
    assert all("torch.compiler.disable" in reason for reason in own_breaks())


def test_hooks_of_steps_are_called() -> None:
    def make(run: Run) -> Callable[[], Any]:
        calls: list[str] = []
        run.optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        run.optimizer.register_step_post_hook(lambda *_: calls.append("after"))

        def train() -> list[str]:
            run.backward()
            run.optimizer.step()
            return list(calls)

        return train

    plain, compiled = compared("AdamW", make)
    assert plain[-2] == ["before", "after"] * STEPS
    assert same(plain, compiled)


def test_a_bad_gradient_is_refused_as_ever(target: str) -> None:
    run = Run("AdamW", target=target)
    step = torch.compile(lambda: run.optimizer.step(), backend="aot_eager")
    run.backward()
    step()
    before = run.found()
    run.backward()
    run.optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="Invalid learning rate"):
        step()
    run.optimizer.param_groups[0]["lr"] = before["groups"][0]["lr"]
    assert same(run.found(), before)
    step()
    assert float(run.optimizer.state[run.params[0]]["step"]) == 2.0


def test_several_optimizers_through_one_function() -> None:
    """A graph has the handle of its optimizer in it: another optimizer has another graph."""

    def advance(optimizer: Any) -> None:
        optimizer.step()

    compiled = torch.compile(advance, backend="aot_eager", fullgraph=True)
    results = []
    for function in (advance, compiled):
        runs = [Run("AdamW", lr=lr) for lr in (0.01, 0.5, 0.1, 0.2)]
        for _ in range(3):
            for run in runs:
                run.backward()
                function(run.optimizer)
        results.append([run.found() for run in runs])
    assert same(*results)
    assert not same(results[0][0], results[0][1])


def test_the_operator_is_registered_as_torch_asks() -> None:
    """torch's own check: the schema says what is changed, the fake implementation agrees, and graphs can hold it."""
    from optgen.runtime.hooks.compiled_step import step_operator

    run = Run("AdamW", lr=torch.tensor(0.01))
    run.backward()
    run.optimizer.step()
    params = [param.detach().clone() for param in run.params]
    states = [value.clone() for param in run.params for value in run.optimizer.state[param].values()]
    grads = [param.grad.clone() for param in run.params if param.grad is not None]
    before = run.found()
    settings = [torch.tensor(0.5)]
    arguments = (params, states, grads, settings, list(range(len(params))), "0.lr", run.optimizer._handle)
    torch.library.opcheck(step_operator, arguments)
    assert same(run.found(), before), "copies were stepped, not the optimizer's own"
    step_operator(*arguments)
    assert same(run.found(), before)
    run.optimizer.param_groups[0]["lr"].fill_(0.5)
    run.optimizer.step()
    assert same([param.detach() for param in run.params], params)
    assert same([value for entry in run.optimizer.state.values() for value in entry.values()], states)


def test_a_cuda_graph_leaves_it_out() -> None:
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    if tag is None:
        pytest.skip("this torch has no such tag")
    import optgen.runtime.hooks.compiled_step  # noqa: F401

    assert tag in torch.ops.optgen.step.default.tags


def test_inductor_takes_it_for_a_node_that_cuda_graphs_leave_out() -> None:
    """Its own judgement of the graph, by which mode="reduce-overhead" divides one; and that mode, on the CPU."""
    utils = pytest.importorskip("torch._inductor.utils")
    if not hasattr(utils, "is_cudagraph_unsafe_fx_node"):
        pytest.skip("this torch judges otherwise")
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for options in (None, {"backend": counter}, {"mode": "reduce-overhead"}):
        run = Run("AdamW", target="torch")
        step = run.optimizer.step if options is None else torch.compile(run.optimizer.step, fullgraph=True, **options)
        for _ in range(2):
            run.backward()
            step()
        results.append(run.found())
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    nodes = [node for node in counter.graphs[-1].graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in nodes if utils.is_cudagraph_unsafe_fx_node(node)] == ["optgen.step.default"]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="docs/tools.md says it of torch 2.13")
def test_torch_itself_loses_changes_of_float64_numbers() -> None:
    """A product reads as stale a number in the graph as a step does."""

    def read(dtype: torch.dtype, stepping: bool) -> float:
        dynamo.reset()
        lr, param = torch.tensor(0.5, dtype=dtype), nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer: Any = optimizer_class("AdamW")([param], lr=lr, weight_decay=0.0, target="torch")

        def change() -> Tensor:
            lr.mul_(0.5)
            if stepping:
                optimizer.step()
            return lr * 1

        seen = torch.compile(change, backend="aot_eager", fullgraph=True)()
        return 1 - float(param.detach()[0]) if stepping else float(seen)

    for stepping in (False, True):
        assert read(torch.float32, stepping) == pytest.approx(0.25, rel=1e-6)
        assert read(torch.float64, stepping) == pytest.approx(0.5, rel=1e-6)
