"""The classes of a generated package by name: a module is imported when one of its classes is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer


# Other names in a package: the first for code written for bitsandbytes.optim, the second for filters of warnings.
OTHERS = {
    "GlobalOptimManager": "optgen.runtime.settings.overrides",
    "StoredAnewWarning": "optgen.runtime.checkpoints.misfits",
}


class Classes(Mapping[str, "type[Optimizer]"]):
    """A package's classes by name, in the order of its table; looking at names imports nothing.

    Args:
        package: The package's name.
        modules: The module of every class, by the class's name.
    """

    def __init__(self, package: str, modules: Mapping[str, str]) -> None:
        self._package, self._modules = package, modules

    def __getitem__(self, name: str) -> type[Optimizer]:
        """The class of a name, from its module."""
        module = importlib.import_module(f"{self._package}.{self._modules[name]}")
        found: type[Optimizer] = getattr(module, name)
        return found

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._modules)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        """Check whether a class has this name."""
        return name in self._modules

    def attribute(self, name: str) -> Any:
        """Look up a name of the package's module: a class, or a module of rules.

        Raises:
            AttributeError: if there is neither.
        """
        if name in self._modules:
            return self[name]
        if name in OTHERS:
            return getattr(importlib.import_module(OTHERS[name]), name)
        if name in self._modules.values():
            return importlib.import_module(f"{self._package}.{name}")
        message = f"module {self._package!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules.get(self._package))

    def create(self, name: str, params: Any, bits: int | None, paged: bool, settings: dict[str, Any]) -> Optimizer:
        """The optimizer that a class name, bits and paging stand for.

        Args:
            name: A class, in any case: "adamw", "LAMB".
            params: Tensors, named tensors or param groups.
            bits: Bits of the states; None leaves the class's own.
            paged: Whether large states are pageable.
            settings: The class's arguments.

        Raises:
            ValueError: if the class does not exist, or does not store its states in these bits.
        """
        if not isinstance(name, str):
            raise TypeError(f"create takes the name of a class, such as 'adamw', not {name!r}")
        by_name = {_plain(key): key for key in self}
        known = by_name.get(_plain(name))
        if known is None:
            close = difflib.get_close_matches(name.lower(), by_name, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"there is no optimizer {name!r}; {hint}known: {', '.join(sorted(self))}")
        found = self[known]
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


def _plain(name: str) -> str:
    """A class's name as it is looked for: `adamw_8bit` and `AdamW8bit` are one."""
    return name.lower().replace("_", "").replace("-", "")
