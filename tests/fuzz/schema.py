"""What an experiment may say, read from its own JSON schema, so that new options are drawn without a change here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from longtape.experiment import Experiment

Schema = dict[str, Any]


@cache
def _document() -> Schema:
    return Experiment.model_json_schema()


def _resolved(schema: Schema) -> Schema:
    """Follow references, and take an optional field for what it holds when it is given."""
    if "$ref" in schema:
        return _resolved(_document()["$defs"][schema["$ref"].rsplit("/", 1)[-1]])
    for joined in ("anyOf", "allOf", "oneOf"):
        choices = [_resolved(part) for part in schema.get(joined, [])]
        given = [part for part in choices if part.get("type") != "null"]
        if given:
            return {**{key: value for key, value in schema.items() if key != joined}, **given[0]}
    return schema


def field(path: str) -> Schema | None:
    """Schema of `section.key`, None where the document has no such key."""
    at = _document()
    for part in path.split("."):
        properties = _resolved(at).get("properties", {})
        if part not in properties:
            return None
        at = properties[part]
    return _resolved(at)


def has(path: str) -> bool:
    """Whether the document knows the key."""
    return field(path) is not None


def choices(path: str) -> list[Any]:
    """Values of a key that takes one of a few, as the schema lists them."""
    found = field(path) or {}
    if found.get("type") == "boolean":
        return [False, True]
    return list(found.get("enum", []))


def leaves(prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Every key that holds a value and no further keys of its own."""
    at = field(prefix) if prefix else _resolved(_document())
    for name in (at or {}).get("properties", {}):
        path = f"{prefix}.{name}" if prefix else name
        found = field(path) or {}
        if "properties" in found:
            yield from leaves(path)
        else:
            yield path, found


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set `section.key` of a document."""
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value


def get(document: dict[str, Any], path: str, default: Any = None) -> Any:
    """The value of `section.key` in a document, or the default where it is not written."""
    at: Any = document
    for part in path.split("."):
        if not isinstance(at, dict) or part not in at:
            return default
        at = at[part]
    return at
