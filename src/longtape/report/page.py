"""The report page: blocks in order, one HTML file with everything inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from longtape.core.errors import UserError
from longtape.core.files import write_text
from longtape.report.text import format_value


@dataclass(frozen=True)
class Table:
    """Rows under a heading; with `own_first` the first row is set off as the model's own."""

    heading: str
    caption: str
    content: Sequence[Mapping[str, Any]]
    own_first: bool = False
    kind: ClassVar[str] = "table"

    @property
    def columns(self) -> list[str]:
        """Union of the rows' keys, in order."""
        return list(dict.fromkeys(name for row in self.content for name in row))

    @property
    def rows(self) -> list[list[str]]:
        """Cells as text."""
        return [[format_value(row.get(name)) for name in self.columns] for row in self.content]


@dataclass(frozen=True)
class Figure:
    """A figure with its heading and what it shows."""

    heading: str
    caption: str
    figure: go.Figure

    @property
    def html(self) -> str:
        """The figure as HTML that needs plotly's script on the page."""
        config = {"displayModeBar": False, "responsive": True}
        text: str = self.figure.to_html(full_html=False, include_plotlyjs=False, config=config)
        return text


@dataclass(frozen=True)
class Figures:
    """Figures side by side."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    heading: str
    caption: str
    content: Mapping[str, Any]
    kind: ClassVar[str] = "facts"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Pairs as text."""
        return [(name, format_value(value)) for name, value in self.content.items()]


Block = Table | Figures | Facts


def refuse_ending(path: str | Path) -> None:
    """UserError for a name that is not one of a page."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: the report is a page; write to a name that ends in .html")


def write(
    path: str | Path, title: str, subtitle: str, verdict: Sequence[str], blocks: Sequence[Block]
) -> Path:
    """Write the page; it needs nothing from the network to open. Returns its path."""
    refuse_ending(path)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("longtape.report").joinpath("page.html").read_text("utf-8"))
    html = template.render(
        title=title, subtitle=subtitle, verdict=verdict, blocks=blocks, plotly_js=get_plotlyjs()
    )
    write_text(path, html)
    return Path(path)
