"""The states of a parameter: which exist, how they are stored, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optgen.codecs import CODECS, COMPENSATION, PARAMETER_CODECS, Codec
from optgen.runtime.block import Flags
from optgen.runtime.cuda.paged_memory import is_paged, wait_for_host
from optgen.runtime.dimensions import kind_dims, shape_of, spread_shape
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.stored import CodecRecord, Stored, scale_key, store
from optgen.runtime.states.torch_codecs import zeros
from optgen.runtime.states.torch_rounding import compensation_of, decode_parameter

if TYPE_CHECKING:
    from optgen.runtime.cuda.paging import Pager


def as_read(value: Tensor) -> Tensor:
    """A tensor as kernels read it, one element behind the other: itself, or a copy."""
    return value if value.is_contiguous() and not value.is_neg() else value.resolve_neg().contiguous()


def own_shape(kind: str, value: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """A copy of numbers of fewer dimensions than the parameter in the shape of their state, in float32.

    Args:
        value: A number for all of them, or one for each as equations have it (dimensions.py).
    """
    given = torch.as_tensor(value, device=device)
    if given.dim():
        given = given.expand(spread_shape(kind, shape)).reshape(shape_of(kind, shape))
    return torch.empty(shape_of(kind, shape), dtype=torch.float32, device=device).copy_(given)


def in_equations(kind: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A state as equations have it: in the rank of the parameter, if it has some of its dimensions (dimensions.py)."""
    return value.reshape(spread_shape(kind, shape)) if kind_dims(kind, len(shape)) else value


def stored_shape(state: State, shape: torch.Size) -> tuple[int, ...]:
    """The shape of the tensor that holds a state of a parameter of this shape; of a matrix, its own shape."""
    if state.kind == "shaped":
        return tuple(shape)
    return shape_of(state.kind, shape) if state.window is None else (state.window,)


KEPT_DTYPES = {torch.bfloat16: "kahan", torch.float16: "kahan", torch.int8: "split8", torch.int16: "split16"}


def settled_compensation(param: Tensor, entry: Mapping[str, Any], rounding: str) -> Tensor | None:
    """Compensation to keep beside a parameter: none, the one that is there, or that one in another form."""
    codec = PARAMETER_CODECS[rounding]
    wanted = codec.compensation_dtype(dtype_name(param.dtype))
    if not wanted:
        return None
    kept, dtype = entry.get(COMPENSATION), getattr(torch, wanted)
    if kept is None:
        return torch.zeros(param.shape, dtype=dtype, device=param.device)
    if kept.dtype is dtype:
        return as_read(kept)
    value = decode_parameter(PARAMETER_CODECS[KEPT_DTYPES[kept.dtype]], param.detach(), kept)
    return compensation_of(codec, value, param.detach())


@lru_cache(maxsize=1024)
def stored_shapes(state: State, shape: torch.Size) -> frozenset[tuple[int, ...]]:
    """The shapes that what is stored of a state can have."""
    own = stored_shape(state, shape)
    codecs = state.codecs if state.kind in ("element", "shaped") else ()
    return frozenset((own, *(CODECS[name].codes_shape(shape) for name in codecs)))


@dataclass(frozen=True)
class Placement:
    """Placement of the states of a parameter.

    Attributes:
        device: The parameter's.
        step: Device of its count of steps: the GPU if kernels advance it there, else the host.
        pager: Pager of large element states, if they are paged.
    """

    device: torch.device
    step: torch.device
    pager: Pager | None = None

    @property
    def start(self) -> torch.device:
        """Device on which initial values are made."""
        return self.device if self.pager is None else torch.device("cpu")

    def fits(self, codes: Tensor) -> bool:
        """Check whether codes lie where they belong, as kernels read them."""
        if not codes.is_contiguous() or codes.is_neg():
            return False
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
        return torch.empty_like(codes, device=self.device, memory_format=torch.contiguous_format).copy_(codes)

    def takes(self, state: State, value: Tensor) -> bool:
        """Check whether a state can be brought from where it lies: from another device it cannot."""
        if value.device == self.device or is_paged(value):
            return True
        return self.pager is not None and state.kind == "element" and value.device.type == "cpu"


@dataclass(frozen=True)
class StateChanges:
    """Changes of a parameter's entry: what it lacks, and what it no longer needs.

    Attributes:
        codecs: Of its states, as they then are.
    """

    made: Mapping[str, Tensor]
    dropped: Sequence[str]
    codecs: Mapping[str, Codec]

    def store(self, entry: dict[str, Any]) -> CodecRecord:
        """Bring the entry up to date."""
        entry.update(self.made)
        for key in self.dropped:
            del entry[key]
        return CodecRecord(entry, self.codecs)


def settle_states(
    rule: Rule,
    param: Tensor,
    entry: Mapping[str, Any],
    present: Mapping[str, Stored],
    flags: Flags,
    codecs: tuple[Codec, ...],
    rounding: str,
    view: Any,
    placement: Placement,
    lines: torch.Size | None = None,
) -> StateChanges:
    """The states that these flags ask for, and stored ones in their codec and place; `entry` is left as it is.

    Raises:
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.

    Args:
        entry: `optimizer.state[param]`, which `check_states` has looked at. What is None is made again.
        present: Its states with a number an element, as they are.
        view: Values that initial values are functions of.
        lines: The shape that numbers of rows and columns belong to, if it is not the parameter's.
    """
    lines = param.shape if lines is None else lines
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    step = entry.get("step", 0.0)
    counts = isinstance(step, Tensor) and not step.dim() and not step.is_neg() and step.device == placement.step
    if not counts or step.dtype is not torch.float32:
        count = step if isinstance(step, Tensor) else torch.full((), float(step), device=placement.step)
        made["step"] = count.detach().reshape(()).to(placement.step, torch.float32, copy=True)
    stored = {name: found.codec for name, found in present.items()}
    for state, codec in zip(rule.coded_states, codecs, strict=True):
        if not state.exists(flags):
            continue
        shape, home = param.shape, placement
        if state.dims:  # which no kernel reads
            shape, home = view.member.state_shape(state), replace(placement, pager=None)
        key, found = scale_key(state.name), present.get(state.name)
        scales = None if found is None else _flat(found.scales)
        stored[state.name] = codec
        if found is not None and found.codec == codec and home.fits(found.codes) and scales is found.scales:
            continue
        with room_for(state.name, param):
            if found is None:
                new = _initial(state, codec, shape, view, home.start)
            elif found.codec != codec:
                new = store(codec, _values(found, state, shape), state.signed)
            else:
                new = Stored(codec, found.codes, scales)
            made[state.name] = home.place(new.codes)
            if new.scales is not None:
                made[key] = new.scales.to(placement.device)
        if new.scales is None and key in entry:
            dropped.append(key)
    for state in rule.tensor_states:
        if not state.exists(flags):
            continue
        value = entry.get(state.name)
        read = _initial_line(state, param, view, lines) if value is None else as_read(value)
        if read is not value:
            made[state.name] = read
    kept = settled_compensation(param, entry, rounding)
    if kept is None and COMPENSATION in entry:
        dropped.append(COMPENSATION)
    elif kept is not None and kept is not entry.get(COMPENSATION):
        made[COMPENSATION] = kept
    return StateChanges(made, dropped, stored)


def _flat(scales: Tensor | None) -> Tensor | None:
    """Scales as kernels read them, of one dimension."""
    return scales if scales is None else as_read(scales if scales.dim() == 1 else scales.reshape(-1))


def _values(found: Stored, state: State, shape: torch.Size) -> Tensor:
    """A stored state as float32, where its codes lie."""
    wait_for_host((found.codes,))
    scales = None if found.scales is None else found.scales.to(found.codes.device)
    return Stored(found.codec, found.codes, scales).values(state.signed, shape)


NO_ROOM = (MemoryError, torch.cuda.OutOfMemoryError)


@contextmanager
def room_for(name: str, param: Tensor) -> Iterator[None]:
    """Name the state in errors about memory.

    Raises:
        torch.cuda.OutOfMemoryError: in place of whatever says that memory is short.
    """
    try:
        yield
    except NO_ROOM as error:
        raise no_room(name, param, error) from error


def no_room(name: str, param: Tensor, error: BaseException) -> torch.cuda.OutOfMemoryError:
    """Error that says for which state there was none."""
    shape = tuple(param.shape)
    return torch.cuda.OutOfMemoryError(f"out of memory for state {name!r} of a parameter of shape {shape}: {error}")


def _initial(state: State, codec: Codec, shape: torch.Size, view: Any, device: torch.device) -> Stored:
    if isinstance(state.init, float) and state.init == 0.0:
        return Stored(codec, *zeros(codec, shape, state.signed, device))
    value = state.init(view) if callable(state.init) else state.init
    full = torch.as_tensor(value, dtype=torch.float32, device=device)
    full = full.reshape(shape) if full.numel() == shape.numel() else full.expand(shape)
    return store(codec, full.contiguous(), state.signed)


def _initial_line(state: State, param: Tensor, view: Any, lines: torch.Size) -> Tensor:
    if state.window is not None:
        return torch.full((state.window,), math.inf, device=param.device)
    value = state.init(view) if callable(state.init) else state.init
    return own_shape(state.kind, value, lines, param.device)


def entry_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of all tensors of a parameter's state."""
    return sum(v.numel() * v.element_size() for v in entry.values() if isinstance(v, Tensor))


def paged_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of the tensors among them that lie in memory which a GPU borrows from the host."""
    return entry_bytes({key: value for key, value in entry.items() if is_paged(value)})
