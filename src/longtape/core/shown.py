"""How values introduce themselves: a line or two in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


class Shown:
    """A repr that fits on a screen, from `title`, `facts()` and, in notebooks, the rows of `preview()`."""

    @property
    def title(self) -> str:
        """What it is."""
        return ""

    def facts(self) -> Mapping[str, Any]:
        """Names and values that say what it holds."""
        return {}

    def preview(self) -> Any:
        """A few rows for a notebook: a frame that can show itself as HTML; None for none."""
        return None

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {_short(value)}" for name, value in self.facts().items())
        return f"{type(self).__name__}({' '.join(filter(None, [self.title, told]))})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(str(name))}</th><td>{escape(_short(value))}</td></tr>"
            for name, value in self.facts().items()
        )
        rows_below = self.preview()
        below = "" if rows_below is None else rows_below._repr_html_()
        head = escape(f"{type(self).__name__} {self.title}".strip())
        return f"<div><b>{head}</b><table>{rows}</table>{below}</div>"


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
