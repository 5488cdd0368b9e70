"""Stages of users put on rules: settings, states and equations around a rule's own.

Input: the rules of a run and the files of stages, in their order. Output: the same rules, each with the declarations of
the stages beside its own, under a name of its own. What the equations mean is the later stages' business.
"""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from collections.abc import Sequence as Ordered
from dataclasses import replace
from pathlib import Path
from typing import Any

from optgen import paths as stock
from optgen.diagnostics import Reporter, suggest
from optgen.errors import UserError
from optgen.prose import Prose
from optgen.spec.checks import check_rule
from optgen.spec.given import with_given
from optgen.spec.loader import (
    FUNCTIONS,
    VOCABULARY,
    LoadedSpec,
    LoadedStage,
    SpecSet,
    load_functions,
    load_specs,
    load_vocabulary,
    read_document,
)
from optgen.spec.model import Shared, Spec, StageSpec
from optgen.spec.names import class_name, plain_class
from optgen.spec.nodes import Document, Mapping, Scalar, Sequence
from optgen.spec.vectors import Vectors, with_vectors
from optgen.spec.vocabulary import Words

DECLARED = ("hyperparameters", "options", "inputs", "states")
LONGEST = 64
KINDS = {
    "hyperparameters": "a hyperparameter",
    "options": "an option",
    "inputs": "an input",
    "states": "a state",
    "storage": "a storage setting",
}


def load_on(stages: Ordered[Path], onto: str | Path, reporter: Reporter) -> SpecSet:
    """The rules that `onto` names, with stages on them.

    Args:
        stages: Files of stages, the one that is nearest to the rule last.
        onto: A rule or a class of optgen's own specs, or the path of a spec or of a folder of them.

    Raises:
        SpecError: all errors of all files at once.
        UserError: optgen has no rule and no class of that name.
    """
    if _is_path(onto):
        specs = load_specs([Path(onto)], reporter)
    else:
        specs = _only(load_specs([stock.specs_dir()], reporter), str(onto))
    loaded = [_load_stage(path, specs.words, reporter) for path in stages]
    found = [stage for stage in loaded if stage is not None]
    names = [stage.spec.stage for stage in found]
    for at, stage in enumerate(found):
        if stage.spec.stage in names[:at]:
            where = stage.locate("stage")
            reporter.error("duplicate-name", f"two stages are called `{stage.spec.stage}`", where, "leave one out")
    reporter.raise_if_any()
    return _put_on(specs, found, reporter)


def _is_path(onto: str | Path) -> bool:
    return isinstance(onto, Path) or Path(onto).suffix in (".yaml", ".yml") or not onto.replace("_", "").isalnum()


def _only(specs: SpecSet, name: str) -> SpecSet:
    """The rule of that name, or that of the class of that name, alone."""
    of_classes = {plain_class(one): entry.rule for one, entry in specs.classes.items()}
    rule = name if name in specs.rules else of_classes.get(plain_class(name))
    if rule is None:
        known = suggest(name, [*specs.rules, *specs.classes]) or f"its rules are {', '.join(specs.rules)}"
        raise UserError(f"optgen has no rule and no class `{name}`: {known} (a spec of your own goes by its path)")
    classes = {one: entry for one, entry in specs.classes.items() if entry.rule == rule}
    return replace(specs, rules={rule: specs.rules[rule]}, classes=classes)


def _load_stage(path: Path, words: Words, reporter: Reporter) -> LoadedStage | None:
    document = read_document(path, reporter)
    if document is None:
        return None
    if "stage" not in document.root.keys:
        message = f"{path.name} is not a stage"
        help_text = "a stage begins with `stage: its_name` and has `blocks`: `grad`, `update`, `apply`"
        reporter.error("stage", message, document.locate_key(), help_text)
        return None
    beside = path.parent / VOCABULARY
    words = words.with_words(load_vocabulary(beside, reporter)) if beside.is_file() else words
    document, spec = words.read(document, StageSpec, reporter)
    if spec is None:
        return None
    if path.stem.replace("-", "_") != spec.stage:
        message = f"the stage `{spec.stage}` is in a file called `{path.name}`"
        reporter.warning("file-name", message, document.locate("stage"), f"call the file `{spec.stage}.yaml`")
    if not any((spec.blocks.grad.strip(), spec.blocks.update.strip(), spec.blocks.apply.strip())):
        message = f"the stage `{spec.stage}` has no equations"
        reporter.error("no-effect", message, document.locate_key("blocks"), "write `grad:`, `update:` or `apply:`")
    document, spec, vectors = with_vectors(*with_given(document, spec, reporter), reporter)
    beside = path.parent / FUNCTIONS
    functions = load_functions(beside, reporter) if beside.is_file() else []
    own = [document.text("functions")] if spec.functions else []
    return LoadedStage(document, spec, vectors, (*functions, *own))


def _put_on(specs: SpecSet, stages: Ordered[LoadedStage], reporter: Reporter) -> SpecSet:
    shared = specs.shared.shared
    rules = {name: _composed(loaded, stages, shared, reporter) for name, loaded in specs.rules.items()}
    reporter.raise_if_any()
    prefix = "".join(class_name(stage.spec.stage) for stage in stages)
    classes = {
        prefix + name: entry.model_copy(update={"rule": rules[entry.rule].spec.name})
        for name, entry in specs.classes.items()
        if entry.rule is not None
    }
    declared = {prefix + name: replace(one, name=prefix + name) for name, one in specs.declared.items()}
    by_name = {loaded.spec.name: loaded for loaded in rules.values()}
    return replace(specs, rules=by_name, classes=classes, declared=declared)


def _composed(loaded: LoadedSpec, stages: Ordered[LoadedStage], shared: Shared, reporter: Reporter) -> LoadedSpec:
    """A rule with stages on it; what a stage declares and is there already is reported."""
    spec, root, vectors = loaded.spec, loaded.document.root, dict(loaded.vectors)
    taken = {name: f"{what} of every rule" for name, (_, what) in _declared(shared, {}).items()}
    taken |= {name: f"{what} of `{spec.name}`" for name, (_, what) in _declared(spec, vectors).items()}
    for stage in stages:
        own = stage.spec
        if own.blocks.update.strip() and spec.blocks.apply is None:
            message = f"the stage `{own.stage}` has a block `update`, and `{loaded.spec.name}` names no `update`"
            help_text = "that rule changes `param` in its `step`; write `grad` or `apply`, or take another rule"
            reporter.error("no-update", message, stage.locate_key("blocks", "update"), help_text)
        for name, (path, what) in _declared(own, stage.vectors).items():
            if name in taken:
                message = f"the stage `{own.stage}` declares `{name}`, which is {taken[name]} too"
                help_text = "rename it, or remove it here: equations of a stage read what the rule has"
                reporter.error("duplicate-name", message, stage.locate_key(*path), help_text)
            taken.setdefault(name, f"{what} of the stage `{own.stage}`")
        for name in (name for name, state in own.states.items() if state.is_matrix):
            message = f"`{name}` is a matrix of a shape of its own, which the `step` of a rule alone can compute"
            reporter.error("kind", message, stage.locate("states", name, "shape"), "give it another shape")
        sections = {key: _beside(getattr(spec, key), getattr(own, key)) for key in DECLARED}
        spec = spec.model_copy(update={**sections, "refusals": [*spec.refusals, *own.refusals]})
        root, vectors = _joined(root, stage.document.root), _beside(vectors, stage.vectors)
    name = "_".join((*(stage.spec.stage for stage in stages), spec.name))
    if len(name) > LONGEST:
        message, where = f"the name `{name}` is too long", stages[0].locate("stage")
        reporter.error("name", message, where, f"a name has at most {LONGEST} characters")
    spec = spec.model_copy(update={"name": name, **_described(spec, stages)})
    own_name = root.values["name"]
    if isinstance(own_name, Scalar):
        root = replace(root, values={**root.values, "name": replace(own_name, text=name)})
    document = Document(loaded.source, root)
    if not reporter.has_errors:
        check_rule(spec, shared, document, reporter)
    return LoadedSpec(document, spec, vectors, loaded.own_name, tuple(stages))


def _declared(spec: Spec | StageSpec | Shared, vectors: Vectors) -> dict[str, tuple[tuple[str, ...], str]]:
    """The names that a file declares, each with the path of its declaration and what it is."""
    found: dict[str, tuple[tuple[str, ...], str]] = {name: (("states", name), "a vector of states") for name in vectors}
    for section, what in KINDS.items():
        for name, one in getattr(spec, section, {}).items():
            found[name] = (section, name), what
            found |= dict.fromkeys(getattr(one, "names", ()), ((section, name), f"a part of `{name}`"))
    return found


def _beside(first: Mapped[str, Any], second: Mapped[str, Any]) -> dict[str, Any]:
    """Both, the first where they have the same key."""
    return {**first, **{key: value for key, value in second.items() if key not in first}}


def _joined(root: Mapping, other: Mapping) -> Mapping:
    """The tree of a rule with the declarations of a stage beside its own."""
    keys, values = _beside(root.keys, other.keys), _beside(root.values, other.values)
    for section in (*DECLARED, "refusals"):
        match root.values.get(section), other.values.get(section):
            case Mapping() as first, Mapping() as second:
                both = _beside(first.keys, second.keys), _beside(first.values, second.values)
                values[section] = replace(first, keys=both[0], values=both[1])
            case Sequence() as first, Sequence() as second:
                values[section] = replace(first, items=(*first.items, *second.items))
            case None | Scalar(), (Mapping() | Sequence()) as second:  # a rule that says `states:` and none
                values[section] = second
    return replace(root, keys=keys, values=values)


def _described(spec: Spec, stages: Ordered[LoadedStage]) -> dict[str, Prose]:
    """Title, reference and documentation of a rule with stages on it."""
    names = {stage.spec.stage: stage.spec.title.line() or Prose(stage.spec.stage) for stage in stages}
    title = spec.title.line() or Prose(spec.name)
    for at, name in enumerate(names.values()):
        title = title + (", " if at else "; stages: ") + name
    parts = {"title": title}
    for key in ("reference", "doc"):
        text: Prose = getattr(spec, key)
        for stage in stages:
            said: Prose = getattr(stage.spec, key)
            text = text + (" " if text else "") + names[stage.spec.stage] + ": " + said if said else text
        parts[key] = text
    return parts
