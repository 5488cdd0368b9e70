"""Loader of specs, from paths to checked models.

Input: files and folders. Output: a `SpecSet` of models with the places of all their parts, or diagnostics. What needs
only the YAML is checked here (names, ranges, defaults, signatures); what blocks mean is the parser's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field, replace
from pathlib import Path

from optgen import paths as stock
from optgen.diagnostics import Location, Reporter, SpecError
from optgen.spec.checks import check_rule, check_shared
from optgen.spec.classes import ClassChecker, Declared, classes_of
from optgen.spec.given import with_given
from optgen.spec.model import (
    ClassEntry,
    ClassRow,
    ClassTable,
    RefusalEntry,
    Shared,
    SharedFunctions,
    Spec,
    StageSpec,
    Vocabulary,
)
from optgen.spec.names import SHARED_FILES, class_name, modules_of, plain_class
from optgen.spec.nodes import Document, Key
from optgen.spec.nodes import read_document as read_nodes
from optgen.spec.present import FORMER_TABLE, with_present_keys
from optgen.spec.source import SourceFile, SourceText
from optgen.spec.validation import validate
from optgen.spec.vectors import Vectors, with_vectors
from optgen.spec.vocabulary import Words, check_vocabulary

SHARED = "shared.yaml"
CLASSES = "classes.yaml"
VOCABULARY = "vocabulary.yaml"
FUNCTIONS = "functions.yaml"
BESIDE = (SHARED, VOCABULARY, FUNCTIONS)
"""Files that act on the rules beside which they stand."""


@dataclass(frozen=True)
class _Located:
    document: Document

    @property
    def source(self) -> SourceFile:
        """The file as read."""
        return self.document.source

    def text(self, *keys: Key) -> SourceText:
        """A scalar by its path, as `text("states", "z", "init")`; empty, at its parent, where there is none."""
        return self.document.text(*keys)

    def text_of(self, value: str, *keys: Key) -> SourceText:
        """A text by its path; one that the vocabulary says stands at its word."""
        return replace(self.text(*keys), text=value)

    def locate(self, *keys: Key) -> Location:
        """The place of a value; where there is none, of its nearest parent's key."""
        return self.document.locate(*keys)

    def locate_key(self, *keys: Key) -> Location:
        """The place of a key; where there is none, of its nearest parent's."""
        return self.document.locate_key(*keys)


@dataclass(frozen=True)
class LoadedStage(_Located):
    """A stage that is put on rules, with the places of its parts.

    Attributes:
        vectors: The states that are one vector, by its name.
        functions: The texts of functions that its blocks may call beside those of all rules; later ones come before.
    """

    spec: StageSpec
    vectors: Vectors
    functions: tuple[SourceText, ...]


@dataclass(frozen=True)
class LoadedSpec(_Located):
    """A rule with the places of its parts.

    Attributes:
        vectors: The states that are one vector, by its name.
        own_name: Its name without those of the stages that are put on it.
        stages: These stages, in their order.
    """

    spec: Spec
    vectors: Vectors = field(default_factory=dict)
    own_name: str = ""
    stages: tuple[LoadedStage, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it is of."""
        return (self.source.path, *(stage.source.path for stage in self.stages))


@dataclass(frozen=True)
class LoadedShared(_Located):
    """`shared.yaml` with the places of its parts."""

    shared: Shared


@dataclass(frozen=True)
class PlacedRefusal:
    """A combination that a class refuses, with a name for it, and its condition with its place."""

    name: str
    refused: RefusalEntry
    when: SourceText


@dataclass(frozen=True)
class SpecSet:
    """All rules and classes of a run.

    Attributes:
        rules: The rules by name, sorted.
        shared: Declarations that act on every rule.
        classes: All classes: those of `classes.yaml`, the rules' own, and one for each rule that has none. Every
            class has its `rule`, and its `signature` as a list of names.
        refusals: Refusals that `classes.yaml` names.
        functions: The texts of functions that every rule may call, of which later ones come before earlier ones.
        words: The vocabulary.
    """

    rules: dict[str, LoadedSpec]
    shared: LoadedShared
    classes: dict[str, ClassEntry]
    declared: dict[str, Declared]
    refusals: dict[str, RefusalEntry]
    functions: tuple[SourceText, ...]
    words: Words
    table_document: Document | None

    def refusals_of(self, name: str) -> tuple[PlacedRefusal, ...]:
        """The combinations that the class `name` refuses, names resolved to those of `classes.yaml`."""
        declared, found = self.declared[name], []
        for index, entry in enumerate(self.classes[name].refusals):
            if isinstance(entry, RefusalEntry):
                when = declared.document.text(*declared.at("refusals", index, "when"))
                found.append(PlacedRefusal(f"{name}_refuses_{index}", entry, when))
            elif self.table_document is not None and entry in self.refusals:
                when = self.table_document.text("refusals", entry, "when")
                found.append(PlacedRefusal(entry, self.refusals[entry], when))
        return tuple(found)


def load_specs(paths: Ordered[Path], reporter: Reporter, *, partial: bool = False) -> SpecSet:
    """Reads, validates and checks specs.

    Args:
        paths: Spec files, and folders of which every `*.yaml` is read. A `shared.yaml` in a folder (for a file: in
            its folder) replaces the stock one; a `vocabulary.yaml` and a `functions.yaml` there add to the stock
            ones and come before them. A `classes.yaml` is read from folders and where it is named.
        reporter: Collects the errors; those of another stage may be in it already.
        partial: Return the rules and classes that could be read even if there are errors, which stay in `reporter`,
            so that a later stage can add its own before all are raised. Ranges may be unreadable then.

    Raises:
        SpecError: all errors of all files at once (with `partial`, only if there is no rule to return).
    """
    files = _Files.of(paths, reporter)
    words = Words.of(*(load_vocabulary(path, reporter) for path in files.vocabularies))
    shared = _load_shared(files.shared, words, reporter)
    table_document = read_document(files.classes, reporter) if files.classes else None
    table = validate(table_document, ClassTable, reporter) if table_document else None
    rules: dict[str, LoadedSpec] = {}
    for path in files.specs:
        loaded = _load_spec(path, shared, words, rules, reporter)
        if loaded is not None:
            rules[loaded.spec.name] = loaded
    complete = not reporter.has_errors
    functions = tuple(text for path in files.functions for text in load_functions(path, reporter))
    specs = _merge(rules, shared, table, table_document, functions, words, reporter, complete)
    if specs is None or not specs.rules or not partial:
        reporter.raise_if_any()
    if specs is None:
        raise SpecError(())  # cannot be: what is missing has been reported
    return specs


@dataclass(frozen=True)
class _Files:
    specs: tuple[Path, ...]
    shared: Path
    classes: Path | None
    vocabularies: tuple[Path, ...]
    functions: tuple[Path, ...]

    @staticmethod
    def of(paths: Ordered[Path], reporter: Reporter) -> _Files:
        found: dict[Path, Path] = {}
        for path in paths:
            for file in _yaml_files(path, reporter):
                found.setdefault(_resolved(file), file)
        specs = tuple(file for file in found.values() if _role(file) not in (*BESIDE, CLASSES))
        for file in specs:
            for beside in (file.parent / name for name in BESIDE):
                if beside.is_file():
                    found.setdefault(_resolved(beside), beside)
        named = {name: [file for file in found.values() if _role(file) == name] for name in (*BESIDE, CLASSES)}
        for name, several in named.items():
            if len(several) > 1:
                listed = ", ".join(f"`{file.as_posix()}`" for file in several)
                reporter.error(f"several-{Path(name).stem}", f"a build takes one {name}, found {listed}", None)
        if not specs and not reporter.has_errors:
            reporter.error("no-specs", "there is no spec to read", None, "`optgen new NAME` writes a spec to edit")
        own = {name: several[0] for name, several in named.items() if several}
        stock_files = {name: stock.specs_dir() / name for name in BESIDE}

        def both(name: str) -> tuple[Path, ...]:
            """The stock file and then the one that is beside the rules."""
            files = (stock_files[name], own.get(name, stock_files[name]))
            return tuple({_resolved(file): file for file in files}.values())

        shared = own.get(SHARED, stock_files[SHARED])
        return _Files(specs, shared, own.get(CLASSES), both(VOCABULARY), both(FUNCTIONS))


def _role(file: Path) -> str:
    """The name that a file is known by."""
    return CLASSES if file.name == FORMER_TABLE else file.name


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _yaml_files(path: Path, reporter: Reporter) -> Iterable[Path]:
    try:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
    except (OSError, ValueError) as error:
        reporter.error("no-file", f"`{path.as_posix()}` cannot be read: {error}", None)
        return []
    if not files:
        message = f"the folder `{path.as_posix()}` holds no *.yaml"
        reporter.error("no-specs", message, None, "`optgen new NAME` writes a spec to edit")
    return files


def read_document(path: Path, reporter: Reporter) -> Document | None:
    """A file with the keys of today; None where it cannot be read."""
    document = read_nodes(path, reporter)
    return None if document is None else with_present_keys(document, reporter)


def load_vocabulary(path: Path, reporter: Reporter) -> Vocabulary:
    """The words of a file; of one that cannot be read, none."""
    document = read_document(path, reporter)
    vocabulary = validate(document, Vocabulary, reporter) if document else None
    if document is None or vocabulary is None:
        return Vocabulary()
    check_vocabulary(vocabulary, document, reporter)
    return vocabulary


def load_functions(path: Path, reporter: Reporter) -> list[SourceText]:
    """The functions of a file as text; of one that cannot be read, none."""
    document = read_document(path, reporter)
    functions = validate(document, SharedFunctions, reporter) if document else None
    return [] if document is None or functions is None else [document.text("functions")]


def _load_shared(path: Path, words: Words, reporter: Reporter) -> LoadedShared | None:
    document = read_document(path, reporter)
    if document is None:
        return None
    document, shared = words.read(document, Shared, reporter)
    if shared is None:
        return None
    check_shared(shared, document, reporter)
    return LoadedShared(document, shared)


def _load_spec(
    path: Path, shared: LoadedShared | None, words: Words, rules: dict[str, LoadedSpec], reporter: Reporter
) -> LoadedSpec | None:
    document = read_document(path, reporter)
    if document is None or _is_misplaced(document, path, reporter):
        return None
    document, spec = words.read(document, Spec, reporter)
    if spec is None:
        return None
    if not _modules(spec.name).isdisjoint(SHARED_FILES):
        message = f"`{spec.name}` is the name of a shared file of the package"
        reporter.error("reserved-name", message, document.locate("name"), "use another name")
        return None
    for name, other in rules.items():
        if _modules(name) & _modules(spec.name):
            message = f"the rules `{name}` and `{spec.name}` would be one file of the package"
            message = f"the rule `{spec.name}` is declared twice" if name == spec.name else message
            help_text = f"also in {other.locate('name')}; rename one"
            reporter.error("duplicate-rule", message, document.locate("name"), help_text)
            return None
    if path.stem.replace("-", "_") != spec.name:
        message = f"the rule `{spec.name}` is in a file called `{path.name}`"
        help_text = f"call the file `{spec.name}.yaml`"
        reporter.warning("file-name", message, document.locate("name"), help_text)
    document, spec, vectors = with_vectors(*with_given(document, spec, reporter), reporter)
    check_rule(spec, shared.shared if shared else Shared(), document, reporter)
    return LoadedSpec(document, spec, vectors, spec.name)


def _modules(rule: str) -> set[str]:
    """The modules that a rule is compiled to, as file systems tell them apart that know no case."""
    return {module.lower() for module in modules_of(rule)}


def _is_misplaced(document: Document, path: Path, reporter: Reporter) -> bool:
    """A table of classes under another name, and a stage, are told from a broken rule."""
    keys = set(document.root.keys)
    if "classes" in keys and keys <= {"signatures", "refusals", "classes"}:
        message = f"{path.name} is a table of classes, not a rule"
        reporter.error("file-name", message, document.locate_key(), f"name the file {CLASSES}")
        return True
    if "stage" in keys:
        message = f"{path.name} is a stage, not a rule"
        help_text = "a stage is put on a rule, by `onto=` of `optgen.load` or `--onto` of the commands"
        reporter.error("stage", message, document.locate_key("stage"), help_text)
        return True
    return False


def _merge(
    rules: dict[str, LoadedSpec],
    shared: LoadedShared | None,
    table: ClassTable | None,
    table_document: Document | None,
    functions: tuple[SourceText, ...],
    words: Words,
    reporter: Reporter,
    complete: bool,
) -> SpecSet | None:
    """All classes in one table. When files were unreadable (`complete` is false), rules may be missing unsaid."""
    rows = table or ClassTable(classes={})
    checker = ClassChecker(
        rules={name: loaded.spec for name, loaded in rules.items()},
        shared=shared.shared if shared else Shared(),
        table=rows,
        table_document=table_document,
        complete=complete,
        reporter=reporter,
    )
    classes: dict[str, ClassEntry] = {}
    found: dict[str, Declared] = {}
    modules = {m: f"`{m}` is a module of the rule `{rule}`" for rule in rules for m in modules_of(rule)}
    plain: dict[str, str] = {}

    def declare(name: str, row: ClassRow, document: Document, path: tuple[Key, ...]) -> None:
        if checker.check_lists(name, row, document, path):
            for declared in classes_of(name, row, document, path):
                declare_class(declared)

    def declare_class(declared: Declared) -> None:
        name, where = declared.name, declared.document.locate_key(*declared.path)
        if name in found:
            first = found[name].document.locate_key(*found[name].path)
            message = f"the class `{name}` is declared twice"
            reporter.error("duplicate-class", message, where, f"also in {first}; rename one")
            return
        taken = modules.get(name) or plain.get(plain_class(name))
        if taken is not None:
            reporter.error("reserved-name", taken, where, "use another name")
            return
        plain[plain_class(name)] = f"`{name}` is a class too, and `create` takes names in any case"
        found[name] = declared
        resolved = checker.resolve(declared)
        if resolved is not None:
            classes[name] = resolved

    if table_document is not None:
        checker.check_table()
        for name, row in rows.classes.items():
            declare(name, row, table_document, ("classes", name))
    served = {row.rule for row in rows.classes.values()}
    for rule, loaded in rules.items():
        for name, row in loaded.spec.classes.items():
            own = row.model_copy(update={"rule": row.rule or rule})
            declare(name, own, loaded.document, ("classes", name))
        if rule not in served and not loaded.spec.classes:
            declare(class_name(rule), ClassRow(rule=rule), loaded.document, ("name",))
    if shared is None:
        return None
    return SpecSet(dict(sorted(rules.items())), shared, classes, found, rows.refusals, functions, words, table_document)
