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
OVER = {"group": "`over=group`", "all": "`over=all`", "row": "a row", "col": "a column"}


def table(name: str) -> str:
    """The table of a model's fields, a default first and a description last."""
    schema = getattr(model, name).model_json_schema(by_alias=True)
    schema = schema["anyOf"][-1] if "anyOf" in schema else schema  # the long form is the last
    fields = schema["properties"]
    lines = ["| field | value | default | meaning |", "|---|---|---|---|"]
    for field in sorted(fields, key=lambda field: (field != "default", field == "doc" and "title" not in fields)):
        described = fields[field]
        needed = field in schema.get("required", [])
        if name == "Hyperparameter" and field == "default":
            default = "none: required"
        else:
            default = "required" if needed else _default(described.get("default"))
        lines.append(f"| `{field}` | {_kind(described)} | {default} | {described['description']} |")
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
