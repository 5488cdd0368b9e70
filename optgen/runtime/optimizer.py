"""The base class of all generated optimizers: param groups, states, checkpoints, overrides, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from optgen.runtime.checkpoints import bitsandbytes_form
from optgen.runtime.checkpoints.codec_record import as_checkpoint
from optgen.runtime.checkpoints.load import fitting
from optgen.runtime.checkpoints.validate import adopt_entry
from optgen.runtime.core.bucket import StaleError, as_list, check_names, check_parameter, check_twice, unnamed
from optgen.runtime.core.host_values import committed
from optgen.runtime.core.step_inputs import NO_INPUTS, Inputs, SkippedStepError, read_inputs
from optgen.runtime.cuda.graph_capture import check_capture, is_capturing, place_lr
from optgen.runtime.cuda.paged_memory import wait_for_host
from optgen.runtime.hooks.fused_backward import InBackward, attach, check_free, check_settings
from optgen.runtime.hooks.handles import make_handle
from optgen.runtime.rule import Refusal, Rule, Settings, State
from optgen.runtime.settings.documentation import document
from optgen.runtime.settings.overrides import enlist, registered, with_registered
from optgen.runtime.settings.storage import check_rounding, check_storage, settle_bits
from optgen.runtime.settings.validation import (
    SCHEDULED,
    check_agreement,
    check_fixed,
    checked,
    lock_bits,
    read_args,
    refuse_unknown,
    unscheduled,
)
from optgen.runtime.states.step_counts import Count
from optgen.runtime.states.store import entry_bytes, paged_bytes
from optgen.runtime.step.interrupts import Uninterrupted
from optgen.runtime.step.prepare import Prepared, agreed, prepare
from optgen.runtime.step.run_passes import run_passes
from optgen.runtime.step.target_choice import find_pager

# What param groups may hold beside settings: torch's own keys and those of its learning rate schedulers.
GROUP_KEYS = ("params", "param_names", "name", "overrides", *SCHEDULED)

KEPT_STEPS = 4  # sets of parameters whose engines are kept, for models in which gradients come and go


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
        refusals: What the class refuses, beside what its rule does.
    """

    rule: ClassVar[Rule]
    fixed: ClassVar[Mapping[str, Any]] = {}
    bits: ClassVar[int | None] = None
    given_bits: ClassVar[int] = 32
    refusals: ClassVar[tuple[Refusal, ...]] = ()
    _step_supports_amp_scaling: ClassVar[bool] = False  # torch.amp.GradScaler asks for it
    _kept: tuple[Prepared, ...] = ()  # the last steps' engines, newest first
    _captured: tuple[Prepared, ...] = ()  # engines of steps that graphs have recorded: replays need their memory
    _counts: Mapping[Tensor, Count] = MappingProxyType({})
    _loading: Mapping[str, Any] | None = None
    _in_backward: InBackward | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """A class whose rule reads `grad_scale` unscales gradients itself; for others torch.amp.GradScaler does."""
        super().__init_subclass__(**keywords)
        document(cls)
        rule: Rule | None = getattr(cls, "rule", None)
        cls._step_supports_amp_scaling = rule is not None and "grad_scale" in rule.inputs

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
        name = type(self).__name__
        if self.bits is not None:
            settings = lock_bits(name, self.bits, args, settings, self.given_bits)
        settings = checked(name, self.rule, {**read_args(name, args, settings), **self.fixed})
        settings = settle_bits(name, settings, self.bits)
        self._refuse(settings)
        check_storage(name, self.rule, settings)
        params = as_list(name, params)
        super().__init__(params, settings)
        members = [param for group in self.param_groups for param in group["params"]]
        if not members:
            raise ValueError(f"{name}: params holds no tensor; pass model.parameters()")
        check_rounding(name, settings, members, first=True)
        self._handle = make_handle(self)
        attach(self)

    @classmethod
    def _refuse(cls, settings: Mapping[str, Any]) -> None:
        """Raise for combinations that the rule or the class refuses."""
        cls.rule.refuse(cls.__name__, settings, (*cls.refusals, *cls.rule.refusals))
        if settings.get("fused_backward"):
            check_settings(cls.__name__, cls.rule, settings)

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked like the constructor's arguments; every setting can differ by group.

        Raises:
            TypeError: for parameters that cannot be trained, values of the wrong type, and settings of the optimizer.
            ValueError: for values out of range, unknown settings, and combinations that the rule refuses.
        """
        name = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{name}: param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"{name}: a param group needs the key 'params', its tensors; it has {list(param_group)}")
        group = {**param_group, **unnamed(name, param_group["params"])}
        members = group["params"]
        check_names(name, param_group.get("param_names"), group)
        for param in members:
            check_parameter(name, param)
        check_twice(name, members)
        if "args" in group:
            raise ValueError(
                f"{name}: args is an argument of the class, not of a param group; give its settings as keys"
            )
        for key in self.rule.inputs:
            if key in group:
                raise ValueError(f"{name}: {key} is set on the optimizer for a step, and is no key of a param group")
        refuse_unknown(name, group, [*self.defaults, *GROUP_KEYS])
        known = {key: value for key, value in group.items() if key in self.defaults}
        group.update(self._checked_part(known, "group"))
        self._refuse({**self.defaults, **group})
        check_rounding(name, {**self.defaults, **group}, members, first=False)
        check_agreement(name, self.rule, [*self.param_groups[:1], {**self.defaults, **group}])
        told = registered(members)
        if told or "overrides" in group:
            group["overrides"] = with_registered(told, group.get("overrides", {}))
            group["overrides"] = self.checked_overrides(group["overrides"], group, len(members))
        for state in self.rule.shared_states:
            if state.name not in group:
                group[state.name] = self._shared_start(state, {**self.defaults, **group})
        if group.get("fused_backward", self.defaults.get("fused_backward")):
            for param in members:
                check_free(self, param)
        super().add_param_group(group)
        place_lr(name, self.param_groups[-1])
        enlist(self)
        self._forget()
        if "_handle" in self.__dict__:
            attach(self)

    def _forget(self, only: Tensor | None = None) -> None:
        """Let go of engines: all of them, or those of a parameter that is stepped alone."""
        if only is None:
            self._kept = ()
        if self._in_backward is not None:
            self._in_backward.forget(only)

    def _checked_part(self, settings: Mapping[str, Any], part: str) -> dict[str, Any]:
        """Settings of a group or of a parameter, which may differ from the optimizer's.

        Raises:
            ValueError: for settings that are the class's or the optimizer's alone, and values out of range.
        """
        name = type(self).__name__
        check_fixed(name, self.rule, self.fixed, settings, part)
        return settle_bits(name, checked(name, self.rule, settings))

    def checked_overrides(self, overrides: Any, group: Mapping[str, Any], count: int) -> dict[int, dict[str, Any]]:
        """A group's overrides in their final form.

        Raises:
            TypeError, ValueError: for positions that the group does not have, and settings that do not fit.
        """
        name = type(self).__name__
        if not isinstance(overrides, Mapping) or not all(isinstance(own, Mapping) for own in overrides.values()):
            raise TypeError(f"{name}: overrides is a dict of settings by position in the group, not {overrides!r}")
        result = {}
        for index, own in overrides.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
                raise ValueError(f"{name}: overrides has the key {index!r}, and the group positions 0 to {count - 1}")
            result[index] = self._checked_override(own)
            self._refuse({**self.defaults, **unscheduled(group, self.defaults), **result[index]})
        return result

    def _checked_override(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        for key in settings:
            if key not in self.defaults:
                known = ", ".join(sorted(set(self.defaults) - set(self.fixed)))
                raise ValueError(f"{type(self).__name__}.override takes no {key!r}; known: {known}")
        return self._checked_part(settings, "parameter")

    def _shared_start(self, state: State, settings: Mapping[str, Any]) -> float:
        if state.kind == "global" and self.param_groups:
            return float(self.param_groups[0][state.name])
        init = state.init
        return float(init(SimpleNamespace(settings=settings)) if callable(init) else init)

    def override(self, param: Tensor, **settings: Any) -> None:
        """Give one parameter settings of its own, as `override(embedding.weight, optim_bits=32)`.

        A state that is stored already is brought to its new form at the next step. Overrides are kept in the
        parameter's group and saved with it.

        Raises:
            ValueError: if the parameter is not in this optimizer, for unknown settings and values out of range.
        """
        group, merged = self.check_override(param, settings)
        group["overrides"] = merged
        self._forget()
        attach(self)

    def check_override(self, param: Tensor, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
        """The group of a parameter, and its overrides with these settings, which are not stored yet.

        Raises:
            ValueError: as `override` does.
        """
        name = type(self).__name__
        if not isinstance(param, Tensor):
            raise TypeError(f"{name}.override: the first argument is a parameter, not {param!r}")
        settings = self._checked_override(settings)
        for group in self.param_groups:
            for index, member in enumerate(group["params"]):
                if member is param:
                    overrides = group.get("overrides", {})
                    merged = {**overrides.get(index, {}), **settings}
                    self._refuse({**unscheduled(group, self.defaults), **merged})
                    return group, {**overrides, index: merged}
        raise ValueError(f"{name}.override: this parameter (shape {tuple(param.shape)}) is not in the optimizer")

    # A step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        With `torch.amp.GradScaler` gradients are unscaled as they are read: `param.grad` stays scaled (torch's fused
        classes write the unscaled gradients back). If they hold an Inf or NaN, nothing changes, counters included.

        Args:
            closure: Evaluates the model anew and returns the loss.

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
        check_capture(type(self).__name__, self.param_groups)
        in_backward = self._in_backward
        if in_backward is not None:
            in_backward.check_scaler(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if in_backward is not None:
            in_backward.close(self)
        self._run_now("step")
        return loss

    def _run(self, block: str) -> None:
        """Run a block that is a method; outside of the graph, in a function that torch.compile compiles."""
        if is_compiling():
            from optgen.runtime.hooks.compiled_step import METHOD, OUTSIDE

            OUTSIDE[METHOD](self._handle, block)
        else:
            self._run_now(block)

    def _run_now(self, block: str, only: Tensor | None = None) -> None:
        with torch.no_grad():
            self._run_block(block, only)

    def _run_block(self, block: str, only: Tensor | None) -> None:
        """Run a block: every pass over all buckets, then what is common to groups.

        Args:
            only: A parameter that is stepped alone.
        """
        name = type(self).__name__
        declared = self.rule.blocks[block]
        for group in self.param_groups:
            self.rule.refuse(name, group, declared.refusals)
        for group in self.param_groups:
            if group.get("capturable"):
                place_lr(name, group)
        inputs = agreed(self, read_inputs(self, self.rule.inputs), self._kept) if declared.grads else NO_INPUTS
        try:
            prepared, settings = self._begin(block, inputs, only)
        except StaleError:
            self._forget(only)
            prepared, settings = self._begin(block, inputs, only)
        except SkippedStepError:
            return
        if prepared.reducer is not None:
            prepared.reducer.check()
        if not prepared.members and declared.grads:
            return
        if is_capturing():
            self._captured = (*self._captured, prepared)
        with Uninterrupted(prepared.at_once and declared.commit is None):
            values = run_passes(prepared, self.rule, block, settings)
            if declared.commit is not None:
                self._commit(declared.commit, inputs, values.numbers, prepared.elements)

    def _begin(self, block: str, inputs: Inputs, only: Tensor | None = None) -> tuple[Prepared, Sequence[Settings]]:
        """Find or build the engines of a step and start them; those of the last few sets of parameters are kept.

        Returns:
            The engines, and the settings of every row with the inputs of the step.
        """
        kept = self._kept if only is None or self._in_backward is None else self._in_backward.kept.get(id(only), ())
        prepared, grads = prepare(self, block, kept, inputs, only)
        if not kept or prepared is not kept[0]:
            others = () if prepared.replaced else (other for other in kept if other is not prepared)
            prepared.replaced = False
            kept = (prepared, *others)[:KEPT_STEPS]
            if only is None or self._in_backward is None:
                self._kept = kept
                attach(self)
            else:
                self._in_backward.kept[id(only)] = kept
        settings = prepared.settings(inputs.values)
        if prepared.sharded:
            grads = prepared.own_gradients(grads)
        for engine in prepared.engines:
            own = engine.bucket.gradients(grads) if grads else []
            engine.begin(block, self.rule.blocks[block], own, inputs)
        return prepared, settings

    def check_row(self, settings: Mapping[str, Any]) -> None:
        """Raise for settings that were changed in a group to what no kernel can serve.

        Raises:
            TypeError: for values of the wrong type.
            ValueError: for values out of range, settings that the class fixes and combinations that it refuses.
        """
        name = type(self).__name__
        checked(name, self.rule, {key: settings[key] for key in self.defaults if key in settings})
        changed = {key: settings[key] for key in self.fixed if key not in self.rule.storage}
        check_fixed(name, self.rule, self.fixed, changed, "group")
        asked = {key: settings[key] for key in ("codec", "optim_bits") if key in settings}
        if asked.get("codec", "auto") != "auto" and settle_bits(name, asked) != asked:
            raise ValueError(f"{name}: codec={asked['codec']!r} does not have optim_bits={asked['optim_bits']} bits")
        self._refuse(unscheduled(settings, self.defaults))

    def _commit(
        self, commit: Callable[..., dict[str, float]], inputs: Inputs, sums: Mapping[str, float], elements: float
    ) -> None:
        """Store group and global states; the first group decides for the optimizer."""
        rows = [{**group, **inputs.values} for group in self.param_groups]
        results = [committed(self.rule, commit, row, sums, elements) for row in rows]
        for group, result in zip(self.param_groups, results, strict=True):
            for key, value in result.items():
                shared = self.rule.states[key].kind == "global"
                group[key] = results[0][key] if shared else value

    def engines(self) -> dict[str, int]:
        """How many parameters each target served at the last step, as `{"cpu": 12}`."""
        counts: dict[str, int] = {}
        kept = [self._kept, *(self._in_backward.kept.values() if self._in_backward is not None else ())]
        for engine in [engine for steps in kept for engine in (steps[0].engines if steps else ())]:
            counts[engine.target] = counts.get(engine.target, 0) + len(engine.bucket.members)
        return counts

    def state_bytes(self) -> int:
        """Bytes of all states, their scales and counters included."""
        return sum(entry_bytes(entry) for entry in self.state.values())

    def paged_bytes(self) -> int:
        """Bytes of the states among them that lie in memory which a GPU borrows from the host."""
        return sum(paged_bytes(entry) for entry in self.state.values())

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As torch has it, and what it is of: {"optgen": {"version": 1, "rule": "adam", "class": "AdamW8bit", ...}}.

        It holds tensors and plain values alone: `torch.load(weights_only=True)` reads it. Where paged states lie in
        pinned memory, this waits until the host can read them. States of DTensor parameters are DTensors, for
        torch.distributed.checkpoint; checkpoints/row_format.py tells their form.
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
        return {**super().__getstate__(), "_counts": dict(self._counts)}

    def _wait_for_host(self) -> None:
        wait_for_host(value for entry in self.state.values() for value in entry.values())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of this rule, also one with states in another precision, of torch or bitsandbytes.

        States take the dtype that this optimizer stores them in; the dtype of the parameters does not matter. How
        states are stored (bits, blocks, paging), `capturable` and what the class fixes is this optimizer's own,
        everything else the checkpoint's; lr goes where this optimizer keeps it, as a number or on a GPU. Overrides of
        the checkpoint hold where this optimizer has none of its own.

        Raises:
            TypeError, ValueError: if it does not fit, naming every difference; nothing is loaded then.
            StoredAnewWarning: if filters make this warning an error, for states in another codec or block size that
                lose something as they are stored anew; nothing is loaded then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{type(self).__name__}: load_state_dict takes what state_dict() returned, "
                f"not a {type(state_dict).__name__}"
            )

        def capture(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            self._loading = fitting(self, saved)
            return {"state": {}, "param_groups": self._loading["param_groups"]}

        handle = self.register_load_state_dict_pre_hook(capture)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self._loading
        if loading is not None:
            self._counts = {}
            for own, group in zip(self.param_groups, loading["param_groups"], strict=True):
                overrides = group.get("overrides", {})
                for index, (param, key) in enumerate(zip(own["params"], group["params"], strict=True)):
                    if key in loading["state"]:
                        settings = {**group, **overrides.get(index, {})}
                        pager = find_pager(type(self).__name__, param, settings)
                        state["state"][param] = adopt_entry(self.rule, param, loading["state"][key], pager)
        super().__setstate__(state)
        if "differentiable" not in self.rule.storage:  # torch adds it, which would make it a setting
            self.defaults.pop("differentiable", None)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for shared in self.rule.shared_states:
                if shared.name not in group:
                    group[shared.name] = self._shared_start(shared, group)
            place_lr(type(self).__name__, group)
        if "_handle" not in self.__dict__:
            self._handle = make_handle(self)
        enlist(self)
        self._forget()
        attach(self)
