"""Settings for the parameters of some modules, or of some names, as `optimizer.override` has them for one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from optgen.runtime.optimizer import Optimizer
    from optgen.runtime.several.optimizer import CombinedOptimizer

    Overridable = Optimizer | CombinedOptimizer


def override_modules(
    optimizer: Overridable, model: Module, kinds: type[Module] | tuple[type[Module], ...], **settings: Any
) -> list[str]:
    """Give the parameters of all modules of some kinds settings of their own.

    `override_modules(optimizer, model, torch.nn.Embedding, optim_bits=32)` is what Trainer does for the optimizers of
    bitsandbytes. Only a module's own parameters are meant, not those of modules inside it, and only those that
    the optimizer has.

    Args:
        optimizer: One of a generated class, before a library wraps it.
        model: The model that the parameters are of.
        kinds: A class of modules, or several.
        settings: Arguments of `optimizer.override`.

    Returns:
        The names of the parameters, in the model's order.

    Raises:
        TypeError: for an optimizer that has no overrides.
        ValueError: if the optimizer has no parameter of such a module, or `optimizer.override` refuses a setting.
            Nothing is changed then.
    """
    found = {
        f"{prefix}.{name}" if prefix else name: param
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name, param in module.named_parameters(recurse=False)
    }
    shown = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    return _override(optimizer, found, f"of a {shown}", settings)


def override_names(optimizer: Overridable, model: Module, pattern: str, **settings: Any) -> list[str]:
    """Give the parameters whose names match a pattern settings of their own.

    Args:
        optimizer: One of a generated class, before a library wraps it.
        model: The model that the parameters are of; a parameter that it has twice goes by both names.
        pattern: Of names as `model.named_parameters()` has them, with `*`, `?` and `[…]` as in names of files.
        settings: Arguments of `optimizer.override`.

    Returns:
        The names of the parameters, in the model's order.

    Raises:
        TypeError: for an optimizer that has no overrides.
        ValueError: if the optimizer has no parameter of such a name, or `optimizer.override` refuses a setting.
            Nothing is changed then.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {name: param for name, param in named.items() if fnmatchcase(name, pattern)}
    return _override(optimizer, found, f"with a name like {pattern!r}", settings)


def trained(optimizer: Overridable, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters among these that the optimizer has."""
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return {name: param for name, param in found.items() if id(param) in own}


def _override(optimizer: Overridable, found: Mapping[str, Tensor], what: str, settings: Mapping[str, Any]) -> list[str]:
    if not hasattr(optimizer, "override"):
        raise TypeError(
            f"{type(optimizer).__name__} has no overrides: pass the optimizer of a generated class, before "
            "accelerate or another library wraps it"
        )
    own = trained(optimizer, found)
    if not own:
        where = "the optimizer trains none of them" if found else "the model has none"
        raise ValueError(f"there is no parameter {what} to override: {where}")
    for param in own.values():
        optimizer.override(param, **settings)
    return list(own)
