"""Static pictures (PNG, SVG) of forecasts, from plain frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, ScalarFormatter

from longtape.core.errors import UserError
from longtape.core.files import atomic_path
from longtape.report.palette import ACCENT, INK, MUTED, PALETTE, WARN

Array = npt.NDArray[np.float64]
_CLASSES = {2: ("not up", "up"), 3: ("down", "flat", "up")}
_MOST = 400  # forecasts of each target that a picture of history shows


def save(figure: Figure, path: str | Path) -> Path:
    """Write a picture, PNG or SVG by the name's ending. UserError for another ending."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path}: a picture is written to a name that ends in .png or .svg")
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary,
            format=path.suffix[1:],
            dpi=120,
            metadata={"Date": None} if path.suffix == ".svg" else {},
        )
    return path


def newest_picture(
    prices: pl.DataFrame, forecast: pl.DataFrame, level: float, further: Sequence[float]
) -> Figure:
    """The price, then the fan: one panel for each symbol.

    prices: `symbol, known_at, close` of the last bars; forecast: the newest rows of a forecast frame, with the bounds
    of `level` and of `further` levels.
    """
    symbols = forecast["symbol"].unique(maintain_order=True).to_list()
    figure, panels = _stacked(len(symbols))
    for axes, symbol in zip(panels, symbols, strict=True):
        own = forecast.filter(pl.col("symbol") == symbol)
        before = prices.filter(pl.col("symbol") == symbol)
        axes.plot(_times(before["known_at"]), before["close"].to_numpy(), color=INK, linewidth=1.2)
        _draw_fan(axes, own, level, further)
        _draw_volatility(axes, own)
        axes.set_title("   ".join([symbol, *_said(own)]), fontsize=9, loc="left")
        axes.set_ylabel("price")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="best", frameon=False)
    panels[-1].set_xlabel("time (UTC)")
    return figure


def history_picture(forecast: pl.DataFrame, level: float) -> Figure:
    """Forecasts with their interval against the time their label is known, and what happened: the newest 400 of each
    symbol and target, one panel for each; of a path, its last step.
    """
    parts = forecast.partition_by("symbol", "target", maintain_order=True)
    figure, panels = _stacked(len(parts))
    for axes, part in zip(panels, parts, strict=True):
        own = part.filter(pl.col("horizon") == pl.col("horizon").max()).tail(_MOST)
        own = own.filter(pl.col("end").is_not_null())
        (_draw_classes if _class_columns(own) else _draw_history)(axes, own, level)
        axes.set_title(f"{own['symbol'][0]} {own['target'][0]}", fontsize=9, loc="left")
        axes.legend(fontsize=8, loc="upper left", frameon=False, ncols=4)
    panels[-1].set_xlabel("when the label is known (UTC)")
    return figure


def _draw_history(axes: Axes, own: pl.DataFrame, level: float) -> None:
    time = _times(own["end"])
    lower, upper, mean, actual = (_values(own[name]) for name in ("lower", "upper", "mean", "actual"))
    _band(axes, time, lower, upper, 0.2, f"{level:.0%} interval")
    axes.plot(time, actual, color=INK, linewidth=0.9, label="what happened")
    axes.plot(time, mean, color=ACCENT, linewidth=1.4, label="forecast")


def _draw_classes(axes: Axes, own: pl.DataFrame, level: float) -> None:
    """Probabilities one upon the other, and the class that came as a dot in the middle of its own."""
    shares = np.stack([_values(own[name]) for name in _class_columns(own)])
    names = _CLASSES.get(len(shares), tuple(str(m) for m in range(len(shares))))
    time, actual = _times(own["end"]), _values(own["actual"])
    colors = [WARN, MUTED, ACCENT] if len(shares) == 3 else [MUTED, ACCENT]
    axes.stackplot(
        time, shares, labels=[f"P({name})" for name in names], colors=colors, alpha=0.35, linewidth=0
    )
    known = np.isfinite(actual)
    came = actual[known].astype(int)
    middle = (np.cumsum(shares, axis=0) - shares / 2)[came, np.flatnonzero(known)]
    axes.plot(time[known], middle, ".", color=INK, markersize=2.5, label="what happened")
    axes.set_ylim(0, 1)


def _class_columns(own: pl.DataFrame) -> list[str]:
    named = [name for name in own.columns if name[:1] == "p" and name[1:].isdigit()]
    return [name for name in named if own[name].null_count() < own.height]


def coverage_picture(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Coverage against the horizon with block-bootstrap bounds, a colour for each level. Rows as
    `evaluation.coverage.coverage` gives them, of one symbol and target.
    """
    figure, (axes,) = _stacked(1)
    axes.xaxis.set_major_locator(AutoLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    for color, level in zip(PALETTE, dict.fromkeys(row["level"] for row in rows), strict=False):
        own = [row for row in rows if row["level"] == level]
        share, least, most = (
            100 * np.array([row[name] for row in own]) for name in ("coverage", "from", "to")
        )
        reach = np.maximum(np.nan_to_num(np.stack([share - least, most - share])), 0)
        axes.errorbar(
            [row["horizon"] for row in own], share, yerr=reach, fmt="o", color=color, markersize=4, capsize=2
        )
        axes.axhline(100 * level, color=color, linestyle=":", linewidth=1)
    axes.set_xlabel("horizon, bars")
    axes.set_ylabel("coverage, %")
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def _stacked(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, 1.2 + 2.6 * max(count, 1)), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(max(count, 1), 1)))
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure, panels


def _draw_fan(axes: Axes, own: pl.DataFrame, level: float, further: Sequence[float]) -> None:
    """From the newest close to the expected prices, with a band for each level, the widest palest."""
    steps = own.filter(pl.col("price").is_not_null()).sort("horizon", "kind").unique("horizon", keep="first")
    steps = steps.sort("horizon")
    if not steps.height:
        return
    close = float(steps["close"][0])
    time = _times(pl.concat([steps["known_at"][:1], steps["end"]]))
    bounds = {level: ("lower", "upper")} | {one: _quantile_names(one) for one in further if one != level}
    for shade, (one, (low, high)) in enumerate(sorted(bounds.items(), reverse=True)):
        lower, upper = (np.append(close, close * np.exp(_values(steps[name]))) for name in (low, high))
        _band(axes, time, lower, upper, 0.15 + 0.12 * shade, f"{one:.0%} interval")
    axes.plot(time, np.append(close, _values(steps["price"])), color=ACCENT, linewidth=1.8, label="forecast")


def _quantile_names(level: float) -> tuple[str, str]:
    return f"q{round((1 - level) / 2, 12):g}", f"q{round((1 + level) / 2, 12):g}"


def _band(axes: Axes, time: Any, lower: Array, upper: Array, alpha: float, label: str) -> None:
    known = np.isfinite(lower) & np.isfinite(upper)
    if known.any():
        axes.fill_between(
            time, lower, upper, where=known, color=ACCENT, alpha=alpha, linewidth=0, label=label
        )


def _draw_volatility(axes: Axes, own: pl.DataFrame) -> None:
    """± one forecast volatility about the newest close, growing with the root of time."""
    rows = own.filter((pl.col("kind") == "volatility") & pl.col("end").is_not_null()).sort("horizon")
    if not rows.height:
        return
    longest, share = rows.row(-1, named=True), np.linspace(0, 1, 40)
    start, end = (rows[name].dt.timestamp("ms")[-1] for name in ("known_at", "end"))
    time = (start + share * (end - start)).astype(np.int64).astype("datetime64[ms]")
    for sign, label in ((1, "± 1 volatility"), (-1, None)):
        line = longest["close"] * np.exp(sign * longest["mean"] * np.sqrt(share))
        axes.plot(time, line, color=MUTED, linewidth=1, linestyle=":", label=label)


def _said(own: pl.DataFrame) -> list[str]:
    """Probabilities of classes, and weights, in words."""
    lines = []
    classes = _class_columns(own)
    for row in own.iter_rows(named=True):
        p = [row[name] for name in classes if row[name] is not None]
        if len(p) in _CLASSES:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(_CLASSES[len(p)], p, strict=True))
            lines.append(f"{row['target']}: {shares}")
        elif row["kind"] == "weight":
            lines.append(f"{row['target']}: weight {row['mean']:+.2f}")
    return lines


def _times(series: pl.Series) -> npt.NDArray[np.datetime64]:
    return series.dt.timestamp("ms").to_numpy().astype("datetime64[ms]")


def _values(series: pl.Series) -> Array:
    values: Array = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values
