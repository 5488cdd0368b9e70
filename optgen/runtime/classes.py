"""The classes of a generated package by name: a module is imported when one of its classes is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

    from optgen.runtime.optimizer import Optimizer
    from optgen.runtime.several.optimizer import CombinedOptimizer
    from optgen.runtime.several.routes import Rule, Rules


# Other names in a package: of optimizers of several rules, for code written for bitsandbytes.optim, for filters of
# warnings.
OTHERS = {
    "CombinedOptimizer": "optgen.runtime.several.optimizer",
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

    def find(self, name: str | type[Optimizer]) -> type[Optimizer]:
        """The class of a name in any case, as "adamw" or "LAMB"; a class, of whichever package, is itself.

        Raises:
            TypeError: if it is neither.
            ValueError: if there is none, with the names that there are.
        """
        if not isinstance(name, str):
            from optgen.runtime.optimizer import Optimizer

            if isinstance(name, type) and issubclass(name, Optimizer):
                return name
            raise TypeError(f"an optimizer is given by its class or the name of it, such as 'adamw', not {name!r}")
        by_name = {_plain(key): key for key in self}
        known = by_name.get(_plain(name))
        if known is None:
            close = difflib.get_close_matches(name.lower(), by_name, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"there is no optimizer {name!r}; {hint}known: {', '.join(sorted(self))}")
        return self[known]

    def create(
        self, name: Rules, params: Any, bits: int | None, paged: bool, settings: dict[str, Any]
    ) -> Optimizer | CombinedOptimizer:
        """The optimizer that a class name, bits and paging stand for, or that of several rules.

        Args:
            name: A class, in any case; or which rule goes where, as `combined` of several/routes.py takes it.
            params: Tensors, named tensors or param groups; for several rules a model, or named tensors.
            bits: Bits of the states; None leaves the class's own.
            paged: Whether large states are pageable.
            settings: The class's arguments.

        Raises:
            ValueError: if the class does not exist, or does not store its states in these bits.
        """
        if not isinstance(name, str | type):
            from optgen.runtime.several.routes import combined

            return combined(self.find, name, params, {**settings, **_given(bits, paged)})
        found = self.find(name)
        return found(params, **found._policy.stored(bits, paged, settings))

    def for_model(
        self, model: Module, rule: Rule, others: Rule, settings: dict[str, Any], **choice: Any
    ) -> CombinedOptimizer:
        """The optimizer of a model whose hidden matrices have one rule and everything else another.

        Args:
            rule: Of matrices.
            others: Of everything else.
            settings: Of both rules.
            choice: As `for_model` of several/models.py takes it.
        """
        from optgen.runtime.several.models import for_model

        return for_model(self.find, model, rule, others, settings, **choice)


def _given(bits: int | None, paged: bool) -> dict[str, Any]:
    return {**({} if bits is None else {"bits": bits}), **({"paged": paged} if paged is not False else {})}


def _plain(name: str) -> str:
    """A class's name as it is looked for: `adamw_8bit` and `AdamW8bit` are one."""
    return name.lower().replace("_", "").replace("-", "")
