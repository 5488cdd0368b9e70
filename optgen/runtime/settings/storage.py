"""Codecs of states and parameters that follow from settings, and checks that they can be had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import (
    CODECS,
    PARAMETER_CODECS,
    WHOLE_TENSOR,
    Codec,
    chosen_codec,
    codec_among,
    is_asked,
    parameter_codec,
    plain_codec,
    plain_codec_of,
)
from optgen.runtime.block import Settings
from optgen.runtime.rule import Rule, State

Asked = tuple[int, str, bool, int]  # bits, codec, block_wise, block_size
LARGE = (2, 2**20, 0, frozenset[str]())  # a matrix, as rules' flags ask for it: dimensions, elements, index, scales


def asked_codec(settings: Settings) -> Codec:
    """The codec that settings ask for, of states that take all."""
    return chosen_codec(*_asked(settings))


def _asked(settings: Settings) -> Asked:
    return (
        settings.get("optim_bits", 32),
        settings.get("codec", "auto"),
        settings.get("block_wise", True),
        settings.get("block_size", 0),
    )


def choose_codecs(rule: Rule, settings: Settings, shape: torch.Size) -> tuple[Codec, ...]:
    """The codec of every state of a parameter that has codecs, in their order: what is asked for, where it takes it."""
    asked = asked_codec(settings)
    wanted = is_asked(settings.get("optim_bits", 32), settings.get("codec", "auto"))
    least = settings.get("min_8bit_size", 0)

    def takes(numel: int) -> bool:
        return wanted and (not asked.scaled or (numel >= least and asked.takes(numel)))

    dtypes = [settings[state.stored_as] for state in rule.coded_states if state.stored_as is not None]
    of_elements = takes(shape.numel())
    own = tuple(takes(state.shape(shape, settings).numel()) for state in rule.matrix_states)
    return _chosen(rule, _asked(settings), of_elements, own, *dtypes)


@lru_cache
def _chosen(rule: Rule, asked: Asked, of_elements: bool, own: tuple[bool, ...], *dtypes: str) -> tuple[Codec, ...]:
    """The codec of every state that has codecs.

    Args:
        of_elements: Whether states of elements take what is asked for.
        own: Whether each matrix of its own dimensions does.
        dtypes: Of the states whose dtype a setting says.
    """
    told = iter(dtypes)
    taken = (*(of_elements for _ in rule.element_states), *own)
    return tuple(
        plain_codec_of(next(told))
        if state.stored_as is not None
        else (codec_among(state.codecs, *asked) if takes else None) or CODECS[plain_codec(state.codecs)]
        for state, takes in zip(rule.coded_states, taken, strict=True)
    )


def tensorwise(rule: Rule, codecs: Iterable[Codec]) -> frozenset[str]:
    """The element states that have one scale for the whole tensor."""
    pairs = zip(rule.element_states, codecs, strict=False)  # matrices of their own dimensions come last
    return frozenset(state.name for state, codec in pairs if codec.block == WHOLE_TENSOR)


def choose_rounding(settings: Settings, param: Tensor) -> str:
    """Choose the rounding of a parameter: the one asked for, if it is for the parameter's dtype."""
    return parameter_codec(settings.get("rounding", "nearest"), dtype_name(param.dtype)).name


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the tables that are free of torch."""
    return str(dtype).removeprefix("torch.")


def settle_bits(name: str, given: Mapping[str, Any], bits: int | None = None) -> dict[str, Any]:
    """Settings in which `optim_bits` and `codec` agree, of an optimizer, or what a group or parameter has of its own.

    A codec says how many bits there are; bits that come without a codec stand for the codec of these bits.

    Args:
        bits: Bits that the class fixes.

    Raises:
        ValueError: if both are given and disagree.
    """
    codec, asked = given.get("codec"), given.get("optim_bits")
    if codec is None:
        return {**given, "codec": "auto"} if asked is not None else dict(given)
    if codec == "auto":
        return dict(given)
    own = CODECS[codec].bits
    if bits is not None and bits != own:
        raise ValueError(
            f"{name} stores its states in {bits} bits, and codec={codec!r} has {own}; use the class without"
        )
    if bits is None and asked not in (None, 32, own):
        raise ValueError(f"{name}: codec={codec!r} has {own} bits, which optim_bits={asked} conflicts with; give one")
    return {**given, "optim_bits": own}


def check_storage(name: str, rule: Rule, settings: Settings) -> None:
    """Raise for storage settings of an optimizer or group that would do nothing.

    Raises:
        ValueError: naming the setting, and why.
    """
    codec = asked_codec(settings)
    size = settings.get("block_size", 0)
    if size and not codec.scaled:
        raise ValueError(
            f"{name}: block_size={size} is for quantized states, and {codec} is not quantized; leave it out"
        )
    if size and codec.block == WHOLE_TENSOR:
        raise ValueError(f"{name}: block_size={size} is for block_wise=True; leave one of them out")
    if settings.get("is_paged") and rule.matrix_states and not rule.element_states:
        raise ValueError(f"{name}: is_paged=True is for states of elements, and this rule has none: leave it out")
    draws = any(state.draws for state in rule.states.values())
    if settings.get("seed", 0) and settings.get("rounding") != "stochastic" and not draws:
        raise ValueError(f"{name}: seed is for rounding='stochastic', not {settings.get('rounding')!r}; leave it out")
    if codec.name == "fp32":
        return
    flags = rule.flags(settings, *LARGE)
    states = [state for state in rule.states.values() if state.exists(flags) and state.window is None]
    asked = _asked(settings)
    if not any(state in rule.coded_states and codec_among(state.codecs, *asked) for state in states):
        reasons = [f"{state.name} {_takes(state)}" for state in states] or ["there are none under these settings"]
        raise ValueError(
            f"{name}: none of its states can be stored in {codec.bits} bits ({codec.name}): {'; '.join(reasons)}"
        )


def _takes(state: State) -> str:
    if state.kind in ("element", "shaped"):
        return f"takes {', '.join(state.codecs)}"
    return f"is one number a {'column' if state.kind == 'col' else state.kind}, in fp32"


def check_rounding(name: str, settings: Settings, params: Sequence[Tensor], first: bool) -> None:
    """Raise for a rounding that the parameters of a group cannot have, or that would do nothing.

    Args:
        first: Whether these are the optimizer's first parameters. A group of float32 beside others is left as it is.

    Raises:
        ValueError: naming the dtype.
    """
    rounding = settings.get("rounding", "nearest")
    if rounding == "nearest" or not params:
        return
    allowed = PARAMETER_CODECS[rounding].dtypes
    dtypes = [dtype_name(param.dtype) for param in params]
    wrong = sorted({dtype for dtype in dtypes if dtype not in (*allowed, "float32", "float64")})
    if wrong:
        raise ValueError(
            f"{name}: rounding={rounding!r} is for {' and '.join(allowed)} parameters, not {wrong[0]}; use 'kahan'"
        )
    if first and not any(dtype in allowed for dtype in dtypes):
        raise ValueError(
            f"{name}: rounding={rounding!r} is for {' and '.join(allowed)} parameters, and all here are float32"
        )
