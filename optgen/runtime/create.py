"""Picks a class by name and storage."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from optgen.runtime.optimizer import Optimizer


def create_optimizer(
    classes: Mapping[str, type[Optimizer]],
    name: str,
    params: Any,
    bits: int | None,
    paged: bool,
    settings: dict[str, Any],
) -> Optimizer:
    """The optimizer that a class name, bits and paging stand for.

    Args:
        classes: Public classes by name.
        name: A class, in any case: "adamw", "LAMB".
        bits: Bits of the states; None leaves the class's own.
        paged: Whether large states are pageable.
        settings: The class's arguments.

    Raises:
        ValueError: when there is no such class, or it does not store its states so.
    """
    if not isinstance(name, str):
        raise TypeError(f"create takes the name of a class, such as 'adamw', not {name!r}")
    by_name = {key.lower(): value for key, value in classes.items()}
    found = by_name.get(name.lower().replace("_", "").replace("-", ""))
    if found is None:
        close = difflib.get_close_matches(name.lower(), by_name, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no optimizer {name!r}; {hint}known: {', '.join(sorted(classes))}")
    if bits is not None:
        if found.bits is not None and found.bits != bits:
            raise ValueError(f"{found.__name__} stores its states in {found.bits} bits, not {bits}")
        if "optim_bits" in settings:
            raise TypeError("bits and optim_bits mean the same; give one of them")
        if "optim_bits" not in found.rule.storage:
            if bits != 32:
                raise ValueError(f"{found.__name__} stores its states in 32 bits alone, not {bits}")
        elif found.bits is None:
            settings = {**settings, "optim_bits": bits}
    if not isinstance(paged, bool):
        raise TypeError(f"paged must be True or False, not {paged!r}")
    if paged and not found.fixed.get("is_paged", False):
        settings = {**settings, "is_paged": True}
    return found(params, **settings)
