"""JSON Schemas of the files in a folder of specs, for editors that check YAML while it is written."""

from __future__ import annotations

from typing import Any

from optgen.spec.model import Shared, Spec, SpecModel, VariantTable

SCHEMAS: dict[str, type[SpecModel]] = {"spec": Spec, "shared": Shared, "variants": VariantTable}
"""The kinds of files: a rule, `shared.yaml`, `variants.yaml`."""


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one kind of file, a key of `SCHEMAS`."""
    schema = SCHEMAS[kind].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": f"optgen {kind}"}
