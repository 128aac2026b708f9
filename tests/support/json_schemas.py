"""The published JSON Schemas (docs/json), and whether an output is what they say and has nothing that they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "json"


def schema(name: str) -> dict[str, Any]:
    """As it is published."""
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return found


def closed(part: Any) -> Any:
    """The same schema, but a property that it does not describe is an error: it would be one nobody was told of.

    An object whose required properties are only some of a larger set, as the Dest profile's, says so in its
    description (``further properties``).
    """
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    made = {key: closed(value) for key, value in part.items()}
    if "properties" in part and isinstance(part.get("type"), str) and "further" not in part.get("description", ""):
        made.setdefault("additionalProperties", False)
    return made


def check_against_schema(name: str, value: Any) -> None:
    """AssertionError with every difference."""
    told = closed(schema(name))
    Draft202012Validator.check_schema(told)
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(told).iter_errors(value)]
    assert found == []
