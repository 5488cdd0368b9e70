"""Checkpoints in the form of bitsandbytes' optimizers: read into ours, and written from ours.

bitsandbytes names what it keeps by number. An entry has `step`, a whole number; `state1` and, of rules with two
states, `state2`: float32, or codes of 8 bits with their code book (`qmap1`) and one scale for 256 elements
(`absmax1`). Versions differ in three ways: newer ones pack all tensors into one more dictionary, older ones have 2048
elements to a scale, or one scale for the tensor, `max1`. Its groups have `lr`, `betas`, `eps` and `weight_decay`;
everything else is an argument of the constructor that no checkpoint holds.

`FORMS` says which states and settings these are, rule by rule. Checked with bitsandbytes 0.50.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import CODECS, WHOLE_TENSOR, Codec, dynamic_map
from optgen.runtime.cuda.paged_memory import wait_for_host
from optgen.runtime.rule import Rule
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.stored import CodecRecord, Stored, scale_key, store, stored_states
from optgen.runtime.step.optimizer_like import OptimizerLike

PACKED = "__bnb_optimizer_quant_state__"  # the key of the dictionary that newer versions pack tensors into
INT8 = CODECS["int8"]
OLD_BLOCK = 2048  # elements to a scale in older versions
GROUP_OF_ONE = ("lr", "betas", "eps", "weight_decay")
GROUP_OF_TWO = (*GROUP_OF_ONE, "alpha", "t_alpha", "t_beta3")
WINDOW = "gnorm_vec"
# Everything that its versions keep of a parameter; what is not read is of no use between steps.
KNOWN = {
    "step",
    WINDOW,
    "unorm_vec",
    PACKED,
    *(f"{k}{n}" for k in ("state", "qmap", "absmax", "max", "new_max") for n in "12"),
}
BOOK_ERROR = 2.0**-20  # books are rounded as each processor's linspace does: a few units in the last of 24 bits


@dataclass(frozen=True)
class Form:
    """Form in which bitsandbytes keeps the states of one of our rules.

    Attributes:
        states: Our states by the number of theirs; two in one lie side by side, along a dimension before the others.
        same: Settings that its groups have by the same name.
        betas: The setting that `betas[0]` is, where `betas` is not one of `same`.
        does: Settings under which our rule does what theirs does, where those are not the class's defaults.
        decays: The same, of what matters only with weight decay.
        scales: Whether its class keeps a norm of the update, `unorm_vec`, of no use between steps.
    """

    states: Mapping[str, tuple[str, ...]]
    same: tuple[str, ...] = ()
    betas: str | None = None
    does: Mapping[str, Any] = field(default_factory=dict)
    decays: Mapping[str, Any] = field(default_factory=dict)
    scales: bool = False

    @property
    def group(self) -> tuple[str, ...]:
        """The keys of its groups."""
        return GROUP_OF_TWO if len(self.states) == 2 else GROUP_OF_ONE


_MOMENTS = {"1": ("exp_avg",), "2": ("exp_avg_sq",)}
_MOMENTUM = {"1": ("momentum_buffer",)}
FORMS: Mapping[str, Form] = {
    "adam": Form(_MOMENTS, ("betas", "eps"), decays={"decoupled_weight_decay": True}),
    "lamb": Form(_MOMENTS, ("betas", "eps"), does={"trust_ratio": "none"}, decays={"adam_w_mode": True}, scales=True),
    "ademamix": Form(
        {"1": ("exp_avg", "exp_avg_slow"), "2": ("exp_avg_sq",)}, ("betas", "eps", "alpha", "t_alpha", "t_beta3")
    ),
    "lion": Form({"1": ("exp_avg",)}, ("betas",)),
    "sgd": Form(_MOMENTUM, betas="momentum", decays={"decoupled_weight_decay": False}),
    "lars": Form(_MOMENTUM, betas="momentum", scales=True),
    "rmsprop": Form({"1": ("square_avg",)}, ("eps",), betas="alpha"),
    "adagrad": Form({"1": ("sum",)}, ("eps",)),
}
# Classes of its that are torch's own in all but the rule: their checkpoints have states by name.
NAMED = ("PytorchLARS",)
# Settings of which its checkpoints say nothing, since its constructor's arguments alone do.
OF_THE_CONSTRUCTOR = ("max_unorm", "skip_zeros")


def form_of(rule: Rule) -> Form | None:
    """Return the form in which bitsandbytes keeps this rule's states, or None if it has no such rule."""
    form = FORMS.get(rule.name)
    if form is None or not all(name in rule.states for names in form.states.values() for name in names):
        return None
    return form


def is_theirs(saved: Mapping[str, Any]) -> bool:
    """Check whether a checkpoint has bitsandbytes' form: by its entries, or by its groups if it has none."""
    entries = [entry for entry in saved["state"].values() if entry]
    if entries:
        return any(PACKED in entry or "state1" in entry for entry in entries)
    return bool(saved["param_groups"]) and all(
        {*GROUP_OF_ONE} <= group.keys() and group.keys() <= {*GROUP_OF_TWO, "params", "param_names", "initial_lr"}
        for group in saved["param_groups"]
    )


# Reading


def read(
    name: str, rule: Rule, groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[str]]:
    """A checkpoint of bitsandbytes in our form, and what of it does not fit, in words; others as they are.

    Codes keep their 8 bits where book and blocks are ours; otherwise they become float32, which loses nothing. What
    a checkpoint does not hold, or bitsandbytes holds and never acts on (`dampening`), stays as the groups have it.

    Args:
        name: The class, for messages.
        groups: The optimizer's groups.
        saved: As many groups and parameters, as `structure_errors` has found.
    """
    if not is_theirs(saved):
        return saved, []
    form = form_of(rule)
    if form is None:
        return saved, [f"it is one of bitsandbytes, which has nothing like {name}"]
    found: list[str] = []
    state: dict[Any, Any] = {}
    params = [param for group in groups for param in group["params"]]
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    for number, (key, param) in enumerate(zip(keys, params, strict=True)):
        entry = saved["state"].get(key)
        if entry:
            try:
                packed = entry.get(PACKED, {})
                if not isinstance(packed, Mapping):
                    raise TypeError(f"{PACKED} is a {type(packed).__name__}, not a dict of tensors")
                entry = {**entry, **packed}
                state[key] = _read_entry(rule, form, param, entry)
            except (TypeError, ValueError) as error:
                found.append(f"parameter {number}: {error}")
    pairs = zip(groups, saved["param_groups"], strict=True)
    own = [_read_group(rule, form, group, theirs) for group, theirs in pairs]
    return {**saved, "state": {**saved["state"], **state}, "param_groups": own}, found


def _read_group(rule: Rule, form: Form, own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings: those it says something of, the others as this optimizer has them."""
    result = {key: own[key] for key in (*rule.hypers, *rule.options) if key in own}
    result |= {key: value for key, value in saved.items() if key not in form.group}
    result |= {key: saved[key] for key in ("lr", "weight_decay", *form.same) if key in saved}
    if form.betas is not None and "betas" in saved:
        betas = saved["betas"]
        result[form.betas] = betas[0] if isinstance(betas, tuple | list) and betas else betas
    if result.get("weight_decay"):
        result |= form.decays
    return result


def _read_entry(rule: Rule, form: Form, param: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state; quantized ones as `Stored`.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    result: dict[str, Any] = {"step": entry.get("step", 0)}
    strangers = [str(key) for key, value in entry.items() if key not in KNOWN and value is not None]
    if strangers:
        raise ValueError(f"bitsandbytes keeps no {', '.join(strangers)}")
    if "state2" in entry and "2" not in form.states:
        raise ValueError(f"state2 is not a state of {rule.name}, which has one")
    for number, names in form.states.items():
        key = f"state{number}"
        if key not in entry:
            raise ValueError(f"{key} missing, there is {', '.join(map(str, entry))}")
        codes = _tensor(entry, key)
        shape = tuple(param.shape) if len(names) == 1 else (len(names), *param.shape)
        if tuple(codes.shape) != shape:
            raise ValueError(f"{key} has shape {tuple(codes.shape)}, not {shape}")
        whole = [codes] if len(names) == 1 else list(codes.unbind())
        if codes.dtype is not torch.uint8:
            if not codes.is_floating_point():
                raise ValueError(f"{key} has dtype {dtype_name(codes.dtype)}")
            beside = [name for name in (f"qmap{number}", f"absmax{number}") if entry.get(name) is not None]
            if beside:
                raise ValueError(f"{key} has dtype {dtype_name(codes.dtype)}, and {beside[0]} is for codes of 8 bits")
            result |= dict(zip(names, whole, strict=True))
            continue
        for row, name in enumerate(names):
            result[name] = _read_codes(rule.states[name].signed, number, row, len(names), whole[row], entry)
    if isinstance(entry.get(WINDOW), Tensor) and WINDOW in rule.states:
        result[WINDOW] = entry[WINDOW]
    return result


def _read_codes(signed: bool, number: str, row: int, rows: int, codes: Tensor, entry: Mapping[str, Any]) -> Stored:
    """A state of 8 bits: its codes and scales if they mean here what they mean there; else its values."""
    book = _floats(entry, f"qmap{number}").float().cpu()
    if tuple(book.shape) != (256,):
        raise ValueError(f"qmap{number} has shape {tuple(book.shape)}, not (256,)")
    if not book.isfinite().all():
        raise ValueError(f"qmap{number} has numbers that are not finite")
    codec, scales = _scales(number, rows, codes.numel(), entry)
    scales = scales.float().reshape(rows, -1)[row]
    same = bool(((book - _book(signed)).abs() <= BOOK_ERROR * book.abs()).all())
    if same and codec.block != OLD_BLOCK:
        return Stored(codec, codes, scales)
    units = book.to(codes.device)[codes.reshape(-1).long()]
    width = codec.block if codec.block > 0 else max(codes.numel(), 1)
    values = units * scales.to(codes.device).repeat_interleave(width)[: codes.numel()]
    was = str(codec) if same else f"{codec} with another code book"
    return Stored(CODECS["fp32"], values.reshape(codes.shape), was=was)


def _scales(number: str, rows: int, numel: int, entry: Mapping[str, Any]) -> tuple[Codec, Tensor]:
    """The scales of a state, and how many elements each has."""
    if f"absmax{number}" not in entry and f"max{number}" in entry:
        codec, scales = INT8.with_block(WHOLE_TENSOR), _floats(entry, f"max{number}")
        if scales.numel() == rows:
            return codec, scales
        raise ValueError(f"max{number} has {scales.numel()} scales, not {rows}")
    scales = _floats(entry, f"absmax{number}")
    for block in (INT8.block, OLD_BLOCK):
        codec = INT8.with_block(block)
        if scales.numel() == rows * codec.scales(numel):
            return codec, scales
    raise ValueError(
        f"absmax{number} has {scales.numel()} scales, not {rows * INT8.scales(numel)}, one for {INT8.block} elements"
    )


def _tensor(entry: Mapping[str, Any], key: str) -> Tensor:
    value = entry.get(key)
    if not isinstance(value, Tensor):
        raise TypeError(f"{key} is {'missing' if value is None else f'a {type(value).__name__}, not a tensor'}")
    return value


def _floats(entry: Mapping[str, Any], key: str) -> Tensor:
    value = _tensor(entry, key)
    if not value.is_floating_point():
        raise ValueError(f"{key} has dtype {dtype_name(value.dtype)}")
    return value


def _book(signed: bool) -> Tensor:
    return torch.tensor(dynamic_map(signed), dtype=torch.float32)


# Writing


def written(optimizer: OptimizerLike) -> dict[str, Any]:
    """An optimizer's checkpoint in bitsandbytes' form; see `Optimizer.bitsandbytes_state_dict`.

    Raises:
        ValueError: naming everything that bitsandbytes cannot take over.
    """
    name, form = optimizer._policy.name, form_of(optimizer._policy.rule)
    if name in NAMED:
        raise ValueError(f"{name}: the class of this name in bitsandbytes loads what state_dict() returns")
    if form is None:
        raise ValueError(f"{name}: bitsandbytes has no such rule; its checkpoints are of {', '.join(sorted(FORMS))}")
    found = [line for number, group in enumerate(optimizer.param_groups) for line in _foreign(optimizer, number, group)]
    state, groups, books = {}, [], {signed: _book(signed) for signed in (True, False)}
    number = 0
    for group in optimizer.param_groups:
        first = number
        for param in group["params"]:
            entry = optimizer.state.get(param)
            if entry:
                found += _lost(form, number, entry)
                if not found:
                    record = optimizer._codecs.get(param)
                    state[number] = _written_entry(optimizer._policy.rule, form, param, entry, record, books)
            number += 1
        groups.append(_written_group(optimizer, form, group, range(first, number)))
    if found:
        raise ValueError(f"{name}: bitsandbytes cannot continue from this: {'; '.join(found)}")
    return {"state": state, "param_groups": groups}


def _foreign(optimizer: OptimizerLike, number: int, group: Mapping[str, Any]) -> Iterable[str]:
    """Settings of a group that bitsandbytes does not have, in words."""
    rule, form = optimizer._policy.rule, FORMS[optimizer._policy.rule.name]
    signature = inspect.signature(type(optimizer)).parameters
    written_keys = {"lr", "weight_decay", *form.same, form.betas, *OF_THE_CONSTRUCTOR}
    for key in (*rule.hypers, *rule.options):
        if key in written_keys or key not in group:
            continue
        if key in form.decays:
            wanted = form.decays[key] if group["weight_decay"] else group[key]
        elif key in form.does:
            wanted = form.does[key]
        else:
            wanted = signature[key].default if key in signature else group[key]
        if group[key] != wanted:
            yield f"group {number} has {key}={group[key]!r}, and it knows {key}={wanted!r} alone"
    for index, own in group.get("overrides", {}).items():
        lost = [key for key in own if key not in rule.storage]
        if lost:
            yield f"parameter {index} of group {number} has {', '.join(lost)} of its own, which its checkpoints lack"


def _lost(form: Form, number: int, entry: Mapping[str, Any]) -> Iterable[str]:
    """States of a parameter that bitsandbytes does not have, and ones that it needs, in words."""
    names = [name for names in form.states.values() for name in names]
    known = {"step", WINDOW, *names, *map(scale_key, names)}
    extra = [str(key) for key in entry if key not in known]
    if extra:
        yield f"parameter {number} has {', '.join(extra)}, which it has no place for"
    missing = [name for name in names if name not in entry]
    if missing:
        yield f"parameter {number} has no {', '.join(missing)}"


def _written_group(optimizer: OptimizerLike, form: Form, group: Mapping[str, Any], numbers: range) -> dict[str, Any]:
    ours = (*optimizer.defaults, "overrides", "params")
    result: dict[str, Any] = {key: value for key, value in group.items() if key not in ours}
    result |= {"eps": 0.0, "betas": (0.0, 0.0)}
    if "alpha" in form.group:
        result |= {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
    result |= {key: _number(group[key]) for key in ("lr", "weight_decay", *form.same)}
    if form.betas is not None:
        result["betas"] = (_number(group[form.betas]), 0.0)
    return {**result, "params": list(numbers)}


def _number(value: Any) -> Any:
    """A setting as plain numbers: tensors of one element by their value."""
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    return float(value) if isinstance(value, Tensor) else value


def _written_entry(
    rule: Rule,
    form: Form,
    param: Tensor,
    entry: Mapping[str, Any],
    record: CodecRecord | None,
    books: Mapping[bool, Tensor],
) -> dict[str, Any]:
    """A parameter's state: 8-bit dynamic codes in blocks of 256 with its books, everything else in float32."""
    wait_for_host(entry.values())
    result: dict[str, Any] = {"step": int(entry["step"])}
    for number, names in form.states.items():
        signed = number == "1"  # the first state's book has a sign, whatever the state is
        states = [(rule.states[name], INT8) for name in names]
        stored = stored_states(states, entry, [param.shape] * len(states), record)
        eight = all(each.codec.name == INT8.name for each in stored.values())
        parts = []
        for name, own in stored.items():
            if own.codec != INT8 or rule.states[name].signed != signed:
                values = own.values(rule.states[name].signed, param.shape)
                own = store(INT8, values, signed) if eight else Stored(CODECS["fp32"], values)
            parts.append(own)
        whole, scales = [each.codes for each in parts], [each.scales for each in parts if each.scales is not None]
        result[f"state{number}"] = whole[0].clone() if len(names) == 1 else torch.stack(whole)
        if scales:
            result[f"qmap{number}"] = books[signed].to(param.device)
            result[f"absmax{number}"] = scales[0].clone() if len(names) == 1 else torch.stack(scales)
    if form.scales:
        result["unorm_vec"] = torch.zeros(1, device=param.device)
    return result
