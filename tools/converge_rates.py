"""The learning rates that `make converge` trains with: one line a rule, found with `--rates` for 32-bit states.

A rule without a line of its own has DEFAULT. Projections have a rank of a quarter of the text's width, and are in few
bits though they are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Training:
    """Settings for training a rule.

    Attributes:
        lr: By task; None leaves the class's own default.
        settings: Other arguments, given to classes that take them.
        decayed: Whether the rate warms up and then falls. A rule that sets its own rate, or has none, goes without.
        longer: By task, how many times the task's steps a rule takes that is slower to halve its loss.
    """

    lr: Mapping[str, float | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    decayed: bool = True
    longer: Mapping[str, int] = field(default_factory=dict)


def _both(
    text: float | None,
    digits: float | None,
    *,
    decayed: bool = True,
    longer: Mapping[str, int] | None = None,
    **settings: Any,
) -> Training:
    return Training({"text": text, "digits": digits}, settings, decayed, longer or {})


DEFAULT = _both(2e-3, 1e-3)
RATES: Mapping[str, Training] = {
    "adabelief": _both(2e-3, 1e-3, eps=1e-8),
    "adadelta": _both(1.0, 1.0),
    "adafactor": _both(None, None, decayed=False),
    "adagrad": _both(2e-2, 1e-2),
    "adam": _both(2e-3, 1e-3),
    "adamuon": _both(5e-3, 2e-3),
    "adamax": _both(4e-3, 2e-3),
    "adan": _both(6e-3, 2e-3, longer={"text": 2}),
    "ademamix": _both(2e-3, 1e-3),
    "adopt": _both(2e-3, 1e-3),
    "apollo": _both(1.6e-2, 8e-3, rank=16, min_8bit_size=1),
    "apollo_mini": _both(8e-3, 8e-3, min_8bit_size=1),
    "asgd": _both(2.0, 1.0, max_grad_norm=0.5),  # 2.0 without clipping does not train the text model
    "dion": _both(1e-2, 2e-2, rank=16, min_8bit_size=1),
    "galore": _both(2.4e-2, 8e-3, rank=16, min_8bit_size=1),
    "galore_adafactor": _both(None, None, decayed=False, rank=16),
    "grokadamw": _both(2e-3, 1e-3),
    # One scale for a tensor, the default of these classes, is too coarse for second moments: block_wise. With their
    # eps of 1e-8 the few elements whose second moment is rounded to 0 make up the norm of LAMB's update; 1e-6 is the
    # value of the paper's own experiments.
    "lamb": _both(2e-2, 1e-2, block_wise=True, eps=1e-6),
    "lars": _both(1.0, 0.5, momentum=0.9, block_wise=True),
    "lion": _both(4e-4, 4e-4, longer={"text": 2}),
    "mars": _both(3e-3, 1e-3),
    "muon": _both(2e-2, 1e-2),
    "muonclip": _both(1.6e-2, 6.4e-2),
    "normuon": _both(2e-2, 1e-2),
    "nadam": _both(2e-3, 1e-3),
    "prodigy": _both(0.1, 0.5),
    "radam": _both(5e-3, 1e-2),
    "rmsprop": _both(1e-3, 5e-4),
    "rprop": _both(1e-3, 1e-3, decayed=False, step_sizes=(1e-6, 1e-2)),
    "schedule_free_adamw": _both(3e-3, 2e-3, decayed=False, warmup_steps=20),
    "schedule_free_radam": _both(5e-3, 6e-3, decayed=False),
    "schedule_free_sgd": _both(0.5, 0.5, decayed=False, warmup_steps=20),
    "shampoo": _both(4e-3, 2e-3, precondition_frequency=10),
    "sgd": _both(0.1, 0.02, momentum=0.9),
    "soap": _both(8e-3, 4e-3),
    "sophia_g": _both(1e-3, 5e-4, bs=512),
    "stable_adamw": _both(2e-3, 1e-3),
}


def training(family: str) -> Training:
    """Return the settings for training a rule."""
    return RATES.get(family, DEFAULT)
