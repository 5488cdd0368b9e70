"""The schema for editors agrees with the loader."""

from __future__ import annotations

import json

from optgen.spec.json_schema import json_schema


def test_schema() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "optgen spec"
    assert schema["description"]
    assert schema["required"] == ["name", "blocks"]
    assert schema["additionalProperties"] is False
    assert "raise" in schema["$defs"]["RefusalEntry"]["properties"]
    assert json.loads(json.dumps(schema)) == schema


def test_short_forms_are_in_the_schema() -> None:
    defined = json_schema()["$defs"]
    for name, types in (
        ("Hyperparameter", {"number", "null", "array", "object"}),
        ("Option", {"boolean", "integer", "string", "object"}),
        ("State", {"string", "null", "object"}),
        ("Input", {"string", "object"}),
    ):
        assert {form["type"] for form in defined[name]["anyOf"]} == types
    assert json_schema("vocabulary")["$defs"]["NumberWord"]["type"] == "object"
