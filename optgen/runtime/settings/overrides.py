"""bitsandbytes' registry of settings of single parameters, acting on `Optimizer.override`.

Overrides of ours belong to an optimizer: `optimizer.override(param, optim_bits=32)`, or the key `overrides` of a param
group. `GlobalOptimManager` is there for code written for bitsandbytes, where they belong to the process: what it is
told reaches optimizers that have the parameter already, and ones that take it later.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

KEY = "_optgen_overrides"  # an attribute of parameters: it stays with them when their data moves, and ends with them


class Overridable(Protocol):
    """An optimizer, as far as overrides go."""

    param_groups: list[dict[str, Any]]

    def check_override(self, param: Tensor, settings: Mapping[str, Any]) -> object:
        """Raise for settings that a parameter cannot have of its own."""

    def override(self, param: Tensor, **settings: Any) -> None:
        """Give one parameter settings of its own."""


_optimizers: weakref.WeakSet[Overridable] = weakref.WeakSet()


def enlist(optimizer: Overridable) -> None:
    """Let an optimizer hear of overrides that come later."""
    _optimizers.add(optimizer)


def registered(params: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """Settings registered for these parameters before an optimizer has taken them, by position."""
    of_modules: dict[int, dict[str, Any]] = {}
    for module, name, settings in GlobalOptimManager.modules:
        there = module()
        if there is not None:
            of_modules.setdefault(id(getattr(there, name, None)), {}).update(settings)
    told = [{**of_modules.get(id(param), {}), **vars(param).get(KEY, {})} for param in params]
    return {index: settings for index, settings in enumerate(told) if settings}


def with_registered(told: Mapping[int, Mapping[str, Any]], own: Any) -> Any:
    """Overrides of a group, whose own stand before those that the process was told, setting by setting."""
    if not told or not isinstance(own, Mapping) or not all(isinstance(each, Mapping) for each in own.values()):
        return own  # what is no dict of dicts is refused with the group
    return {index: {**told.get(index, {}), **own.get(index, {})} for index in (*told, *(own.keys() - told.keys()))}


class GlobalOptimManager:
    """Counterpart of bitsandbytes' class of this name: settings of single parameters, for the whole process.

    There is one, `GlobalOptimManager.get_instance()`. `optimizer.override(param, optim_bits=32)` does the same where
    the optimizer is at hand.
    """

    modules: ClassVar[list[tuple[weakref.ref[nn.Module], str, Mapping[str, Any]]]] = []
    _instance: ClassVar[GlobalOptimManager | None] = None

    def __init__(self) -> None:
        raise RuntimeError("Call get_instance() instead")

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The one that there is."""
        if cls._instance is None:
            cls._instance = object.__new__(cls)
        return cls._instance

    def register_parameters(self, params: Iterable[Any]) -> None:
        """Check that these can be an optimizer's parameters; bitsandbytes requires this call.

        Nothing else is needed here: a parameter that `override_config` is told of is known from then on.

        Raises:
            TypeError: if an item is neither a tensor nor a param group with `params`.
            ValueError: if there is none.
        """
        given = list(params)
        groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError(f"register_parameters takes tensors, or param groups with 'params', not {group!r}")
            _tensors("register_parameters", group["params"])

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Give parameters settings of their own, in every optimizer of ours that has them or will.

        Args:
            parameters: One, or several.
            key: A setting, as "optim_bits".
            value: Its value.
            key_value_dict: Several settings, in place of `key` and `value`.

        Raises:
            TypeError: if an item is not a tensor, or not exactly one of `key` and `key_value_dict` is given.
            ValueError: for settings that an optimizer of such a parameter does not take. Nothing is changed then.
        """
        settings: dict[Any, Any] = dict(key_value_dict or {})
        if (key is None) == (key_value_dict is None) or (key is None and value is not None):
            raise TypeError("override_config takes key and value, or key_value_dict")
        if key is not None:
            settings = {key: value}
        for name in settings:
            if not isinstance(name, str):
                raise TypeError(f"override_config: a setting is named by a str, not {name!r}")
        _apply(_tensors("override_config", parameters), settings)

    def register_module_override(self, module: nn.Module, param_name: str, config: Mapping[str, Any]) -> None:
        """Give a module's parameter settings of its own: the one that has this name when an optimizer takes it.

        Raises:
            TypeError: if `module` is not a module, or `config` is not a dict.
            AttributeError: if the module has no such parameter.
            ValueError: for settings that an optimizer of it does not take. Nothing is changed then.
        """
        if not isinstance(module, nn.Module) or not isinstance(config, Mapping):
            raise TypeError("register_module_override takes a module, the name of a parameter, and a dict of settings")
        param = getattr(module, param_name)
        if not isinstance(param, Tensor):
            raise TypeError(f"register_module_override: {param_name} is a {type(param).__name__}, not a parameter")
        _apply([param], dict(config))
        self.modules.append((weakref.ref(module), param_name, dict(config)))


def _tensors(name: str, params: Any) -> list[Tensor]:
    """Parameters, one or several, as a list.

    Raises:
        TypeError, ValueError: if an item is not a tensor, or there is none.
    """
    members = [params] if isinstance(params, Tensor) else list(params)
    members = [member[1] if isinstance(member, tuple) and len(member) == 2 else member for member in members]
    for member in members:
        if not isinstance(member, Tensor):
            raise TypeError(f"{name} takes tensors, not {member!r}")
    if not members:
        raise ValueError(f"{name}: there is no parameter; pass model.parameters()")
    return members


def _apply(params: Sequence[Tensor], settings: dict[str, Any]) -> None:
    wanted = {id(param) for param in params}
    found = [
        (optimizer, param)
        for optimizer in list(_optimizers)
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) in wanted
    ]
    for optimizer, param in found:
        optimizer.check_override(param, settings)
    for param in params:
        vars(param).setdefault(KEY, {}).update(settings)
    for optimizer, param in found:
        optimizer.override(param, **settings)
