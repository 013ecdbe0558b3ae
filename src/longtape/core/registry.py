"""A registry maps a name to `"module:attribute"`, so that names can be listed without importing what they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from longtape.core.errors import unknown_name


class Registry(Mapping[str, str]):
    """Names of one kind of thing (sources, signals, …) and where each lives."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def load(self, name: str) -> Any:
        """Import and return the thing called `name`; UserError with the nearest name if there is none."""
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        module, attribute = self._entries[name].split(":")
        return getattr(import_module(module), attribute)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
