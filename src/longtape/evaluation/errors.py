"""Errors of forecasts over time, by the clock, and against what was forecast: plain rows of a forecast frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core import scoring
from longtape.features.target_kinds import target_kind

Array = npt.NDArray[np.float64]
HOURS, WEEKDAYS = tuple(f"{h:02}" for h in range(24)), ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SMALLEST = 1e-300


def with_errors(forecast: pl.DataFrame) -> pl.DataFrame:
    """Rows of one target whose label is known, with `error` and `beside`, the error of saying nothing.

    Of a return |actual − mean|, beside |actual|; of a volatility |ln(actual / mean)|, beside nothing; of classes
    −ln P(what happened), beside ln(number of classes). Of weights there is no error: no rows.
    """
    known = forecast.filter(pl.col("actual").is_not_null())
    kind = target_kind(forecast["kind"][0])
    if kind.classes:
        shares = class_shares(known, kind.classes)
        loss = scoring.log_loss(known["actual"].to_numpy(), shares)
        return known.with_columns(error=pl.Series(loss), beside=pl.lit(float(np.log(kind.classes))))
    actual, mean = pl.col("actual"), pl.col("mean")
    if kind.error == "difference":
        return known.with_columns(error=(actual - mean).abs(), beside=actual.abs())
    if kind.error == "log ratio":
        ratio = actual.clip(lower_bound=_SMALLEST) / mean.clip(lower_bound=_SMALLEST)
        return known.filter(actual > 0).with_columns(error=ratio.log().abs(), beside=pl.lit(None, pl.Float64))
    return known.clear().with_columns(error=pl.lit(None, pl.Float64), beside=pl.lit(None, pl.Float64))


def class_shares(forecast: pl.DataFrame, classes: int) -> Array:
    """Probabilities of the classes [n, M]."""
    return forecast.select(f"p{m}" for m in range(classes)).to_numpy()


def over_time(errors: pl.DataFrame, parts: int = 80) -> pl.DataFrame:
    """Means of `error` and `beside` over so many stretches of equally many forecasts: `known_at`, in its middle."""
    size = -(-errors.height // parts) if errors.height else 1
    stretch = pl.int_range(pl.len()) // size
    means = (pl.col("known_at").gather(pl.len() // 2).first(), pl.col("error", "beside").mean())
    return errors.sort("known_at").group_by(stretch.alias("part"), maintain_order=True).agg(*means)


def by_clock(errors: pl.DataFrame) -> tuple[Sequence[str], Array, Array]:
    """Names of the hours (UTC) at which forecasts are made, or, where all are made at one hour, of the weekdays of
    their newest bars; the mean error of each, and its standard error as if forecasts were independent.
    """
    hours = errors["known_at"].dt.hour()
    daily = hours.n_unique() < 2
    names, key = (WEEKDAYS, errors["timestamp"].dt.weekday() - 1) if daily else (HOURS, hours)
    spread = pl.col("error").std() / pl.len().sqrt()
    found = errors.group_by(key.alias("key")).agg(pl.col("error").mean(), spread.alias("spread"), pl.len())
    mean, reach = np.full(len(names), np.nan), np.full(len(names), np.nan)
    at = found["key"].to_numpy().astype(np.int64)
    mean[at], reach[at] = found["error"].to_numpy(), found["spread"].fill_null(np.nan).to_numpy()
    kept = np.isfinite(mean)
    return [name for name, keep in zip(names, kept, strict=True) if keep], mean[kept], reach[kept]


def by_forecast(forecast: Array, actual: Array, groups: int = 10) -> pl.DataFrame:
    """Means of forecast and of what happened in groups of equally many forecasts, from the smallest up: `forecast`,
    `actual`, and `spread`, the standard error of the latter as if labels were independent.
    """
    order = np.argsort(forecast, kind="stable")
    parts = [part for part in np.array_split(order, min(groups, len(order))) if len(part)]
    rows = [(forecast[p].mean(), actual[p].mean(), actual[p].std() / np.sqrt(len(p))) for p in parts]
    return pl.DataFrame(rows, schema=["forecast", "actual", "spread"], orient="row")
