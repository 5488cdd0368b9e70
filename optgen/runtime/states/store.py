"""The states of a parameter: which exist, how they are stored, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optgen.codecs import (
    BLOCK_SIZES,
    CODECS,
    COMPENSATION,
    PARAMETER_CODECS,
    WHOLE_TENSOR,
    Codec,
)
from optgen.runtime.block import Flags
from optgen.runtime.cuda.paged_memory import is_paged, wait_for_host
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.torch_codecs import decode, encode, zeros
from optgen.runtime.states.torch_rounding import compensation_of, decode_parameter

if TYPE_CHECKING:
    from optgen.runtime.cuda.paging import Pager


def as_read(value: Tensor) -> Tensor:
    """A tensor as kernels read it, one element behind the other: itself, or a copy."""
    return value if value.is_contiguous() and not value.is_neg() else value.resolve_neg().contiguous()


def scale_key(name: str) -> str:
    """The key of a state's scales in `optimizer.state[p]`."""
    return f"{name}_absmax"


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


def own_shape(kind: str, value: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """A copy of numbers per row, column, matrix or tensor in the shape of their state, in float32.

    Args:
        value: A number for all of them, or one for each as equations have it: rows as (..., rows, 1), columns as
            (..., 1, cols), matrices as (..., 1, 1).
    """
    given = torch.as_tensor(value, device=device)
    if given.dim():
        kept = {"row": (*shape[:-1], 1), "col": (*shape[:-2], 1, shape[-1]), "matrix": (*shape[:-2], 1, 1)}[kind]
        given = given.expand(kept).reshape(line_shape(kind, shape))
    return torch.empty(line_shape(kind, shape), dtype=torch.float32, device=device).copy_(given)


def stored_shape(state: State, shape: torch.Size) -> tuple[int, ...]:
    """The shape of the tensor that holds a state of a parameter of this shape."""
    if state.kind == "element":
        return tuple(shape)
    return line_shape(state.kind, shape) if state.window is None else (state.window,)


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


def stored_shapes(state: State, shape: torch.Size) -> set[tuple[int, ...]]:
    """The shapes that what is stored of a state can have."""
    own = stored_shape(state, shape)
    return {own} if state.kind != "element" else {own, *(CODECS[name].codes_shape(shape) for name in state.codecs)}


def stored_codec(
    state: State, codes: Tensor, scales: Tensor | None, shape: torch.Size, wanted: Codec | None = None
) -> Codec:
    """The codec that a state has at present: dtypes and shapes tell it.

    Args:
        wanted: Where it looks the same as another one (one block, and one scale for the tensor), this one.

    Raises:
        ValueError: if no codec stores such tensors.
    """
    numel, count = shape.numel(), 0 if scales is None else scales.numel()
    if wanted is not None and has_form(wanted, codes, shape, count):
        return wanted
    for codec in CODECS.values():
        if dtype_name(codes.dtype) != codec.storage or tuple(codes.shape) != codec.codes_shape(shape):
            continue
        blocks = [codec.block, *BLOCK_SIZES, WHOLE_TENSOR] if codec.scaled else [0]
        forms = map(codec.with_block, blocks)
        found = next((form for form in forms if form.scales(numel) == count), None)
        if found is not None and codec.takes(numel):
            return found
    right = _would_fit(state, codes, shape)
    raise ValueError(f"state {state.name!r} is {stored_shown(codes, scales)}, which no codec stores: {right}")


def has_form(codec: Codec, codes: Tensor, shape: torch.Size, scales: int) -> bool:
    """Check whether codes, with this number of scales, look as this codec stores a state of this shape."""
    same = dtype_name(codes.dtype) == codec.storage and tuple(codes.shape) == codec.codes_shape(shape)
    return same and codec.scales(shape.numel()) == scales


def stored_shown(codes: Tensor, scales: Tensor | None) -> str:
    """Describe in words how a state is stored."""
    count = "no scales" if scales is None else f"{scales.numel()} scales"
    return f"{dtype_name(codes.dtype)} of shape {tuple(codes.shape)} with {count}"


def _would_fit(state: State, codes: Tensor, shape: torch.Size) -> str:
    """Describe what would fit: scales of codecs that have such codes, or codes of those that the state takes."""
    numel = shape.numel()
    alike = [
        codec
        for codec in CODECS.values()
        if dtype_name(codes.dtype) == codec.storage and tuple(codes.shape) == codec.codes_shape(shape)
    ]
    if not alike:
        return f"it is {' or '.join(CODECS[name].storage + f' ({name})' for name in state.codecs)}"
    forms = []
    for codec in alike:
        counts = [f"{codec.with_block(block).scales(numel)} in blocks of {block}" for block in reversed(BLOCK_SIZES)]
        forms.append(f"{codec.name} has {', '.join(counts)}, or 1" if codec.scaled else f"{codec.name} has none")
    return "; ".join(forms)


@dataclass(frozen=True)
class Placement:
    """Placement of the states of a parameter.

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
    """Changes of a parameter's entry: what it lacks, and what it no longer needs."""

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
    codecs: tuple[Codec, ...],
    rounding: str,
    view: Any,
    placement: Placement,
    lines: torch.Size | None = None,
) -> StateChanges:
    """The states that these flags ask for, and stored ones in their codec and place; `entry` is left as it is.

    Raises:
        ValueError: for a stored state that no codec of the rule stores.
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.

    Args:
        entry: `optimizer.state[param]`, which `check_states` has looked at. What is None is made anew.
        view: What initial values are functions of.
        lines: The shape that numbers of rows and columns belong to, if it is not the parameter's.
    """
    lines = param.shape if lines is None else lines
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    step = entry.get("step", 0.0)
    counts = isinstance(step, Tensor) and not step.dim() and not step.is_neg() and step.device == placement.step
    if not counts or step.dtype is not torch.float32:
        count = step if isinstance(step, Tensor) else torch.tensor(float(step), device=placement.step)
        made["step"] = count.detach().reshape(()).to(placement.step, torch.float32, copy=True)
    for state, codec in zip(rule.element_states, codecs, strict=True):
        if not state.exists(flags):
            continue
        key = scale_key(state.name)
        codes, scales = entry.get(state.name), _flat(entry.get(key))
        present = None if codes is None else stored_codec(state, codes, scales, param.shape, codec)
        if codes is not None and present == codec and placement.fits(codes) and scales is entry.get(key):
            continue
        with room_for(state.name, param):
            if codes is None or present is None:
                codes, scales = _initial(state, codec, param, view, placement.start)
            elif present != codec:
                codes, scales = encode(codec, _values(present, state, param, codes, scales), state.signed)
            made[state.name] = placement.place(codes)
            if scales is not None:
                made[key] = scales.to(placement.device)
        if scales is None and key in entry:
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
    return StateChanges(made, dropped)


def _flat(scales: Tensor | None) -> Tensor | None:
    """Scales as kernels read them, of one dimension."""
    return scales if scales is None else as_read(scales if scales.dim() == 1 else scales.reshape(-1))


def _values(present: Codec, state: State, param: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    """A stored state as float32, where its codes lie."""
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


def _initial(
    state: State, codec: Codec, param: Tensor, view: Any, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    if isinstance(state.init, float) and state.init == 0.0:
        return zeros(codec, param.shape, state.signed, device)
    value = state.init(view) if callable(state.init) else state.init
    full = torch.as_tensor(value, dtype=torch.float32, device=device)
    full = full.reshape(param.shape) if full.numel() == param.numel() else full.expand(param.shape)
    return encode(codec, full.contiguous(), state.signed)


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
