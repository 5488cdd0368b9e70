"""Several rules in one optimizer: each has a part, which is an optimizer of its class, and all share the param groups.

The groups of the parts are the very dicts of `param_groups`, which schedulers and users change; the key `rule` of a
group names its part. A step, a save and a load are those of the parts, done together: nothing is written before every
part has looked at all that is its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from optgen.runtime.checkpoints.load import Loading
from optgen.runtime.checkpoints.misfits import MARK, VERSION, form_errors, structure_errors
from optgen.runtime.checkpoints.save import as_checkpoint
from optgen.runtime.core.step_inputs import closure_loss
from optgen.runtime.hooks import fused_backward
from optgen.runtime.optimizer import Optimizer
from optgen.runtime.settings.param_groups import unnamed
from optgen.runtime.settings.validation import check_alike
from optgen.runtime.several.entries import KEY, Entry, Find, check_names, grouped, read_group
from optgen.runtime.several.states import States
from optgen.runtime.step import given as given_numbers
from optgen.runtime.step import run as acts
from optgen.runtime.step.last_norm import OPTION


class CombinedOptimizer(torch.optim.Optimizer):
    """Runs several rules, each over parameters of its own; `create` and `for_model` of a package make it.

    `max_grad_norm` is one number for all rules, and clips by the norm of all gradients together. What one class has and
    others have not (betas, momentum) stands in its groups alone. Beside `step`, methods that a rule has, such as
    `train()` and `eval()`, are those of the rules that have them.

    Attributes:
        parts: The optimizer of each rule, by the name of its class.
    """

    parts: dict[str, Optimizer]
    _loadings: Mapping[str, Loading] | None = None

    def __init__(self, entries: Sequence[Entry], find: Find) -> None:
        """Make the parts.

        Args:
            entries: Parameters, each with their rule and its settings; a group each.
            find: Finds a class by its name.

        Raises:
            TypeError, ValueError: as the classes do, and for a parameter that stands in two places.
        """
        self._find = find
        check_names(self._name, (entry.cls for entry in entries))
        groups, settings = grouped(entries)
        self._check_apart(groups, ())
        self.parts = {
            cls.__name__: cls([group for group in groups if group[KEY] == cls.__name__], **own)
            for cls, own in settings.items()
        }
        made = {name: iter(part.param_groups) for name, part in self.parts.items()}
        ordered = [next(made[group[KEY]]) for group in groups]
        common = set.intersection(*(set(part.defaults) for part in self.parts.values()))
        first = next(iter(self.parts.values()))
        super().__init__(ordered, {key: value for key, value in first.defaults.items() if key in common})
        self.state = States(self.parts)  # type: ignore[assignment]
        self._check_alike(self.param_groups)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tell torch.amp.GradScaler to leave unscaling to the step, if every rule does it."""
        return all(part._step_supports_amp_scaling for part in self.parts.values())

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group for the rule that its key `rule` names: one that there is, or another class of the package.

        Raises:
            TypeError, ValueError: as `create` does. Nothing is changed then.
        """
        if any(param_group is group for part in self.parts.values() for group in part.param_groups):
            self.param_groups.append(param_group)  # the constructor's, which its part has taken already
            return
        entry = read_group(self._class, param_group, {})
        check_names(self._name, (*map(type, self.parts.values()), entry.cls))
        (group,), settings = grouped([entry])
        self._check_apart([group], self.param_groups)
        part = self.parts.get(group[KEY])
        made = None if part is not None else entry.cls([group], **settings[entry.cls])
        if made is not None:
            self._check_alike([*self.param_groups, *made.param_groups])
            self.parts[group[KEY]] = part = made
        else:
            assert part is not None
            group = {**group, **settings[entry.cls]}
            self._check_alike([*self.param_groups, {**part.defaults, **group}])
            part.add_param_group(group)
        self.param_groups.append(part.param_groups[-1])

    def override(self, param: Tensor, **settings: Any) -> None:
        """Give one parameter settings of its own, as the class of its rule does.

        Raises:
            ValueError: if the parameter is not in this optimizer, for unknown settings and values out of range.
        """
        for part in self._current():
            if any(param is member for group in part.param_groups for member in group["params"]):
                part.override(param, **settings)
                return
        shape = tuple(param.shape) if isinstance(param, Tensor) else param
        raise ValueError(f"{self._name}.override: this parameter (shape {shape}) is not in the optimizer")

    def give(self, **inputs: Mapping[Tensor, Any]) -> None:
        """Give numbers of parameters to their next step, as the classes of their rules do.

        Raises:
            TypeError, ValueError: as theirs, and for a parameter that is not in this optimizer. Nothing is taken then.
        """
        parts = self._current()
        owner = {id(p): part for part in parts for group in part.param_groups for p in group["params"]}
        split: dict[Optimizer, dict[str, Any]] = {}
        for key, numbers in inputs.items():
            for param, value in numbers.items():
                split.setdefault(owner.get(id(param), parts[0]), {}).setdefault(key, {})[param] = value
        checked = [(part, given_numbers.checked(part, own)) for part, own in split.items()]
        for part, given in checked:
            given_numbers.store(part, given)

    def _class(self, name: str | type[Optimizer]) -> type[Optimizer]:
        """The class of a rule that there is, or of the package."""
        part = self.parts.get(name) if isinstance(name, str) else None
        return self._find(name) if part is None else type(part)

    def _check_apart(self, new: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> None:
        """Raise for a parameter that two groups have."""
        owner = {id(param): group[KEY] for group in known for param in group["params"]}
        for group in new:
            for param in unnamed(self._name, group["params"])["params"]:
                other = owner.setdefault(id(param), group[KEY])
                if other != group[KEY] or any(param is member for own in known for member in own["params"]):
                    raise ValueError(
                        f"{self._name}: a parameter of shape {tuple(param.shape)} is given to {other} and to "
                        f"{group[KEY]}: some parameters appear in more than one parameter group"
                    )

    def _check_alike(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise where rules differ in what is one number for the optimizer."""
        hypers = [{h.name for h in part.rule.hypers.values() if h.scope == "global"} for part in self.parts.values()]
        for key in sorted(set.intersection(*hypers)):
            check_alike(self._name, key, groups)
        if len(self.parts) > 1 and any(group.get(OPTION) and float(group["max_grad_norm"]) > 0 for group in groups):
            raise ValueError(
                f"{self._name}: {OPTION}=True clips by the norm of one rule's gradients, and here are several; leave "
                "max_grad_norm out, or clip by the norm of this step"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _current(self) -> list[Optimizer]:
        """The parts, with the groups that `param_groups` has now: other libraries exchange the list.

        Raises:
            ValueError: for a group of no rule that there is.
        """
        for number, group in enumerate(self.param_groups):
            if group.get(KEY) not in self.parts:
                raise ValueError(
                    f"{self._name}: param group {number} has {KEY}={group.get(KEY)!r}, and the rules are "
                    f"{', '.join(self.parts)}"
                )
        for name, part in self.parts.items():
            part.param_groups = [group for group in self.param_groups if group[KEY] == name]
        return [part for part in self.parts.values() if part.param_groups]

    # A step

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient, as `step` of the class of its rule does.

        Args:
            closure: Evaluates the model again and returns the loss, which rules with an input `loss` read.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError, ValueError, RuntimeError: as the classes do. No parameter has changed then.
        """
        if is_compiling():
            return _outside(self, closure)
        parts = self._current()
        self._check_alike(self.param_groups)
        loss = None
        with self._inputs(parts):
            for part in parts:
                part._check_step()
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for part in parts:
                part._end_round()
            with ExitStack() as losses:
                for part in parts:
                    losses.enter_context(closure_loss(part, part.rule.inputs, loss))
                acts.run(parts, "step")
        return loss

    def accumulating(self) -> AbstractContextManager[None]:
        """Context of the backward passes of a batch that comes in parts, all but the last, as the classes have it.

        Raises:
            ValueError: as the context begins, as theirs.
        """
        return fused_backward.accumulating(self._current())

    @contextmanager
    def _inputs(self, parts: Sequence[Optimizer]) -> Iterator[None]:
        """Hand inputs of this step, which are set on this optimizer, to the parts; what one drops is dropped here."""
        own = vars(self)
        handed = [(part, key) for part in parts for key in (*part.rule.inputs, "found_inf") if key in own]
        for part, key in handed:
            setattr(part, key, own[key])
        try:
            yield
        finally:
            for part, key in handed:
                if vars(part).pop(key, self) is self:
                    own.pop(key, None)

    def __getattr__(self, name: str) -> Any:
        """A method that rules have beside `step`: of all parts that have it."""
        parts = vars(self).get("parts", {}).values()
        having = [part for part in parts if name != "step" and name in part.rule.blocks]
        if not having:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

        def method() -> None:
            current = [part for part in self._current() if part in having]
            with self._inputs(current):
                acts.run(current, name)

        return method

    def engines(self) -> dict[str, int]:
        """Number of parameters that each target served at the last step, as `{"cpu": 12}`."""
        return dict(sum((Counter(part.engines()) for part in self.parts.values()), Counter[str]()))

    def state_bytes(self) -> int:
        """Bytes of all states, their scales and counters included."""
        return sum(part.state_bytes() for part in self.parts.values())

    def paged_bytes(self) -> int:
        """Bytes of the states among them that lie in memory which a GPU borrows from the host."""
        return sum(part.paged_bytes() for part in self.parts.values())

    # A save

    def state_dict(self) -> dict[str, Any]:
        """Return torch's `state_dict`, with an entry that says where it is from.

        The entry is `{"optgen": {"version": 1, "rules": {"AdamW": {...}, ...}}}`, for each rule that of its class. As
        in those everything else is tensors and plain values.
        """
        parts = self._current()
        for part in parts:
            part._wait_for_host()
        saved = super().state_dict()
        if form_errors(self.param_groups, saved):
            return saved
        states, groups, marks = dict(saved["state"]), list(saved["param_groups"]), {}
        for part in parts:
            name = type(part).__name__
            own = as_checkpoint(part, self._own(saved, name))
            states.update(own["state"])
            for number, group in zip(self._numbers(name), own["param_groups"], strict=True):
                groups[number] = group
            marks[name] = own[MARK]
        return {**saved, "state": states, "param_groups": groups, MARK: {"version": VERSION, "rules": marks}}

    def _numbers(self, name: str) -> list[int]:
        """The numbers of the groups of a part."""
        return [number for number, group in enumerate(self.param_groups) if group[KEY] == name]

    def _own(self, saved: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The groups of a part in a checkpoint, and their states."""
        groups = [saved["param_groups"][number] for number in self._numbers(name)]
        keys = {key for group in groups for key in group["params"]}
        return {"state": {key: entry for key, entry in saved["state"].items() if key in keys}, "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        self._current()
        kept = ("defaults", "param_groups", "parts", "_find")
        return {key: value for key, value in vars(self).items() if key in kept}

    # A load

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of the same rules for the same groups, as the classes of the rules do.

        Raises:
            TypeError, ValueError: if it does not fit, naming the differences of every rule; nothing is loaded then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{self._name}: load_state_dict takes what state_dict() returned, not a {type(state_dict).__name__}"
            )

        def capture(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            groups, self._loadings = self._fitting(saved)
            return {"state": {}, "param_groups": groups}

        handle = self.register_load_state_dict_pre_hook(capture)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loadings = None

    def _fitting(self, saved: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Loading]]:
        """Look at a checkpoint for all parts: its groups as they are taken over, and what each part takes.

        Raises:
            ValueError: if it does not fit, with what each part says.
        """
        parts = self._current()
        found = structure_errors(self.param_groups, saved)
        if found:
            raise ValueError(f"{self._name}: this checkpoint does not fit: " + "; ".join(found))
        loadings: dict[str, Loading] = {}
        groups: list[dict[str, Any]] = list(saved["param_groups"])
        for part in parts:
            name = type(part).__name__
            try:
                own = {**self._own(saved, name), **self._mark(saved, name)}
                loadings[name] = part._fitting(own)
            except (TypeError, ValueError) as error:
                found.append(str(error))
            else:
                for number, group in zip(self._numbers(name), loadings[name].groups, strict=True):
                    groups[number] = {**group, KEY: name}
        if found:
            told = " (groups and parameters are numbered within each rule)" if len(parts) > 1 else ""
            raise ValueError("\n".join(found) + told)
        self._check_alike(groups)
        return groups, loadings

    def _mark(self, saved: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The mark of the groups of a part in a checkpoint: their class, and the codecs of their states.

        Raises:
            ValueError: if it says that they are of another rule, or of several classes.
        """
        theirs = {saved["param_groups"][number].get(KEY) for number in self._numbers(name)}
        shown = ", ".join(sorted(map(str, theirs)))
        mark = saved.get(MARK)
        if mark is None:  # as torch.distributed.checkpoint leaves it out
            for other in theirs - {None, name}:
                if self._class(other).rule is not self.parts[name].rule:
                    raise ValueError(f"{name}: this checkpoint does not fit: its groups are of {shown}")
            return {}
        if not isinstance(mark, Mapping) or not isinstance(mark.get("rules"), Mapping):
            return {MARK: mark}
        if len(theirs) != 1 or not theirs <= set(mark["rules"]):
            raise ValueError(f"{name}: this checkpoint does not fit: its groups are of {shown}, here all of {name}")
        return {MARK: mark["rules"][theirs.pop()]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loadings is not None:
            for name, loading in self._loadings.items():
                part = self.parts[name]
                part._loading = loading
                try:
                    own = [group for group in state["param_groups"] if group[KEY] == name]
                    part.__setstate__({"state": defaultdict(dict), "param_groups": own})
                finally:
                    part._loading = None
            super().__setstate__({"param_groups": state["param_groups"]})
        else:
            super().__setstate__(state)
            self.state = States(self.parts)  # type: ignore[assignment]


_outside: Callable[..., float | None] = torch.compiler.disable(  # type: ignore[no-untyped-call]
    CombinedOptimizer.step, reason="several rules step together outside of graphs; leave fullgraph=True out"
)
