"""Random rules, and what each is tried with: settings, dtypes, shapes, gradients.

A rule has states of all shapes below all conditions, a step of random statements (support/random_blocks.py), and often
a direction with an `apply` block, which brings the shared stages, and methods.
"""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from oracles.declared import Row
from oracles.expressions import Kind
from support.random_blocks import CONDITIONS, KEPT, LINES, OF_FACTS, OF_STEPS, RANKS, ROWS, SHAPES, Name, State, Writer

CODECS = ("fp32", "bf16", "fp16", "int8", "int4", "normal4", "fp8", "companded8")
QUANTIZED = ("int8", "int4", "normal4", "fp8", "companded8")
HYPERS = {"lr": 0.1, "second": 0.9, "third": 0.5}
DECLARED = {
    "hyperparameters": {
        "lr": '{default: 0.1, range: "[0, inf)"}',
        "second": '{default: 0.9, range: "[0, 1]"}',
        "third": '{default: 0.5, range: "[0, inf)"}',
        "given": '{default: null, range: "[0, inf)"}',
    },
    "options": {"flag": "{default: false}", "mode": "{default: a, choices: [a, b, c]}"},
}
# Sizes of parameters: less than a block of any codec, more than one, not a multiple; of every rank.
PARAMETERS = [(7,), (4, 6), (300,), (3, 4, 5), (), (1, 9), (17, 19), (2, 2, 3, 4), (2, 150), (5, 1)]
STEPS = 3


@dataclass(frozen=True)
class Rule:
    """A spec, and its methods: whether each reads gradients."""

    name: str
    text: str
    methods: Mapping[str, bool]


@dataclass(frozen=True)
class Case:
    """Settings and parameters that a rule is tried with."""

    settings: dict[str, Any]
    dtype: torch.dtype
    grad_dtype: torch.dtype
    shapes: list[tuple[int, ...]]
    missing: int | None = None  # the parameter that has no gradient in the second step


def rule_of(seed: int) -> Rule:
    """The rule of a number."""
    return _RuleWriter(seed).write()


def stage_of(seed: int, has_update: bool) -> Rule:
    """The stage of a number, for a rule with or without `update`."""
    return _StageWriter(seed).stage(has_update)


class _RuleWriter:
    prefix, conditions, windows = "s", tuple(CONDITIONS), True

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.name = f"random_{seed}"
        self.states = {state.name: state for state in self._states()}
        self.constant = {name: Name(Kind.GROUP, 1.0) for name in HYPERS}
        self.constant["given"] = Name(Kind.GROUP, 1.0, frozenset(["given is not None"]))

    def _states(self) -> list[State]:
        result = []
        for number in range(self.rng.randint(1, 6)):
            shape = self.rng.choice(["param"] * 3 + ["tensor"] * 2 + list(SHAPES))
            window = shape == "tensor" and self.rng.random() < 0.4 and self.windows
            lasting = [test for test in self.conditions if test not in OF_STEPS]
            chosen = self.rng.sample(lasting, self.rng.choice([0, 0, 1, 1, 2]))
            when = frozenset() if SHAPES[shape] <= Kind.GROUP else frozenset(chosen)
            if SHAPES[shape] in LINES:
                when |= {ROWS, RANKS.get(SHAPES[shape], ROWS)}
            result.append(State(f"{self.prefix}{number}", shape, window or self.rng.random() < 0.7, when, window))
        return result

    def write(self) -> Rule:
        writer = Writer(self.rng, self._names())
        step = writer.block(self.states)
        applies = self.rng.random() < 0.6
        if applies:
            step.append(writer.assign("update", writer.squeezed(writer.exact(Kind.ELEMENT, 3), KEPT)))
        else:
            step.append(writer.moved())
        body = "blocks:\n  step: |\n" + _indented(step, 4)
        if applies:
            writer.names["update"] = Name(Kind.ELEMENT, KEPT * 100)
            apply = [
                *writer.block(self.states, 1, self.rng.randint(0, 3)),
                "param = param - lr * min(max(update, -9), 9)",
            ]
            body += "  apply: |\n" + _indented(apply, 4)
        methods = self.rng.choice([[], [], ["measure"], ["turn"], ["measure", "turn"]])
        body += "methods:\n" if methods else ""
        body += "".join(self._method(name, name == "measure") for name in methods)
        states = {name: self._declared(state) for name, state in self.states.items()}
        text = _used({**DECLARED, "states": states}, body) + body
        return Rule(self.name, f"name: {self.name}\n{text}", {name: name == "measure" for name in methods})

    def _names(self) -> dict[str, Name]:
        names = dict(self.constant)
        names |= {"step": Name(Kind.STEP, 5.0), "ndim": Name(Kind.STEP, 4.0), "numel": Name(Kind.STEP, 330.0)}
        names |= {"index": Name(Kind.STEP, 9.0), "rows": Name(Kind.STEP, 20.0), "cols": Name(Kind.STEP, 330.0)}
        names |= {"matrices": Name(Kind.STEP, 4.0), "total_numel": Name(Kind.GLOBAL, 1000.0)}
        names |= {"fan_in": Name(Kind.STEP, 330.0), "shape[0]": Name(Kind.STEP, 330.0, frozenset({ROWS}))}
        names |= {"shape[-3]": Name(Kind.STEP, 20.0, frozenset({ROWS, "ndim >= 3"}))}
        names["param"] = Name(Kind.ELEMENT, 20.0)
        for name, state in self.states.items():
            names[name] = Name(SHAPES[state.shape], KEPT, state.when, is_window=state.window)
        return names

    def _declared(self, state: State) -> str:
        parts = [f"shape: {state.shape}"]
        if not state.signed:
            parts.append("range: unsigned")
        if state.when:
            parts.append(f"when: {' and '.join(sorted(state.when))}")
        if state.window:
            parts.append(f"window: {self.rng.choice([1, 2, 5])}")
        elif self.rng.random() < 0.4:
            names = dict(self.constant)
            if SHAPES[state.shape] > Kind.GROUP:
                names |= {
                    name: item for name, item in self._names().items() if item.kind is Kind.STEP and name != "step"
                }
                names["param"] = Name(Kind.ELEMENT, 5.0)
            writer = Writer(self.rng, names, has_grad=SHAPES[state.shape] > Kind.GROUP, at_once=True)
            writer.path = state.when
            term = writer.squeezed(writer.number(SHAPES[state.shape], 2), KEPT, state.signed)
            parts.append(f"init: {term.text}")
        elif self.rng.random() < 0.4:
            parts.append(f"init: {self.rng.choice([1, 0.5, 3])}")
        if state.shape == "param" and self.rng.random() < 0.2:
            codecs = self.rng.sample(CODECS[1:], self.rng.randint(0, 3))
            parts.append(f"codecs: [{', '.join(['fp32', *codecs])}]")
        return f"{{{', '.join(_quoted(part) for part in parts)}}}"

    def _method(self, name: str, has_grad: bool) -> str:
        writer = Writer(self.rng, self._names(), has_grad)
        lines = [*writer.block(self.states, 1, self.rng.randint(1, 3)), writer.moved()]
        grad = "    grad: true\n" if has_grad else ""
        return f"  {name}:\n{grad}    block: |\n" + _indented(lines, 6)


class _StageWriter(_RuleWriter):
    """Writes a stage: of the rule it reads `lr` alone, which every rule has here."""

    prefix, conditions, windows = "t", OF_FACTS, False

    def __init__(self, seed: int) -> None:
        super().__init__(seed + 10**6)
        self.name = f"stage_{seed}"
        self.constant = {"lr": Name(Kind.GROUP, 1.0), "fourth": Name(Kind.GROUP, 1.0)}

    def stage(self, has_update: bool) -> Rule:
        body = "blocks:\n"
        for block in ("grad", "update", "apply") if has_update else ("grad", "apply"):
            writer = Writer(self.rng, self._names(), has_grad=block == "grad")
            writer.conditions = self.conditions
            if block == "update":
                writer.names["update"] = Name(Kind.ELEMENT, KEPT * 100)
            lines = writer.block(self.states, 1, self.rng.randint(1, 4))
            last = writer.moved() if block == "apply" else ""
            lines.append(last or writer.assign(block, writer.squeezed(writer.exact(Kind.ELEMENT, 2), KEPT)))
            body += f"  {block}: |\n" + _indented(lines, 4)
        states = {name: self._declared(state) for name, state in self.states.items()}
        hypers = {"fourth": '{default: 0.5, range: "[0, inf)"}'}
        text = _used({"hyperparameters": hypers, "states": states}, body) + body
        return Rule(self.name, f"stage: {self.name}\n{text}", {})


def _used(declared: Mapping[str, Mapping[str, str]], body: str) -> str:
    """Declarations, without those that are not used."""
    text = body
    for section, items in reversed(declared.items()):
        lines = [f"  {name}: {item}\n" for name, item in items.items() if re.search(rf"\b{name}\b", text)]
        text = (f"{section}:\n" + "".join(lines) if lines else "") + text
    return text.removesuffix(body)


def _indented(lines: list[str], by: int) -> str:
    return textwrap.indent("\n".join(lines), " " * by) + "\n"


def _quoted(part: str) -> str:
    key, value = part.split(": ", 1)
    return part if value.startswith("[") or value.replace(".", "").isalnum() else f"{key}: '{value}'"


def case_of(seed: int, row: Row, most: int = 5) -> Case:
    """Settings, dtypes and shapes for the class of a rule, the same for the same number."""
    rng = random.Random(-seed - 1)
    settings: dict[str, Any] = {}

    def some(name: str, share: float, *values: Any) -> None:
        if rng.random() < share:
            settings[name] = rng.choice(values)

    some("flag", 0.5, True)
    some("mode", 0.6, "b", "c")
    some("given", 0.5, 0.7, 0.0)
    some("third", 0.4, 0.0, 1.0)
    some("lr", 0.2, 0.01)
    some("second", 0.2, 0.5, 0.0, 1.0)
    some("maximize", 0.1, True)
    some("skip_zeros", 0.15, True)
    some("max_grad_norm", 0.15, 1.0)
    some("percentile_clipping", 0.15, 50)
    if "cautious" in row.rule.options:
        some("cautious", 0.15, True)
        some("max_unorm", 0.15, 0.5)
        some("trust_ratio", 0.2, "lamb")
    always = [state for state in row.rule.states.values() if state.when is None]
    codecs = [codec for codec in CODECS if any(state.takes(codec) for state in always)]
    if len(codecs) > 1 and rng.random() < 0.8:
        settings["codec"] = rng.choice(codecs)
        if settings["codec"] in QUANTIZED:
            some("block_wise", 0.5, False)
            if settings.get("block_wise", True):
                some("block_size", 0.2, 32, 64)
            settings["min_8bit_size"] = rng.choice([0, 0, 100])
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    if dtype != torch.float32:
        some("rounding", 0.5, "stochastic", "kahan", *(["split8", "split16"] if dtype == torch.bfloat16 else []))
    grad_dtype = dtype if rng.random() < 0.8 else rng.choice([torch.float32, torch.bfloat16])
    shapes = rng.sample(PARAMETERS, rng.randint(1, most))
    settings = {name: value for name, value in settings.items() if name in row.rule.settings}
    return Case(settings, dtype, grad_dtype, shapes, rng.randrange(len(shapes)) if rng.random() < 0.3 else None)
