"""Writes docs/catalogue.md and a page a rule in docs/catalogue/, from what the compiler knows of specs/.

    python tools/make_catalogue.py [--check]

With --check nothing is written; the exit status is 1 if a page is not what the specs say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from optgen.backends.python_classes import Argument  # noqa: E402
from optgen.compiler import compile_specs  # noqa: E402
from optgen.diagnostics import Reporter  # noqa: E402
from optgen.explanation import ClassInfo  # noqa: E402
from optgen.ir.rule import WholeRule  # noqa: E402
from optgen.page.equations import resolved  # noqa: E402
from optgen.spec.given import given_states  # noqa: E402
from optgen.spec.loader import load_specs  # noqa: E402
from optgen.spec.model import Hyperparameter, Option, Shared  # noqa: E402
from optgen.spec.ranges import parse_range  # noqa: E402

SPECS = ROOT / "specs"
DOCS = ROOT / "docs"
NONE = "-"

HEAD = """\
# Catalogue

<!-- Written by tools/make_catalogue.py from specs/; do not edit. -->

Every rule of `specs/` and the classes that it makes. Bytes are for each parameter (one element) of a large float32
matrix under a class's defaults: states are what the class keeps, scales included; traffic is what a step reads and
writes in its passes over memory. `optgen explain CLASS` shows more of one class, [language.md](language.md) says how
rules are written.
"""
RULE_HEAD = """\
# {title}

<!-- Written by tools/make_catalogue.py from specs/{rule}.yaml; do not edit. -->
"""
RULE_FOOT = """\
Beside these, each class takes [the arguments of every class](../catalogue.md#arguments-of-every-class); the functions
that equations call are [in the catalogue](../catalogue.md#functions-that-rules-share).
"""
ARGUMENTS_HEAD = """\
Taken by every class beside what its rule names, by keyword where its positional arguments do not name them. A rule
without an `update` stage takes none of those that are marked so.
"""
TARGET_RANGE = '`"cuda"`, `"cpu"`, `"torch"`, `None`'


def documents(specs: Path = SPECS) -> dict[str, str]:
    """The pages by their paths below docs/."""
    classes = compile_specs([specs], "optgen_optim").classes
    shared = load_specs([specs], Reporter()).shared.shared
    rules: dict[str, list[ClassInfo]] = {}
    for info in classes:
        rules.setdefault(info.rule, []).append(info)
    order = sorted(rules, key=lambda name: rules[name][0].whole_rule.title.raw.lower())
    bits = sorted({b for info in classes for b in info.bits_choices}, reverse=True)
    parts = [HEAD, *_contents(order, rules), "## Classes\n", overview(classes, bits)]
    parts += ["## Arguments of every class\n", ARGUMENTS_HEAD, shared_arguments(classes, shared), *_stages(shared)]
    parts += _functions(rules[name][0].whole_rule for name in order)
    pages = {"catalogue.md": parts} | {page(name): [*family_section(rules[name], bits), RULE_FOOT] for name in order}
    return {path: "\n".join(parts).rstrip() + "\n" for path, parts in pages.items()}


def page(rule: str) -> str:
    """The path of a rule's page below docs/."""
    return f"catalogue/{rule}.md"


def _contents(order: Sequence[str], rules: Mapping[str, Sequence[ClassInfo]]) -> list[str]:
    lines = ["## Rules\n"]
    for name in order:
        classes = ", ".join(info.name for info in rules[name])
        lines.append(f"- [{rules[name][0].whole_rule.title.raw}]({page(name)}): {classes}")
    return [*lines, ""]


# Tables


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks in cells are made harmless."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def overview(classes: Sequence[ClassInfo], bits: Sequence[int]) -> str:
    """One row a class."""
    columns = ["class", "rule", "states", "passes", "traffic", *(f"states in {b} bits" for b in bits)]
    rows = []
    for info in sorted(classes, key=lambda info: info.name.lower()):
        rule = info.whole_rule
        row = [f"`{info.name}`", f"[{rule.name}]({page(rule.name)})", ", ".join(info.states) or NONE]
        rows.append([*row, str(info.passes), number(info.traffic), *state_cells(info, bits)])
    return table(columns, rows)


def state_cells(info: ClassInfo, bits: Sequence[int]) -> list[str]:
    """Bytes of states in each of the bits, in bold those of the class's default."""
    cells = []
    for choice in bits:
        if choice not in info.bits_choices:
            cells.append(NONE)
            continue
        shown = number(info.stored_in(choice).state_bytes)
        cells.append(f"**{shown}**" if choice == info.bits else shown)
    return cells


def number(value: float) -> str:
    """Bytes with at most three digits behind the point."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def literal(value: object) -> str:
    """A value as Python has it, in code."""
    if isinstance(value, list):
        value = tuple(value)
    return f"`{value!r}`".replace("'", '"')


def allowed(item: Hyperparameter | Option) -> str:
    """Allowed values of a setting."""
    if isinstance(item, Option):
        return ", ".join(literal(choice) for choice in item.choices) if item.choices else "`True`, `False`"
    text = f"`{parse_range(item.range)}`"
    if item.integer:
        text += ", whole"
    if item.names:
        text += f", each of {', '.join(f'`{name}`' for name in item.names)}"
    return text + (", or `None`" if item.optional else "")


def default(item: Hyperparameter | Option) -> str:
    """A setting's default."""
    return "required" if isinstance(item, Hyperparameter) and item.required else literal(item.default)


def settings_table(settings: Mapping[str, Hyperparameter | Option]) -> str:
    """Arguments with default, range and meaning."""
    rows = []
    for name, item in settings.items():
        doc = item.doc.raw
        if isinstance(item, Hyperparameter) and item.scope == "global":
            doc += " The same for all param groups."
        if item.needs == "update":
            doc += " (`update` stage)"
        rows.append((f"`{name}`", default(item), allowed(item), doc))
    return table(("argument", "default", "values", "meaning"), rows)


def shared_arguments(classes: Sequence[ClassInfo], shared: Shared) -> str:
    """Table of the arguments that every class takes: settings of shared.yaml, and what generated classes take beside
    them."""
    text = settings_table({**shared.hyperparameters, **shared.options, **shared.storage}).rstrip("\n")
    extra: dict[str, Argument] = {}
    for info in classes:
        extra |= {n: a for n, a in info.arguments.items() if n in ("args", "target")}
    for name, argument in extra.items():
        values = TARGET_RANGE if name == "target" else "any object"
        doc = argument.doc.raw + (" Only where a class's positional arguments name it." if name == "args" else "")
        text += f"\n| `{name}` | `{argument.default}` | {values} | {_cell(doc)} |"
    return text + "\n"


def _stages(shared: Shared) -> list[str]:
    """The equations around a rule's own."""
    parts = ["## Stages that rules share\n"]
    parts.append("A step is `grad`, the rule's `step`, `update` (if the rule has an `apply`), the rule's `apply`.\n")
    blocks = {"grad": shared.blocks.grad, "update": shared.blocks.update}
    parts.append(equations({name: block for name, block in blocks.items() if block}, {}))
    if shared.inputs:
        parts.append("Set on the optimizer for one step, as attributes:\n")
        parts.append(table(("attribute", "meaning"), [(f"`{n}`", item.doc.raw) for n, item in shared.inputs.items()]))
    return parts


def _functions(rules: Iterable[WholeRule]) -> list[str]:
    """The functions that equations call, by name."""
    found = {function.name: function.written for rule in rules for function in rule.functions}
    parts = ["## Functions that rules share\n"]
    parts.append("A call stands for these lines, with settings, `step`, `param` and `grad` of the rule that calls.\n")
    text = "\n\n".join(found[name] for name in sorted(found))
    return [*parts, f"```text\n{text}\n```\n"]


# A rule


def family_section(classes: Sequence[ClassInfo], bits: Sequence[int]) -> Iterator[str]:
    """A rule: its description, equations, states, arguments and classes."""
    rule = classes[0].whole_rule
    yield RULE_HEAD.format(title=rule.title.raw, rule=rule.name)
    if rule.spec.doc:
        yield f"{rule.spec.doc.raw.strip()}\n"
    if rule.spec.reference:
        yield f"Reference: {rule.spec.reference.raw.strip()}\n"
    yield from _equations_by_class(rule, classes)
    yield passes_table(classes)
    if rule.spec.states:
        yield states_table(rule)
    own: dict[str, Hyperparameter | Option] = {**rule.spec.hyperparameters, **rule.spec.options}
    if own:
        yield settings_table(own)
    for name, item in rule.spec.inputs.items():
        yield f"Attribute `{name}`, set for one step: {item.doc.raw}\n"
    for name in given_states(rule.states):
        yield f"Numbers of parameters for their next step, `give({name}={{parameter: numbers}})`: the state `{name}`.\n"
    for name, method in rule.spec.methods.items():
        yield f"Method `{name}()`: {method.doc.raw}\n"
    refused = [*rule.spec.refusals]
    if refused:
        rows = [(f"`{r.when}`", f"`{r.on}`", f"`{r.raises}`: {r.message.raw}") for r in refused]
        yield table(("refused", "at", "with"), rows)
    yield class_table(classes, bits)
    yield positional(classes)


def _equations_by_class(rule: WholeRule, classes: Sequence[ClassInfo]) -> Iterator[str]:
    """The blocks, once for each set of options that classes fix."""
    kinds: dict[str, list[str]] = {}
    for info in classes:
        blocks = {name: text.raw for name, text in rule.equations.items()}
        kinds.setdefault(equations(blocks, info.spec.entry.set), []).append(info.name)
    for text, names in kinds.items():
        if len(kinds) > 1:
            yield f"{', '.join(f'`{name}`' for name in names)}:\n"
        yield text


def equations(blocks: Mapping[str, str], fixed: Mapping[str, object]) -> str:
    """Blocks as code, without what fixed options rule out."""
    lines = []
    for name, block in blocks.items():
        body = resolved(block, fixed)
        if body:
            lines += [f"{name}:", *(f"    {line}" for line in body)]
    return "\n".join(["```text", *lines, "```\n"])


def passes_table(classes: Sequence[ClassInfo]) -> str:
    """Table of the memory traffic of a step's passes, one row for all classes of the same passes."""
    kinds: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for info in classes:
        passes = tuple(
            (p.name, ", ".join(p.reads), ", ".join(p.reduces), ", ".join(p.writes), number(p.bytes))
            for p in info.explain().passes
        )
        kinds.setdefault(passes, []).append(info.name)
    rows = [(", ".join(names), *row) for passes, names in kinds.items() for row in passes]
    return table(("classes", "pass", "reads", "reduces", "writes", "bytes"), rows)


def states_table(rule: WholeRule) -> str:
    """The rule's own states."""
    rows = []
    for name, state in rule.spec.states.items():
        item = rule.state_inputs[name]
        codecs = ", ".join(item.codecs) if state.has_codecs else "fp32"
        shape = str(state.shape).replace("'", "") + (f", last {state.window}" if state.window else "")
        when = f"`{state.when}`" if state.when else "always"
        rows.append((f"`{name}`", shape, state.range, when, f"`{state.init}`", codecs, state.doc.raw))
    return table(("state", "shape", "range", "exists", "starts at", "stored as", "meaning"), rows)


def class_table(classes: Sequence[ClassInfo], bits: Sequence[int]) -> str:
    """The rule's classes: how each differs, and what it costs."""
    columns = ("class", "differs", "passes", "traffic", *(f"states in {b} bits" for b in bits))
    rows = []
    for info in classes:
        row = (f"`{info.name}`", differences(info), str(info.passes), number(info.traffic))
        rows.append((*row, *state_cells(info, bits)))
    return table(columns, rows)


def positional(classes: Sequence[ClassInfo]) -> str:
    """The arguments taken by position, once for the classes that take the same."""
    kinds: dict[str, list[str]] = {}
    for info in classes:
        kinds.setdefault(", ".join(info.spec.entry.signature or []), []).append(f"`{info.name}`")
    lines = [f"- {', '.join(names)}: {f'`{signature}`' if signature else 'none'}" for signature, names in kinds.items()]
    return "\n".join(["Positional arguments after `params`:\n", *lines, ""])


def differences(info: ClassInfo) -> str:
    """Differences of a class from its rule: the settings that it fixes, changes and refuses."""
    entry, parts = info.spec.entry, []
    if entry.doc:
        parts.append(entry.doc.raw.rstrip("."))
    parts += [f"fixes `{name}`: {literal(value)}" for name, value in entry.set.items()]
    if entry.bits is not None:
        parts.append(f"states in {entry.bits} bits")
    if entry.paged is not None:
        parts.append("paged" if entry.paged else "never paged")
    if entry.target is not None:
        parts.append(f"target {entry.target} alone")
    changed = dict(entry.defaults)
    if entry.block_wise is not None:
        changed["block_wise"] = entry.block_wise
    parts += [f"default `{name}`: {literal(v)}" for name, v in changed.items()]
    parts += [f"`{name}` is required" for name in entry.required]
    parts += [f"{r.exception}: {r.message.raw.replace('{name}', info.name)}" for r in info.spec.refusals]
    return "; ".join(parts) or NONE


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    after = documents()
    there = {path.relative_to(DOCS).as_posix(): path for path in (DOCS / "catalogue").glob("*.md")}
    left = [path for name, path in there.items() if name not in after]
    changed = [name for name, text in after.items() if _text(DOCS / name) != text]
    if "--check" in arguments:
        for name in [*changed, *(path.relative_to(DOCS).as_posix() for path in left)]:
            print(f"docs/{name} is not what the specs say; run `python tools/make_catalogue.py`")
        return int(bool(changed or left))
    (DOCS / "catalogue").mkdir(exist_ok=True)
    for name in changed:
        (DOCS / name).write_text(after[name], encoding="utf-8")
    for path in left:
        path.unlink()
    return 0


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
