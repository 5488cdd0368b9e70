"""Target modules of the names that project gradients: the linear layers of a model whose weights they are for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

ALL = "all-linear"
WANTED = "a list of parts of names of modules, one regular expression, or 'all-linear'"

Targets = str | Sequence[str]


def checked_targets(label: str, given: Any) -> Targets:
    """Target modules, if they are names or expressions.

    Raises:
        TypeError: for what is neither a string nor a list of strings.
        ValueError: if there are none, or for what is no regular expression.
    """
    if given is None or given == [] or given == "":
        raise ValueError(f"{label}: optim_target_modules says which weights are projected: {WANTED}; it is {given!r}")
    if not isinstance(given, str) and not (
        isinstance(given, list | tuple) and all(isinstance(each, str) for each in given)
    ):
        raise TypeError(f"{label}: optim_target_modules is {WANTED}, not {given!r}")
    for each in [given] if isinstance(given, str) else given:
        try:
            re.compile(each)
        except re.error as error:
            raise ValueError(
                f"{label}: optim_target_modules has {each!r}, which is no regular expression: {error}"
            ) from None
    return given


def target_weights(label: str, model: Module, targets: Targets) -> set[str]:
    """Names of the weights that are projected: those of linear layers that an entry matches, and that are trained.

    An entry of a list matches the names that it is, or is a part of, or is a regular expression for; a single string is
    a regular expression for the whole name, and "all-linear" stands for all.

    Raises:
        ValueError: for an entry that matches no linear layer.
    """
    from torch.nn import Linear

    linear = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    found = set()
    entries = [targets] if isinstance(targets, str) else targets
    for entry in entries:
        if entry.replace("_", "-") == ALL and isinstance(targets, str):
            own = linear
        elif isinstance(targets, str):
            own = [name for name in linear if re.fullmatch(entry, name)]
        else:
            own = [name for name in linear if entry in name or re.fullmatch(entry, name)]
        weights = {f"{name}.weight" for name in own} & trained
        if not weights:
            parts = sorted({part for name in linear for part in (name, name.rpartition(".")[2])})
            close = difflib.get_close_matches(entry, parts, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"they are {', '.join(parts[:12]) or 'none'}"
            raise ValueError(
                f"{label}: optim_target_modules has {entry!r}, which matches no linear layer that is trained; {hint}"
            )
        found |= weights
    return found
