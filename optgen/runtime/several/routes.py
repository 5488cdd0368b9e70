"""Choice of the rule of each parameter: by names of parameters, modules, a function, or groups that name their rule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from torch.nn import Module

from optgen.runtime.optimizer import Optimizer
from optgen.runtime.several.entries import KEY, WANTED, Find, Named, read_entry, read_group
from optgen.runtime.several.optimizer import CombinedOptimizer

Rule = str | type[Optimizer] | Mapping[str, Any]
Rules = str | type[Optimizer] | Mapping[Any, Rule] | Callable[[str, Tensor], Rule] | Sequence[Mapping[str, Any]]
FORMS = (
    "a class or the name of one, such as 'adamw', rules by patterns of names, as {'*.weight': 'lion', ...: 'adamw'}, a "
    f"function of the name and the tensor, or param groups with {KEY!r}"
)
SHOWN = 12  # names of a list in a message


def combined(find: Find, rules: Rules, params: Any, common: Mapping[str, Any]) -> CombinedOptimizer:
    """The optimizer of several rules.

    Args:
        find: Finds a class by its name.
        rules: A rule for each pattern of names, class of modules or module, with `...` for all others; a function of
            the name and the tensor that returns a rule; or param groups with the key `rule`. A rule is a class, the
            name of one, or its settings with `rule`, and may have `bits`, `paged`, and `lr_scale`, a factor of lr.
        params: A model or named tensors; None with param groups, which have their own.
        common: Settings of all rules.

    Raises:
        TypeError: for rules and parameters in none of these forms, and settings that a class does not take.
        ValueError: for an unknown class, and listing keys that match no parameter and parameters that no key or
            several match.
    """
    if isinstance(rules, Mapping) or (callable(rules) and not isinstance(rules, type)):
        owners = Owners(params)
        routed = by_keys(rules, owners) if isinstance(rules, Mapping) else by_function(rules, owners)
        return CombinedOptimizer([read_entry(find, rule, named, common) for rule, named in routed], find)
    if isinstance(rules, str | bytes) or not isinstance(rules, Iterable):
        raise TypeError(f"create takes {FORMS}, not {rules!r}")
    if params is not None:
        raise TypeError("param groups that name their rules have their parameters: leave params out")
    groups = list(rules)
    if not groups:
        raise ValueError("create got no param groups")
    return CombinedOptimizer([read_group(find, group, common) for group in groups], find)


class Owners:
    """The parameters that are trained, with all their names and the modules that have them.

    Args:
        params: A model, or pairs of names and tensors.

    Raises:
        TypeError: for neither.
        ValueError: if nothing is trained.
    """

    def __init__(self, params: Any) -> None:
        self.model = params if isinstance(params, Module) else None
        named = list(params.named_parameters(remove_duplicate=False)) if isinstance(params, Module) else _pairs(params)
        self.names: dict[int, list[str]] = {}
        self.named: list[Named] = []
        for name, param in named:
            if param.requires_grad:
                if id(param) not in self.names:
                    self.named.append((name, param))
                self.names.setdefault(id(param), []).append(name)
        if not self.named:
            raise ValueError("there is no parameter to train: none requires a gradient")

    def matched(self, key: Any) -> set[int]:
        """Identities of the parameters that a key matches.

        Raises:
            TypeError: for what is no key, and modules without a model.
        """
        if isinstance(key, str):
            return {one for one, names in self.names.items() if any(fnmatchcase(name, key) for name in names)}
        is_class = isinstance(key, type) and issubclass(key, Module)
        if not is_class and not isinstance(key, Module):
            raise TypeError(
                "rules go by patterns of names, classes of modules, modules of the model, and ... for all other "
                f"parameters, not by {key!r}"
            )
        if self.model is None:
            raise TypeError(f"create needs the model to find parameters by modules, as {_shown(key)}")
        if not is_class:
            return {id(param) for param in key.parameters()} & set(self.names)
        own = (module.parameters(recurse=False) for module in self.model.modules() if isinstance(module, key))
        return {id(param) for params in own for param in params} & set(self.names)


def _pairs(params: Any) -> list[Named]:
    wanted = "a model, or pairs of names and tensors, as model.named_parameters()"
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise TypeError(f"for several rules params is {wanted}, not {params!r}")
    pairs = list(params)
    for pair in pairs:
        is_pair = isinstance(pair, tuple) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], str) or not isinstance(pair[1], Tensor):
            raise TypeError(f"for several rules params is {wanted}, not a list with {type(pair).__name__}s")
    return pairs


def by_keys(rules: Mapping[Any, Rule], owners: Owners) -> list[tuple[Rule, list[Named]]]:
    """Each rule with its parameters, in the order of the rules.

    Raises:
        ValueError: listing keys that match nothing, and parameters that no key or several match.
    """
    keys = [key for key in rules if key is not ...]
    matched = {id(key): owners.matched(key) for key in keys}
    rest = set(owners.names).difference(*matched.values())
    wrong = [f"{_shown(key)} matches no parameter that is trained" for key in keys if not matched[id(key)]]
    if ... in rules and not rest:
        wrong.append("`...` is left with no parameter: the other keys match all of them")
    twice = {
        name: [key for key in keys if id(param) in matched[id(key)]]
        for name, param in owners.named
        if sum(id(param) in found for found in matched.values()) > 1
    }
    wrong += [f"{name} is matched by {' and by '.join(map(_shown, own))}" for name, own in twice.items()][:SHOWN]
    if len(twice) > SHOWN:
        wrong.append(f"and {len(twice) - SHOWN} more are matched twice")
    if rest and ... not in rules:
        names = [name for name, param in owners.named if id(param) in rest]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        wrong.append(f"nothing matches {', '.join(names[:SHOWN])}{more}; a key ... stands for all others")
    if wrong:
        raise ValueError("each parameter has one rule, and each rule a parameter:\n  " + "\n  ".join(wrong))
    places = {id(key): matched[id(key)] for key in keys} | {id(...): rest}
    return [(rule, [each for each in owners.named if id(each[1]) in places[id(key)]]) for key, rule in rules.items()]


def by_function(choose: Callable[[str, Tensor], Rule], owners: Owners) -> list[tuple[Rule, list[Named]]]:
    """Each rule that a function returns with its parameters, in the order in which it returns them first.

    Raises:
        TypeError: for what is no rule, naming the parameter.
    """
    found: dict[Hashable, tuple[Rule, list[Named]]] = {}
    for name, param in owners.named:
        rule = choose(name, param)
        if not isinstance(rule, str | type | Mapping):
            raise TypeError(f"the function returns {rule!r} for {name}, and a rule is {WANTED}")
        key = tuple(sorted((str(k), repr(v)) for k, v in rule.items())) if isinstance(rule, Mapping) else repr(rule)
        found.setdefault(key, (rule, []))[1].append((name, param))
    return list(found.values())


def _shown(key: Any) -> str:
    if isinstance(key, type):
        return key.__name__
    return f"the module {type(key).__name__}" if isinstance(key, Module) else repr(key)
