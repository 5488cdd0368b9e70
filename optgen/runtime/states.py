"""The states of a parameter: which exist, how they are stored, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import CODECS, plain_codec
from optgen.runtime.paging import Pager, is_paged, wait_for_host
from optgen.runtime.rule import Flags, Rule, Settings, State
from optgen.runtime.torch_codecs import decode, encode, zeros


def scale_key(name: str) -> str:
    """The key of a state's scales in `optimizer.state[p]`."""
    return f"{name}_absmax"


def choose_codec(state: State, settings: Settings, numel: int) -> str:
    """How a state of a parameter is stored under these settings."""
    if settings.get("optim_bits") == 8 and "int8" in state.codecs and numel >= settings["min_8bit_size"]:
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


def _check_stored(rule: Rule, param: Tensor, entry: Mapping[str, Any], placement: Placement) -> None:
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
        if not placement.takes(state, value):
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


@dataclass(frozen=True)
class Placement:
    """Where the states of a parameter lie.

    Attributes:
        device: The parameter's.
        step: Where its count of steps lies: on the GPU if kernels advance it there, else on the host.
        pager: What holds large element states, if they are paged.
    """

    device: torch.device
    step: torch.device
    pager: Pager | None = None

    @property
    def start(self) -> torch.device:
        """Where initial values are made."""
        return self.device if self.pager is None else torch.device("cpu")

    def fits(self, codes: Tensor) -> bool:
        """Whether codes lie where they belong."""
        if self.pager is not None:
            return self.pager.holds(codes)
        return codes.device == self.device and not is_paged(codes)

    def place(self, codes: Tensor) -> Tensor:
        """Codes where they belong: themselves, or a copy.

        Raises:
            torch.cuda.OutOfMemoryError: if there is no room.
        """
        if self.fits(codes):
            return codes
        wait_for_host((codes,))
        if self.pager is not None:
            return self.pager.copy(codes)
        return torch.empty_like(codes, device=self.device).copy_(codes)

    def takes(self, state: State, value: Tensor) -> bool:
        """Whether a state can be brought from where it lies: from another device it cannot."""
        if value.device == self.device or is_paged(value):
            return True
        return self.pager is not None and state.kind == "element" and value.device.type == "cpu"


@dataclass(frozen=True)
class Settled:
    """What a parameter's entry lacks, and what it no longer needs."""

    made: Mapping[str, Tensor]
    dropped: Sequence[str]

    def store(self, entry: dict[str, Any]) -> None:
        """Bring the entry up to date."""
        entry.update(self.made)
        for key in self.dropped:
            del entry[key]


def settle_states(
    rule: Rule,
    param: Tensor,
    entry: Mapping[str, Any],
    flags: Flags,
    codecs: tuple[str, ...],
    view: Any,
    placement: Placement,
) -> Settled:
    """The states that these flags ask for, and stored ones in their codec and place; `entry` is left as it is.

    Raises:
        TypeError, ValueError: for a stored state that does not fit the parameter.
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.

    Args:
        entry: `optimizer.state[param]`.
        view: What initial values are functions of.
    """
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    step = entry.get("step", 0.0)
    if not isinstance(step, Tensor) or step.dim() or step.dtype is not torch.float32 or step.device != placement.step:
        count = step if isinstance(step, Tensor) else torch.tensor(float(step), device=placement.step)
        made["step"] = count.detach().reshape(()).to(placement.step, torch.float32, copy=True)
    _check_stored(rule, param, entry, placement)
    for state, codec in zip(rule.element_states, codecs, strict=True):
        if not state.exists(flags):
            continue
        present = stored_codec(state, entry, codec) if state.name in entry else None
        if present == codec and placement.fits(entry[state.name]):
            continue
        with room_for(state.name, param):
            if present is None:
                codes, scales = _initial(state, codec, param, view, placement.start)
            elif present == codec:
                codes, scales = entry[state.name], entry.get(scale_key(state.name))
            else:
                codes, scales = encode(codec, _values(present, state, param, entry), state.signed)
            made[state.name] = placement.place(codes)
            if scales is not None:
                made[scale_key(state.name)] = scales.to(placement.device)
        if scales is None and scale_key(state.name) in entry:
            dropped.append(scale_key(state.name))
    for state in rule.tensor_states:
        if state.exists(flags) and state.name not in entry:
            made[state.name] = _initial_line(state, param, view)
    return Settled(made, dropped)


def _values(present: str, state: State, param: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """A stored state as float32, where its codes lie."""
    codes, scales = entry[state.name], entry.get(scale_key(state.name))
    wait_for_host((codes,))
    return decode(present, codes, None if scales is None else scales.to(codes.device), state.signed, param.shape)


@contextmanager
def room_for(name: str, param: Tensor) -> Iterator[None]:
    """Say which state there is no room for.

    Raises:
        torch.cuda.OutOfMemoryError: in place of whatever says that memory is short.
    """
    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        message = f"out of memory for state {name!r} of a parameter of shape {tuple(param.shape)}: {error}"
        raise torch.cuda.OutOfMemoryError(message) from error


def _initial(state: State, codec: str, param: Tensor, view: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
    if isinstance(state.init, float) and state.init == 0.0:
        return zeros(codec, param.shape, state.signed, device)
    value = state.init(view) if callable(state.init) else state.init
    full = torch.as_tensor(value, dtype=torch.float32, device=device)
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


def paged_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of the tensors among them that lie in memory which a GPU borrows from the host."""
    return entry_bytes({key: value for key, value in entry.items() if is_paged(value)})
