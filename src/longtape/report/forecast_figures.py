"""Figures of forecasts, each from rows of one target of a forecast frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.report.charts import ROLES, Array, Band, Chart, Marks, Rule, Series
from longtape.report.numbers import percent

FORECASTS = 400  # of the newest that a fan shows
_DOTS = 3_000
CLASSES = {2: ("not up", "up"), 3: ("down", "flat", "up")}
_CLASS_ROLES = {2: ("muted", "accent"), 3: ("bad", "muted", "accent")}


def times(series: pl.Series) -> npt.NDArray[np.datetime64]:
    """A column of times as numpy has them."""
    return series.dt.timestamp("ms").to_numpy().astype("datetime64[ms]")


def values(series: pl.Series) -> Array:
    """A column of numbers, NaN for null."""
    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def next_price(prices: pl.DataFrame, newest: pl.DataFrame, bounds: Mapping[float, tuple[str, str]]) -> Chart:
    """The last closes of a symbol, then its forecasts as prices with a band for each level. prices: `known_at, close`;
    newest: its newest rows; bounds: the names of each level's bounds, log returns.

    Of a volatility the prices one deviation up and down.
    """
    steps = price_steps(newest)
    before, ahead = times(prices["known_at"]), times(steps["end"])
    start = float(prices["close"][-1])
    x = np.concatenate([before, ahead])
    gap = np.full(len(before) - 1, np.nan)

    def onward(logs: Array) -> Array:
        return np.concatenate([gap, [start], start * np.exp(logs)])

    bands = [
        Band(f"{percent(level, 0)} interval", onward(values(steps[low])), onward(values(steps[high])))
        for level, (low, high) in sorted(bounds.items(), reverse=True)
        if steps[low].null_count() < steps.height
    ]
    course = np.concatenate([prices["close"].to_numpy(), np.full(len(ahead), np.nan)])
    lines = [Series("price", course, "ink")]
    if steps.height and steps["kind"][0] != "volatility":
        lines.append(Series("forecast", onward(values(steps["mean"])), "accent", width=2.2))
    elif steps.height:
        deviation = values(steps["mean"])
        bands = [Band("± one forecast volatility", onward(-deviation), onward(deviation))]
    return Chart(x, "price", lines, bands, height=320)


def price_steps(newest: pl.DataFrame) -> pl.DataFrame:
    """The newest rows of a symbol that can be said in prices, by horizon: returns or, without any, volatility."""
    ended = newest.filter(pl.col("end").is_not_null())
    returns = ended.filter(pl.col("price").is_not_null())
    steps = returns if returns.height else ended.filter(pl.col("kind") == "volatility")
    return steps.sort("horizon", "target").unique("horizon", keep="first", maintain_order=True)


def fan(own: pl.DataFrame, level: float) -> Chart:
    """The newest forecasts with their interval at the time the label is known, and what happened, in percent."""
    tail = own.filter(pl.col("end").is_not_null()).sort("end").tail(FORECASTS)
    lower, upper, mean, actual = (100 * values(tail[name]) for name in ("lower", "upper", "mean", "actual"))
    bands = [Band(f"{percent(level, 0)} interval", lower, upper)] if np.isfinite(lower).any() else []
    lines = [Series("what happened", actual, "ink", width=1.1), Series("forecast", mean, "accent", width=2.0)]
    return Chart(times(tail["end"]), "%, over the horizon", lines, bands, spans=_future(tail), height=300)


def _future(tail: pl.DataFrame) -> list[tuple[Any, Any]]:
    """From the last known label on."""
    ahead = times(tail.filter(pl.col("actual").is_null())["end"])
    return [(ahead[0], ahead[-1])] if len(ahead) else []


def class_shares(own: pl.DataFrame, shares: Array) -> Chart:
    """Probabilities one upon the other, and a ring in the middle of what came. shares: [n, M] of the rows."""
    kept = slice(max(0, own.height - FORECASTS), None)
    shares, actual = shares[kept], values(own["actual"])[kept]
    edges = np.concatenate([np.zeros((len(shares), 1)), shares.cumsum(axis=1)], axis=1)
    count = shares.shape[1]
    names = CLASSES.get(count, tuple(map(str, range(count))))
    roles = _CLASS_ROLES.get(count, ROLES)
    bands = [Band(f"P({name})", edges[:, m], edges[:, m + 1], roles[m]) for m, name in enumerate(names)]
    known = np.flatnonzero(np.isfinite(actual))
    came = actual[known].astype(int)
    middle = (edges[known, came] + edges[known, came + 1]) / 2
    x = times(own["known_at"])[kept]
    return Chart(x, "probability", bands=bands, y_range=(0.0, 1.0), height=300,
                 marks=[Marks("what happened", x[known], middle, "ink", size=2.0)])  # fmt: skip


def weights_decided(own: pl.DataFrame) -> Chart:
    """The share of the equity that was decided on at each origin."""
    line = Series("weight", 100 * values(own["mean"]), "accent", "step")
    return Chart(times(own["known_at"]), "share of the equity, %", [line], height=260)


def predicted_against_realised(own: pl.DataFrame, groups: pl.DataFrame, log: bool) -> Chart:
    """A dot for each forecast and what happened, the diagonal where they agree, and the means of ten groups. groups:
    `forecast, actual, spread`. log: both axes in ratios.
    """
    known = own.filter(
        pl.col("actual").is_not_null() & (~pl.lit(log) | ((pl.col("actual") > 0) & (pl.col("mean") > 0)))
    )
    known = known.gather_every(max(1, known.height // _DOTS)).sort("mean")
    x, y = 100 * known["mean"].to_numpy(), 100 * known["actual"].to_numpy()
    mean, spread = 100 * groups["actual"].to_numpy(), 100 * groups["spread"].to_numpy()
    means = Marks("mean of a tenth, ± 2 s.e.", 100 * groups["forecast"].to_numpy(), mean, "c3", size=4.5,
                  lower=mean - 2 * spread, upper=mean + 2 * spread)  # fmt: skip
    reach = None
    if not log and len(y):  # the dots beyond are few, and would make the rest flat
        low, high = np.quantile(y, [0.005, 0.995])
        reach = (float(min(low, x.min())), float(max(high, x.max())))
    lines = [Series("forecasts", y, "accent", "dots"), Series("as forecast", x, "muted", dash=True)]
    return Chart(
        x, "what happened, %", lines, marks=[means], x_title="forecast, %", log=log, log_x=log, y_range=reach
    )


def reliability(parts: Mapping[str, pl.DataFrame]) -> Chart:
    """How often a class came against how probable it was said to be. parts: `forecast, actual, spread` by class."""
    roles = _CLASS_ROLES.get(len(parts), ROLES)
    marks = []
    for (name, rows), role in zip(parts.items(), roles, strict=False):
        share, reach = rows["actual"].to_numpy(), 2 * rows["spread"].to_numpy()
        marks.append(Marks(f"{name}, ± 2 s.e.", rows["forecast"].to_numpy(), share, role, size=4.0,
                           lower=share - reach, upper=share + reach))  # fmt: skip
    line = Series("as said", np.array([0.0, 1.0]), "muted", dash=True)
    return Chart(
        np.array([0.0, 1.0]),
        "how often it came",
        [line],
        marks=marks,
        x_title="probability said",
        y_range=(0.0, 1.0),
    )


def errors_over_time(rows: pl.DataFrame, title: str, beside: str) -> Chart:
    """Mean errors of stretches of the test period. rows: `known_at, error, beside`; `beside`: what the latter is."""
    lines = [Series("longtape", rows["error"].to_numpy(), "accent", width=2.0)]
    if beside and rows["beside"].null_count() < rows.height:
        lines.insert(0, Series(beside, values(rows["beside"]), "c2", width=1.3))
    return Chart(times(rows["known_at"]), title, lines, height=240)


def errors_by_clock(names: Sequence[str], mean: Array, reach: Array, title: str) -> Chart:
    """A bar for each hour or weekday, with two standard errors."""
    marks = Marks(
        "± 2 s.e.",
        np.arange(len(mean)),
        mean,
        "ink",
        size=0.0,
        lower=mean - 2 * reach,
        upper=mean + 2 * reach,
    )
    top = float(np.nanmax(mean + 2 * np.nan_to_num(reach), initial=0.0)) or 1.0
    by = (
        "hour of the forecast (UTC)" if names and names[0][0].isdigit() else "weekday of the newest bar (UTC)"
    )
    return Chart(names, title, [Series("mean", mean, "accent", "bars")], marks=[marks], x_title=by, height=240,
                 y_range=(0.0, 1.05 * top))  # fmt: skip


def coverage_by_horizon(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Share of labels inside, with the bounds of a block bootstrap, and the level that it should be: against the
    horizon, or, where there is one alone, against the level. Rows: `horizon, level, coverage, from, to`, of one symbol
    and target.
    """
    horizons = np.unique([float(row["horizon"]) for row in rows])
    levels = sorted({row["level"] for row in rows})
    if len(horizons) == 1:
        asked = Marks("should be", np.arange(len(levels)), 100 * np.array(levels), "c2", "ring", size=5.0)
        own = sorted(rows, key=lambda row: row["level"])
        marks = [asked, _covered("was", np.arange(float(len(levels))), own, "accent")]
        return Chart([percent(level, 0) for level in levels], "coverage, %", marks=marks, height=240,
                     y_range=_coverage_range(rows))  # fmt: skip
    marks = []
    for role, level in zip(ROLES * len(levels), reversed(levels), strict=False):
        own = [row for row in rows if row["level"] == level]
        marks.append(_covered(percent(level, 0), np.array([float(row["horizon"]) for row in own]), own, role))
    rules = [Rule(100 * level) for level in levels]
    return Chart(horizons, "coverage, %", marks=marks, rules=rules, x_title="horizon, bars", height=240,
                 y_range=_coverage_range(rows))  # fmt: skip


def _covered(name: str, x: Array, rows: Sequence[Mapping[str, Any]], role: str) -> Marks:
    share, low, high = (100 * np.array([row[k] for row in rows], float) for k in ("coverage", "from", "to"))
    return Marks(name, x, share, role, lower=low, upper=high, size=4.0)


def _coverage_range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    lowest = np.nanmin([[row["coverage"], row["from"], row["level"]] for row in rows])
    return max(0.0, 100 * float(lowest) - 5), 101.0
