"""Writes the tables of docs/language.md from the Pydantic models and optgen/operations.py, between their markers.

    python tools/make_language_docs.py [--check]

With --check nothing is written; the exit status is 1 if the file is not what they say.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from optgen.operations import (  # noqa: E402
    DRAWS,
    EACH,
    FUNCTIONS,
    MATRIX_FUNCTIONS,
    OF_SHAPES,
    REDUCTIONS,
    WINDOWS,
)
from optgen.spec import model  # noqa: E402

DOCUMENT = ROOT / "docs" / "language.md"
MARKERS = re.compile(r"<!-- (fields|operations): (\w+) -->\n.*?<!-- end -->", re.DOTALL)
MEANINGS: dict[str, dict[str, str]] = {
    "Spec": {
        "name": "The rule's name, which is also the name of its file.",
        "title": "The first line of the documentation of its classes.",
        "reference": "The source of the rule: a paper, or code.",
        "doc": "A description of the rule.",
        "hyperparameters": "Numbers that the user sets.",
        "options": "Flags and enumerations that the user sets.",
        "ndim": "The dimensions that every parameter has; without it they may have any number.",
        "inputs": "Numbers that are set on the optimizer for a step.",
        "states": "Values that are kept between steps.",
        "refusals": "Combinations of settings that are refused.",
        "functions": "Named pieces of the equations, as `def`s.",
        "blocks": "The equations of a step.",
        "methods": "Further blocks, each a method of the optimizer.",
        "classes": "The classes to make; without any there is one, named after the rule.",
    },
    "Hyperparameter": {
        "default": "A number, one for each of `names`, or `null` (optional). Without it the user must give one.",
        "range": "The allowed values, as `[0, 1)` or `(0, inf)`.",
        "names": "The names of a tuple's parts; equations use these.",
        "label": "Its name in messages.",
        "integer": "Only whole numbers.",
        "scope": "`global`: one number for the optimizer; param groups may only repeat it.",
        "needs": "Offered only to rules with an `update` stage, with a state that can be stored in several ways "
        "(`codec`), that can be `quantized`, or whose options have a choice, as `{trust_ratio: lamb}` (for "
        "`shared.yaml`).",
        "doc": "A description.",
    },
    "Option": {
        "default": "`true` or `false`, or one of `choices`.",
        "choices": "The values of an enumeration. `null` is none of those that equations ask for; `true` and `false` "
        "only in `storage`.",
        "needs": "Offered only to rules with an `update` stage, with a state that can be stored in several ways "
        "(`codec`), that can be `quantized`, or whose options have a choice (for `shared.yaml`).",
        "doc": "A description.",
    },
    "Input": {"doc": "A description, with the code that sets it."},
    "State": {
        "shape": "The number of its values: one for each element, row, ... (below), or the two dimensions of a matrix.",
        "range": "`unsigned` if it is never negative: its 8-bit codes then have no sign.",
        "init": "A number, or an expression over `param`, `grad`, the hyperparameters and facts of the parameter.",
        "when": "The condition under which it exists.",
        "window": "Keeps this many past values, one a step (`shape: tensor`).",
        "count": "A vector of so many states, or of as many as a tuple of settings has numbers (see Loops).",
        "codecs": "Its possible codecs: `fp32`, `bf16`, `fp16`, `int8`, `int4`, `fp8`, `companded8`. The default is "
        "the first that is not quantized. All of them for `param` and matrices, else `fp32`.",
        "stored_as": "The option whose choices are its dtypes, in place of `optim_bits` and `codec`.",
        "doc": "A description.",
    },
    "Blocks": {
        "step": "Updates the states and names the direction `update`, or changes `param` itself.",
        "apply": "Changes `param` by `update`.",
    },
    "StageSpec": {
        "stage": "The stage's name, which is also the name of its file.",
        "title": "Its name in the documentation of classes.",
        "reference": "The source: a paper, or code.",
        "doc": "A description.",
        "hyperparameters": "Numbers that the user sets; these and the next are written as those of a rule.",
        "options": "Flags and enumerations that the user sets.",
        "inputs": "Numbers that are set on the optimizer for a step.",
        "states": "Values that are kept between steps.",
        "refusals": "Combinations of settings that are refused, of those of the rule too.",
        "functions": "Named pieces of the equations, as `def`s.",
        "blocks": "The equations.",
    },
    "StageBlocks": {
        "grad": "Changes the gradient before the rule's `step` reads it, after the shared stage `grad`.",
        "update": "Changes the update that the rule's `step` has named, before the shared stage `update`.",
        "apply": "Changes the parameter after the rule's last block.",
    },
    "Method": {
        "block": "The equations.",
        "grad": "`true` if it reads gradients.",
        "doc": "The method's documentation.",
    },
    "RefusalEntry": {
        "when": "The condition over settings, `target` among them, that is refused.",
        "raise": "The exception.",
        "message": "The message: `{name}` is the class, `{lr}` a setting, `{mode!r}` one with its quotes.",
        "on": "When it is checked: `construct`, or before `step` or a method.",
    },
    "ClassRow": {
        "rule": "The rule; in a rule's own file always that rule.",
        "signature": "The arguments taken by position, in order: names, or a name of `signatures`.",
        "bits": "Fixes the bits of the states, one of the choices of `optim_bits`; `any` leaves them to the user.",
        "paged": "Fixes whether states are pageable; `any` leaves it to the user.",
        "keeps": "Arguments that remain although the class fixes their value.",
        "block_wise": "The default of `block_wise`.",
        "target": "Fixes the target.",
        "set": "Options that the class fixes.",
        "defaults": "Defaults that differ from the rule's.",
        "required": "Hyperparameters that the user must give.",
        "refusals": "Further refusals of the class, or names of `refusals` in `classes.yaml`.",
        "doc": "A description of the class.",
    },
}


OVER = {"group": "`over=group`", "all": "`over=all`", "row": "a row", "col": "a column"}


def table(name: str) -> str:
    """The table of a model's fields."""
    schema = getattr(model, name).model_json_schema(by_alias=True)
    schema = schema["anyOf"][-1] if "anyOf" in schema else schema  # the long form is the last
    fields, meanings = schema["properties"], MEANINGS[name]
    if set(fields) != set(meanings):
        difference = ", ".join(sorted(set(fields) ^ set(meanings)))
        raise SystemExit(f"MEANINGS[{name!r}] and the model differ in {difference}")
    lines = ["| field | value | default | meaning |", "|---|---|---|---|"]
    for field in meanings:
        described = fields[field]
        needed = field in schema.get("required", [])
        if name == "Hyperparameter" and field == "default":
            default = "none: required"
        else:
            default = "required" if needed else _default(described.get("default"))
        lines.append(f"| `{field}` | {_kind(described)} | {default} | {meanings[field]} |")
    return "\n".join(lines)


def _kind(described: dict[str, Any]) -> str:
    if "enum" in described:
        return ", ".join(f"`{choice}`" for choice in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    if "anyOf" in described:
        kinds = [_kind(part) for part in described["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in described:
        return {"Blocks": "blocks", "StageBlocks": "blocks", "RefusalEntry": "refusal"}.get(
            described["$ref"].rsplit("/", 1)[1], "mapping"
        )
    words = {"integer": "number", "number": "number", "string": "text", "boolean": "true, false", "object": "mapping"}
    if described.get("type") == "array":
        return f"list of {_kind(described['items'])}"
    return words[described["type"]]


def _default(value: object) -> str:
    if value in ("", None, [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def operations(name: str) -> str:
    """The table of the functions, the reductions, the windows or the functions of matrices."""
    if name == "reductions":
        lines = ["| function | is | over |", "|---|---|---|"]
        for row in REDUCTIONS.values():
            each = ["any kind"] if row.over[: len(EACH)] == EACH else []
            others = [OVER[over] for over in row.over[len(EACH) if each else 0 :]]
            lines.append(f"| `{row.signature}` | {row.doc} | {', '.join(each + others)} |")
        return "\n".join(lines)
    if name == "matrices":
        shown = [(row.signature, row.doc) for row in MATRIX_FUNCTIONS.values()]
    else:
        tables = {"functions": FUNCTIONS, "windows": WINDOWS, "draws": DRAWS, "shapes": OF_SHAPES}
        rows = tables[name].values()
        shown = [(row.signature.replace(")", ", ...)") if row.endless else row.signature, row.doc) for row in rows]
    return "\n".join(["| function | is |", "|---|---|", *(f"| `{signature}` | {doc} |" for signature, doc in shown)])


def document(text: str) -> str:
    """The document with every table again."""
    makers = {"fields": table, "operations": operations}
    return MARKERS.sub(lambda m: f"<!-- {m[1]}: {m[2]} -->\n{makers[m[1]](m[2])}\n<!-- end -->", text)


def main(arguments: list[str]) -> int:
    """Write the document, or check it."""
    before = DOCUMENT.read_text(encoding="utf-8")
    after = document(before)
    if "--check" in arguments:
        if before != after:
            print("docs/language.md is not what the code says; run `python tools/make_language_docs.py`")
        return int(before != after)
    if before != after:
        DOCUMENT.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
