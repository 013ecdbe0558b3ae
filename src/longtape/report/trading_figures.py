"""Figures of an account, from frames and plain values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.report.charts import ROLES, Array, Band, Chart, Marks, Rule, Series, Times, needs_log

ACCOUNT = "account"  # charts that are panned together
_TRADES = 4_000


def equity(times: Times, curves: Mapping[str, Array], band: tuple[Times, Array, Array] | None) -> Chart:
    """Equity of the strategy (first) and what stands beside it, over the initial capital [T] each; the band of random
    strategies (times, lower, upper) on times of its own. Logarithmic where it spans much.
    """
    bands = []
    if band is not None:
        at, lower, upper = band
        low, high = (_between(times, at, side) for side in (lower, upper))
        bands = [Band("90 % of random strategies", low, high, "muted")]
    courses = [*curves.values(), *(side for one in bands for side in (one.lower, one.upper))]
    lines = [
        Series(name, y, role, width=2.2 if role == "accent" else 1.2)
        for (name, y), role in zip(curves.items(), ROLES * len(curves), strict=False)
    ]
    log = needs_log(np.concatenate(courses))
    return Chart(times, "equity, start = 1", lines, bands, height=340, log=log, group=ACCOUNT)


def _between(times: Times, at: Times, y: Array) -> Array:
    return np.interp(times.astype(np.int64), at.astype(np.int64), y)


def drawdown(times: Times, falls: Array) -> Chart:
    """Loss from the highest equity so far, a share [T]."""
    return Chart(
        times,
        "drawdown, %",
        [Series("drawdown", 100 * falls, "bad", width=1.0, fill=True)],
        height=200,
        group=ACCOUNT,
    )


def several(times: Times, courses: Mapping[str, Array], title: str) -> Chart:
    """One line for each name [T]; NaN where it has no value."""
    lines = [
        Series(name, y, role) for (name, y), role in zip(courses.items(), ROLES * len(courses), strict=False)
    ]
    return Chart(times, title, lines, height=220, group=ACCOUNT)


def returns(per_bar: Array) -> Chart:
    """Histogram of the account's returns per bar in which it moved, with the normal of the same moments."""
    moved = 100 * per_bar[per_bar != 0]
    if len(moved) < 2 or moved.std() == 0:
        return Chart(
            np.array([0.0]), "density", [Series("no bar with a return", np.array([np.nan]))], height=240
        )
    reach = float(np.quantile(np.abs(moved), 0.995)) or 1.0
    count = int(np.clip(np.sqrt(len(moved)), 11, 61)) | 1
    density, edges = np.histogram(np.clip(moved, -reach, reach), count, (-reach, reach), density=True)
    middle = (edges[1:] + edges[:-1]) / 2
    normal = np.exp(-0.5 * ((middle - moved.mean()) / moved.std()) ** 2) / (moved.std() * np.sqrt(2 * np.pi))
    lines = [Series("returns", density, "accent", "bars"), Series("normal", normal, "c3", width=1.6)]
    return Chart(middle, "density", lines, x_title="return per bar, %; the edges hold the tails", height=240)


def rolling_sharpe(times: Times, ratio: Array) -> Chart:
    """Sharpe ratio a year of the last bars [T]."""
    return Chart(
        times,
        "Sharpe ratio, a year",
        [Series("rolling Sharpe", ratio, "accent")],
        height=240,
        rules=[Rule(0.0)],
        group=ACCOUNT,
    )


def exposure(times: Times, share: Array) -> Chart:
    """Value of all positions over equity [T]."""
    return Chart(
        times,
        "exposure, % of equity",
        [Series("exposure", 100 * share, "c4", "step", fill=True, width=1.0)],
        height=180,
        group=ACCOUNT,
    )


def turnover(times: Times, share: Array) -> Chart:
    """Value traded so far over equity [T], added up."""
    return Chart(
        times,
        "traded so far, × equity",
        [Series("turnover", share.cumsum(), "c5")],
        height=180,
        group=ACCOUNT,
    )


def trades_on_price(times: Times, close: Array, fills: pl.DataFrame) -> Chart:
    """Closes of a symbol [T] and its fills: up where it was bought, down where it was sold. fills: `timestamp, units,
    price`; of very many the largest are drawn.
    """
    largest = fills.sort(pl.col("units").abs(), descending=True).head(_TRADES).sort("timestamp")
    marks = []
    for name, symbol, role, side in (("bought", "up", "good", 1), ("sold", "down", "bad", -1)):
        own = largest.filter(pl.col("units") * side > 0)
        at = own["timestamp"].dt.timestamp("ms").to_numpy().astype("datetime64[ms]")
        marks.append(
            Marks(name, at, own["price"].to_numpy(), role, "up" if symbol == "up" else "down", size=4.0)
        )
    line = Series("close", close, "ink", width=1.1)
    return Chart(times, "price", [line], marks=marks, height=300, log=needs_log(close), group=ACCOUNT)


def random_outcomes(draws: npt.NDArray[np.float64], own: float, title: str) -> Chart:
    """Histogram of what random strategies came to, and where the strategy stands."""
    known = np.append(draws[np.isfinite(draws)], [own] if np.isfinite(own) else [])
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    counts, edges = np.histogram(draws, 31, (low, high if high > low else low + 1))
    bars = Series("random strategies", counts.astype(float), "c2", "bars")
    rules = [Rule(own, "x", "accent", "this one")] if np.isfinite(own) else []
    middle = (edges[1:] + edges[:-1]) / 2
    return Chart(middle, "random strategies", [bars], x_title=title, rules=rules, height=240)
