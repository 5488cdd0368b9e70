"""The matrix of the catalogue: which classes, types, targets, storage and settings meet.

All of it is made from what specs/ declares; no rule is named here. A case gives every axis a value:

- `class`, `target`, `dtype`, `grad_dtype` ("same" as the parameter, or one of its own);
- `storage`: each way in which states can be stored, once, from the choices of shared.yaml (`storages`);
- every other setting that the rule or shared.yaml declares: an option's choices; a number's default and one other value
  (oracles/declared.py: `another`). A number of the rule's own that is off by default is usually on here, since off it
  hides what it does;
- every input of a step: not given, or 3.

Cases that a class refuses are not among them; tests/numerics/test_refusals.py makes those and looks at what is raised.

What CI holds, of each rule (a kernel is one compilation of a second or so, plain torch has none):

- `paired`, target torch, all classes: every value of every axis, and all pairs of a setting of the rule's own with any
  other axis's values; of storages and roundings, those that differ in the rule's code (`FORMS`), and a few others in
  turn. Values of what rules share meet each other over all rules, whose code for it is one template's;
- `compiled`, targets cpu and cuda (on the stand-in): a few cases each, with the values that have met least in the
  rules before, so that over all rules nearly every pair of what they share meets on each of them.

What `-m full` holds besides (`full`): every value of every axis alone, on each target, for each rule's first class;
all pairs of settings with everything, on the torch target; and the product of class, target, dtype and storage, each
with one further axis at another value in turn.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import cycle, product
from typing import Any

from oracles.declared import Hyper, Row, State, holds, is_off, parsed
from oracles.rounding import ROUNDINGS
from oracles.spec_oracle import wanted_storage
from oracles.storage import BITS, CODECS
from oracles.storage import DTYPES as TORCH
from support.catalogue import all_rows, computed_rows, required, rows, rules, values_of
from support.pairs import Axes, Case, Pairs, all_pairs, full_product, label, one_at_a_time, spread

DTYPES = ("fp32", "bf16", "fp16")
COMPILED = ("cpu", "cuda")
FIXED = ("class", "target", "dtype", "grad_dtype", "storage")
APART = (*FIXED, "rounding", "seed")  # what is not paired with one another
DECIDE_STORAGE = ("optim_bits", "codec", "block_wise", "block_size")  # what of shared.yaml says how states are stored
BLOCKS = {name: codec.block for name, codec in CODECS.items()}
OTHER_BLOCK = 64  # a block size that is no codec's own
KERNELS = 2  # of each rule and compiled target in CI
STORED_OTHERWISE = 3  # of each rule on the torch target in CI, besides FORMS
FORMS = {
    "storage": ("fp32", "int8", "int8/tensor"),  # plain; a scale a block; a scale a tensor, found in a pass of its own
    "rounding": ("nearest", "stochastic", "kahan"),  # as it is; with a draw; with a state more
}

# Settings of shared.yaml that the matrix leaves alone, and why.
ELSEWHERE = {
    **dict.fromkeys(("matrix_form", "row_blocks"), "are of certain shapes: tests/matrices/test_forms.py"),
    "proj_type": "is of matrices and their sides: tests/matrices/test_shapes.py",
    "matrix_dtype": "bfloat16 has no bound that says anything: tests/matrices/test_muon.py",
    "distribute_matrices": "acts on several processes: tests/distributed/scenarios/matrices.py",
    "capturable": "acts on recorded steps of a GPU: tests/runtime/cuda/test_capturable.py, tests/cuda/test_gpu.py",
    "fused_backward": "acts in backward, which the matrix has none of: tests/runtime/hooks/test_fused_backward.py",
    "clip_by_last_norm": "acts on the step after: tests/runtime/step/test_last_norm.py",
    **dict.fromkeys(
        ("fused", "foreach", "differentiable"), "change nothing: tests/runtime/settings/test_torchs_implementations.py"
    ),
}
# Tests have small parameters, so that the usual least size is none.
SMALL = {"min_8bit_size": (0, 4096)}

Usual = Mapping[str, Any]


@cache
def storages() -> dict[str, dict[str, Any]]:
    """Settings for each way of storing states, by what it is called: the plainest settings that ask for it."""
    row = next(iter(rows().values()))
    declared = {name: values_of(row, row.rule.storage[name]) for name in DECIDE_STORAGE if name in row.rule.storage}
    if "block_size" in declared:
        declared["block_size"] = (declared["block_size"][0], OTHER_BLOCK)
    plain = {name: values[0] for name, values in declared.items()}
    found: dict[str, dict[str, Any]] = {}
    tried = [dict(zip(declared, values, strict=True)) for values in product(*declared.values())]
    for settings in sorted(tried, key=lambda each: sum(each[name] != plain[name] for name in plain)):
        name, block = wanted_storage(settings)
        label = name if block is None else f"{name}/{block or 'tensor'}"
        if block is None or block != BLOCKS.get(name):
            found.setdefault(label, settings)
    return found


def axes(names: list[str], targets: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """All that varies within a rule, the usual value of each first."""
    table = computed_rows()
    row = table[names[0]]
    rule = row.rule
    result: dict[str, tuple[Any, ...]] = {
        "class": tuple(names),
        "target": targets,
        "dtype": DTYPES,
        "grad_dtype": ("same", *DTYPES),
        "storage": tuple(storages()),
    }
    for name, setting in rule.settings.items():
        if name in (*DECIDE_STORAGE, *ELSEWHERE):
            continue
        values = SMALL.get(name) or values_of(row, setting)
        if name in rule.own and isinstance(setting, Hyper) and is_off(setting, values[0]):
            values = values[::-1]
        result[name] = values
    result |= dict.fromkeys(rule.inputs, (None, 3.0))
    return _usual_first(row, result, required(names[0]))


def _usual_first(row: Row, whole: dict[str, tuple[Any, ...]], needed: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Axes whose first values are a case that the first class takes."""
    for name, value in needed.items():
        whole[name] = (value, *(other for other in whole[name] if other != value))
    for _ in range(8):
        usual = {name: values[0] for name, values in whole.items()}
        rule = row.refusal(_settings(row, usual))
        if rule is None:
            return whole
        for name in sorted(rule.names & whole.keys()):
            for value in whole[name]:
                if row.refusal(_settings(row, usual | {name: value})) is not rule:
                    whole[name] = (value, *(other for other in whole[name] if other != value))
                    break
            else:
                continue
            break
    raise AssertionError(f"{row.name}: no usual case found")


def _settings(row: Row, case: Case) -> dict[str, Any]:
    """A case's settings, those of its storage among them."""
    stored = storages().get(case.get("storage", ""), {})
    return {key: value for key, value in {**case, **stored}.items() if key in row.rule.settings}


def valid(case: Case) -> bool:
    """Check whether a (perhaps partial) case is one that its class accepts, and no copy of another."""
    if case.get("grad_dtype") == case.get("dtype") and "dtype" in case:
        return False
    if not _rounds(case):
        return False
    row = all_rows().get(case.get("class", ""))
    if row is None:
        return True
    if row.torch_only and case.get("target", "torch") != "torch":
        return False
    settings = _settings(row, case)
    if "storage" in case and not _stores(row, case, settings):
        return False
    if row.fixed.get("clip_by_last_norm") and case.get("max_grad_norm"):
        return False  # clips by the step before: tests/runtime/step/test_last_norm.py
    for name in row.fixed.keys() - DECIDE_STORAGE:
        if name in case and case[name] != _only(row, name):
            return False  # the class has no such argument: one value stands for it
    rules = [rule for rule in (*row.refusals, *row.rule.refusals) if rule.on == "construct"]
    decided = [rule for rule in rules if _decided(rule.names, row, case)]
    if not decided:
        return True
    names = row.complete(settings)
    return not any(rule.holds(names) for rule in decided)


def _rounds(case: Case) -> bool:
    """Check whether the rounding of a case acts on its parameters, and the seed on its rounding."""
    rounding = ROUNDINGS[case.get("rounding", "nearest")]
    if "dtype" in case and TORCH[case["dtype"]] not in rounding.dtypes:
        return False
    return rounding.draws or "rounding" not in case or not case.get("seed")


def _stores(row: Row, case: Case, settings: Mapping[str, Any]) -> bool:
    """Check whether a class stores states in this way: in its own bits, and some state of the rule can be."""
    name, unusual = _stored(case["storage"])
    if row.bits is not None and BITS[name] != row.bits:
        return False
    if not unusual <= row.rule.storage.keys():
        return False
    states = [state for state in row.rule.states.values() if state.takes(name)]
    return name == "fp32" or any(_may_exist(state, row, case, settings) for state in states)


@cache
def _stored(label: str) -> tuple[str, frozenset[str]]:
    """The codec that a way of storing states asks for, and the settings that it takes."""
    plainest, settings = next(iter(storages().values())), storages()[label]
    return wanted_storage(settings)[0], frozenset(key for key in settings if settings[key] != plainest[key])


def _may_exist(state: State, row: Row, case: Case, settings: Mapping[str, Any]) -> bool:
    """Check whether a large matrix may have a state, as far as a case says."""
    if state.when is None:
        return True
    condition = parsed(state.when)
    names = {part.id for part in ast.walk(condition) if isinstance(part, ast.Name)} - set(MATRIX)
    return not _decided(names, row, case) or bool(holds(condition, {**row.complete(settings), **MATRIX}))


MATRIX = {"ndim": 2, "numel": 2**20, "index": 0}


def _only(row: Row, name: str) -> Any:
    return values_of(row, row.rule.settings[name])[0]


def _decided(names: Collection[str], row: Row, case: Case) -> bool:
    """Check whether a case decides all that a rule asks for."""
    wanted = _asked_for(case["class"], frozenset(names))
    return all(name in case or (name in (*DECIDE_STORAGE, *ELSEWHERE) and "storage" in case) for name in wanted)


@cache
def _asked_for(name: str, names: frozenset[str]) -> frozenset[str]:
    """The settings of a class that the names in a rule are, or are parts of."""
    row = all_rows()[name]
    parts = {part: whole for whole, hyper in row.rule.hypers.items() for part in hyper.parts}
    return frozenset(parts.get(each, each) for each in names) - row.fixed.keys()


def settings_of(case: Case) -> dict[str, Any]:
    """The arguments that a case gives to its class: those that are not its defaults."""
    row = all_rows()[case["class"]]
    accepted = row.accepted
    return {
        key: value
        for key, value in _settings(row, case).items()
        if key in accepted and (row.needed(key) or value != _default(row, key))
    }


def _default(row: Row, name: str) -> Any:
    default = row.default(name)
    return tuple(default) if isinstance(default, list) else default


def named(found: list[Case] | Iterator[Case], whole: Axes) -> dict[str, Case]:
    """Cases by their ids: what is unusual about each, besides its class and target."""
    usual = {name: values[0] for name, values in whole.items()}
    result = {}
    for case in found:
        other = {name: value for name, value in case.items() if name not in ("class", "target")}
        result[f"{case['class']}-{case['target']}-{label(other, usual)}"] = case
    return result


def paired() -> dict[str, Case]:
    """Every axis, and all pairs of a rule's own settings with everything, over all classes, on the torch target."""
    cases = {}
    met = Pairs()
    stored = cycle(name for name in storages() if name not in FORMS["storage"])
    rounded = cycle(name for name in ROUNDINGS if name not in FORMS["rounding"])
    for names in rules(computed_rows()).values():
        whole = axes(names, ("torch",))
        rule = all_rows()[names[0]].rule
        shared = [name for name in whole if name not in rule.own and name not in rule.inputs]
        formed = {
            name: tuple(value for value in values if value in FORMS.get(name, values)) for name, values in whole.items()
        }
        found = all_pairs(formed, valid, shared, met)
        others = [{"storage": next(stored), "rounding": next(rounded)} for _ in range(STORED_OTHERWISE)]
        found += spread(whole, valid, met, others)
        cases.update(named(found, whole))
    return cases


def compiled() -> dict[str, Case]:
    """A few cases of every rule on the targets that compile kernels: over all rules, as many pairs as can be."""
    cases = {}
    met = Pairs()
    stored = cycle(list(storages())[1:])
    for names in rules(computed_rows()).values():
        whole = axes([name for name in names if not all_rows()[name].torch_only], COMPILED)
        for target in COMPILED:
            starts: list[Case] = [{"target": target, "storage": next(stored)} for _ in range(KERNELS - 1)]
            starts.append({"target": target, "storage": "fp32"})
            cases.update(named(spread(whole, valid, met, starts), whole))
    return cases


def full() -> dict[str, Case]:
    """Every axis in full; all pairs; the product of class, target, dtype and storage, one more axis in turn."""
    cases = {}
    for names in rules(computed_rows()).values():
        first = axes([name for name in names if not all_rows()[name].torch_only][:1], COMPILED)
        for target in ("torch", *COMPILED):
            alone = first | {"target": (target,)}
            cases.update(named(one_at_a_time(alone, valid), alone))
        plain = axes(names, ("torch",))
        cases.update(named(all_pairs(plain, valid, APART), plain))
        whole = axes(names, ("torch", *COMPILED))
        usual = {name: values[0] for name, values in whole.items()}
        inner = {name: values for name, values in whole.items() if name not in FIXED}
        others = [{}, *({name: value} for name, values in inner.items() for value in values[1:])]
        others += [{"grad_dtype": dtype} for dtype in DTYPES]
        outer = {name: values for name, values in whole.items() if name in FIXED and name != "grad_dtype"}
        turn = cycle(others)
        found = []
        for storage in full_product(outer):
            for _ in others:
                case = usual | storage | next(turn)
                if valid(case):
                    found.append(case)
                    break
        cases.update(named(found, whole))
    return cases
