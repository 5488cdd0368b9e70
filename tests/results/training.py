"""A training of a few steps, and the hashes of what it leaves."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numerics.harness import set_grads, targeted
from oracles.storage import DTYPES
from support.targets import require_standin
from torch import Tensor

from results.values import SHAPES, SPECIAL, make_grads, make_params

STEPS = 3
LONG = 4  # digits of the hashes that say where results differ


# Settings of all rules that came after results were written down: left out of the groups where they change nothing.
LATER = {"clip_by_last_norm": False}


@dataclass(frozen=True)
class Case:
    """A training: a class and all that decides what it computes.

    Attributes:
        name: The class, by its name in `optgen_optim`, or in what is loaded from `spec`.
        spec: A file of tests/specs, or "".
        grad_dtype: Of gradients, which may be another one than that of the parameters.
        settings: Arguments of the class.
        second: Settings of a second param group, which has every third parameter; without any there is one group.
        inputs: Inputs that are set on the optimizer before each step.
        methods: The rule's own, each called after the steps.
        beginning: The method without which the rule does not step, or "".
        set: The smallest set of cases that it is of (results/cases.py).
        special: Whether there are parameters with numbers at the ends of what their dtype holds, NaN and Inf.
    """

    name: str
    target: str
    dtype: str = "fp32"
    grad_dtype: str = "fp32"
    spec: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, float] = field(default_factory=dict)
    methods: Sequence[str] = ()
    beginning: str = ""
    special: bool = False
    set: str = "core"

    @property
    def label(self) -> str:
        """The case in a line."""
        parts = [self.name, self.target, self.dtype]
        if self.grad_dtype != self.dtype:
            parts.append(f"grad={self.grad_dtype}")
        parts += [f"{name}={value!r}" for name, value in {**self.settings, **self.inputs}.items()]
        return " ".join([*parts, "special"] if self.special else parts)


@dataclass(frozen=True)
class Result:
    """Hashes of what a training leaves, in hexadecimal digits.

    Attributes:
        whole: Of everything, 16 digits.
        steps: Of the parameters after each step or method, four digits each.
        tensors: Of each parameter with its states, four digits each, in their order.
        entries: Of all parameters, of each state and of the groups, by name.
    """

    whole: str
    steps: str
    tensors: str
    entries: Mapping[str, str]

    def difference(self, other: Result, case: Case) -> str:
        """Describe in a line where `other` is not the same."""
        said = [f"parameters from call {place + 1} on" for place in _apart(self.steps, other.steps)[:1]]
        names = [*self.entries, *(name for name in other.entries if name not in self.entries)]
        said += [name for name in names if self.entries.get(name) != other.entries.get(name)]
        places = _apart(self.tensors, other.tensors)
        if places:
            said.append("of " + ", ".join(names_of(case)[place] for place in places))
        return "; ".join(said) or "what is computed on the way"


def _apart(these: str, others: str) -> list[int]:
    """Positions of the hashes that differ, in texts of several hashes one behind the other."""
    return [at // LONG for at in range(0, len(these), LONG) if these[at : at + LONG] != others[at : at + LONG]]


def names_of(case: Case) -> list[str]:
    """The parameters of a training."""
    return [name for name in SHAPES if case.special or name not in SPECIAL]


def run(case: Case) -> Result:
    """Train, and hash everything that is left."""
    if case.target == "cuda":
        require_standin()
    names = names_of(case)
    params = make_params(names, DTYPES[case.dtype])
    groups: Any = params
    if case.second:
        groups = [{"params": [p for i, p in enumerate(params) if i % 3]}, {"params": params[::3], **case.second}]
    opt = targeted(class_of(case.name, case.spec), groups, case.target, **case.settings)
    steps = []
    turn = 0
    for call in _calls(case):
        turn += call != case.beginning
        nonfinite = case.settings.get("nonfinite") == "skip"
        set_grads(params, make_grads(names, turn, DTYPES[case.grad_dtype], nonfinite))
        for name, value in case.inputs.items():
            setattr(opt, name, value)
        getattr(opt, call)()
        steps.append(_hash(_form(param) for param in params)[:LONG])
    return _result(params, opt, "".join(steps))


def _calls(case: Case) -> list[str]:
    """The steps; then each method, and a step that reads what they leave."""
    begin = [case.beginning] if case.beginning else []
    after = [*case.methods, *begin, "step"] if case.methods else []
    return [*begin, *["step"] * STEPS, *after]


def _result(params: Sequence[Tensor], opt: torch.optim.Optimizer, steps: str) -> Result:
    saved = opt.state_dict()
    kept = {param: saved["state"].get(at, {}) for at, param in enumerate(_members(opt))}
    rows = [{name: _form(value) for name, value in {"param": param, **kept[param]}.items()} for param in params]
    named = {name: [row.get(name, b"") for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    groups = [{k: v for k, v in group.items() if k not in LATER or v != LATER[k]} for group in saved["param_groups"]]
    rest = _form({**{name: value for name, value in saved.items() if name != "state"}, "param_groups": groups})
    tensors = [_hash(name.encode() + value for name, value in row.items()) for row in rows]
    return Result(
        _hash([steps.encode(), rest, *map(str.encode, tensors)])[:16],
        steps,
        "".join(digest[:LONG] for digest in tensors),
        {name: _hash(values)[:LONG] for name, values in {**named, "groups": [rest]}.items()},
    )


def _members(opt: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order of a checkpoint's numbers."""
    return [param for group in opt.param_groups for param in group["params"]]


def class_of(name: str, spec: str = "") -> Any:
    """A class of the package that is run, or of a file of its tests/specs."""
    if not spec:
        return getattr(importlib.import_module("optgen_optim"), name)
    optgen = importlib.import_module("optgen")
    return getattr(optgen.load(Path(optgen.__file__).parents[1] / "tests" / "specs" / spec), name)


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _form(value: Any) -> bytes:
    """A value's bits, with its type, dtype and shape.

    NaN are all the same: which of two an operation hands on, and with which sign a new one comes, is not in IEEE 754,
    and compilers may swap operands.
    """
    match value:
        case torch.Tensor():
            value = value.detach()
            if value.is_floating_point():
                value = torch.where(torch.isnan(value), torch.nan, value)
            whole = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return f"{value.dtype} {tuple(value.shape)} ".encode() + whole
        case Mapping():
            return b"{" + b",".join(_form(key) + b":" + _form(value[key]) for key in sorted(value, key=str)) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(_form, value)) + b"]"
        case float():
            return b"nan" if value != value else value.hex().encode()
        case _:
            return f"{type(value).__name__} {value!r}".encode()
