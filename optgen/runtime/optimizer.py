"""The base class of all generated optimizers: parameters and their groups, a step, a save and a load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from optgen.runtime.block import Refusal
from optgen.runtime.checkpoints import bitsandbytes_form
from optgen.runtime.checkpoints.load import Loading, fitting
from optgen.runtime.checkpoints.save import as_checkpoint
from optgen.runtime.core.step_inputs import closure_loss
from optgen.runtime.cuda.graph_capture import check_capture, place_lr
from optgen.runtime.cuda.paged_memory import wait_for_host
from optgen.runtime.hooks import fused_backward
from optgen.runtime.hooks.handles import make_handle
from optgen.runtime.rule import Rule
from optgen.runtime.settings.documentation import document
from optgen.runtime.settings.keywords import name_the_meant
from optgen.runtime.settings.overrides import enlist
from optgen.runtime.settings.param_groups import as_list, begin_shared_states, checked_group, with_override
from optgen.runtime.settings.policy import Policy
from optgen.runtime.settings.storage import check_rounding
from optgen.runtime.states.step_counts import Count
from optgen.runtime.states.store import entry_bytes, paged_bytes
from optgen.runtime.states.stored import CodecRecord
from optgen.runtime.step import given as given_numbers
from optgen.runtime.step import last_norm
from optgen.runtime.step import run as acts
from optgen.runtime.step.partition import watch_partitions
from optgen.runtime.step.prepared import KeptSteps


class Optimizer(torch.optim.Optimizer):
    """Runs a rule over parameters of float32, bfloat16 or float16, on any device.

    All arithmetic is float32, and every stored number is rounded once. States keep the dtype that the rule gives them,
    whatever the dtype of the parameter.

    A hyperparameter may be a tensor of one element. One on a GPU is never read to check it: as in torch, a value out of
    range has no error there, and a new value is noticed when a step uses it.

    Attributes:
        rule: The rule, as its module declares it.
        fixed: Settings that the class fixes.
        bits: Bits that the class stores its states in, or None if the user says.
        given_bits: The `optim_bits` that a class with `bits` of its own takes, which is its default.
        refusals: Refusals of the class, beside those of its rule.
    """

    rule: ClassVar[Rule]
    fixed: ClassVar[Mapping[str, Any]] = {}
    bits: ClassVar[int | None] = None
    given_bits: ClassVar[int] = 32
    refusals: ClassVar[tuple[Refusal, ...]] = ()
    _policy: ClassVar[Policy]
    _step_supports_amp_scaling: ClassVar[bool] = False  # torch.amp.GradScaler asks for it
    _kept: KeptSteps
    _handle: str
    _counts: Mapping[Tensor, Count] = MappingProxyType({})
    _codecs: Mapping[Tensor, CodecRecord] = MappingProxyType({})
    _loading: Loading | None = None
    _in_backward: fused_backward.InBackward | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """A class whose rule reads `grad_scale` unscales gradients itself; for others torch.amp.GradScaler does."""
        super().__init_subclass__(**keywords)
        name_the_meant(cls)
        document(cls)
        rule: Rule | None = getattr(cls, "rule", None)
        cls._step_supports_amp_scaling = rule is not None and "grad_scale" in rule.inputs
        if rule is not None:
            checks = (fused_backward.check_settings, last_norm.check_settings)
            cls._policy = Policy(cls.__name__, rule, cls.fixed, cls.bits, cls.given_bits, cls.refusals, checks)

    def __init__(self, params: Any, settings: dict[str, Any], args: object = None) -> None:
        """Check everything, then take the parameters.

        Args:
            params: Tensors, named tensors or param groups.
            settings: Every setting of the class by name.
            args: An object whose attributes override settings.

        Raises:
            TypeError: for values and parameters of the wrong type.
            ValueError: for values out of range and combinations that the rule refuses.
        """
        settings = self._policy.of_constructor(settings, args)
        params = as_list(self._policy.name, params)
        self._kept = KeptSteps()
        super().__init__(params, settings)
        members = [param for group in self.param_groups for param in group["params"]]
        if not members:
            raise ValueError(f"{self._policy.name}: params holds no tensor; pass model.parameters()")
        check_rounding(self._policy.name, settings, members, first=True)
        self._handle = make_handle(self)
        watch_partitions()
        fused_backward.attach(self)

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked like the constructor's arguments; every setting can differ by group.

        Raises:
            TypeError: for parameters that cannot be trained, values of the wrong type, and settings of the optimizer.
            ValueError: for values out of range, unknown settings, and combinations that the rule refuses.
        """
        group = checked_group(self._policy, param_group, self.param_groups, self.defaults)
        fused_backward.check_group(self, group)
        super().add_param_group(group)
        last_norm.hand_on(self.param_groups)
        place_lr(self._policy.name, self.param_groups[-1])
        enlist(self)
        self._kept.forget()
        if "_handle" in self.__dict__:
            fused_backward.attach(self)

    def override(self, param: Tensor, **settings: Any) -> None:
        """Give one parameter settings of its own, as `override(embedding.weight, optim_bits=32)`.

        A state that is stored already is brought to its new form at the next step. Overrides are kept in the
        parameter's group and saved with it.

        Raises:
            ValueError: if the parameter is not in this optimizer, for unknown settings and values out of range.
        """
        group, merged = self.check_override(param, settings)
        group["overrides"] = merged
        self._kept.forget()
        fused_backward.attach(self)

    def check_override(self, param: Tensor, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
        """The group of a parameter, and its overrides with these settings, which are not stored yet.

        Raises:
            ValueError: as `override` does.
        """
        return with_override(self._policy, self.param_groups, param, settings, self.defaults)

    def give(self, **inputs: Mapping[Tensor, Any]) -> None:
        """Give numbers of parameters to their next step, as `give(max_logits={attention.q.weight: logits})`.

        They are kept with the states until the parameter's next step takes them; those that are given later replace
        them. `help` of a class lists what its rule takes. Of a parameter that is divided among processes each gives
        all numbers, the same.

        Args:
            inputs: By the name of an input: for each parameter a tensor, or one number.

        Raises:
            TypeError: for an input that the rule has not, and what are no numbers by parameter.
            ValueError: for a parameter that is not in this optimizer, and a tensor of another shape.
                Nothing is taken then.
        """
        given_numbers.store(self, given_numbers.checked(self, inputs))

    # A step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        With `torch.amp.GradScaler` gradients are unscaled as they are read: `param.grad` stays scaled (torch's fused
        classes write the unscaled gradients back). If they hold an Inf or NaN, nothing changes, counters included.

        Args:
            closure: Evaluates the model again and returns the loss, which a rule with an input `loss` reads.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError, RuntimeError: for gradients that are complex, sparse or of another dtype.
            ValueError: for settings, gradients and states that were changed to what does not fit.
                Nothing is changed then.
            RuntimeError: while a CUDA graph is being captured, without capturable=True.
            KeyboardInterrupt: when all parameters are stepped, for a Ctrl-C that came meanwhile.
        """
        if is_compiling():
            from optgen.runtime.hooks.compiled_step import graph_step

            return graph_step(self, closure)
        self._check_step()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._end_round()
        with closure_loss(self, self._policy.rule.inputs, loss):
            acts.run((self,), "step")
        self._kept.last_norm.end_step(self.param_groups)
        return loss

    def accumulating(self) -> AbstractContextManager[None]:
        """Context of the backward passes of a batch that comes in parts, all but the last.

        Gradients of parameters without fused_backward add up as usual. Those with it have none: their gradients go to
        the momentum, of rules that have the method `accumulate`.

        Raises:
            ValueError: as the context begins, for a rule or settings of which the step needs the gradient of the whole
                batch.
        """
        return fused_backward.accumulating((self,))

    def _run(self, block: str) -> None:
        """Run a block that is a method; outside of the graph, in a function that torch.compile compiles."""
        if is_compiling():
            from optgen.runtime.hooks.compiled_step import METHOD, OUTSIDE

            OUTSIDE[METHOD](self._handle, block)
        else:
            acts.run((self,), block)

    def engines(self) -> dict[str, int]:
        """Number of parameters that each target served at the last step, as `{"cpu": 12}`."""
        counts: dict[str, int] = {}
        for engine in self._kept.engines():
            counts[engine.target] = counts.get(engine.target, 0) + len(engine.bucket.members)
        return counts

    def state_bytes(self) -> int:
        """Bytes of all states, their scales and counters included."""
        return sum(entry_bytes(entry) for entry in self.state.values())

    def paged_bytes(self) -> int:
        """Bytes of the states among them that lie in memory which a GPU borrows from the host."""
        return sum(paged_bytes(entry) for entry in self.state.values())

    # Parts that a step, and torch's hooks around it, use

    def _check_step(self) -> None:
        check_capture(self._policy.name, self.param_groups)
        fused_backward.check_step(self)

    def _end_round(self) -> None:
        fused_backward.end_round(self)

    def _look_again(self) -> None:
        fused_backward.attach(self)

    def _update_in_backward(self, param: Tensor) -> None:
        fused_backward.update(self, param)

    # A save

    def state_dict(self) -> dict[str, Any]:
        """Return torch's `state_dict`, with an entry that says where it is from.

        The entry is `{"optgen": {"version": 1, "rule": "adam", "class": "AdamW8bit", ...}}`.

        It holds tensors and plain values alone: `torch.load(weights_only=True)` reads it. Where paged states lie in
        pinned memory, this waits until the host can read them. States of DTensor parameters are DTensors, for
        torch.distributed.checkpoint; checkpoints/shards.py tells their form.
        """
        self._wait_for_host()
        return as_checkpoint(self, super().state_dict())

    def bitsandbytes_state_dict(self) -> dict[str, Any]:
        """A checkpoint that the class of this name in bitsandbytes loads, and goes on from as this one would.

        States of the codec int8 have 8 bits there as well: the same codes, or the nearest where it has another code
        book (the second moments of its classes with one state) or other blocks. All others become float32, without
        loss. `max_unorm`, `skip_zeros` and how states are stored are arguments of its constructor, not of checkpoints.
        `load_state_dict` takes its checkpoints over.

        Raises:
            ValueError: for rules, settings and states that it does not have, naming every one.
        """
        return bitsandbytes_form.written(self)

    def __getstate__(self) -> dict[str, Any]:
        self._wait_for_host()
        codecs = {param: record for param, record in self._codecs.items() if self.state.get(param) is record.entry}
        return {**super().__getstate__(), "_counts": dict(self._counts), "_codecs": codecs}

    def _wait_for_host(self) -> None:
        wait_for_host(value for entry in self.state.values() for value in entry.values())

    # A load

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of this rule, also one with states in another precision, of torch or bitsandbytes.

        States take the dtype that this optimizer stores them in; the dtype of the parameters does not matter. How
        states are stored (bits, blocks, paging), `capturable` and what the class fixes is this optimizer's own,
        everything else the checkpoint's; lr goes where this optimizer keeps it, as a number or on a GPU. Overrides of
        the checkpoint hold where this optimizer has none of its own.

        Raises:
            TypeError, ValueError: if it does not fit, naming every difference; nothing is loaded then.
            StoredAnewWarning: if filters make this warning an error, for states in another codec or block size that
                lose something as they are re-encoded; nothing is loaded then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{type(self).__name__}: load_state_dict takes what state_dict() returned, "
                f"not a {type(state_dict).__name__}"
            )

        def capture(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            self._loading = self._fitting(saved)
            return {"state": {}, "param_groups": self._loading.groups}

        handle = self.register_load_state_dict_pre_hook(capture)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _fitting(self, saved: Mapping[str, Any]) -> Loading:
        fused_backward.check_members(self)
        return fitting(self, saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loading is not None:
            self._codecs, self._counts = self._loading.states, {}
            state["state"].update((param, record.entry) for param, record in self._codecs.items())
        super().__setstate__(state)
        if "differentiable" not in self.rule.storage:  # torch adds it, which would make it a setting
            self.defaults.pop("differentiable", None)
        self.defaults.update(self._policy.added_since(type(self), self.defaults))
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            begin_shared_states(self._policy, group, self.param_groups, self.defaults)
            place_lr(self._policy.name, group)
        if "_handle" not in self.__dict__:  # a copy
            self._handle, self._kept = make_handle(self), KeptSteps()
        enlist(self)
        self._kept.forget()
        fused_backward.attach(self)
