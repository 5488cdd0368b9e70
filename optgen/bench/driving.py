"""Makes and drives any class of a generated package, by what the class says of itself.

What a class takes is in its signature and its rule; what cannot be read there (a momentum without which LARS refuses to
be made) is in NEEDED, one line a rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

Made = Any  # a generated class, which mypy sees as Any: the package is written after it

REQUIRED_LR = 1e-3
NEEDED: Mapping[str, Mapping[str, Any]] = {"lars": {"momentum": 0.9}, "sgd": {"momentum": 0.9}}
"""Settings of a rule without which some of its classes cannot be made. Classes that can do without go without."""
REFUSED = (ValueError, TypeError, NotImplementedError)


class CannotBeMadeError(Exception):
    """A class cannot be made with what is known of it; the message names the class and the refusal."""


def arguments(made: Made) -> Mapping[str, inspect.Parameter]:
    """Arguments of a class beside `params`, by name."""
    return {name: p for name, p in inspect.signature(made).parameters.items() if name != "params"}


def starting_settings(made: Made, bits: int | None = None, **settings: Any) -> dict[str, Any]:
    """The fewest settings that a class is made with, with its states in so many bits.

    Args:
        bits: None for the class's own.
        settings: Settings that the caller wants.

    Raises:
        CannotBeMadeError: the class refuses them.
    """
    known = arguments(made)
    result = dict(settings)
    if bits is not None and made.bits is None and "optim_bits" in known:
        result["optim_bits"] = bits
    elif bits is not None and made.bits is not None and bits != made.bits:
        raise CannotBeMadeError(f"{made.__name__} has states in {made.bits} bits, not {bits}")
    lacking = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in result]
    for name in lacking:
        if name != "lr":
            raise CannotBeMadeError(f"{made.__name__} needs {name}, for which the bench knows no value")
        result[name] = REQUIRED_LR
    needed = {n: v for n, v in NEEDED.get(made.rule.name, {}).items() if n in known and n not in result}
    refusal: Exception | None = None
    for attempt in ({}, needed):
        try:
            made([torch.zeros(2, 2, requires_grad=True)], **result, **attempt)
            return {**result, **attempt}
        except REFUSED as error:
            refusal = refusal or error
    raise CannotBeMadeError(f"{made.__name__}: {refusal}")


def bits_of(made: Made) -> tuple[int, ...]:
    """The bits in which a class can store its states, its own first if it fixes them."""
    if made.bits is not None:
        return (int(made.bits),)
    option = made.rule.storage.get("optim_bits")
    if option is None or "optim_bits" not in arguments(made):
        return (32,)
    found = []
    usual = starting_settings(made)
    for bits in option.choices:
        try:
            made([torch.zeros(2, 2, requires_grad=True)], **{**usual, "optim_bits": bits})
        except REFUSED:
            continue
        found.append(int(bits))
    return tuple(found)


def begin_training(optimizer: Any) -> None:
    """Bring parameters to where gradients are taken, for rules that tell training from evaluation."""
    if "train" in optimizer.rule.blocks:
        optimizer.train()
