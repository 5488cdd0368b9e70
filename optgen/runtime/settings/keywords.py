"""Keywords of constructors that do not exist: which were meant, also in the words of other libraries."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping
from types import FunctionType, MappingProxyType
from typing import Any

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "beta1": "betas=(beta1, beta2)",
        "beta2": "betas=(beta1, beta2)",
        "bf16_stochastic_round": 'rounding="stochastic"',
        "bits": "optim_bits",
        "blocksize": "block_size",
        "caution": "cautious",
        "clip_grad_norm": "max_grad_norm",
        "correct_bias": "bias_correction",
        "decouple_wd": "decoupled_weight_decay",
        "epsilon": "eps",
        "gradient_release": "fused_backward",
        "kahan_sum": 'rounding="kahan"',
        "learning_rate": "lr",
        "paged": "is_paged",
        "triton": 'target="cuda"',
        "wd": "weight_decay",
        "weight_decouple": "decoupled_weight_decay",
    }
)
"""Keywords of other libraries, with the argument to write here."""
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "adam_w_mode": "choose Adam, which adds its decay to the gradient, or AdamW, which does not",
        "fsdp_in_use": "leave it out: parameters that are divided among processes are found by themselves",
        "set_grad_none": "give it to optimizer.zero_grad(set_to_none=True), which is the default",
    }
)
"""Keywords that no class has, with what to do."""


def name_the_meant(cls: type) -> None:
    """Let the constructor that a class defines say, for a keyword that it does not have, which one was meant.

    One that takes any keywords, and what is no plain function, stays as it is.
    """
    made = cls.__dict__.get("__init__")
    if not isinstance(made, FunctionType) or made.__code__.co_flags & 0x08:  # **keywords
        return
    code = made.__code__
    known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(made)
    def constructor(self: Any, *arguments: Any, **keywords: Any) -> None:
        for key in keywords:
            if key not in known:
                message = f"{type(self).__name__}() got an unexpected keyword argument {key!r}"
                raise TypeError(f"{message}; {meant(key, known)}")
        made(self, *arguments, **keywords)

    cls.__init__ = constructor  # type: ignore[misc]


def meant(key: str, known: Collection[str]) -> str:
    """A hint at the keyword that was meant, or all that there are.

    Args:
        known: Those that exist.
    """
    if key in ADVICE:
        return ADVICE[key]
    if key in ELSEWHERE and ELSEWHERE[key].partition("=")[0] in known:
        return f"write {ELSEWHERE[key]}"
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
