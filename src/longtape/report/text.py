"""Tables as text: plain and aligned for files and pipes, fitted to its width on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from rich.box import Box
    from rich.console import Group

_RULE_BELOW_HEADER = (
    "    \n    \n -  \n    \n    \n    \n    \n    \n"  # rich's notation: one line for each place
)
_UNBOUNDED = 100_000  # columns of text: nothing is wrapped


@dataclass(frozen=True)
class TextTable:
    """Rows under a title. The columns are the union of the rows' keys in order; numbers stand to the right."""

    rows: Sequence[Mapping[str, Any]]
    title: str = ""

    def __str__(self) -> str:
        """Columns as wide as their widest cell, so that the table can be read, copied and cut."""
        from rich.box import Box
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=_UNBOUNDED, color_system=None, force_jupyter=False).print(
            self._drawn(Box(_RULE_BELOW_HEADER))
        )
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> Group:
        """As a terminal shows it."""
        from rich.box import SIMPLE_HEAD

        return self._drawn(SIMPLE_HEAD)

    def _drawn(self, box: Box) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        for name in names:
            numeric = all(isinstance(row.get(name), int | float | None) for row in self.rows)
            drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*(Text(format_value(row.get(name))) for name in names))
        return Group(*([Text(self.title, style="bold")] if self.title else []), *([drawn] if names else []))


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """A plain `TextTable`."""
    return str(TextTable(rows, title))


def print_blocks(*blocks: TextTable | str) -> None:
    """Tables and text to standard output, a blank line between; drawn where that is a terminal, else plain."""
    if not sys.stdout.isatty():
        print("\n\n".join(map(str, blocks)))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for number, block in enumerate(blocks):
        console.print(*([""] if number else []), block, sep="\n")


def format_value(value: Any) -> str:
    """A value as a person would write it."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:
            return f"{value:.3g}"
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%MZ")
    return str(value)


def frame_table(frame: pl.DataFrame) -> TextTable:
    """A frame as a table."""
    return TextTable(frame.to_dicts())
