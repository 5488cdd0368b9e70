"""JSON Schemas of the files in a folder of specs, which editors use for completion and checking."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from optgen.spec.model import ClassTable, Shared, SharedFunctions, Spec, SpecModel, StageSpec, Vocabulary

SCHEMAS: dict[str, tuple[type[SpecModel], str]] = {
    "spec": (Spec, "An optimizer's update rule: a file of specs/, compiled by `optgen build`."),
    "stage": (StageSpec, "A stage that is put on rules: `optgen build my_stage.yaml --onto adamw`."),
    "shared": (Shared, "Settings and stages of every rule: shared.yaml."),
    "vocabulary": (Vocabulary, "Words that rules share: vocabulary.yaml."),
    "functions": (SharedFunctions, "Named pieces of equations that every rule may call: functions.yaml."),
    "classes": (ClassTable, "The public classes: classes.yaml."),
}
"""The kinds of files, with their descriptions."""


def json_schema(kind: str = "spec") -> dict[str, Any]:
    """The schema (Draft 2020-12) of a kind of file, a key of `SCHEMAS`, from the models that the loader checks with."""
    model, description = SCHEMAS[kind]
    schema = model.model_json_schema(by_alias=True, mode="validation")
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": f"optgen {kind}", "description": description}
    return {**head, **{key: value for key, value in schema.items() if key not in head}}
