"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl


def table(rows: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """Aligned columns, numbers to the right; the columns are the union of the rows' keys in order."""
    if not rows:
        return title
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[show(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]

    def line(texts: Sequence[str]) -> str:
        parts = [
            t.rjust(w) if right else t.ljust(w) for t, w, right in zip(texts, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    body = [line(names), "  ".join("-" * width for width in widths), *(line(row) for row in cells)]
    return "\n".join(([title] if title else []) + body)


def show(value: Any) -> str:
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


def frame_table(frame: pl.DataFrame) -> str:
    """A frame as a plain table."""
    return table(frame.to_dicts())
