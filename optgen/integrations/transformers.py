"""Generated optimizers for the Trainer of transformers, by the names that its `--optim` takes.

    Trainer(model, args, optimizer_cls_and_kwargs=optimizer("paged_adamw_8bit", args))

Nothing is imported before `optimizer` is called.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.integrations.arguments import Arguments
from optgen.integrations.names import NOT_SERVED, SERVED, Served
from optgen.integrations.overrides import override_modules, override_names, trained
from optgen.integrations.targets import Targets, checked_targets, target_weights
from optgen.integrations.within_backward import check_trainer

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import TrainingArguments

    from optgen.runtime.optimizer import Optimizer
    from optgen.runtime.several.optimizer import CombinedOptimizer

__all__ = ["NOT_SERVED", "SERVED", "Factory", "optimizer"]


def optimizer(
    name: str,
    args: TrainingArguments | None = None,
    *,
    optim_args: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    optim_target_modules: Targets | None = None,
    **settings: Any,
) -> tuple[Factory, dict[str, Any]]:
    """Arguments `optimizer_cls_and_kwargs` of Trainer, for a name of transformers' `OptimizerNames`.

    Values come, the later before the earlier, from the class, from the name, from `args` (learning_rate, weight_decay
    and, for rules that have them, adam_beta1, adam_beta2, adam_epsilon and warmup_steps), and from what is given
    here. As in Trainer weight decay is for all parameters but biases and those of norms
    (`Trainer.get_decay_parameter_names`), and names of bitsandbytes keep 32-bit states for embeddings.

    Args:
        name: As "paged_adamw_8bit". A name that transformers drops or adds is no matter; SERVED has all.
        args: The trainer's arguments, with its `optim_args` and without its `optim`. They are read again when the
            optimizer is made, so that a search over hyperparameters acts. Without them `lr` and `weight_decay` have
            to be given, since Trainer hands neither on, and betas and eps are the defaults of TrainingArguments.
        optim_args: Arguments as on a command line, "momentum=0.9,nesterov=true", each read by its declared type.
        overrides: Settings of parameters by their names, as {"*.wte.weight": {"optim_bits": 8}}; see
            `optgen.integrations.overrides.override_names`. They come after what is done for embeddings.
        optim_target_modules: Linear layers whose weights are projected, for names that project gradients; without it
            that of `args`.
        settings: Arguments of the class; also beta1, beta2 … for parts of betas, and the names that Trainer has
            for an argument (bf16_stochastic_round, kahan_sum).

    Returns:
        A factory, which Trainer calls with the model, and the arguments of the class.

    Raises:
        TypeError: for arguments that the class does not have or that are of the wrong type, and for one given twice.
        ValueError: for an unknown name, for values out of range, fixed by the name or at odds with each other,
            where the learning rate or the weight decay is not given, and for fused_backward=True under a trainer
            that clips (max_grad_norm, 1.0 by default), accumulates or scales gradients.
        NotImplementedError: for a name that nothing serves yet, with the reason.
        ImportError: without transformers.
    """
    row = find(name)
    name = str.__str__(name)
    given = _given(_arguments(name, row), args, optim_args, settings)
    targets = optim_target_modules if optim_target_modules is not None or args is None else args.optim_target_modules
    if row.others is not None:
        targets = checked_targets(f"optimizer({name!r})", targets)
    elif optim_target_modules is not None:
        raise TypeError(f"optimizer({name!r}) projects no gradients: leave optim_target_modules out")
    factory = Factory(name, args, given, _checked_overrides(name, overrides), targets)
    kwargs = factory.kwargs()
    _try(factory.cls, kwargs, factory.overrides)
    check_trainer(f"optimizer({name!r})", args, ({**factory.cls.fixed, **kwargs}, *factory.overrides.values()))
    factory.handed.update(kwargs)
    return factory, kwargs


@dataclass(frozen=True, eq=False)
class Factory:
    """Makes an optimizer for a model. Trainer calls a factory twice: alone, then with the model.

    Attributes:
        name: Of `OptimizerNames`.
        args: The trainer's arguments, or None.
        given: Arguments that stand before those of `args`.
        overrides: Settings of parameters, by patterns of their names.
        targets: Linear layers whose weights are projected, where the name projects any.
        handed: The arguments of the class as they were when this was made.
    """

    name: str
    args: TrainingArguments | None
    given: Mapping[str, Any]
    overrides: Mapping[str, Mapping[str, Any]]
    targets: Targets | None = None
    handed: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> type[Optimizer]:
        """The class."""
        return _arguments(self.name, SERVED[self.name]).cls

    def kwargs(self) -> dict[str, Any]:
        """The arguments of the class, with what the trainer's arguments say now."""
        row = SERVED[self.name]
        taken = _taken(self.name, row, self.args, self.given)
        return _arguments(self.name, row).folded(self.given, {**row.defaults, **taken})

    def __call__(self, model: Module | None = None, **kwargs: Any) -> Any:
        """The optimizer of a model; without a model, this factory.

        Args:
            model: Those of its parameters that require gradients are trained.
            kwargs: Arguments of the class, as `optimizer` returned them; what was changed in them since holds.

        Raises:
            TypeError: for parameters in place of a model, and what the class raises.
            ValueError: for an override that no parameter has, what the class raises, and as `optimizer`, for what
                the trainer's arguments say now.
        """
        from torch.nn import Embedding, Module

        from optgen.runtime.settings.overrides import registered

        if model is None and not kwargs:
            return self
        if not isinstance(model, Module):
            raise TypeError(
                f"optimizer({self.name!r}) is made for a model, by which it knows embeddings and what decays, not for "
                f"a {type(model).__name__}. For groups of your own take its class, factory.cls(groups, **kwargs); a "
                "Trainer that hands groups over is of an older transformers, without factories"
            )
        row = SERVED[self.name]
        handed = self.handed
        changed = {key: value for key, value in kwargs.items() if key not in handed or value is not handed[key]}
        settings = {**self.kwargs(), **changed}
        told = registered(list(model.parameters()))
        own = {**self.cls.fixed, **settings}
        check_trainer(f"optimizer({self.name!r})", self.args, (own, *self.overrides.values(), *told.values()))
        groups = decay_groups(model, settings["weight_decay"])
        if any(param.element_size() == 2 for group in groups for param in group["params"]):
            settings = {**row.sixteen_bits, **settings}
        made = self.cls(groups, **settings) if row.others is None else self._projected(model, groups, settings)
        if row.whole_embeddings:
            weights = {str(i): m.weight for i, m in enumerate(model.modules()) if isinstance(m, Embedding)}
            if trained(made, weights):
                override_modules(made, model, Embedding, optim_bits=32)
        for pattern, theirs in self.overrides.items():
            override_names(made, model, pattern, **theirs)
        return made

    def _projected(self, model: Module, groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> CombinedOptimizer:
        """The optimizer of the class for target modules and of that for all others, with their groups as they decay."""
        import optgen_optim

        row, label = SERVED[self.name], f"optimizer({self.name!r})"
        assert row.others is not None
        assert self.targets is not None
        names = target_weights(label, model, self.targets)
        targets = {id(param) for name, param in model.named_parameters() if name in names}
        taken = {cls: _arguments_of(optgen_optim.CLASSES[cls], settings) for cls in (row.cls, row.others)}
        divided = [
            {**taken[cls], **group, "rule": cls, "params": own}
            for cls in (row.cls, row.others)
            for group in groups
            if (own := [param for param in group["params"] if (id(param) in targets) == (cls == row.cls)])
        ]
        return optgen_optim.create(divided)


def _arguments_of(cls: type[Optimizer], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among these that a class takes."""
    known = inspect.signature(cls).parameters
    return {key: value for key, value in settings.items() if key in known}


def find(name: str) -> Served:
    """Find the row of a name.

    Raises:
        NotImplementedError: if nothing serves it yet.
        TypeError, ValueError: if it is not a string, or not a known name.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer takes a name such as 'paged_adamw_8bit', not {name!r}")
    name = str.__str__(name)
    if name in NOT_SERVED:
        raise NotImplementedError(f"optimizer({name!r}) is not served yet: {NOT_SERVED[name]}")
    if name not in SERVED:
        close = difflib.get_close_matches(name, SERVED, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no optimizer {name!r}; {hint}known: {', '.join(sorted(SERVED))}")
    return SERVED[name]


def decay_groups(model: Module, weight_decay: Any) -> list[dict[str, Any]]:
    """The two groups of parameters that Trainer makes, in its order: with weight decay, and without."""
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(None, model))  # it reads nothing of the trainer
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [
        {"params": [param for name, param in named if name in decaying], "weight_decay": weight_decay},
        {"params": [param for name, param in named if name not in decaying], "weight_decay": 0.0},
    ]


def _arguments(name: str, row: Served) -> Arguments:
    import optgen_optim

    return Arguments(f"optimizer({name!r})", optgen_optim.CLASSES[row.cls], row.locked, row.aliases)


def _given(
    arguments: Arguments, args: TrainingArguments | None, optim_args: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments that the user gives: by keyword, in the string here and in that of the trainer's arguments.

    Raises:
        TypeError: if an argument has another type, or is given twice.
    """
    from transformers import TrainingArguments

    if args is not None and not isinstance(args, TrainingArguments):
        raise TypeError(f"{arguments.label}: args are the trainer's TrainingArguments, not {args!r}")
    result = dict(settings)
    for where, text in (("optim_args", optim_args), ("args.optim_args", args.optim_args if args else None)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{arguments.label}: {where} is a string such as 'eps=1e-6,beta2=0.95', not {text!r}")
        for key, value in arguments.parse(text or "").items():
            if key in result:
                raise TypeError(f"{arguments.label}: {key} is given twice, once in {where}")
            result[key] = value
    return result


def _taken(name: str, row: Served, args: TrainingArguments | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments taken from the trainer's arguments, or from their defaults.

    Raises:
        ValueError: without them, where the learning rate or the weight decay is not given.
    """
    if args is not None:
        return {key: getattr(args, attribute) for key, attribute in row.taken.items()}
    from transformers import TrainingArguments

    missing = [key for key in ("lr", "weight_decay") if key not in given]
    if missing:
        shown = ", ".join(f"{key}=…" for key in missing)
        raise ValueError(
            f"optimizer({name!r}) does not know {' and '.join(missing)}: Trainer does not hand on its own; pass the "
            f"trainer's arguments, optimizer({name!r}, args), or {shown}"
        )
    defaults = {key: value.default for key, value in inspect.signature(TrainingArguments).parameters.items()}
    return {key: defaults[attribute] for key, attribute in row.taken.items() if key not in ("lr", "weight_decay")}


def _checked_overrides(name: str, overrides: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Overrides as they are, if they are settings by patterns. Raises TypeError."""
    found = {} if overrides is None else overrides
    if not isinstance(found, Mapping) or not all(isinstance(own, Mapping) for own in found.values()):
        wanted = "settings by patterns of names, as {'*.wte.weight': {'optim_bits': 8}}"
        raise TypeError(f"optimizer({name!r}): overrides are {wanted}, not {overrides!r}")
    return dict(found)


def _try(cls: type[Optimizer], kwargs: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise what the class raises for these arguments and overrides, before there is a model."""
    import torch

    shape = (1,) * (1 if cls.rule.ndim is None else cls.rule.ndim)
    param = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    made = cls([param], **kwargs)
    for own in overrides.values():
        made.override(param, **own)
