"""Symbols of names in formulas: the field's own letters, Greek ones, indices."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

_NAMES = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "kappa",
    "mu",
    "nu",
    "rho",
    "sigma",
    "tau",
)
GREEK: Mapping[str, str] = {
    **{name: unicodedata.lookup(f"GREEK SMALL LETTER {name}") for name in _NAMES},
    "lambda": unicodedata.lookup("GREEK SMALL LETTER LAMDA"),
}
USUAL: Mapping[str, str] = {
    "param": "θ",
    "grad": "g",
    "step": "t",
    "update": "u",
    "lr": "η",
    "eps": "ε",
    "weight_decay": "λ",
    "momentum": "μ",
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "exp_avg_var": "s",
}
"""Letters that papers give to what the spec language names in words."""
AVERAGES = ("exp_avg_sq", "exp_avg_var", "exp_avg")
"""Names that stand in others, whose rest becomes an index: exp_avg_slow, max_exp_avg_sq."""


def symbols(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The letter and index of each name; a name that would share them with another one keeps its words.

    Args:
        names: In the order in which they are given letters.

    Returns:
        (letter or words, index or "") by name.
    """
    listed = list(dict.fromkeys(names))
    words = {(name, "") for name in listed}
    found: dict[str, tuple[str, str]] = {}
    for name in listed:
        short = _short(name)
        found[name] = (name, "") if short in words or short in found.values() else short
    return found


def _short(name: str) -> tuple[str, str]:
    if name in USUAL:
        return USUAL[name], ""
    for average in AVERAGES:
        if name == f"max_{average}":
            return USUAL[average], "max"
        rest = name.removeprefix(f"{average}_")
        if rest != name and rest.isalpha():
            return USUAL[average], rest
    match = re.fullmatch(r"([A-Za-z][A-Za-z_]*?)_?(\d+)", name)
    word, index = (match[1], match[2]) if match else (name, "")
    return GREEK.get(word, USUAL.get(word, word)), index
