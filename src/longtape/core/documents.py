"""Two documents of keys held against each other."""

from __future__ import annotations

from collections.abc import Mapping
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
