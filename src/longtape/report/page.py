"""The report page: sections of blocks, one HTML file with everything inside.

A block is a plain value; `page.html` draws each kind of it. Nothing on the page needs the network.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from jinja2 import Environment

from longtape.core.errors import UserError
from longtape.core.files import write_text
from longtape.report.charts import Chart, Drawn
from longtape.report.glossary import GLOSSARY, explained
from longtape.report.numbers import column_format, plain, typeset

_LONG = 48  # characters of a cell, beyond which it is broken
Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Table:
    """Rows under a heading; with `own_first` the first row is set off as the model's own. A row's value under `tone`
    colours it. More than `shown` rows are folded away. On a narrow screen `stacked` ones stand cell under cell.
    """

    heading: str
    caption: str
    content: Sequence[Mapping[str, Any]]
    own_first: bool = False
    shown: int = 12
    stacked: bool = False
    kind: ClassVar[str] = "table"

    @property
    def columns(self) -> list[str]:
        """Union of the rows' keys, in order."""
        return [
            name for name in dict.fromkeys(name for row in self.content for name in row) if name != "tone"
        ]

    @property
    def rows(self) -> list[list[str]]:
        """Cells as text."""
        formats = {
            name: column_format(name, [row.get(name) for row in self.content]) for name in self.columns
        }
        return [[formats[name](row.get(name)) for name in self.columns] for row in self.content]

    @property
    def tones(self) -> list[str]:
        """The colour of each row; empty for none."""
        return [str(row.get("tone", "")) for row in self.content]

    @property
    def classes(self) -> list[str]:
        """How each column stands: numbers to the right, `words` to the left, `long` ones on several lines."""
        return [self._class_of([row.get(name) for row in self.content]) for name in self.columns]

    @staticmethod
    def _class_of(values: Sequence[Any]) -> str:
        if all(isinstance(value, int | float | None) for value in values):
            return "number"
        return "words long" if max(len(str(value)) for value in values) > _LONG else "words"


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and what it shows."""

    heading: str
    caption: str
    chart: Chart
    kind: ClassVar[str] = "figure"

    @property
    def text(self) -> str:
        """The caption, with what the chart leaves out."""
        return " ".join(filter(None, [self.caption, self.chart.thinning]))


@dataclass(frozen=True)
class Bar:
    """A line of `Bars`: its length, its interval, and what is written beside it."""

    name: str
    value: float
    text: str
    lower: float | None = None
    upper: float | None = None
    tone: str = "accent"


@dataclass(frozen=True)
class Bars:
    """Values by name, lying one under the other about a common zero."""

    heading: str
    caption: str
    bars: Sequence[Bar]
    kind: ClassVar[str] = "bars"

    @property
    def drawn(self) -> list[dict[str, Any]]:
        """Each bar with its left end, width and interval, in percent of the room."""
        ends = [v for b in self.bars for v in (b.value, b.lower, b.upper) if v is not None and np.isfinite(v)]
        low, high = min([0.0, *ends]), max([0.0, *ends])
        room = (high - low) or 1.0

        def place(value: float) -> float:
            return round(100 * (value - low) / room, 2)

        return [
            {"bar": b, "zero": place(0.0), "left": place(min(b.value, 0.0)), "width": place(low + abs(b.value)),
             "reach": None if b.lower is None or b.upper is None else (place(b.lower), place(low + b.upper - b.lower))}
            for b in self.bars if np.isfinite(b.value)
        ]  # fmt: skip


@dataclass(frozen=True)
class Heat:
    """Small maps side by side: values [rows, columns] from 0 (nothing) to the largest of each."""

    heading: str
    caption: str
    maps: Mapping[str, npt.NDArray[np.float64]]
    kind: ClassVar[str] = "heat"

    @property
    def drawn(self) -> list[dict[str, Any]]:
        """Name, size and the values as bytes."""
        found = []
        for name, values in self.maps.items():
            shades = np.nan_to_num(255 * values / (np.nanmax(values) or 1.0)).astype(np.uint8)
            data = base64.b64encode(shades.tobytes()).decode()
            found.append({"name": name, "rows": values.shape[0], "columns": values.shape[1], "data": data})
        return found


@dataclass(frozen=True)
class Months:
    """Returns by year and month, and of the year: `rows` as (year, twelve shares or None, share of the year)."""

    heading: str
    caption: str
    rows: Sequence[tuple[int, Sequence[float | None], float]]
    kind: ClassVar[str] = "months"

    @property
    def largest(self) -> float:
        """The size of the largest month, for the colours."""
        return (
            max((abs(v) for _, months, _ in self.rows for v in months if v is not None), default=0.0) or 1.0
        )


@dataclass(frozen=True)
class Grid:
    """Blocks side by side, where there is room."""

    blocks: Sequence[Block]
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Tabs:
    """Blocks of which one at a time is seen: of one symbol or target each."""

    tabs: Mapping[str, Sequence[Block]]
    kind: ClassVar[str] = "tabs"


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
        return [(name, plain(value)) for name, value in self.content.items()]


@dataclass(frozen=True)
class Folded:
    """A long text that opens at a click."""

    heading: str
    text: str
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Verdict:
    """One sentence, coloured by what it says."""

    about: str
    sentence: str
    tone: Tone


Block = Table | Figure | Bars | Heat | Months | Grid | Tabs | Facts | Folded


@dataclass(frozen=True)
class Section:
    """Blocks under a heading that the page's menu leads to."""

    heading: str
    blocks: Sequence[Block]
    caption: str = ""

    @property
    def anchor(self) -> str:
        """Where the menu leads."""
        return self.heading.lower().replace(" ", "-")


@dataclass(frozen=True)
class Page:
    """Title, what was asked, the verdicts, the first blocks that a reader sees, and the sections below."""

    title: str
    asked: str
    verdicts: Sequence[Verdict]
    top: Sequence[Block]
    sections: Sequence[Section] = field(default=())


def refuse_ending(path: str | Path) -> None:
    """UserError for a name that is not one of a page."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: the report is a page; write to a name that ends in .html")


def write(path: str | Path, page: Page) -> Path:
    """Write the page; it needs nothing from the network to open. Returns its path. UserError for another ending."""
    refuse_ending(path)
    write_text(path, render(page))
    return Path(path)


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"explained": explained, "typeset": typeset}
    drawn = Drawn()
    sections = [one for one in page.sections if one.blocks]
    return environment.from_string(_asset("page.html")).render(
        page=page, sections=sections, chart=drawn.add, drawn=drawn, glossary=GLOSSARY,
        style=_asset("vendor/uPlot.css") + _asset("page.css"),
        scripts=[_asset("vendor/uPlot.js"), _asset("page.js")],
    ).lstrip()  # fmt: skip


def _asset(name: str) -> str:
    return files("longtape.report").joinpath(name).read_text("utf-8")
