"""Specs at random: the stock ones with some of their parts changed, from a seed."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from optgen.operations import CALLED
from optgen.spec.names import OF_BLOCKS
from support.compiling import ROOT, RULES, STOCK, TESTED, probe
from support.hostile import PARTS

Tree = dict[str, Any] | list[Any] | str
SHARED = (ROOT / "specs" / "shared.yaml").read_text(encoding="utf-8")
BESIDE = {name: (ROOT / "specs" / f"{name}.yaml").read_text(encoding="utf-8") for name in ("functions", "vocabulary")}
TABLE: dict[str, Any] = yaml.load((ROOT / "specs" / "classes.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
BODY = """
past = push(past, norm(grad))
if ndim >= 2:
    rows_of = 0.9 * rows_of + row_mean(grad * grad)
    x = grad / sqrt(rows_of)
else:
    x = grad
if amsgrad:
    kept = max(kept, abs(x))
if beta1 is not None:
    exp_avg = beta1 * exp_avg + x
size = 0.5 * size + absmax(exp_avg)
if mode == "a" and pair == "left":
    x = x / percentile(past, 50)
total = total + sum(x * x, over=all)
param = param - lr * (x + exp_avg) / (size + total)
"""
SPECS = {path.stem: path.read_text(encoding="utf-8") for path in (*STOCK, *TESTED)}
SMALL = probe(BODY.strip())  # with states of every shape

VALUES = """
    0 1 -1 2 1e-3 1e30 1e999 -0.0 9223372036854775807 0x10 1_000 null true false yes ~ nan inf [] {} ValueError param
    row col matrix tensor group global signed unsigned fp32 int8 bf16 construct step apply lr grad param.x "" '' | >
    amsgrad not_a_name
"""
WORDS = """
    a x t c s i k n m f o w e E I value values name self cls args step grad param update state class def print None
    super int float double template std main auto this begin at tile books line segment Tile Codec results flags rule
    RULE CLASSES create Any Tensor Optimizer Mapping lambda__ x_at x_tile x_value x_absmax exp_avg_sq lr eps momentum
    step_ settings Settings Block Pass numel rows_value always OPTGEN errno NAN INFINITY NULL EOF linux unix near far
    min max seed target kahan compensation maximize ndim_is_1 i8 int64_t Absent Plain optgen torch numpy inf params
"""
LINES = """
    update = grad
    param = param - lr * update
    grad = grad + 0
    x = norm(grad)
    x = sum(grad * grad)
    x = mean(param)
    x = absmax(update)
    x = rms(grad)
    x = sum(grad, over=all)
    x = row_sum(grad)
    y = row_mean(grad * grad)
    y = mean(y, over=matrix)
    z = col_sum(abs(grad))
    active = active and isfinite(grad)
    update = where(x > 1, update / x, update)
    x = x * norm(x)
    x = step
    x = percentile(x, 50)
    x = where(step > 1, x, 0)
    update = rounded(update)
"""
SCALARS = (*VALUES.split(), "[0, 1)", "(0, inf)", "(1, 0)")
NAMES = WORDS.split()
CONDITIONS = (
    "ndim >= 2", "numel > 100", "index == 0", "amsgrad", "nesterov", "lr > 0", "beta1 is not None", "step == 1",
)  # fmt: skip
OPERATORS: tuple[type[ast.operator], ...] = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


@dataclass(frozen=True)
class Case:
    """Files of a folder of specs, by name; those of a seed are always the same."""

    seed: int
    files: Mapping[str, bytes]


def make_case(seed: int) -> Case:
    """A stock rule, or one of all shapes, with one to three changes; at times its classes and what is shared change."""
    source = random.Random(seed)
    if source.random() < 0.6:
        text = _changed(source, SMALL, source.choice((1, 2, 3, 4)))
        files = {"probe.yaml": text} | ({"shared.yaml": "{}"} if source.random() < 0.8 else {})
        return Case(seed, {path: text.encode("utf-8", "surrogatepass") for path, text in files.items()})
    name = source.choice(RULES)
    files = {f"{name}.yaml": _changed(source, SPECS[name], source.choice((1, 1, 1, 2, 3)))}
    if source.random() < 0.1:
        files["shared.yaml"] = _changed(source, SHARED, 1)
    for other in ("functions", "vocabulary"):
        if source.random() < 0.1:
            files[f"{other}.yaml"] = _changed(source, BESIDE[other], source.choice((1, 2)))
    if source.random() < 0.3 and "\nclasses:" not in SPECS[name]:
        files["classes.yaml"] = _changed(source, _classes(name), source.choice((0, 1, 2)))
    return Case(seed, {path: text.encode("utf-8", "surrogatepass") for path, text in files.items()})


def _classes(rule: str) -> str:
    """The classes of a rule as a table."""
    rows = {name: row for name, row in TABLE["classes"].items() if row.get("rule") == rule}
    named = {entry for row in rows.values() for entry in row.get("refusals", []) if isinstance(entry, str)}
    refusals = {name: refused for name, refused in TABLE["refusals"].items() if name in named}
    signatures = {name: entries for name, entries in TABLE["signatures"].items() if name == rule}
    return _written({"signatures": signatures, "refusals": refusals, "classes": rows})


class _AsRead(yaml.dumper.BaseDumper):
    """Writes scalars as `yaml.BaseLoader` reads them, all of them text: numbers get no quotes."""

    def ignore_aliases(self, data: object) -> bool:
        return True


for kind, how in ((str, "str"), (dict, "dict"), (list, "list")):
    _AsRead.add_representer(kind, getattr(yaml.representer.SafeRepresenter, f"represent_{how}"))


def _written(tree: Tree) -> str:
    return yaml.dump(tree, Dumper=_AsRead, sort_keys=False, allow_unicode=True, width=10**6)


def _changed(source: random.Random, text: str, times: int) -> str:
    kinds: tuple[Callable[[random.Random, str], str], ...] = (_rename, _splice, _tree, _equations)
    for _ in range(times):
        (kind,) = source.choices(kinds, (3, 1, 2, 8))
        text = kind(source, text)
    return text


# Text


def _rename(source: random.Random, text: str) -> str:
    """A name that the file declares is another one, wherever it stands."""
    names = _declared(text) or sorted(set(re.findall(r"\b[a-z][a-z0-9_]+\b", text)))
    return re.sub(rf"\b{re.escape(source.choice(names))}\b", source.choice(NAMES), text) if names else text


def _declared(text: str) -> list[str]:
    """The names that a file declares and that its equations give."""
    try:
        tree = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError):
        return []
    found = set(re.findall(r"(?m)^ *(\w+) = ", text)) - {"param", "grad", "update", "active"}
    for section in ("hyperparameters", "options", "states", "inputs", "methods", "classes"):
        part = tree.get(section) if isinstance(tree, dict) else None
        if isinstance(part, dict):
            found |= set(part)
            hypers = [row for row in part.values() if isinstance(row, dict)]
            found |= {name for row in hypers if isinstance(row.get("names"), list) for name in map(str, row["names"])}
    return sorted(name for name in found if name.isidentifier())


def _splice(source: random.Random, text: str) -> str:
    """A part is put in, taken out or doubled anywhere."""
    begin = source.randrange(len(text) + 1)
    end = min(len(text), begin + source.randrange(20))
    part = source.choice((source.choice(PARTS), "", text[begin:end] * 2, source.choice(SCALARS)))
    return text[:begin] + part + text[end:]


# Tree


def _tree(source: random.Random, text: str) -> str:
    """A node of the YAML is changed, moved or taken away."""
    try:
        tree = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError):
        return _splice(source, text)
    places = list(_nodes(tree))
    if not places:
        return text
    parent, key = source.choice(places)
    match source.randrange(7):
        case 0:
            del parent[key]
        case 1:
            parent[key] = source.choice(SCALARS)
        case 2:
            parent[key] = source.choice(PARTS) + (parent[key] if isinstance(parent[key], str) else "")
        case 3:
            other, place = source.choice(places)
            parent[key] = other[place]
        case 4 | 5:
            donor = yaml.load(SPECS[source.choice(RULES)], yaml.BaseLoader)
            found, place = source.choice([(p, k) for p, k in _nodes(donor) if k == key] or list(_nodes(donor)))
            parent[key] = found[place]
        case _:
            if isinstance(parent, dict):
                parent[source.choice(NAMES)] = parent[key]
            else:
                parent.append(parent[key])
    return _bounded(_written, tree, text)


def _bounded(make: Callable[[Any], str], tree: Any, text: str) -> str:
    """Make a text of a tree; return `text` itself where a node has come to hold itself."""
    try:
        made = make(tree)
    except (RecursionError, yaml.YAMLError, ValueError):
        return text
    return made if len(made) < 60_000 else text


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every node as its parent and its key there."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _nodes(value)


# Equations


@cache
def _known_statements() -> tuple[str, ...]:
    """The assignments of all stock rules."""
    found = []
    for text in SPECS.values():
        blocks = yaml.load(text, yaml.BaseLoader)["blocks"]
        trees = [ast.parse(block) for block in blocks.values()]
        found += [ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return (*sorted(set(found)), *map(str.strip, LINES.strip().split("\n")))


def _equations(source: random.Random, text: str) -> str:
    """A statement of a block is changed, put in, taken out, moved or made conditional."""
    try:
        tree = yaml.load(text, yaml.BaseLoader)
        blocks = tree["blocks"]
        name = source.choice(sorted(blocks))
        block = ast.parse(blocks[name])
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, SyntaxError, RecursionError, MemoryError):
        return _tree(source, text)
    bodies = [b for node in ast.walk(block) for b in (getattr(node, "body", None), getattr(node, "orelse", None))]
    body = source.choice([b for b in bodies if isinstance(b, list) and b] or [block.body])
    at = source.randrange(len(body) + 1)
    match source.randrange(7):
        case 0:
            body.insert(at, _fitting(source, {*_declared(text), *OF_BLOCKS}))
        case 1 if len(body) > 1:
            del body[at - 1]
        case 2 if body:
            body.insert(at, source.choice(body))
        case 3:
            source.shuffle(body)
        case 4 if body:
            test = ast.parse(source.choice(CONDITIONS), mode="eval").body
            body[at - 1] = ast.If(test, [body[at - 1]], [])
        case _:
            _change_expression(source, block)
    blocks[name] = ast.unparse(ast.fix_missing_locations(block)) + "\n"
    return _bounded(_written, tree, text)


def _fitting(source: random.Random, names: set[str]) -> ast.stmt:
    """A statement, as a rule that is about these names, or nearly all of them."""
    for _ in range(20):
        statement = ast.parse(source.choice(_known_statements())).body[0]
        read = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        if len(read - names - {*CALLED}) <= source.choice((0, 0, 0, 1)):
            break
    return statement


def _change_expression(source: random.Random, block: ast.Module) -> None:
    places = [
        (parent, field, index)
        for parent in ast.walk(block)
        for field, value in ast.iter_fields(parent)
        if field not in ("func", "targets")
        for index, item in enumerate(value if isinstance(value, list) else [value])
        if isinstance(item, ast.expr)
    ]
    if not places:
        return
    parent, field, index = source.choice(places)
    held = getattr(parent, field)
    old = held[index] if isinstance(held, list) else held
    names = sorted({node.id for node in ast.walk(block) if isinstance(node, ast.Name)} - {*CALLED})
    new = _expression(source, old, names)
    if source.random() < 0.05:  # as deep as the language goes, and deeper
        for _ in range(source.choice((50, 100, 200))):
            new = ast.BinOp(new, ast.Mult(), old)
    if isinstance(held, list):
        held[index] = new
    else:
        setattr(parent, field, new)


def _expression(source: random.Random, old: ast.expr, names: list[str]) -> ast.expr:
    def atom() -> ast.expr:
        if source.random() < 0.3:
            return ast.Constant(source.choice((0, 1, 2, 0.5, 1e-8, 1e300, True)))
        return ast.Name(source.choice([*names, *OF_BLOCKS]), ast.Load())

    def call(function: str, *args: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(function, ast.Load()), list(args), [])

    match source.randrange(7):
        case 0:
            return atom()
        case 1:
            return call(source.choice([*CALLED]), old)
        case 2:
            return call(source.choice([*CALLED]), old, atom())
        case 3:
            return call("where", ast.Compare(atom(), [ast.Gt()], [atom()]), old, atom())
        case 4:
            return ast.UnaryOp(source.choice((ast.USub(), ast.Not())), old)
        case 5:
            return ast.BoolOp(ast.And(), [old, atom()])
        case _:
            return ast.BinOp(old, source.choice(OPERATORS)(), atom())
