"""The four-panel figure of an account: equity, drawdown, returns, measures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from longtape.report.charts import needs_log
from longtape.report.numbers import change, fixed, percent, ratio
from longtape.report.palette import ACCENT, INK, MUTED, WARN


def four_panels(
    equity: pl.DataFrame,
    beside: Mapping[str, pl.DataFrame],
    metrics: Mapping[str, float],
    short: bool,
    title: str,
) -> Figure:
    """equity and each of `beside`: `timestamp, equity`; metrics as of `BacktestResult`; `short`: nothing a year but the
    Sharpe ratio is told.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", color=INK, fontweight="bold")
    (top, table), (falls, bars) = figure.subplots(2, 2, width_ratios=[1.7, 1], height_ratios=[1.35, 1])
    times = equity["timestamp"].dt.timestamp("ms").to_numpy().astype("datetime64[ms]")
    _draw_equity(top, times, {"longtape": equity, **beside})
    curve = equity["equity"].to_numpy()
    falling = 100 * (curve / np.maximum.accumulate(curve) - 1)
    falls.fill_between(times, falling, 0, color=WARN, alpha=0.35, linewidth=0)
    _dates(falls, "drawdown, %")
    _draw_returns(bars, 100 * equity["equity"].pct_change().drop_nulls().to_numpy())
    _draw_table(table, metrics, short)
    return figure


def _draw_equity(axes: Axes, times: npt.NDArray[np.datetime64], curves: Mapping[str, pl.DataFrame]) -> None:
    courses = {name: one["equity"].to_numpy() / one["equity"][0] for name, one in curves.items()}
    for color, (name, y) in zip((ACCENT, MUTED, INK), courses.items(), strict=False):
        axes.plot(times, y, color=color, linewidth=1.6 if color == ACCENT else 1.0, label=name)
    if needs_log(np.concatenate(list(courses.values()))):
        axes.set_yscale("log")
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    _dates(axes, "equity, start = 1")


def _draw_returns(axes: Axes, returns: npt.NDArray[np.float64]) -> None:
    moved = returns[np.isfinite(returns) & (returns != 0)]
    if len(moved):
        reach = float(np.quantile(np.abs(moved), 0.995))
        axes.hist(np.clip(moved, -reach, reach), bins=41, color=ACCENT, alpha=0.75)
    _plain(axes, "")
    axes.set_xlabel("return per bar, %", fontsize=8)
    axes.set_yticks([])


def _draw_table(axes: Axes, m: Mapping[str, float], short: bool) -> None:
    of_a_year = [("return a year", change(m["annual_return"])), ("volatility a year", percent(m["volatility"])),
                 ("turnover a year", fixed(m["turnover"], 1))]  # fmt: skip
    rows = [
        ("total return", change(m["total_return"])),
        *([] if short else of_a_year),
        ("Sharpe", f"{ratio(m['sharpe'])} ± {ratio(m['sharpe_standard_error'])}"),
        ("Sortino", ratio(m["sortino"])),
        ("deepest drawdown", percent(m["max_drawdown"])),
        ("exposure", percent(m["exposure"])),
        ("fills", fixed(m["n_fills"], 0)),
        ("costs paid", fixed(m["costs"], 0)),
    ]
    axes.set_axis_off()
    for place, (name, value) in enumerate(rows):
        height = 1 - (place + 0.5) / len(rows)
        axes.text(0.04, height, name, fontsize=9, color=MUTED, va="center", transform=axes.transAxes)
        axes.text(1, height, value, fontsize=9, color=INK, va="center", ha="right", transform=axes.transAxes)


def _dates(axes: Axes, title: str) -> None:
    _plain(axes, title)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _plain(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel(title, fontsize=8)
    axes.tick_params(labelsize=8)
