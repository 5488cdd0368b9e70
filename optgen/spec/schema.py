"""The JSON Schema of a spec file, which editors use for completion and checking."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from optgen.spec.model import Spec


def json_schema() -> dict[str, Any]:
    """The schema (Draft 2020-12) of a rule's file, from the models that the loader checks with."""
    schema = Spec.model_json_schema(by_alias=True, mode="validation")
    head = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "optgen spec",
        "description": "An optimizer's update rule: a file of specs/, compiled by `optgen build`.",
    }
    return {**head, **{key: value for key, value in schema.items() if key not in head}}
