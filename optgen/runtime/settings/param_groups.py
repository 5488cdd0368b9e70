"""Parameters that an optimizer trains, and groups of them with settings of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from optgen.dtypes import PARAM_DTYPES
from optgen.runtime.block import Settings
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.matrix_form import why_no_matrix
from optgen.runtime.settings.overrides import registered, with_registered
from optgen.runtime.settings.policy import Policy
from optgen.runtime.settings.storage import check_rounding
from optgen.runtime.settings.validation import SCHEDULED, check_agreement, refuse_unknown, unscheduled

DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, dtype.name) for dtype in PARAM_DTYPES)
# Keys of param groups beside settings: torch's own and those of its learning rate schedulers.
GROUP_KEYS = ("params", "param_names", "name", "overrides", *SCHEDULED)


def checked_group(
    policy: Policy, given: Any, groups: Sequence[Mapping[str, Any]], defaults: Settings
) -> dict[str, Any]:
    """A param group in its final form, before the optimizer takes it.

    Args:
        groups: Those that the optimizer has.

    Raises:
        TypeError: for parameters that cannot be trained, values of the wrong type, and settings of the optimizer.
        ValueError: for values out of range, unknown settings, and combinations that are refused.
    """
    name, rule = policy.name, policy.rule
    if not isinstance(given, dict):
        raise TypeError(f"{name}: param_group must be a dict, but got {type(given)}")
    if "params" not in given:
        raise ValueError(f"{name}: a param group needs the key 'params', its tensors; it has {list(given)}")
    group = {**given, **unnamed(name, given["params"])}
    members = group["params"]
    check_names(name, given.get("param_names"), group)
    for param in members:
        check_parameter(name, param)
    check_twice(name, members)
    if "args" in group:
        raise ValueError(f"{name}: args is an argument of the class, not of a param group; give its settings as keys")
    for key in rule.inputs:
        if key in group:
            raise ValueError(f"{name}: {key} is set on the optimizer for a step, and is not a key of a param group")
    refuse_unknown(name, group, [*defaults, *GROUP_KEYS])
    group.update(policy.of_part({key: value for key, value in group.items() if key in defaults}, "group"))
    policy.refuse({**defaults, **group})
    check_rounding(name, {**defaults, **group}, members, first=False)
    check_agreement(name, rule, [*groups[:1], {**defaults, **group}])
    told = registered(members)
    if told or "overrides" in group:
        group["overrides"] = with_registered(told, group.get("overrides", {}))
        group["overrides"] = policy.of_overrides(group["overrides"], group, len(members), defaults)
    check_ndim(name, rule, members_of([group], defaults=defaults), group.get("param_names"))
    begin_shared_states(policy, group, groups, defaults)
    return group


def members_of(
    groups: Sequence[Mapping[str, Any]],
    settings: Iterable[Mapping[str, Any]] | None = None,
    defaults: Settings = MappingProxyType({}),
) -> Iterator[tuple[Tensor, Settings]]:
    """Every parameter with its settings.

    Args:
        settings: Groups with those, if not the parameters' own.
    """
    for own, group in zip(groups, groups if settings is None else settings, strict=True):
        common, overrides = {**defaults, **group}, group.get("overrides", {})
        for index, param in enumerate(own["params"]):
            yield param, {**common, **overrides[index]} if index in overrides else common


def begin_shared_states(
    policy: Policy, group: dict[str, Any], groups: Sequence[Mapping[str, Any]], defaults: Settings
) -> None:
    """Give a group the states of groups that it lacks; those of the optimizer are the first group's."""
    for state in policy.rule.shared_states:
        if state.name not in group:
            first = state.kind == "global" and bool(groups)
            group[state.name] = float(groups[0][state.name]) if first else _start(state, {**defaults, **group})


def _start(state: State, settings: Settings) -> float:
    init = state.init
    return float(init(SimpleNamespace(settings=settings)) if callable(init) else init)


def with_override(
    policy: Policy, groups: Sequence[dict[str, Any]], param: Any, settings: Settings, defaults: Settings
) -> tuple[dict[str, Any], dict[int, Any]]:
    """The group of a parameter, and its overrides with these settings, which are not stored yet.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if no group has it, for unknown settings and values out of range.
    """
    name = policy.name
    if not isinstance(param, Tensor):
        raise TypeError(f"{name}.override: the first argument is a parameter, not {param!r}")
    settings = policy.of_override(settings, defaults)
    for group in groups:
        for index, member in enumerate(group["params"]):
            if member is param:
                overrides = group.get("overrides", {})
                merged = {**overrides.get(index, {}), **settings}
                policy.refuse({**unscheduled(group, defaults), **merged})
                return group, {**overrides, index: merged}
    raise ValueError(f"{name}.override: this parameter (shape {tuple(param.shape)}) is not in the optimizer")


def as_list(name: str, params: Any) -> list[Any]:
    """Convert the `params` argument of an optimizer to a list.

    Raises:
        TypeError: if it is not an iterable, or is a single tensor, a dict or a string.
        ValueError: if it is empty.
    """
    wanted = f"{name}: params argument given to the optimizer should be an iterable of Tensors or dicts"
    if isinstance(params, Tensor):
        raise TypeError(f"{wanted}, not a single tensor; write [param]")
    if isinstance(params, Mapping | str | bytes):
        raise TypeError(f"{wanted}, not a {type(params).__name__}; write a list")
    try:
        result = list(params)
    except TypeError:
        raise TypeError(f"{wanted}, not {params!r}") from None
    if not result:
        raise ValueError(f"{name}: optimizer got an empty parameter list; pass model.parameters()")
    return result


def unnamed(name: str, params: Any) -> dict[str, list[Any]]:
    """A group's parameters as a list, and their names if it has any: not every torch takes named parameters apart.

    Raises:
        TypeError: if it has no order.
        ValueError: if some have names and others have none.
    """
    if isinstance(params, Tensor):
        return {"params": [params]}
    if isinstance(params, set):
        raise TypeError(f"{name}: optimizer parameters need to be organized in ordered collections, not in a set")
    if isinstance(params, str) or not hasattr(params, "__iter__"):
        raise TypeError(f"{name}: params of a group is a list of tensors, not a {type(params).__name__}")
    members = list(params)
    named = [isinstance(member, tuple) and len(member) == 2 for member in members]
    if not any(named):
        return {"params": members}
    if not all(named):
        raise ValueError(
            f"{name}: all optimizer params should be with/without names. Some param names are missing: number "
            f"{named.index(False)} has none"
        )
    return {"params": [param for _, param in members], "param_names": [label for label, _ in members]}


def check_names(name: str, given: Any, group: Mapping[str, Any]) -> None:
    """Raise for `param_names` of a group that are not the names of its parameters.

    Args:
        given: As the user gave them; None if not at all.
        group: With `params` as a list, and the names that came with them.

    Raises:
        TypeError: if it is not a list of strings.
        ValueError: if there are more or fewer than parameters, or others than came with these.
    """
    if given is None:
        return
    if not isinstance(given, list | tuple) or not all(isinstance(label, str) for label in given):
        raise TypeError(f"{name}: param_names is a list of strings, not {given!r}")
    if len(given) != len(group["params"]):
        raise ValueError(f"{name}: a group has {len(given)} param_names for {len(group['params'])} parameters")
    for label, other in zip(group["param_names"], given, strict=True):
        if label != other:
            raise ValueError(f"{name}: a parameter is named {label!r} and, in param_names, {other!r}; give one of them")


def check_parameter(name: str, param: Any) -> None:
    """Raise for what no kernel can train.

    Raises:
        TypeError: naming the class, and the dtype, layout or device.
    """
    if not isinstance(param, Tensor):
        raise TypeError(
            f"{name}: optimizer can only optimize Tensors, but one of the params is {torch.typename(param)}"
        )
    if param.is_meta:
        raise TypeError(f"{name}: parameters on the 'meta' device have no values; move the model to a real one first")
    if param.is_complex() or param.dtype not in (*DTYPES, torch.float64):
        allowed = "float32, bfloat16 and float16"
        raise TypeError(f"{name}: parameters are {allowed}, not {str(param.dtype).removeprefix('torch.')}")
    if param.layout is not torch.strided:
        raise TypeError(f"{name}: parameters are dense, not {param.layout}")
    if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
        raise ValueError(
            f"{name}: a parameter of shape {tuple(param.shape)} is expanded: its elements share memory; clone it"
        )


def check_ndim(name: str, rule: Rule, params: Iterable[tuple[Tensor, Settings]], labels: Sequence[str] | None) -> None:
    """Raise for a parameter of other dimensions than a rule takes, if it takes only some.

    Args:
        params: Each with its settings, which say what its matrices are.

    Raises:
        ValueError: naming the first.
    """
    for index, (param, settings) in enumerate(params if rule.ndim is not None else ()):
        named = f"{labels[index]!r}" if labels is not None else f"number {index} of the param group"
        if rule.ndim == 2:
            why = why_no_matrix(rule, param.shape, settings)
            if why and getattr(param, "_fsdp_flattened", False):
                why = "as FullyShardedDataParallel keeps flat shards, which are no matrices: use fully_shard"
            if why:
                raise ValueError(f"{name} takes matrices, and {named} has the shape {tuple(param.shape)}, {why}")
        elif param.ndim != rule.ndim:
            raise ValueError(
                f"{name} takes parameters of {rule.ndim} dimensions, and {named} has the shape {tuple(param.shape)}: "
                "give it to another optimizer, as AdamW"
            )


def check_twice(name: str, params: Sequence[Tensor]) -> None:
    """Raise for a parameter that a group holds twice: a step would update it twice.

    Raises:
        ValueError: naming its places.
    """
    first: dict[int, int] = {}
    for index, param in enumerate(params):
        if first.setdefault(id(param), index) != index:
            places = f"{first[id(param)]} and {index}"
            raise ValueError(f"{name}: a param group holds the same parameter twice, at positions {places}")


def check_groups(name: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise for parameters that were put into groups by hand, and that a step would update twice.

    Raises:
        TypeError: for `params` that are no list.
        ValueError: naming the groups of one that stands in two places.
    """
    owner: dict[int, int] = {}
    for number, group in enumerate(groups):
        params = group["params"]
        if not isinstance(params, list | tuple):
            raise TypeError(f"{name}: params of param group {number} is a list, not a {type(params).__name__}")
        check_twice(name, params)
        for param in params:
            if owner.setdefault(id(param), number) != number:
                raise ValueError(f"{name}: param groups {owner[id(param)]} and {number} hold the same parameter")
