"""What a file holds before anyone knows what it means: cells under the file's own names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl


@dataclass(frozen=True, eq=False)
class Table:
    """Cells of a file: text of a CSV, values of a typed container. Without a header the columns are called 1, 2, …

    `notes` are what the user should know of how it was read: footer lines left out, a sheet chosen.
    """

    cells: pl.DataFrame
    has_header: bool = True
    notes: tuple[str, ...] = ()

    def noted(self, *more: str) -> Table:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *more))


def unique_names(names: list[str]) -> list[str]:
    """Names told apart: the second `close` is `close (2)`; an empty one stays empty if it is the only one."""
    seen: dict[str, int] = {}
    found = []
    for name in (text.strip() for text in names):
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
