"""Interactive charts as plain values: what is drawn, in which role of colour. The page's script draws them.

Long series are thinned so that nothing is lost to the eye: of every bucket of consecutive values the lowest and the
highest stay. Colours are names of roles (`accent`, `ink`, `muted`, `good`, `bad`, `c2` … `c6`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]
Shape = Literal["line", "step", "bars", "dots"]
MOST_POINTS = 40_000  # of a series: a page of several charts stays small, and panning stays smooth
ROLES = ("accent", "c2", "c3", "c4", "c5", "c6", "muted")


@dataclass(frozen=True, eq=False)
class Series:
    """Values over the chart's x; NaN leaves a gap."""

    name: str
    y: Array
    color: str = "accent"
    shape: Shape = "line"
    width: float = 1.5
    dash: bool = False
    fill: bool = False  # down to zero


@dataclass(frozen=True, eq=False)
class Band:
    """The room between two courses."""

    name: str
    lower: Array
    upper: Array
    color: str = "accent"


@dataclass(frozen=True, eq=False)
class Marks:
    """Symbols at places of their own, with a bar from `lower` to `upper` where these are given."""

    name: str
    x: npt.NDArray[Any]
    y: Array
    color: str = "accent"
    symbol: Literal["dot", "up", "down", "ring"] = "dot"
    size: float | Array = 5.0
    lower: Array | None = None
    upper: Array | None = None


@dataclass(frozen=True)
class Rule:
    """A line across the chart at one value of y (or of x)."""

    value: float
    axis: Literal["x", "y"] = "y"
    color: str = "muted"
    name: str = ""


@dataclass(frozen=True, eq=False)
class Chart:
    """Series over one x: times, numbers, or the names of categories."""

    x: npt.NDArray[Any] | Sequence[str]
    y_title: str
    series: Sequence[Series] = ()
    bands: Sequence[Band] = ()
    marks: Sequence[Marks] = ()
    rules: Sequence[Rule] = ()
    spans: Sequence[tuple[Any, Any]] = ()  # shaded stretches of x
    x_title: str = ""
    height: int = 280
    log: bool = False
    log_x: bool = False
    group: str = ""  # charts of one group are panned and zoomed together
    y_range: tuple[float, float] | None = None

    @property
    def legend(self) -> list[tuple[str, str, str]]:
        """Name, role of colour and shape of everything that has a name, in the order of drawing."""
        lines = [(s.name, s.color, "dash" if s.dash else s.shape) for s in self.series]
        bands = [(b.name, b.color, "band") for b in self.bands]
        marks = [(m.name, m.color, m.symbol) for m in self.marks]
        rules = [(r.name, r.color, "dash") for r in self.rules]
        return [entry for entry in (*lines, *bands, *marks, *rules) if entry[0]]

    @property
    def bucket(self) -> int:
        """How many values in a row share two points; 1: all are drawn."""
        return 1 if len(self.x) <= MOST_POINTS else -(-2 * len(self.x) // MOST_POINTS)

    @property
    def thinning(self) -> str:
        """A sentence for the caption where values were thinned."""
        if self.bucket == 1:
            return ""
        return f"Of every {self.bucket} values in a row the lowest and the highest are drawn ({len(self.x):,} in all)."


def needs_log(values: npt.NDArray[Any]) -> bool:
    """Whether a course of positive values spans so much that equal ratios should look equal."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() / known.min() > 5)


def extremes(y: Array, bucket: int) -> Array:
    """Two values of each `bucket` of consecutive ones, the lowest and the highest in the order in which they came."""
    rows = _rows_of(y, bucket)
    known = np.isfinite(rows)
    low = np.where(known, rows, np.inf).argmin(1)
    high = np.where(known, rows, -np.inf).argmax(1)
    places = np.sort(np.stack([low, high], 1), 1)
    return np.take_along_axis(rows, places, 1).ravel()


def _rows_of(y: Array, bucket: int) -> Array:
    """[ceil(n / bucket), bucket], the last row filled up with NaN."""
    short = -len(y) % bucket
    return np.append(y, np.full(short, np.nan)).reshape(-1, bucket)


def thinned_x(x: Array, bucket: int) -> Array:
    """First and last x of each bucket [2 · ceil(n / bucket)]."""
    first = np.arange(0, len(x), bucket)
    last = np.minimum(first + bucket - 1, len(x) - 1)
    return x[np.stack([first, last], 1).ravel()]


@dataclass
class Drawn:
    """The charts of a page as JSON, every array once."""

    arrays: dict[str, dict[str, str]] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, chart: Chart) -> int:
        """The number under which the page's script finds the chart."""
        bucket = chart.bucket
        x, labels = _numbers(chart.x)
        content = {
            "x": self._array(thinned_x(x, bucket) if bucket > 1 else x, "f8"),
            "kind": "category" if labels is not None else "time" if _is_time(chart.x) else "number",
            "labels": labels,
            "series": [self._series(one, bucket) for one in chart.series],
            "bands": [self._band(one, bucket) for one in chart.bands],
            "marks": [self._marks(one) for one in chart.marks],
            "rules": [{"value": r.value, "axis": r.axis, "color": r.color} for r in chart.rules],
            "spans": [_numbers(np.array(span))[0].tolist() for span in chart.spans],
            "xTitle": chart.x_title, "yTitle": chart.y_title, "height": chart.height, "log": chart.log,
            "logX": chart.log_x, "group": chart.group, "yRange": chart.y_range,
        }  # fmt: skip
        self.charts.append(content)
        return len(self.charts) - 1

    def json(self) -> str:
        """For a script element: nothing in it can end the element."""
        text = json.dumps({"arrays": self.arrays, "charts": self.charts}, allow_nan=False)
        return text.replace("<", "\\u003c")

    def _series(self, one: Series, bucket: int) -> dict[str, Any]:
        y = self._course(one.y, bucket)
        return {"name": one.name, "y": y, "color": one.color, "shape": one.shape, "width": one.width,
                "dash": one.dash, "fill": one.fill}  # fmt: skip

    def _band(self, one: Band, bucket: int) -> dict[str, Any]:
        lower, upper = (self._course(y, bucket) for y in (one.lower, one.upper))
        return {"name": one.name, "lower": lower, "upper": upper, "color": one.color}

    def _marks(self, one: Marks) -> dict[str, Any]:
        size = one.size if isinstance(one.size, float | int) else self._array(np.asarray(one.size), "f4")
        bars = [None if y is None else self._array(np.asarray(y), "f4") for y in (one.lower, one.upper)]
        x = self._array(_numbers(one.x)[0], "f8")
        return {"name": one.name, "x": x, "y": self._array(one.y, "f4"), "color": one.color, "symbol": one.symbol,
                "size": size, "lower": bars[0], "upper": bars[1]}  # fmt: skip

    def _course(self, y: Array, bucket: int) -> str:
        y = np.asarray(y, np.float64)
        return self._array(extremes(y, bucket) if bucket > 1 else y, "f4")

    def _array(self, values: npt.NDArray[Any], kind: Literal["f4", "f8"]) -> str:
        content = np.ascontiguousarray(values, f"<{kind}").tobytes()
        name = hashlib.sha256(kind.encode() + content).hexdigest()[:12]
        self.arrays[name] = {"kind": kind, "data": base64.b64encode(content).decode()}
        return name


def _is_time(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "M"


def _numbers(x: npt.NDArray[Any] | Sequence[str]) -> tuple[Array, list[str] | None]:
    """Seconds of times, numbers as they are, places of categories with their names."""
    if _is_time(x):
        return np.asarray(x).astype("datetime64[ms]").astype(np.int64) / 1000.0, None
    if isinstance(x, np.ndarray):
        return x.astype(np.float64), None
    return np.arange(len(x), dtype=np.float64), [str(name) for name in x]
