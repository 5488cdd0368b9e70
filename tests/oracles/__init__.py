"""Float64 rules written from the published formulas, independent of specs/*.yaml and of the package's code."""

from oracles.base import Oracle
from oracles.classic import AdamOracle, LambOracle, LarsOracle
from oracles.modern import (
    AdafactorOracle,
    AdEMAMixOracle,
    NovoGradOracle,
    ProdigyOracle,
    RAdamOracle,
    ScheduleFreeAdamWOracle,
    StableAdamWOracle,
)

__all__ = [
    "AdEMAMixOracle",
    "AdafactorOracle",
    "AdamOracle",
    "LambOracle",
    "LarsOracle",
    "NovoGradOracle",
    "Oracle",
    "ProdigyOracle",
    "RAdamOracle",
    "ScheduleFreeAdamWOracle",
    "StableAdamWOracle",
]
