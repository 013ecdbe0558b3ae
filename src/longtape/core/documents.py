"""Documents of keys held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def first_difference(kept: Any, asked: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key (`training.epochs`) at which two documents differ, with both values; None where they are equal."""
    if not (isinstance(kept, Mapping) and isinstance(asked, Mapping)):
        return None if kept == asked else (key, kept, asked)
    for name in [*kept, *(name for name in asked if name not in kept)]:
        found = first_difference(kept.get(name), asked.get(name), f"{key}.{name}" if key else str(name))
        if found is not None:
            return found
    return None


def flattened(document: Any, prefix: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` → `{"a.b": 1}`; lists are values."""
    if not isinstance(document, Mapping) or not document:
        return {prefix: document}
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= flattened(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def differing(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat documents that do not have one value in all of them, in order of appearance."""
    fields = dict.fromkeys(field for document in documents for field in document)
    return [field for field in fields if len({str(document.get(field)) for document in documents}) > 1]
