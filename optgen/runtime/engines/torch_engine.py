"""Runs a step in plain torch operations, parameter by parameter, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import COMPENSATION, PARAMETER_CODECS
from optgen.runtime.block import Block, Partial
from optgen.runtime.core.bucket import Bucket, Member, StaleError, forms_of, is_like, sizes_of
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.dimensions import is_turned, matrix_sizes
from optgen.runtime.engines import matrices, matrix_stage
from optgen.runtime.engines.matrix_stage import Codecs
from optgen.runtime.engines.torch_graphs import compiles, run_pass
from optgen.runtime.engines.torch_states import States, Sums, seen, spread
from optgen.runtime.rule import Rule
from optgen.runtime.states import torch_codecs
from optgen.runtime.states.philox import Draw
from optgen.runtime.states.step_counts import steps_of
from optgen.runtime.states.store import Placement, own_shape
from optgen.runtime.states.stored import scale_key
from optgen.runtime.states.torch_codecs import encode
from optgen.runtime.states.torch_rounding import decode_parameter, encode_parameter
from optgen.runtime.sums import has_float64, wide
from optgen.runtime.torch_math import whole_steps

Results = dict[str, Any]


class View:
    """A parameter as generated functions see it: everything in float32, states decoded.

    Attributes:
        flags: Flags of this parameter.
        values: Values of its group, by name.
        states: Its states, decoded as they are asked for.
        step: The step's number, from 1.
        sums, reduced: Results of the passes before, NaN for what later ones find; the same as a table.
        wanted, taken: The sums that the pass at hand takes, and those that it has taken.
        wide: Of a part, its sums of rows and columns before they are rounded.
        gradient: The parameter's.
        codecs: What decodes and encodes states that are matrices of their own.
        out: Memory for the direction of a step on matrices.
    """

    def __init__(self, rule: Rule, member: Member, step: float, grad: Tensor | None = None) -> None:
        self.rule, self.member = rule, member
        self.flags, self.step = member.flags, step
        self.index = float(member.index)
        self.values: Any = None
        self.codecs: Codecs = torch_codecs
        self.states: States
        self.sums: Sums
        self.out: Tensor
        self.reduced: dict[str, Any] = {}
        self.wanted: frozenset[str] = frozenset()
        self.taken: Results = {}
        self.wide: dict[str, Tensor] = {}
        self.gradient = member.param.grad if grad is None else grad
        self.numel, self.ndim = float(member.shape.numel()), float(len(member.shape))
        layout = member.layout()
        for name, size in sizes_of(member.shape).items():
            setattr(self, name, float(size))
        self.settings_now: Any = None
        self.matrices, self.rows, self.cols = float(layout.matrices), float(layout.rows), float(layout.cols)

    def size_of(self, dimension: str) -> int:
        """The size of a dimension of the rule's matrices."""
        return matrix_sizes((dimension,), self.member.shape, self.member.settings)[0]

    def ends(self, **sums: Any) -> bool:
        """Take sums; tell whether they were the last of the pass."""
        self.taken |= sums
        return self.taken.keys() >= self.wanted

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the parameter."""
        return self.member.settings

    def take(self, values: Any, wanted: frozenset[str], lines: Mapping[str, str]) -> None:
        """Begin a pass.

        Args:
            lines: The sums over rows and columns, each with which of them it is.
        """
        self.values, self.wanted, self.taken = values, wanted, {}
        self.states, self.sums = States(self.rule, self.member), Sums(self.member, self.reduced, lines)

    def forget(self) -> None:
        """End a pass: drop what is in float32 for it alone."""
        self.states = States(self.rule, self.member)
        for name in ("param", "grad"):
            self.__dict__.pop(name, None)

    @cached_property
    def param(self) -> Tensor:
        """The parameter in float32; one without dimensions has one here."""
        member, codec = self.member, PARAMETER_CODECS[self.member.rounding]
        return seen(member, decode_parameter(codec, member.param.detach(), member.entry.get(COMPENSATION)))

    def rounded(self, x: Tensor) -> Tensor:
        """Elements rounded to nearest as the parameter's dtype holds them, in float32."""
        return x.to(self.member.param.dtype).to(torch.float32)

    def uniform(self, param: Tensor, number: float) -> Tensor:
        """Random numbers from 0 to below 1, one an element, for initial values."""
        return self._draw().uniform(int(number), param.numel(), param.device).reshape(param.shape)

    def normal(self, param: Tensor, number: float) -> Tensor:
        """Normal random numbers, one an element, for initial values."""
        return self._draw().normal(int(number), param.numel(), param.device).reshape(param.shape)

    def _draw(self) -> Draw:
        member = self.member
        elements = None if member.shard is None else member.shard.element_numbers(member.param.device)
        return Draw(int(member.settings.get("seed", 0)), member.number, elements=elements)

    @cached_property
    def grad(self) -> Tensor:
        """The gradient in float32."""
        assert self.gradient is not None
        return seen(self.member, self.gradient)

    @property
    def unscaled_grad(self) -> Tensor:
        """The gradient that initial values see: in float32, divided by `grad_scale` where that is set."""
        scale = self.settings.get("grad_scale")
        if scale is None:
            return self.grad
        if not isinstance(scale, Tensor):
            scale = torch.tensor(scale, dtype=torch.float64, device="cpu")
        return self.grad * wide(scale).reciprocal().float().to(self.grad.device)

    def spread(self, x: Any, kind: str) -> Tensor:
        """Numbers of a smaller kind, one for each of this kind."""
        return spread(self.member, x, kind)

    # A step on matrices

    def run_matrices(self, x: Tensor) -> Tensor:
        """Run the rule's step on matrices, which takes these elements, and gives a direction; or see `on_matrices`."""
        return x.clone() if self.member.owner else matrix_stage.run(self, x)

    def on_matrices(self, function: Callable[..., Tensor], x: Tensor, *settings: Any) -> Tensor:
        """The result of a function of matrices; where they have an owner, what that takes."""
        return x.clone() if self.member.owner else matrices.computed(function, self.member, x, *settings)

    def from_tall(self, x: Tensor) -> Tensor:
        """A matrix as the parameter lies, of one that has no more columns than rows."""
        return x if self.rows >= self.cols else x.mT

    def turned(self, x: Tensor) -> Tensor:
        """A matrix with the dimension that a projection reduces as columns, or one such as the parameter lies."""
        return x.mT if is_turned(self.member.shape, self.member.settings) else x

    def normal_matrix(self, rows: int, cols: int, draw: float, like: Tensor, number: int = 0) -> Tensor:
        """Normal numbers that follow from the seed, the parameter, the number of its matrix and that of the draw."""
        elements = torch.arange(rows * cols, dtype=torch.int64, device=like.device) + number * rows * cols
        source = Draw(int(self.member.settings.get("seed", 0)), self.member.number, elements=elements)
        return source.normal_in(whole_steps(draw), rows * cols, like.device).view(rows, cols)

    def own_rows(self, x: Tensor) -> Tensor:
        """Numbers of rows, (..., rows, 1): of the rows that this process has elements of."""
        shard = self.member.shard
        return x if shard is None else shard.own_lines(x, "row")

    def own_cols(self, x: Tensor) -> Tensor:
        """Numbers of columns, (..., 1, cols): of the columns that this process has elements of."""
        shard = self.member.shard
        return x if shard is None else shard.own_lines(x, "col")

    def own_channels(self, x: Tensor) -> Tensor:
        """Numbers of channels, (channels, 1, ...): of the channels that this process has elements of."""
        return self.own_rows(x) if len(self.member.shape) == 2 else x


class TorchEngine:
    """The torch target of one bucket."""

    target = "torch"
    at_once = False
    matrix_elements = 0
    codecs: Codecs = torch_codecs

    def __init__(self, rule: Rule, bucket: Bucket) -> None:
        self.rule, self.bucket = rule, bucket
        self.views: list[View] = []
        self.forms: list[list[Any]] = []

    def placement(self, member: Member) -> Placement:
        """States lie with their parameter, counts of steps on the host."""
        return Placement(self.bucket.device, torch.device("cpu"))

    def begin(self, name: str, grads: list[Tensor], inputs: Inputs) -> None:
        """Start a step: `name` is the block's; gradients are read from the parameters.

        The host has read `inputs`, so that all that is needed of them comes with the passes' values.

        Raises:
            StaleError: if a parameter, a gradient or a state has another form than before.
        """
        self.name = name
        forms = [forms_of(member) for member in self.bucket.members]
        if self.forms and forms != self.forms:
            raise StaleError
        self.forms = forms
        if grads and not all(is_like(g, m.param) for g, m in zip(grads, self.bucket.members, strict=True)):
            raise StaleError
        ahead = 1.0 if name == "step" else 0.0
        own: Sequence[Tensor | None] = grads or [None] * len(self.bucket.members)
        self.views = [
            View(self.rule, member, self._steps_of(member) + ahead, grad)
            for member, grad in zip(self.bucket.members, own, strict=True)
        ]

    def _steps_of(self, member: Member) -> float:
        assert member.count is not None
        return steps_of(float(member.entry["step"]), float(member.count))

    def take(self, values: HostValues) -> None:
        """Take the values that passes read."""
        self.values = values

    def run(self, block: Block, index: int) -> None:
        """Run one pass."""
        function = getattr(self.rule.torch_functions, self.name)
        item, last = block.passes[index], index == len(block.passes) - 1
        for view in self.views:
            values = SimpleNamespace(**self.values.computed[view.member.row])
            wanted = frozenset(partial.name for partial in block.taken(item, view.flags))
            if not wanted and not last:
                continue
            view.settings_now = matrix_stage.SettingsNow(self.rule, self.values.rows[view.member.row])
            lines = {**block.lines, **dict.fromkeys(block.matrices, "element")}
            graphed = None
            if not block.matrices and compiles(self.bucket.device, view.settings.get("target")):
                graphed = run_pass(view, function, values, (wanted, lines, last), self.stored)
            if graphed is None:
                view.take(values, wanted, lines)
            results: Results = function(view) if graphed is None else graphed
            if last:
                for key, value in self.stored(view, results) if graphed is None else ():
                    (view.member.param.detach() if key == "param" else view.member.entry[key]).copy_(value)
                for name in block.matrices:
                    view.reduced.pop(name, None)
            else:
                # Not taken under these settings: 0, for it is added to that of other parameters.
                self._keep(view, dict.fromkeys(wanted, 0.0) | results, block)
            view.forget()

    def take_matrix_memory(self, memory: Tensor) -> None:
        """Do nothing: results are tensors of their own."""

    def run_matrices(self, name: str, block: Block, index: int) -> None:
        """Do nothing: the pass has run them."""

    def matrix_part(self, name: str, partial: str, index: int) -> Tensor:
        """Elements that the pass has made of a matrix whose parts processes have."""
        return self.views[index].reduced[partial]  # type: ignore[no-any-return]

    def reduction(self, block: Block, name: str) -> list[float]:
        """A reduction's result for every parameter."""
        return [float(view.reduced[name]) for view in self.views]

    # Parts of tensors

    def partial(self, block: Block, name: str) -> Tensor:
        """A result of every tensor, float64 of shape (members,)."""
        device = self.bucket.device if has_float64(self.bucket.device) else torch.device("cpu")
        like: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return torch.stack([torch.as_tensor(view.reduced[name], **like) for view in self.views])

    def complete(self, block: Block, name: str, values: Tensor) -> None:
        """Take the results of the whole tensors."""
        for view, value in zip(self.views, values.unbind(), strict=True):
            view.reduced[name] = value

    def partial_lines(self, name: str, partial: Partial, index: int) -> Tensor:
        """Sums of rows or columns of a tensor, as they are before they are rounded."""
        return self.views[index].wide[partial.name]

    def complete_lines(self, name: str, partial: Partial, index: int, values: Tensor) -> None:
        """Take those of a larger part, or of the whole tensor, rounded once."""
        view = self.views[index]
        view.wide[partial.name] = values.reshape(view.wide[partial.name].shape)
        view.reduced[partial.name] = view.wide[partial.name].float()

    def _keep(self, view: View, results: Results, block: Block) -> None:
        """Keep the results of a pass, those of rows and columns rounded; of a part both ways, for all lines."""
        shard = view.member.shard
        for name, value in results.items():
            if name in block.lines:
                if shard is not None:
                    of_none = -math.inf if name in block.maxima else 0.0
                    value = view.wide[name] = shard.whole_lines(value, block.lines[name], of_none)
                value = value.float()
            view.reduced[name] = value

    def finish(self, name: str) -> None:
        """End the step: counters advance after everything else is stored."""
        if name == "step":
            for view in self.views:
                assert view.member.count is not None
                view.member.count.fill_(view.step)
                view.member.entry["step"].fill_(view.step)
        self.views = []

    def stored(self, view: View, results: Results) -> list[tuple[str, Tensor]]:
        """Every new value, rounded once: "param", or the key of a state."""
        stored: list[tuple[str, Tensor]] = []
        param = view.member.param.detach()
        for name, value in results.items():
            if name == "param":
                stored += self._rounded(view, _full(value, param))
                continue
            state = self.rule.states.get(name)
            if value is None or state is None or not state.exists(view.flags):
                continue
            if state.kind == "element":
                codec = view.member.codecs[self.rule.element_states.index(state)]
                codes, scales = encode(codec, _full(value, param), state.signed)
                stored.append((name, codes))
                if scales is not None:
                    stored.append((scale_key(name), scales))
            elif state.window is not None:
                stored.append((name, value))
            else:
                stored.append((name, own_shape(state.kind, value, view.member.line_shape, param.device)))
        return stored

    def _rounded(self, view: View, value: Tensor) -> list[tuple[str, Tensor]]:
        """A new parameter, and what is kept beside it."""
        member = view.member
        param = member.param.detach()
        elements = None
        if member.shard is not None and member.rounding == "stochastic":
            elements = member.shard.element_numbers(param.device)
        step = whole_steps(self._steps_of(member)) + 1
        seed = member.settings.get("seed", 0) if member.rounding == "stochastic" else 0
        draw = Draw(int(seed), member.number, step, elements)
        rounded, rest = encode_parameter(PARAMETER_CODECS[member.rounding], value, param.dtype, draw)
        return [("param", rounded)] + ([] if rest is None else [(COMPENSATION, rest)])


def _full(value: Any, param: Tensor) -> Tensor:
    full = torch.as_tensor(value, dtype=torch.float32, device=param.device)
    return full.reshape(param.shape) if full.numel() == param.numel() else full.expand(param.shape)
