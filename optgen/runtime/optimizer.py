"""The base class of all generated optimizers: param groups, states, checkpoints, overrides, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from optgen.runtime.checkpoints import adopt_entry, keep_placement, misfits
from optgen.runtime.engines import Prepared, prepare
from optgen.runtime.parameters import check_parameter
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings import checked, read_args, refuse_unknown
from optgen.runtime.states import entry_bytes

# What param groups may hold beside settings: torch's own keys and those of its learning rate schedulers.
GROUP_KEYS = ("params", "param_names", "name", "overrides", "initial_lr", "base_momentum", "max_momentum", "swa_lr")


class Optimizer(torch.optim.Optimizer):
    """Runs a rule over parameters of float32, bfloat16 or float16, on any device.

    All arithmetic is float32, and every stored number is rounded once. States keep the dtype that the rule gives them,
    whatever the dtype of the parameter.

    Attributes:
        rule: The rule, as its module declares it.
        fixed: Settings that the class fixes.
        bits: Bits that the class stores its states in, or None if the user says.
    """

    rule: ClassVar[Rule]
    fixed: ClassVar[Mapping[str, Any]] = {}
    bits: ClassVar[int | None] = None
    _prepared: Prepared | None = None
    _loading: Mapping[str, Any] | None = None

    def __init__(self, params: Any, settings: dict[str, Any], args: object = None) -> None:
        """Check everything, then take the parameters.

        Args:
            params: Tensors, named tensors or param groups.
            settings: Every setting of the class by name.
            args: An object whose attributes override settings.

        Raises:
            TypeError: for values and parameters of the wrong type.
            ValueError: for values out of range and combinations that the rule rejects.
        """
        name = type(self).__name__
        settings = self._lock_bits(read_args(name, args, settings), args)
        settings = checked(name, self.rule, {**settings, **self.fixed})
        self._refuse(settings)
        params = _as_list(name, params)
        super().__init__(params, settings)

    @classmethod
    def _lock_bits(cls, settings: dict[str, Any], args: object) -> dict[str, Any]:
        """A class that fixes the bits takes `optim_bits` for compatibility only."""
        if cls.bits is None:
            return settings
        given = settings.get("optim_bits", 32)
        from_args = hasattr(args, "optim_bits")
        if given != 32 and not (from_args and given == cls.bits):
            raise ValueError(f"{cls.__name__} only supports optim_bits=32 (default value for compatibility)")
        if from_args and given != cls.bits and cls.bits != 32:
            message = f"its states are in {cls.bits} bits, which args.optim_bits={given} conflicts with"
            raise ValueError(f"{cls.__name__} only supports optim_bits=32 (default value for compatibility): {message}")
        return {**settings, "optim_bits": cls.bits}

    @classmethod
    def _refuse(cls, settings: Mapping[str, Any]) -> None:
        """Raise for combinations that the rule or the class rejects; classes add their own."""
        if cls.rule.refuse is not None:
            cls.rule.refuse(cls.__name__, settings)

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked like the constructor's arguments; every setting can differ by group.

        Raises:
            TypeError: for parameters that cannot be trained, values of the wrong type, and settings of the optimizer.
            ValueError: for values out of range, unknown settings, and combinations that the rule rejects.
        """
        name = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{name}: a param group is a dict, not {type(param_group).__name__}")
        for param in _tensors(param_group.get("params", ())):
            check_parameter(name, param)
        known = {key: value for key, value in param_group.items() if key in self.defaults}
        refuse_unknown(name, param_group, [*self.defaults, *GROUP_KEYS])
        for key in known:
            hyper = self.rule.hypers.get(key)
            if hyper is not None and hyper.scope == "global":
                raise ValueError(f"{name}: {key} is one number for the optimizer and cannot differ by group")
        known = checked(name, self.rule, known)
        self._refuse({**self.defaults, **known})
        group = {**param_group, **known}
        for state in self.rule.shared_states:
            if state.name not in group:
                group[state.name] = self._shared_start(state, {**self.defaults, **group})
        super().add_param_group(group)
        self._prepared = None

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
        name = type(self).__name__
        for key in settings:
            hyper = self.rule.hypers.get(key)
            if key not in self.defaults or key in self.fixed and key not in self.rule.storage:
                known = ", ".join(sorted(set(self.defaults) - set(self.fixed)))
                raise ValueError(f"{name}.override takes no {key!r}; known: {known}")
            if hyper is not None and hyper.scope == "global":
                raise ValueError(f"{name}: {key} is one number for the optimizer and cannot differ by parameter")
        settings = checked(name, self.rule, settings)
        for group in self.param_groups:
            for index, member in enumerate(group["params"]):
                if member is param:
                    overrides = group.get("overrides", {})
                    merged = {**overrides.get(index, {}), **settings}
                    self._refuse({**group, **merged})
                    group["overrides"] = {**overrides, index: merged}
                    self._prepared = None
                    return
        raise ValueError(f"{name}.override: this parameter (shape {tuple(param.shape)}) is not in the optimizer")

    # A step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: Evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError, RuntimeError: for gradients that are complex, sparse or of another dtype; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run("step")
        return loss

    @torch.no_grad()
    def _run(self, block: str) -> None:
        """Run a block: every pass over all buckets, then what is common to groups."""
        name = type(self).__name__
        declared = self.rule.blocks[block]
        if declared.refuse is not None:
            for group in self.param_groups:
                declared.refuse(name, group)
        prepared = prepare(self, block, self._prepared)
        self._prepared = prepared
        if not prepared.members and block == "step":
            return
        settings = prepared.settings()
        sums: dict[str, float] = {}
        for engine in prepared.engines:
            engine.begin(block, declared)
        values = [declared.values(row, sums, prepared.elements) for row in settings]
        for index, item in enumerate(declared.passes):
            running = [engine for engine in prepared.engines if item.live(engine.bucket.flags)]
            for engine in running:
                engine.run(declared, index, values)
            new = prepared.sums(declared, item, running)
            if new:
                sums.update(new)
                values = [declared.values(row, sums, prepared.elements) for row in settings]
        for engine in prepared.engines:
            engine.finish(block)
        if declared.commit is not None:
            self._commit(declared.commit, sums, prepared.elements)

    def _commit(self, commit: Callable[..., dict[str, float]], sums: Mapping[str, float], elements: float) -> None:
        """Store group and global states; the first group decides for the optimizer."""
        results = [commit(group, sums, elements) for group in self.param_groups]
        for group, result in zip(self.param_groups, results, strict=True):
            for key, value in result.items():
                shared = self.rule.states[key].kind == "global"
                group[key] = results[0][key] if shared else value

    def engines(self) -> dict[str, int]:
        """How many parameters each target served at the last step, as `{"cpu": 12}`."""
        counts: dict[str, int] = {}
        for engine in self._prepared.engines if self._prepared else ():
            counts[engine.target] = counts.get(engine.target, 0) + len(engine.bucket.members)
        return counts

    def state_bytes(self) -> int:
        """Bytes of all states, their scales and counters included."""
        return sum(entry_bytes(entry) for entry in self.state.values())

    # Checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of this rule, also one with states in another precision.

        States keep the dtype that this optimizer stores them in; the dtype of the parameters does not matter. How
        states are stored (bits, blocks, paging, overrides) is this optimizer's own, everything else the checkpoint's.

        Raises:
            ValueError: if it does not fit, naming every difference; nothing is loaded then.
        """

        def capture(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            self._loading = self._fitting(saved)
            return {**saved, "state": {}}

        handle = self.register_load_state_dict_pre_hook(capture)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _fitting(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """The saved states by parameter.

        Raises:
            ValueError: if one does not fit.
        """
        groups = saved["param_groups"]
        params = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in groups for key in group["params"]]
        found = []
        if len(keys) == len(params):
            for number, (key, param) in enumerate(zip(keys, params, strict=True)):
                found += misfits(self.rule, f"parameter {number}", param, saved["state"].get(key, {}))
        if found:
            raise ValueError(f"{type(self).__name__}: this checkpoint does not fit: " + "; ".join(found))
        return saved

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self._loading
        if loading is not None:
            for group, loaded in zip(self.param_groups, state["param_groups"], strict=True):
                keep_placement(self.rule, group, loaded)
            params = [p for group in self.param_groups for p in group["params"]]
            keys = [key for group in loading["param_groups"] for key in group["params"]]
            for key, param in zip(keys, params, strict=True):
                if key in loading["state"]:
                    state["state"][param] = adopt_entry(self.rule, param, loading["state"][key])
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for shared in self.rule.shared_states:
                if shared.name not in group:
                    group[shared.name] = self._shared_start(shared, group)
        self._prepared = None


def _as_list(name: str, params: Any) -> list[Any]:
    if isinstance(params, Tensor):
        raise TypeError(f"{name}: params is an iterable of tensors or param groups, not a single tensor; write [param]")
    try:
        result = list(params)
    except TypeError:
        raise TypeError(f"{name}: params is an iterable of tensors or param groups, not {params!r}") from None
    if not result:
        raise ValueError(f"{name}: params is an empty list; pass model.parameters()")
    return result


def _tensors(params: Any) -> Iterable[Any]:
    if isinstance(params, Tensor):
        return [params]
    if not isinstance(params, list):
        return []
    return [cast(Any, p[1] if isinstance(p, tuple) else p) for p in params]
