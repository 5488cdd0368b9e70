"""The names of transformers' `OptimizerNames`: which class of the catalogue serves each, and what the name fixes.

What a name passes to its optimizer, from where and with which defaults, is what Trainer itself does with it (its
functions `_get_…` in trainer_optimizer.py of transformers 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Alias:
    """An argument, true or false, that the class has under another name and with other values."""

    argument: str
    values: Mapping[bool, str]


@dataclass(frozen=True)
class Served:
    """Row of a name: the class that serves it, with its arguments.

    Attributes:
        cls: The class, of optgen_optim.
        locked: Arguments that the name fixes, beside those that the class does.
        defaults: Arguments whose default is not the class's.
        taken: Arguments that come from TrainingArguments unless they are given: argument -> attribute.
        aliases: Arguments that transformers calls otherwise.
        sixteen_bits: Defaults where a parameter has 16 bits.
        whole_embeddings: Whether the weights of embeddings keep 32-bit states.
        others: The class for all parameters but weights of target modules, where the class is for these.
    """

    cls: str
    locked: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    sixteen_bits: Mapping[str, Any] = field(default_factory=dict)
    whole_embeddings: bool = False
    others: str | None = None


COMMON = {"lr": "learning_rate", "weight_decay": "weight_decay"}
BETAS = COMMON | {"beta1": "adam_beta1", "beta2": "adam_beta2"}
ADAM = BETAS | {"eps": "adam_epsilon"}
WARMUP = {"warmup_steps": "warmup_steps"}
UNSCALED = {"scale_parameter": False, "relative_step": False}
CLIPPING = {"max_grad_norm": "max_grad_norm"}
STOCHASTIC = {"bf16_stochastic_round": Alias("rounding", {True: "stochastic", False: "nearest"})}
KAHAN = {"kahan_sum": Alias("rounding", {True: "kahan", False: "nearest"})}


def _projected(name: str, cls: str, others: str, taken: Mapping[str, str], **locked: Any) -> dict[str, Served]:
    """The rows of a name that projects gradients, and of its form that updates within backward.

    Args:
        cls: The class of the weights of target modules.
        others: That of all other parameters.
    """
    row = Served(cls, locked, taken=taken, others=others)
    return {name: row, f"{name}_layerwise": replace(row, locked={**locked, "fused_backward": True})}


_ADAMW = Served("AdamW", taken=ADAM)
_ADAMW8BIT = Served("AdamW8bit", taken=ADAM, whole_embeddings=True)

SERVED: Mapping[str, Served] = {
    "adamw_torch": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adamw_torch_xla": _ADAMW,
    "adamw_torch_npu_fused": _ADAMW,
    "adafactor": Served("Adafactor", UNSCALED, taken=COMMON),
    "adamw_anyprecision": Served("AnyPrecisionAdamW", defaults={"variance_dtype": "float32"}, taken=ADAM),
    "adamw_torch_4bit": Served("AdamW", {"optim_bits": 4}, {"block_size": 256}, ADAM, STOCHASTIC),
    "adamw_torch_8bit": Served("AdamW8bit", {}, {"block_size": 256}, ADAM, STOCHASTIC),
    "ademamix": Served("AdEMAMix32bit", taken=ADAM),
    "sgd": Served("SGD", taken=COMMON),
    "adagrad": Served("Adagrad", taken=COMMON),
    "adamw_bnb_8bit": _ADAMW8BIT,
    "adamw_8bit": _ADAMW8BIT,
    "ademamix_8bit": Served("AdEMAMix8bit", taken=ADAM, whole_embeddings=True),
    "lion_8bit": Served("Lion8bit", taken=BETAS, whole_embeddings=True),
    "lion_32bit": Served("Lion32bit", taken=BETAS),
    "paged_adamw_32bit": Served("PagedAdamW32bit", taken=ADAM),
    "paged_adamw_8bit": Served("PagedAdamW8bit", taken=ADAM, whole_embeddings=True),
    "paged_ademamix_32bit": Served("PagedAdEMAMix32bit", taken=ADAM),
    "paged_ademamix_8bit": Served("PagedAdEMAMix8bit", taken=ADAM, whole_embeddings=True),
    "paged_lion_32bit": Served("PagedLion32bit", taken=BETAS),
    "paged_lion_8bit": Served("PagedLion8bit", taken=BETAS, whole_embeddings=True),
    "rmsprop": Served("RMSprop", taken=COMMON),
    "rmsprop_bnb": Served("RMSprop32bit", taken=COMMON),
    "rmsprop_bnb_8bit": Served("RMSprop8bit", taken=COMMON, whole_embeddings=True),
    "rmsprop_bnb_32bit": Served("RMSprop32bit", taken=COMMON),
    "grokadamw": Served("GrokAdamW", taken=ADAM),
    "lomo": Served("LOMO", taken=COMMON | CLIPPING),
    "adalomo": Served("AdaLOMO", taken=COMMON | CLIPPING),
    "schedule_free_radam": Served("RAdamScheduleFree", taken=ADAM),
    "schedule_free_adamw": Served("AdamWScheduleFree", taken=ADAM | WARMUP),
    "schedule_free_sgd": Served("SGDScheduleFree", taken=COMMON | WARMUP),
    **_projected("galore_adamw", "GaLoreAdamW", "AdamW", ADAM),
    **_projected("galore_adamw_8bit", "GaLoreAdamW8bit", "AdamW8bit", ADAM),
    **_projected("galore_adafactor", "GaLoreAdafactor", "Adafactor", COMMON, **UNSCALED),
    **_projected("apollo_adamw", "APOLLO", "AdamW", ADAM),
    "stable_adamw": Served("StableAdamW", taken=ADAM, aliases=KAHAN, sixteen_bits={"rounding": "kahan"}),
}

NOT_SERVED: Mapping[str, str] = {}
"""Names that nothing serves yet, each with the reason."""
