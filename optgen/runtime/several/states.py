"""The states of several optimizers as those of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


class States(MutableMapping[Tensor, Any]):
    """The entries of all parameters, each where the optimizer of its rule keeps it.

    As in torch, asking for the entry of a parameter that has none makes an empty one.

    Args:
        parts: The optimizers.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        self._parts = parts

    def _of(self, param: Tensor) -> MutableMapping[Tensor, Any]:
        """The states that a parameter's entry is among, or would be."""
        for part in self._parts.values():
            if param in part.state:
                return part.state
        for part in self._parts.values():
            if any(param is member for group in part.param_groups for member in group["params"]):
                return part.state
        raise KeyError(param)

    def __getitem__(self, param: Tensor) -> Any:
        """The entry of a parameter."""
        return self._of(param)[param]

    def get(self, param: Tensor, default: Any = None) -> Any:
        """The entry of a parameter, or a default where there is none."""
        return self._of(param)[param] if param in self else default

    def __setitem__(self, param: Tensor, entry: Any) -> None:
        """Exchange the entry of a parameter."""
        self._of(param)[param] = entry

    def __delitem__(self, param: Tensor) -> None:
        """Delete the entry of a parameter."""
        del self._of(param)[param]

    def __contains__(self, param: object) -> bool:
        """Check whether a parameter has an entry."""
        return any(param in part.state for part in self._parts.values())

    def __iter__(self) -> Iterator[Tensor]:
        """The parameters that have entries."""
        for part in self._parts.values():
            yield from part.state

    def __len__(self) -> int:
        """Number of entries."""
        return sum(len(part.state) for part in self._parts.values())
