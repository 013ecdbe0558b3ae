"""The other half of an audit: does anything depend on where the data begin, beyond the declared warm-up?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.evaluation.audit_report import Check
from longtape.evaluation.protocol import Fitted, Pipeline
from longtape.features.panel import Panel
from longtape.market.rows import Rows as MarketRows

FEATURE_TOLERANCE = 1e-6  # of a feature's deviation
FORECAST_TOLERANCE = 1e-5  # of a forecast's deviation


@dataclass(frozen=True)
class Start:
    """Data that begin otherwise; panel rows of the base from `first` on have not seen the difference."""

    how: str
    bars: list[MarketRows]
    first: int


def check_start(
    checks: Mapping[str, Check], pipeline: Pipeline, base: Panel, fitted: Fitted, start: Start, n_origins: int
) -> None:
    """Beyond the warm-up the data's first bars may not matter, but for rounding; scaler and weights are kept."""
    other = pipeline.panel(start.bars)
    offset = len(base) - len(other)
    # A longer bar that the other data do not hold from its open is left out there, and the warm-up is as much longer.
    begin = max(start.first, offset + other.warm_up)
    rows = np.arange(begin, len(base))
    if offset < 0 or (base.timestamps[rows] != other.timestamps[rows - offset]).any():
        checks["start: features"].found("the clock", base.timestamps[0], f"other rows when {start.how}")
        return
    _check_start_features(checks["start: features"], base, other, start, begin, offset)
    first = begin + fitted.reach - 1
    half = max(n_origins // 2, 1)
    origins = np.unique(np.concatenate([rows[rows >= first][:half], rows[rows >= first][-half:]]))
    if len(origins) == 0 or "start: forecasts" not in checks:
        return
    old, new = fitted.forecast(base, origins), fitted.forecast(other, origins - offset)
    allowed = _allowance(old)
    _check_start_forecasts(checks["start: forecasts"], old, new, allowed, start)
    if "start: signals" in checks:
        _check_start_signals(checks["start: signals"], pipeline, old, new, allowed, start)


def _check_start_features(
    check: Check, base: Panel, other: Panel, start: Start, begin: int, offset: int
) -> None:
    old, new = base.values[begin:], other.values[begin - offset :]
    check.compared += old.size
    for column, name in enumerate(base.columns):
        a, b = old[:, column].astype(np.float64), new[:, column].astype(np.float64)
        deviation = float(np.nanstd(a)) or 1.0
        with np.errstate(invalid="ignore"):
            moved = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b) / deviation)
        wrong = ~(moved <= FEATURE_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            detail = f"moves by {np.nanmax(moved):.2g} deviations when {start.how}"
            check.found(f"feature '{name}'", base.timestamps[begin + row], detail)


def _numbers(frame: pl.DataFrame) -> list[str]:
    return [name for name in ("mean", "lower", "upper") if name in frame.columns]


def _allowance(forecast: pl.DataFrame) -> npt.NDArray[np.float64]:
    """How far each row's forecast may move: a share of the deviation of the forecasts of its symbol and target."""
    deviation = pl.col("mean").std(ddof=0).over("symbol", "target")
    usual = pl.when(deviation > 0).then(deviation).otherwise(pl.col("mean").abs())
    return forecast.select(usual * FORECAST_TOLERANCE).to_series().to_numpy()


def _check_start_forecasts(
    check: Check, old: pl.DataFrame, new: pl.DataFrame, allowed: npt.NDArray[np.float64], start: Start
) -> None:
    for name in _numbers(old):
        a, b = old[name].cast(pl.Float64).to_numpy(), new[name].cast(pl.Float64).to_numpy()
        check.compared += len(a)
        with np.errstate(invalid="ignore"):  # of infinite bounds
            wrong = ~((np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b)))
        if wrong.any():
            row = int(wrong.argmax())
            time = int(old["timestamp"].dt.timestamp("ms")[row])
            check.found(
                f"{name} of {old['symbol'][row]}", time, f"{a[row]:.9g} → {b[row]:.9g} when {start.how}"
            )


def _check_start_signals(
    check: Check,
    pipeline: Pipeline,
    old: pl.DataFrame,
    new: pl.DataFrame,
    allowed: npt.NDArray[np.float64],
    start: Start,
) -> None:
    """A weight may move by no more than forecasts moved by the allowance, together or against each other, move it."""
    sides = np.where(old["symbol"].rank("dense").to_numpy() % 2 == 0, 1.0, -1.0)
    base = pipeline.weights(old)
    symbols = [name for name in base.columns if name != "timestamp"]
    weights = base.select(symbols).to_numpy()
    explained = np.zeros_like(weights)
    for shift in (allowed, -allowed, allowed * sides, -allowed * sides):
        shifted = old.with_columns((pl.col(name) + pl.Series(shift)).alias(name) for name in _numbers(old))
        explained = np.fmax(explained, np.abs(pipeline.weights(shifted).select(symbols).to_numpy() - weights))
    moved = np.abs(pipeline.weights(new).select(symbols).to_numpy() - weights)
    check.compared += weights.size
    for row, column in np.argwhere(~(moved <= 2 * explained + 1e-12))[:1]:
        time = int(base["timestamp"].dt.timestamp("ms")[int(row)])
        check.found(
            f"weight of {symbols[column]}", time, f"moves by {moved[row, column]:.3g} when {start.how}"
        )
