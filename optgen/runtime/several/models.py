"""Rules of a whole model: one for its hidden matrices, another for embeddings, heads, norms and biases.

What a parameter is follows from the module that has it and from its shape, never from its name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from optgen.runtime.several.entries import Find, read_entry
from optgen.runtime.several.optimizer import CombinedOptimizer
from optgen.runtime.several.routes import Owners, Rule

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
MATRIX = "matrix"


def for_model(
    find: Find,
    model: Module,
    rule: Rule,
    others: Rule,
    common: Mapping[str, Any],
    exclude: Iterable[Any] = (),
    include: Iterable[Any] = (),
    show: bool = True,
) -> CombinedOptimizer:
    """The optimizer of a model whose hidden matrices have one rule, and everything else that is trained another.

    Args:
        rule: Of matrices: a class, the name of one, or its settings with `rule`.
        others: Of all others.
        common: Settings of both.
        exclude: Patterns of names, classes of modules or modules whose parameters are no hidden matrices either.
        include: Those of parameters that are, whatever module they are in.
        show: Whether to print what goes where.

    Raises:
        TypeError: for what is no model, and as the classes do.
        ValueError: for what `exclude` or `include` does not find, for a matrix that the rule cannot take, and if
            there is no matrix.
    """
    if not isinstance(model, Module):
        raise TypeError(f"for_model takes a model, a torch.nn.Module, not {type(model).__name__}")
    owners = Owners(model)
    kinds = kinds_of(model, owners)
    asked = read_entry(find, rule, (), common)
    ndim, declared = asked.cls.rule.ndim, asked.settings.get("matrix_form") is not None
    for one, param in ((id(param), param) for _, param in owners.named):
        if kinds[one] == MATRIX and ndim is not None and param.ndim != ndim and not (declared and param.ndim > ndim):
            kinds[one] = f"{param.ndim} dimensions"
    for key in exclude:
        kinds.update(dict.fromkeys(_found(owners, key, "exclude"), "excluded"))
    for key in include:
        kinds.update(dict.fromkeys(_found(owners, key, "include"), MATRIX))
    matrices = [(name, param) for name, param in owners.named if kinds[id(param)] == MATRIX]
    rest = [(name, param) for name, param in owners.named if kinds[id(param)] != MATRIX]
    if not matrices:
        raise ValueError(
            "this model has no hidden matrix that is trained (embeddings, heads, norms and biases are none): give all "
            "of it to one rule, or say by `include` what is one"
        )
    entries = [read_entry(find, each, own, common) for each, own in ((rule, matrices), (others, rest)) if own]
    made = CombinedOptimizer(entries, find)
    if show:
        rules = {id(param): entry.cls.__name__ for entry in entries for _, param in entry.params}
        lines = table((rules[id(p)], kinds[id(p)], name, p) for name, p in [*matrices, *rest])
        sys.stdout.write("\n".join([*lines, ""]))
    return made


def kinds_of(model: Module, owners: Owners) -> dict[int, str]:
    """Kind of each parameter, by its identity: embedding, head, norm, vector, or matrix.

    A parameter that several modules have, as an embedding that is the head too, is what comes first of these.
    """
    kinds = {id(param): MATRIX if param.ndim > 1 else "vector" for _, param in owners.named}
    for kind, modules in (
        ("norm", (module for module in model.modules() if isinstance(module, NORMS))),
        ("head", heads(model)),
        ("embedding", (module for module in model.modules() if isinstance(module, EMBEDDINGS))),
    ):
        for module in modules:
            for param in module.parameters(recurse=False):
                if id(param) in kinds and (param.ndim > 1 or kind == "norm"):
                    kinds[id(param)] = kind
    return kinds


def heads(model: Module) -> Iterator[Module]:
    """The layers that make a model's output.

    They are what `get_output_embeddings()` of the model or of a module in it returns, as transformers' have it; the
    linear layer from the width of an embedding to its number of entries, if there is one alone; and the last of the
    model's own children, if it is a linear layer.
    """
    sizes = {module.weight.shape for module in model.modules() if isinstance(module, EMBEDDINGS)}
    onto: dict[torch.Size, list[Module]] = {}
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        head = ask() if callable(ask) else None
        if isinstance(head, Module):
            yield head
        if isinstance(module, nn.Linear) and module.weight.shape in sizes:
            onto.setdefault(module.weight.shape, []).append(module)
    yield from (alike[0] for alike in onto.values() if len(alike) == 1)
    last = [*model.children()][-1:]
    if last and isinstance(last[0], nn.Linear):
        yield last[0]


def _found(owners: Owners, key: Any, argument: str) -> set[int]:
    found = owners.matched(key)
    if not found:
        raise ValueError(f"for_model: {argument} has {key!r}, which matches no parameter that is trained")
    return found


def table(rows: Iterable[tuple[str, str, str, Tensor]]) -> Iterator[str]:
    """Lines of a table of rules: parameters of one shape whose names differ in numbers alone are a row.

    Args:
        rows: The class, the kind, the name and the tensor of each parameter.
    """
    found: dict[tuple[str, str, str, str], list[Tensor]] = {}
    for rule, kind, name, param in rows:
        shape = " x ".join(map(str, param.shape)) or "1"
        found.setdefault((rule, re.sub(r"\d+", "*", name), shape, kind), []).append(param)
    cells = [("rule", "parameters", "shape", "number", "elements", "what")]
    for (rule, name, shape, kind), params in found.items():
        cells.append((rule, name, shape, str(len(params)), f"{sum(p.numel() for p in params):,}", kind))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        padded = [
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()
