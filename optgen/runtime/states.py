"""The states of a parameter: which exist, how they are stored, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import CODECS, plain_codec
from optgen.runtime.rule import Flags, Rule, Settings, State
from optgen.runtime.torch_codecs import decode, encode, zeros


def scale_key(name: str) -> str:
    """The key of a state's scales in `optimizer.state[p]`."""
    return f"{name}_absmax"


def choose_codec(state: State, settings: Settings, numel: int) -> str:
    """How a state of a parameter is stored under these settings."""
    if settings["optim_bits"] == 8 and "int8" in state.codecs and numel >= settings["min_8bit_size"]:
        return "int8" if settings["block_wise"] else "int8_tensor"
    return plain_codec(state.codecs)


def choose_codecs(rule: Rule, settings: Settings, numel: int) -> tuple[str, ...]:
    """The codec of every element state, in their order."""
    return tuple(choose_codec(state, settings, numel) for state in rule.element_states)


def tensorwise(rule: Rule, codecs: Iterable[str]) -> frozenset[str]:
    """The element states that have one scale for the whole tensor."""
    return frozenset(s.name for s, codec in zip(rule.element_states, codecs, strict=True) if CODECS[codec].block == -1)


def line_shape(kind: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape of a state with a number per row, column, matrix or tensor."""
    match kind:
        case "row":
            return tuple(shape[:-1])
        case "col":
            return (*shape[:-2], *shape[-1:])
        case "matrix":
            return tuple(shape[:-2])
        case _:
            return ()


def stored_shape(state: State, shape: torch.Size) -> tuple[int, ...]:
    """The shape of the tensor that holds a state of a parameter of this shape."""
    if state.kind == "element":
        return tuple(shape)
    return line_shape(state.kind, shape) if state.window is None else (state.window,)


def _check_stored(rule: Rule, param: Tensor, entry: Mapping[str, Any]) -> None:
    """Raise for a state that was replaced by what does not fit.

    Raises:
        TypeError, ValueError: naming the state and what is wrong.
    """
    for state in (*rule.element_states, *rule.tensor_states):
        value = entry.get(state.name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"state {state.name!r} is a {type(value).__name__}, not a tensor")
        wanted = stored_shape(state, param.shape)
        if tuple(value.shape) != wanted:
            raise ValueError(f"state {state.name!r} has shape {tuple(value.shape)}, not {wanted}")
        if value.device != param.device:
            raise ValueError(f"state {state.name!r} is on {value.device}, its parameter on {param.device}")
        if state.kind != "element" and value.dtype is not torch.float32:
            raise ValueError(f"state {state.name!r} is {value.dtype}, not torch.float32")


def stored_codec(state: State, entry: Mapping[str, Tensor], wanted: str) -> str:
    """The codec that a state has at present; one block and one scale for the tensor are the same thing."""
    codes, scales = entry[state.name], entry.get(scale_key(state.name))
    for name, codec in CODECS.items():
        if str(codes.dtype).removeprefix("torch.") != codec.storage:
            continue
        if codec.scales(codes.numel()) == (0 if scales is None else scales.numel()):
            asked = CODECS[wanted]
            alike = asked.storage == codec.storage and asked.scales(codes.numel()) == codec.scales(codes.numel())
            return wanted if alike else name
    raise ValueError(f"state {state.name!r} is {codes.dtype} with {_scales_shown(scales)}, which no codec stores")


def _scales_shown(scales: Tensor | None) -> str:
    return "no scales" if scales is None else f"{scales.numel()} scales"


def settle_states(
    rule: Rule, param: Tensor, entry: dict[str, Any], flags: Flags, codecs: tuple[str, ...], view: Any
) -> None:
    """Create the states that these flags ask for and bring stored ones to their codec.

    New values are computed first and stored last, so that nothing is half done if one fails.

    Raises:
        TypeError, ValueError: for a stored state that does not fit the parameter.

    Args:
        param: The parameter; new states lie on its device.
        entry: `optimizer.state[param]`, changed in place.
        view: What initial values are functions of.
    """
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    step = entry.get("step", 0.0)
    if not isinstance(step, Tensor) or step.dim() or step.dtype is not torch.float32 or step.device.type != "cpu":
        made["step"] = torch.tensor(float(step), dtype=torch.float32)
    _check_stored(rule, param, entry)
    for state, codec in zip(rule.element_states, codecs, strict=True):
        if not state.exists(flags):
            continue
        if state.name not in entry:
            codes, scales = _initial(state, codec, param, view)
        else:
            present = stored_codec(state, entry, codec)
            if present == codec:
                continue
            values = decode(present, entry[state.name], entry.get(scale_key(state.name)), state.signed, param.shape)
            codes, scales = encode(codec, values, state.signed)
        made[state.name] = codes
        if scales is not None:
            made[scale_key(state.name)] = scales
        elif scale_key(state.name) in entry:
            dropped.append(scale_key(state.name))
    for state in rule.tensor_states:
        if state.exists(flags) and state.name not in entry:
            made[state.name] = _initial_line(state, param, view)
    entry.update(made)
    for key in dropped:
        del entry[key]


def _initial(state: State, codec: str, param: Tensor, view: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(state.init, float) and state.init == 0.0:
        return zeros(codec, param.shape, state.signed, param.device)
    value = state.init(view) if callable(state.init) else state.init
    full = torch.as_tensor(value, dtype=torch.float32, device=param.device)
    full = full.reshape(param.shape if isinstance(value, Tensor) and value.dim() else ())
    return encode(codec, full.expand(param.shape).contiguous(), state.signed)


def _initial_line(state: State, param: Tensor, view: Any) -> Tensor:
    if state.window is not None:
        return torch.full((state.window,), math.inf, device=param.device)
    value = state.init(view) if callable(state.init) else state.init
    return torch.full(line_shape(state.kind, param.shape), float(value), dtype=torch.float32, device=param.device)


def entry_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of all tensors of a parameter's state."""
    return sum(v.numel() * v.element_size() for v in entry.values() if isinstance(v, Tensor))
