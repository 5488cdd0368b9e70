"""Passes of the torch target as graphs that torch.compile compiles, for devices that have no kernels.

A pass over a parameter is traced once for its shape: decoding, the rule's function, encoding, and storing. What is one
number (settings, the step's number, sums, and what follows from them) is computed by itself and given to the graph, so
that another learning rate or step compiles nothing. Where a pass cannot be traced or compiled, torch's operations run
one by one, and a line on standard error says so once.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from optgen.runtime import torch_math
from optgen.runtime.core.bucket import Member

View = Any  # of torch_engine.py
MOST = 64  # shapes and settings that a process compiles; what comes later runs one by one
COPY = torch.ops.aten.copy_.default


def compiles(device: torch.device, wanted: str | None) -> bool:
    """Check whether the torch target compiles its passes on a device: where no kernels are made for it.

    Args:
        wanted: The setting `target`: what is asked for by name runs one by one, with the same bits everywhere.
    """
    forced = os.environ.get("OPTGEN_TORCH_COMPILE")
    if forced in ("0", "1"):
        return forced == "1"
    return wanted is None and device.type != "cpu"


@dataclass(frozen=True)
class Pass:
    """A traced pass.

    Attributes:
        numbers: Computes what is one number.
        compiled: Computes the rest, given the tensors and these.
        names: Of a pass that takes sums, their names.
    """

    numbers: GraphModule
    compiled: Callable[..., Any]
    names: tuple[str, ...]

    def run(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> dict[str, Tensor]:
        """Run it: store, or return the sums that it takes."""
        results = self.compiled(*tensors.values(), *self.numbers(*tensors.values(), *_scalars(numbers)))
        return dict(zip(self.names, results, strict=True))


def _scalars(numbers: Mapping[str, float]) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64, device="cpu") for x in numbers.values()]


_passes: dict[Any, Pass | None] = {}


def run_pass(view: View, function: Callable[[Any], Any], values: Any, asked: Any, stored: Any) -> Any:
    """Run a pass in its graph.

    Args:
        values: The values of the parameter's group.
        asked: The sums that it takes, and which of them are of rows and columns; without the first it stores.
        stored: Rounds new values.

    Returns:
        None if there is no graph; the sums that the pass takes, else {}.
    """
    wanted, lines, last = asked
    member = view.member
    if member.shard is not None or member.rounding == "stochastic":
        return None
    assert view.gradient is not None
    tensors = {"param": member.param.detach(), "grad": view.gradient}
    tensors |= {f"state {key}": x for key, x in member.entry.items() if isinstance(x, Tensor) and key != "step"}
    tensors |= {f"sum {key}": x for key, x in view.reduced.items() if isinstance(x, Tensor)}
    numbers = {"step": view.step, "index": view.index}
    numbers |= {f"value {key}": x for key, x in vars(values).items() if isinstance(x, float)}
    numbers |= {f"sum {key}": x for key, x in view.reduced.items() if isinstance(x, float)}
    fixed = tuple((key, x) for key, x in vars(values).items() if not isinstance(x, float | Tensor))
    forms = tuple((key, x.dtype, x.device, x.shape, x.stride()) for key, x in tensors.items())
    own = (function, view.flags, member.seen, member.codecs, member.rounding, wanted, last)
    key = (*own, tuple(sorted(lines.items())), forms, tuple(numbers), fixed)
    if key not in _passes:
        if len(_passes) >= MOST:
            return None
        _passes[key] = None
        from optgen.runtime.building.notice import notice

        try:
            told = "compiling an optimizer's step for this device with torch.compile, once"
            with notice(told), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of its own parts
                made = _traced(view, function, (tensors, numbers, values), asked, stored)
                results = made.run(tensors, numbers)
        except Exception as error:
            _say(error)
            return None
        _passes[key] = made
        return results
    found = _passes[key]
    return None if found is None else found.run(tensors, numbers)


def _say(error: Exception) -> None:
    from optgen.runtime.building.notice import say_once

    lines = [line for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2] if lines[:1] and lines[0].endswith("raised:") else lines[:1]) or type(error).__name__
    say_once(f"torch.compile cannot compile an optimizer's step here; its operations run one by one: {said}")


def _traced(view: View, function: Callable[[Any], Any], inputs: Any, asked: Any, stored: Any) -> Pass:
    """Trace a pass, cut what is one number off, and have the rest compiled when it first runs."""
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors, numbers, values = inputs
    wanted, lines, last = asked
    names: list[str] = []

    def run(*flat: Tensor) -> list[Tensor]:
        given = dict(zip(tensors, flat, strict=False))
        floats = dict(zip(numbers, flat[len(tensors) :], strict=True))
        traced = _view(view, given, floats)
        own = {key.removeprefix("value "): x for key, x in floats.items() if key.startswith("value ")}
        traced.take(SimpleNamespace(**{**vars(values), **own}), wanted, lines)
        results = function(traced)
        if last:
            results = dict(stored(traced, results))
        names[:] = results
        return [torch.as_tensor(x) for x in results.values()]

    with torch_math.traceable():
        graph = make_fx(run, tracing_mode="real")(*tensors.values(), *_scalars(numbers)).graph
    targets = {name: "param" if name == "param" else f"state {name}" for name in names} if last else {}
    first, second = _cut(graph, [list(tensors).index(target) for target in targets.values()], len(tensors))
    compiled = torch.compile(second, dynamic=False, fullgraph=True)
    return Pass(first, compiled, () if last else tuple(names))


def _view(view: View, given: Mapping[str, Tensor], floats: Mapping[str, Tensor]) -> View:
    """The view of a parameter, over other tensors."""
    member: Member = copy.copy(view.member)
    member.param = given["param"]
    own = {key.removeprefix("state "): x for key, x in given.items() if key.startswith("state ")}
    member.entry = {**member.entry, **own}
    member.settings = _Unreadable()
    traced = type(view)(view.rule, member, 0.0, given.get("grad"))
    traced.step, traced.index = floats["step"], floats["index"]
    both = {**given, **floats}
    traced.reduced = {key.removeprefix("sum "): x for key, x in both.items() if key.startswith("sum ")}
    return traced


class _Unreadable(dict[str, Any]):
    """Settings, of which a graph would keep what they are now."""

    def get(self, key: str, default: Any = None) -> Any:
        """Refuse."""
        raise NotImplementedError(f"it reads the setting {key}")


def _cut(graph: Graph, targets: list[int], tensors: int) -> tuple[GraphModule, GraphModule]:
    """Cut a graph in two: what is one number, and the rest, which gets the tensors and these.

    Args:
        targets: The inputs that take the outputs; none if these are returned.
        tensors: Number of inputs that are no numbers.
    """
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    small: set[Node] = set()
    for node in nodes:
        is_number = isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() == 0
        if is_number and (node in inputs or (node.op != "output" and small.issuperset(node.all_input_nodes))):
            small.add(node)
    outputs: Iterable[Any] = nodes[-1].args[0]
    rest = [node for node in nodes if node not in small or node in inputs[:tensors]]
    handed = [node for node in nodes if node in small and node not in inputs[:tensors]]
    handed = [node for node in handed if any(user not in small for user in node.users)]
    owner = graph.owning_module
    assert owner is not None
    numbers, pass_ = Graph(), Graph()
    kept: dict[Node, Node] = {}
    for node in [*inputs, *(node for node in nodes if node in small and node not in inputs)]:
        kept[node] = numbers.node_copy(node, kept.__getitem__)
    numbers.output([kept[node] for node in handed])
    moved: dict[Node, Node] = {}
    for node in [*inputs[:tensors], *handed]:
        moved[node] = pass_.placeholder(node.name)
    for node in rest:
        if node.op not in ("placeholder", "output"):
            moved[node] = pass_.node_copy(node, moved.__getitem__)
    results = [moved[node] for node in outputs]
    for target, result in zip(targets, results, strict=False):
        pass_.call_function(COPY, (moved[inputs[target]], result))
    pass_.output([] if targets else results)
    return GraphModule(owner, numbers), GraphModule(owner, pass_)
