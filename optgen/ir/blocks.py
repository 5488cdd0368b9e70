"""The blocks of a rule and those of the stages that are put on it, in the order in which a step runs them."""

from __future__ import annotations

from optgen.diagnostics import Reporter
from optgen.ir.parser import Stage, parse_block, stored_names
from optgen.spec.loader import LoadedShared, LoadedSpec
from optgen.spec.source import SourceText


def texts_of(loaded: LoadedSpec) -> dict[str, SourceText]:
    """The blocks by name: those of a step in their order, a stage's as `stage.block`, then methods."""
    texts = {**_texts_on(loaded, "grad"), "step": loaded.text("blocks", "step"), **_texts_on(loaded, "update")}
    if loaded.spec.blocks.apply is not None:
        texts["apply"] = loaded.text("blocks", "apply")
    texts |= _texts_on(loaded, "apply")
    return texts | {name: loaded.text("methods", name, "block") for name in loaded.spec.methods}


def before(loaded: LoadedSpec, shared: LoadedShared) -> list[Stage]:
    """The stages that gradients pass through before the rule reads them."""
    return [Stage(shared.text("blocks", "grad"), "grad"), *put_on(loaded, "grad")]


def put_on(loaded: LoadedSpec, block: str) -> list[Stage]:
    """A block of the stages that are put on a rule."""
    return [Stage(text, block, name.rpartition(".")[0]) for name, text in _texts_on(loaded, block).items()]


def _texts_on(loaded: LoadedSpec, block: str) -> dict[str, SourceText]:
    stages = [stage for stage in loaded.stages if getattr(stage.spec.blocks, block).strip()]
    return {f"{stage.spec.stage}.{block}": stage.text("blocks", block) for stage in stages}


def assigns(loaded: LoadedSpec, block: str, name: str) -> bool:
    """Check whether a block assigns a name; True for a block that cannot be parsed, so that no further error is
    reported."""
    quiet = Reporter()
    body = parse_block(loaded.text("blocks", block), quiet)
    return quiet.has_errors or any(name in stored_names(statement) for statement in body)
