"""Declarations of specs/*.yaml, read by PyYAML alone: nothing of the package is asked.

A `WholeRule` is a rule with what shared.yaml adds to it; a `Row` is one of its classes.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from oracles.storage import BITS, CODECS, DTYPES

SPECS = Path(__file__).parents[2] / "specs"
Settings = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML as specs are written: `1e-3` is a number, and only `true` and `false` are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), _Loader)


def read_spec(path: Path) -> dict[str, Any]:
    """A file with its short forms written out: `lr: 0.1` with all that the vocabulary says of `lr`."""
    spec: dict[str, Any] = read_yaml(path)
    words = read_yaml(SPECS / "vocabulary.yaml")
    for section in ("hyperparameters", "options"):
        declared = {n: x if isinstance(x, dict) else {"default": x} for n, x in (spec.get(section) or {}).items()}
        spec[section] = {name: {**words[section].get(name, {}), **data} for name, data in declared.items()}
    for name, text in (spec.get("inputs") or {}).items():
        spec["inputs"][name] = {"doc": text} if isinstance(text, str) else text
    states = spec.get("states") or {}
    spec["states"] = {n: x if isinstance(x, dict) else words["states"].get(n, {}) for n, x in states.items()}
    for name, data in (spec.get("inputs") or {}).items():
        if "shape" in data:
            spec["states"][name] = {"shape": data["shape"], "init": data.get("default", 0), "given": True}
    return spec


@dataclass(frozen=True)
class Hyper:
    """A number that the user sets, or a tuple of numbers."""

    name: str
    default: Any
    low: float
    high: float
    low_open: bool
    high_open: bool
    parts: tuple[str, ...]
    required: bool
    integer: bool
    is_global: bool

    @property
    def optional(self) -> bool:
        return not self.required and self.default is None

    def value(self, given: Any) -> Any:
        """A setting as its equations read it: a float, a tuple of floats, or None."""
        if given is None:
            return None
        return tuple(map(float, given)) if self.parts else float(given)


@dataclass(frozen=True)
class Choice:
    """A flag, or one of several choices."""

    name: str
    default: Any
    choices: tuple[Any, ...]


def _hyper(name: str, data: Mapping[str, Any]) -> Hyper:
    text = data.get("range", "(-inf, inf)")
    low, high = (float(part) for part in text[1:-1].split(","))
    return Hyper(
        name=name,
        default=data.get("default"),
        low=low,
        high=high,
        low_open=text[0] == "(",
        high_open=text[-1] == ")",
        parts=tuple(data.get("names", ())),
        required="default" not in data,
        integer=data.get("integer", False),
        is_global=data.get("scope") == "global",
    )


def _choice(name: str, data: Mapping[str, Any]) -> Choice:
    default = data["default"]
    choices = data.get("choices")
    if choices is None:
        return Choice(name, default, (default, not default))
    return Choice(name, default, (default, *(choice for choice in choices if choice != default)))


def _setting(name: str, data: Mapping[str, Any]) -> Hyper | Choice:
    is_choice = "choices" in data or isinstance(data.get("default"), bool)
    return _choice(name, data) if is_choice else _hyper(name, data)


@dataclass(frozen=True)
class State:
    """Something kept between steps."""

    name: str
    shape: str | list[str | int]
    signed: bool
    init: float | str
    when: str | None
    window: int | None
    codecs: tuple[str, ...] | None
    stored_as: str | None = None
    given: bool = False

    def takes(self, codec: str) -> bool:
        """Check whether the state can be stored in a codec."""
        is_coded = self.shape == "param" or self.has_dimensions
        return is_coded and self.stored_as is None and (self.codecs is None or codec in self.codecs)

    @property
    def has_dimensions(self) -> bool:
        """True if it is a matrix of dimensions of its own."""
        return isinstance(self.shape, list)

    @property
    def plain(self) -> str:
        """Codec of the state where it is not quantized."""
        return next(name for name in self.codecs or ("fp32",) if name in DTYPES)


def _state(name: str, data: Mapping[str, Any] | None) -> State:
    data = data or {}
    return State(
        name=name,
        shape=data.get("shape", "param"),
        signed=data.get("range", "signed") == "signed",
        init=data.get("init", 0.0),
        when=data.get("when"),
        window=data.get("window"),
        codecs=tuple(data["codecs"]) if data.get("codecs") else None,
        stored_as=data.get("stored_as"),
        given=data.get("given", False),
    )


COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


@cache
def parsed(text: str) -> ast.expr:
    """An expression of a spec. Nodes are never changed, so that one serves all who ask for it."""
    return ast.parse(text, mode="eval").body


def holds(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of a condition over settings and facts: plain Python numbers, texts and truth values."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not holds(operand, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -holds(operand, names)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(holds(value, names) for value in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(holds(value, names) for value in values)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return COMPARE[type(op)](holds(left, names), holds(right, names))
        case ast.BinOp(left=ast.Name(id="step"), op=ast.Mod(), right=period):
            return names["step"] % holds(period, names)
        case ast.Call(func=ast.Name(id="every"), args=[period]):
            return names["step"] % holds(period, names) == 0
    raise ValueError(f"no condition: {ast.unparse(node)}")


@dataclass(frozen=True)
class Refusal:
    """A combination of settings that is refused, and how."""

    condition: ast.expr
    exception: type[Exception]
    message: str
    on: str

    def holds(self, names: Mapping[str, Any]) -> bool:
        return bool(holds(self.condition, names))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names that its condition asks for."""
        return frozenset(part.id for part in ast.walk(self.condition) if isinstance(part, ast.Name))


EXCEPTIONS: dict[str, type[Exception]] = {
    each.__name__: each for each in (ValueError, TypeError, NotImplementedError, RuntimeError)
}


def _refusal(data: Mapping[str, Any]) -> Refusal:
    return Refusal(
        ast.parse(data["when"], mode="eval").body,
        EXCEPTIONS[data.get("raise", "ValueError")],
        data["message"],
        data.get("on", "construct"),
    )


@dataclass(frozen=True)
class Stage:
    """A block's statements; those of shared.yaml see only what it declares, those of stages no names of a rule's own.

    `block` is `grad`, `update` or `apply` of what stands around the rule's own blocks.
    """

    body: Sequence[ast.stmt]
    block: str = ""
    owner: str = ""

    @property
    def shared(self) -> bool:
        return bool(self.block) and not self.owner


@dataclass(frozen=True)
class Method:
    """A method of the optimizer."""

    stage: Stage
    reads_grad: bool


def _stage(text: str, vectors: Mapping[str, Sequence[str]], block: str = "", owner: str = "") -> Stage:
    return Stage(_rounds(ast.parse(text).body, vectors), block, owner)


def _rounds(body: Sequence[ast.stmt], vectors: Mapping[str, Sequence[str]]) -> list[ast.stmt]:
    """Statements whose loops are gone through: as text, in which a name stands for what it is in a round."""
    result: list[ast.stmt] = []
    for statement in body:
        match statement:
            case ast.For(target=target, iter=through, body=inner):
                for item in _items(through, vectors):
                    items = item if isinstance(item, tuple) else (item,)
                    names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                    own = {name: f"({value})" for name, value in zip(names, _flat(items), strict=True)}
                    lines = "\n".join(map(ast.unparse, inner))
                    for name, value in own.items():
                        lines = re.sub(
                            rf"\b{name}\b", value.strip("()") if value[1:-1].isidentifier() else value, lines
                        )
                    result += _rounds(ast.parse(lines).body, vectors)
            case ast.If(test=test, body=then, orelse=other):
                words = re.sub(r"\blen\((\w+)\)", lambda match: str(len(vectors[match[1]])), ast.unparse(test))
                asked = ast.parse(words, mode="eval").body
                if not any(isinstance(part, ast.Name) for part in ast.walk(asked)):
                    result += _rounds(then if holds(asked, {}) else other, vectors)
                else:
                    result.append(ast.If(asked, _rounds(then, vectors), _rounds(other, vectors)))
            case _:
                text = ast.unparse(statement)
                for name, parts in vectors.items():
                    found = lambda match, parts=parts: parts[eval(match[1], {})]  # noqa: E731
                    text = re.sub(rf"\b{name}\[([^\]]*)\]", found, text)
                result += ast.parse(text).body
    return result


def _items(through: ast.expr, vectors: Mapping[str, Sequence[str]]) -> list[Any]:
    """Items that a loop goes through: Python's own words for it, over the names of parts."""
    known = {"range": range, "zip": zip, "enumerate": enumerate, "len": len, **vectors}
    return list(eval(ast.unparse(through), {"__builtins__": {}}, known))


def _flat(items: Sequence[Any]) -> list[Any]:
    return [part for item in items for part in (_flat(item) if isinstance(item, tuple) else [item])]


@dataclass(frozen=True)
class WholeRule:
    """A rule with what shared.yaml adds to it."""

    name: str
    hypers: Mapping[str, Hyper]
    options: Mapping[str, Choice]
    storage: Mapping[str, Hyper | Choice]
    inputs: tuple[str, ...]
    states: Mapping[str, State]
    refusals: tuple[Refusal, ...]
    stages: tuple[Stage, ...]
    methods: Mapping[str, Method]
    functions: Mapping[str, ast.FunctionDef]
    common: frozenset[str]
    of_stages: frozenset[str]
    own: frozenset[str]
    ndim: int | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Hyper | Choice]:
        """All that a constructor may take, `args` and `target` aside."""
        return {**self.hypers, **self.options, **self.storage}


def _offered(declared: Mapping[str, Any] | None, own: Mapping[str, Any], has: Collection[str]) -> dict[str, Any]:
    """Shared settings that a rule takes: it may declare them again, and some need what it may not have."""
    return {name: data for name, data in (declared or {}).items() if name not in own and _met(data.get("needs"), has)}


def _met(needs: Any, has: Collection[str]) -> bool:
    """Check whether a rule has what a shared setting needs: a stage, a way of storing, a choice of an option."""
    if isinstance(needs, Mapping):
        return all(f"{option}={choice}" in has for option, choice in needs.items())
    return needs is None or needs in has


def _codecs(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Codecs of a state; every codec where it names none."""
    shape = state.get("shape", "param")
    if shape != "param" and not isinstance(shape, list):
        return ("fp32",)
    return tuple(state.get("codecs") or BITS)


def _shared_refusals(shared: Mapping[str, Any], *settings: Mapping[str, Any]) -> Iterator[Refusal]:
    """Those of shared.yaml that ask for what a rule has."""
    known = {name for each in settings for name in each}
    for data in shared.get("refusals") or ():
        rule = _refusal(data)
        if rule.names <= known:
            yield rule


def whole_rule(
    spec: Mapping[str, Any], shared: Mapping[str, Any], put_on: Sequence[Mapping[str, Any]] = ()
) -> WholeRule:
    """A rule as its file, shared.yaml and stages that are put on it declare it."""
    for stage in put_on:
        spec = dict(spec)
        for section in ("hyperparameters", "options", "inputs", "states"):
            spec[section] = {**(spec.get(section) or {}), **(stage.get(section) or {})}
        spec["refusals"] = [*(spec.get("refusals") or ()), *(stage.get("refusals") or ())]
    blocks, common = spec["blocks"], shared.get("blocks") or {}
    update = "apply" in blocks
    hypers, options = spec.get("hyperparameters") or {}, spec.get("options") or {}
    has = {codec for state in (spec.get("states") or {}).values() for codec in _codecs(state or {})}
    ways = [
        set(_codecs(state or {})) for state in (spec.get("states") or {}).values() if not (state or {}).get("stored_as")
    ]
    has |= {"update"} if update else set()
    has |= {"matrix"} if spec.get("ndim") == 2 else set()
    own_shapes = any(isinstance((state or {}).get("shape"), list) for state in (spec.get("states") or {}).values())
    has |= {"iteration"} if spec.get("ndim") == 2 and not own_shapes else set()
    sides = {side for state in (spec.get("states") or {}).values() for side in (state or {}).get("shape") or ()}
    has |= {"turned"} if sides & {"kept", "reduced"} else set()
    has |= {"codec"} if any(len(way) > 1 for way in ways) else set()
    has |= {"quantized"} if any(way & CODECS.keys() for way in ways) else set()
    every_option = {**options, **_offered(shared.get("options"), options, has)}
    has |= {f"{name}={choice}" for name, data in every_option.items() for choice in data.get("choices") or ()}
    every_hyper = {**hypers, **_offered(shared.get("hyperparameters"), hypers, has)}
    vectors = {name: tuple((data or {}).get("names") or ()) for name, data in hypers.items() if isinstance(data, dict)}
    own_states: dict[str, Any] = {}
    for name, data in (spec.get("states") or {}).items():
        count = (data or {}).get("count")
        size = len(vectors[count]) if isinstance(count, str) else count
        if size is None:
            own_states[name] = data
        else:
            vectors[name] = tuple(f"{name}_{number}" for number in range(size))
            own_states |= dict.fromkeys(vectors[name], data)
    states = {**own_states, **(shared.get("states") or {})}
    around = {
        block: [_stage(one["blocks"].get(block) or "", vectors, block, one["stage"]) for one in put_on]
        for block in ("grad", "update", "apply")
    }
    stages = [_stage(common.get("grad") or "", {}, "grad"), *around["grad"], _stage(blocks["step"], vectors)]
    if update:
        stages += [
            *around["update"],
            _stage(common.get("update") or "", {}, "update"),
            _stage(blocks["apply"], vectors),
        ]
    stages += around["apply"]
    sections = ("hyperparameters", "options", "inputs", "states")
    return WholeRule(
        name=spec["name"],
        hypers={name: _hyper(name, data) for name, data in every_hyper.items()},
        options={name: _choice(name, data) for name, data in every_option.items()},
        storage={name: _setting(name, data) for name, data in _offered(shared.get("storage"), {}, has).items()},
        inputs=(*(n for n, x in (spec.get("inputs") or {}).items() if "shape" not in x), *(shared.get("inputs") or {})),
        states={name: _state(name, data) for name, data in states.items()},
        refusals=(
            *(_refusal(rule) for rule in spec.get("refusals") or ()),
            *_shared_refusals(shared, every_hyper, every_option, _offered(shared.get("storage"), {}, has)),
        ),
        stages=tuple(stages),
        methods={
            name: Method(_stage(data["block"], vectors), data.get("grad", False))
            for name, data in (spec.get("methods") or {}).items()
        },
        functions={
            node.name: node
            for text in (
                read_yaml(SPECS / "functions.yaml")["functions"],
                *(one.get("functions") or "" for one in (*put_on, spec)),
            )
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef)
        },
        common=frozenset(name for section in sections for name in (shared.get(section) or {})),
        of_stages=frozenset(name for one in put_on for name in (one.get("states") or {})),
        own=frozenset((*hypers, *options)),
        ndim=spec.get("ndim"),
    )


FIXES = {"bits": "optim_bits", "paged": "is_paged"}


@dataclass(frozen=True)
class Row:
    """A class: what it fixes, what it changes."""

    name: str
    rule: WholeRule
    bits: int | None
    paged: bool | None
    torch_only: bool
    set: Mapping[str, Any]
    changed: Mapping[str, Any]
    required: frozenset[str]
    refusals: tuple[Refusal, ...]

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Settings that the class fixes."""
        stored = {key: getattr(self, attribute) for attribute, key in FIXES.items()}
        return {**self.set, **{key: value for key, value in stored.items() if value is not None}}

    @property
    def accepted(self) -> dict[str, Hyper | Choice]:
        """Arguments of its constructor, `args` and `target` aside, with the class's own defaults."""
        fixed = self.fixed
        return {name: setting for name, setting in self.rule.settings.items() if name not in fixed}

    def default(self, name: str) -> Any:
        """The default of a setting, fixed or not."""
        return {name: self.rule.settings[name].default, **self.changed, **self.fixed}[name]

    def needed(self, name: str) -> bool:
        """Check whether the user must give a hyperparameter."""
        setting = self.rule.settings[name]
        return name in self.required or (isinstance(setting, Hyper) and setting.required and name not in self.changed)

    def complete(self, settings: Settings) -> dict[str, Any]:
        """Every setting by name, tuples' parts too, as conditions read them."""
        result = {name: settings.get(name, self.default(name)) for name in self.rule.settings}
        result |= self.fixed
        if result.get("codec") not in (None, "auto"):
            result["optim_bits"] = BITS[result["codec"]]
        for name, hyper in self.rule.hypers.items():
            if hyper.parts and result[name] is not None:
                result |= dict(zip(hyper.parts, result[name], strict=True))
        return result

    def refusal(self, settings: Settings, on: str = "construct", values: Settings | None = None) -> Refusal | None:
        """The first rule that these settings meet: the class's own are looked at first."""
        names = {**self.complete(settings), **(values or {})}
        for rule in (*self.refusals, *self.rule.refusals):
            if rule.on == on and rule.holds(names):
                return rule
        return None

    def message(self, refusal: Refusal, settings: Settings) -> str:
        return refusal.message.format_map({**self.complete(settings), "name": self.name})


def _row(name: str, rule: WholeRule, data: Mapping[str, Any], named: Mapping[str, Any]) -> Row:
    changed = dict(data.get("defaults") or {})
    if data.get("block_wise") is not None:
        changed["block_wise"] = data["block_wise"]
    own = [named[entry] if isinstance(entry, str) else entry for entry in data.get("refusals") or ()]
    return Row(
        name=name,
        rule=rule,
        bits=data.get("bits"),
        paged=data.get("paged"),
        torch_only=data.get("target") == "torch",
        set=data.get("set") or {},
        changed=changed,
        required=frozenset(data.get("required") or ()),
        refusals=tuple(_refusal(rule) for rule in own),
    )


def _classes(rows: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The classes of a table: a row with lists of bits and of paged stands for one of each pair."""
    for name, data in (rows or {}).items():
        row = data or {}
        bits, paged = row.get("bits"), row.get("paged")
        for one in paged if isinstance(paged, list) else [paged]:
            for number in bits if isinstance(bits, list) else [bits]:
                ahead = "Paged" if isinstance(paged, list) and one is True else ""
                after = f"{number}bit" if isinstance(bits, list) and number != "any" else ""
                fixed = {"bits": None if number == "any" else number, "paged": None if one == "any" else one}
                yield f"{ahead}{name}{after}", {**row, **fixed}


def load_spec(path: Path, shared: Path = SPECS / "shared.yaml") -> dict[str, Row]:
    """The classes of one rule's own file: without any there is one, named after the rule."""
    spec = read_spec(path)
    rule = whole_rule(spec, read_spec(shared))
    classes = spec.get("classes") or {"".join(part.capitalize() for part in spec["name"].split("_")): {}}
    return {name: _row(name, rule, data, {}) for name, data in _classes(classes)}


def load_on(rule: Path, put_on: Sequence[Path], shared: Path = SPECS / "shared.yaml") -> dict[str, Row]:
    """The classes of a rule with stages on it; of one of optgen's own rules, those of the table."""
    stages = [read_spec(path) for path in put_on]
    whole = whole_rule(read_spec(rule), read_spec(shared), stages)
    table = read_yaml(SPECS / "classes.yaml")
    rows = _classes(table["classes"]) if rule.parent == SPECS else ((name, {}) for name in load_spec(rule, shared))
    ahead = "".join(part.capitalize() for stage in stages for part in stage["stage"].split("_"))
    named = {f"{ahead}{name}": data for name, data in rows if data.get("rule") in (None, whole.name)}
    return {name: _row(name, whole, data, table["refusals"]) for name, data in named.items()}


@cache
def load_catalogue(folder: Path = SPECS) -> dict[str, Row]:
    """Every class of a folder: of classes.yaml, and of the rules' own files."""
    shared = read_spec(folder / "shared.yaml")
    table = read_yaml(folder / "classes.yaml") if (folder / "classes.yaml").exists() else {}
    rows: dict[str, Row] = {}
    rules, own = {}, {}
    for path in sorted(folder.glob("*.yaml")):
        if path.stem not in ("shared", "classes", "vocabulary", "functions"):
            spec = read_spec(path)
            rules[spec["name"]] = whole_rule(spec, shared)
            own[spec["name"]] = spec.get("classes") or {}
    for name, data in _classes(table.get("classes")):
        rows[name] = _row(name, rules[data["rule"]], data, table.get("refusals") or {})
    for rule, classes in own.items():
        for name, data in _classes(classes):
            rows[name] = _row(name, rules[rule], data, table.get("refusals") or {})
    for rule, declared in rules.items():
        if not any(row.rule is declared for row in rows.values()):
            name = "".join(part.capitalize() for part in rule.split("_"))
            rows[name] = _row(name, declared, {}, {})
    return rows


def is_off(hyper: Hyper, value: Any) -> bool:
    """Check whether a number is at the closed end of its range, where terms drop out of the equations."""
    return not hyper.parts and value is not None and not hyper.low_open and value == hyper.low


def another(hyper: Hyper, default: Any) -> Any:
    """One further value of a hyperparameter, found from its range and its default.

    - none given: the middle of the range, or one half above its lower end;
    - at the lower end (a term is off): the middle, or 0.1 above it;
    - both ends finite: halfway between the lower end and the default (0.9 -> 0.45, 100 percent -> 50);
    - else the root of the default, orders of magnitude for small ones (1e-8 -> 1e-4); half of 1.
    A whole number goes 4 up from the lower end, or 5 where 4 up is the default.
    """
    if hyper.parts:
        return tuple(_another(hyper, part) for part in default)
    return _another(hyper, default)


def _another(hyper: Hyper, default: float | None) -> float | int:
    low, high = hyper.low, hyper.high
    bounded = math.isfinite(low) and math.isfinite(high)
    if hyper.integer:
        found = int(low if math.isfinite(low) else 0) + 4
        return found + 1 if found == default else found
    if default is None:
        return (low + high) / 2 if bounded else (low if math.isfinite(low) else 0.0) + 0.5
    if default == low:
        return (low + high) / 2 if bounded else low + 0.1
    if bounded:
        return (low + default) / 2
    if default == 0:
        return 0.3
    scaled = math.copysign(math.sqrt(abs(default)), default)
    for candidate in (scaled, default / 2, default + 1):
        inside = (candidate > low or (candidate == low and not hyper.low_open)) and (
            candidate < high or (candidate == high and not hyper.high_open)
        )
        if inside and candidate != default:
            return candidate
    raise ValueError(f"no further value for {hyper.name}={default}")
