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
        module, attribute = self.find(name).split(":")
        return getattr(import_module(module), attribute)

    def find(self, name: str) -> str:
        """Where `name` lives, without importing it; UserError with the nearest name if there is none."""
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def add(self, name: str, where: str) -> None:
        """Take in one more thing, `"module:attribute"`: how other packages bring theirs."""
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} '{name}' already")
        self._entries[name] = where

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
