"""The matrix of the catalogue: which classes, dtypes, targets and options meet."""

from __future__ import annotations

from typing import Any

from catalogue import FULL_AXES, rows
from pairs import Case, all_pairs, full_product, label, one_at_a_time

DTYPES = ("fp32", "bf16", "fp16")
NO_MOMENTUM = (0.0, 0.5)
TARGETS = ("cpu", "torch", "cuda")

SHARED = {
    "percentile_clipping": (100, 50),
    "maximize": (False, True),
    "skip_zeros": (False, True),
    "nonfinite": ("propagate", "skip"),
    "weight_decay": (0.1, 0.0),
}
STORED = {"optim_bits": (32, 8), "block_wise": (True, False), "min_8bit_size": (0, 4096)}
OWN = {
    "adam": {
        "amsgrad": (False, True),
        "trust_ratio": ("none", "lamb"),
        "max_unorm": (0.0, 0.5),
        "is_paged": (False, True),
        "betas": ((0.9, 0.999), NO_MOMENTUM),
        "eps": (1e-8, 1e-3),
    },
    "lamb": {
        "amsgrad": (False, True),
        "bias_correction": (True, False),
        "adam_w_mode": (True, False),
        "trust_ratio": ("lamb", "none"),
        "max_unorm": (1.0, 0.5, 0.0),
        "betas": ((0.9, 0.999), NO_MOMENTUM),
        "eps": (1e-8, 1e-3),
    },
    "lars": {
        "momentum": (0.9, 0.0),
        "dampening": (0.0, 0.3),
        "nesterov": (False, True),
        "trust_ratio": ("none", "lars"),
        "max_unorm": (0.02, 0.0),
    },
}
RATES = {"adam": 0.01, "lamb": 0.01, "lars": 0.1}


def axes(family: str, classes: list[str]) -> dict[str, tuple[Any, ...]]:
    """All that varies within a family, the usual value of each first."""
    return {
        "class": tuple(classes),
        "target": TARGETS,
        "dtype": DTYPES,
        "grad_dtype": ("same", *DTYPES),
        **SHARED,
        **STORED,
        **OWN[family],
    }


def valid(case: Case) -> bool:
    """Whether a (perhaps partial) case is one that its class accepts, and no copy of another."""
    row = rows().get(case.get("class", ""))
    if row is not None:
        if row.bits and case.get("optim_bits", 32) != 32:
            return False  # the class says how many bits
        if row.effective_bits(case) == 8 and case.get("amsgrad"):
            return False
        if case.get("is_paged") and row.paged:
            return False  # has no such argument
        if row.torch_only and (case.get("target", "torch") != "torch" or case.get("optim_bits") == 8):
            return False
        if row.family == "lars" and case.get("momentum") == 0 and not row.torch_only:
            return False
    if case.get("nesterov") and (case.get("dampening") or case.get("momentum") == 0):
        return False
    if case.get("dampening") and case.get("momentum") == 0:
        return False
    if case.get("trust_ratio") == "lars" and case.get("max_unorm") == 0:
        return False  # max_unorm is not looked at
    coupled = case.get("weight_decay") and case.get("adam_w_mode") is False
    if coupled and case.get("betas") == NO_MOMENTUM and case.get("eps") == 1e-8:
        return False  # an element whose gradient the decay cancels goes anywhere: the update's norm has no bound
    return case.get("grad_dtype") != case.get("dtype") or "dtype" not in case


def families() -> dict[str, list[str]]:
    """Class names by family."""
    result: dict[str, list[str]] = {}
    for row in rows().values():
        result.setdefault(row.family, []).append(row.name)
    return result


def differences(case: Case, usual: Case) -> str:
    """What is unusual about a case, besides its class and target."""
    return label({name: value for name, value in case.items() if name not in ("class", "target")}, usual)


def swept() -> dict[str, Case]:
    """Every axis in full, one at a time, for one class of each family, around 32 and around 8 bits."""
    cases = {}
    for family, classes in families().items():
        (name,) = set(classes) & set(FULL_AXES)
        whole = axes(family, [name])
        for bits in (32, 8):
            for target in TARGETS:
                if (bits, target) == (8, "cpu") and name != "AdamW":
                    continue  # a kernel each: all pairs hold them
                around = {**whole, "target": (target,), "optim_bits": (bits,)}
                found = one_at_a_time(around, valid)
                cases.update({f"{name}-{target}-{bits}-{differences(case, found[0])}": case for case in found})
    return cases


def paired() -> dict[str, Case]:
    """All pairs of everything, over all classes of each family."""
    cases = {}
    for family, classes in families().items():
        whole = axes(family, classes)
        usual = {name: values[0] for name, values in whole.items()}
        for case in all_pairs(whole, valid):
            cases[f"{case['class']}-{case['target']}-{differences(case, usual)}"] = case
    return cases


def product() -> dict[str, Case]:
    """Every class, target, pair of dtypes and way of storage in full, times every value of every option."""
    cases = {}
    for family, classes in families().items():
        whole = axes(family, classes)
        usual = {name: values[0] for name, values in whole.items()}
        fixed = ("class", "target", "dtype", "grad_dtype", "optim_bits", "block_wise")
        outer = {name: whole[name] for name in fixed}
        inner = {name: values for name, values in whole.items() if name not in fixed}
        for storage in full_product(outer, valid):
            for options in one_at_a_time(inner):
                case = storage | options
                if valid(case):
                    cases[f"{case['class']}-{case['target']}-{differences(case, usual)}"] = case
    return cases


def settings_of(case: Case) -> dict[str, Any]:
    """The arguments that a case gives to its class."""
    row = rows()[case["class"]]
    chosen = {key: value for key, value in case.items() if key not in ("class", "target", "dtype", "grad_dtype")}
    if row.bits:
        del chosen["optim_bits"]
    if row.paged or row.family != "adam":
        chosen.pop("is_paged", None)
    if row.torch_only:
        for key in STORED:
            chosen.pop(key, None)
    return {"lr": RATES[row.family]} | chosen
