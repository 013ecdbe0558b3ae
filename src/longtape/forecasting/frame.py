"""The forecast frame: one row per origin, symbol, target and horizon, in original units.

| column | meaning |
|---|---|
| timestamp | open of the newest bar of the window, or time of the event (UTC) |
| known_at | the moment at which the forecast is made: the bar's close |
| symbol, target, kind, horizon | what is forecast, and over how many bars |
| end | when the label will be known; in the future for the newest windows, null for events to come |
| period | where the run's split puts the origin: training, validation, calibration, test, after the test |
| mean, lower, upper | point forecast and interval; returns are log returns |
| q0.05, q0.95, … | bounds of the further levels, by the probability below them |
| p0, p1, … | probabilities of classes, where a target has classes |
| close, price, price_lower, price_upper | the origin's close; the forecast of a return as a price, close · e^return |
| crps | of the head's own distribution (of a point: its absolute error), null where nothing has happened yet |
| threshold | the size of forecast below which nothing is traded, chosen on calibration windows; 0: none |
| actual | what happened, null where it is not known yet |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from longtape.features.panel import UNKNOWN_END, Panel, Rows, TargetColumn
from longtape.features.splits import Periods
from longtape.forecasting.config import bounds_of
from longtape.forecasting.intervals import Array, Bounds, Calibration, TargetCalibration
from longtape.forecasting.predict import Predicted

_TIME = pl.Datetime("ms", "UTC")


def to_frame(
    panel: Panel,
    origins: Rows,
    predicted: Predicted,
    bounds: Mapping[float, Bounds],
    kept: Calibration,
    periods: Periods | None = None,
    unit: Array | None = None,
) -> pl.DataFrame:
    """Forecasts and bounds of the windows that end at `origins` → forecast frame; `unit` [n, K]: that of `kept`."""
    unit = np.ones_like(predicted.mean) if unit is None else unit
    period = np.full(len(origins), "") if periods is None else periods.period_of(panel.timestamps[origins])
    parts = []
    for column, target in enumerate(panel.target_columns):
        if target.auxiliary:
            continue
        lower, upper = (_number(side[:, column]) for side in bounds[kept.levels[0]])
        mean = pl.Series(predicted.mean[:, column])
        part = {
            "timestamp": panel.timestamps[origins],
            "known_at": panel.known_at[origins],
            "symbol": target.asset,
            "target": target.name,
            "kind": target.of_kind.name,
            "horizon": target.horizon,
            "end": _ends(panel.target_ends[origins, column]),
            "period": period,
            "mean": mean,
            "lower": lower,
            "upper": upper,
            **_further(bounds, kept.levels[1:], column),
            **_probabilities(predicted, column, target.of_kind.classes),
            **_prices(panel, origins, target, kept.targets[column], (mean, lower, upper)),
            "threshold": kept.targets[column].threshold * unit[:, column],
            "crps": _number(_crps(predicted, column, target)),
            "actual": _number(panel.targets[origins, column]),
        }
        parts.append(pl.DataFrame(part))
    return pl.concat(parts).with_columns(pl.col("timestamp", "known_at", "end").cast(_TIME))


def _number(values: Array) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64).fill_nan(None)


def _crps(predicted: Predicted, column: int, target: TargetColumn) -> Array:
    """None of a weight, which states no label."""
    states = target.has_interval or target.of_kind.classes > 0
    if predicted.crps is None or not states:
        return np.full(len(predicted.mean), np.nan)
    return predicted.crps[:, column]


def _further(bounds: Mapping[float, Bounds], levels: Sequence[float], column: int) -> dict[str, pl.Series]:
    """q0.25, q0.75, …: the bounds of every further level."""
    pairs = [(p, side) for level in levels for p, side in zip(bounds_of(level), bounds[level], strict=True)]
    return {f"q{p:g}": _number(side[:, column]) for p, side in pairs}


def _prices(
    panel: Panel, origins: Rows, target: TargetColumn, made: TargetCalibration, returns: Sequence[pl.Series]
) -> dict[str, pl.Series]:
    """The close of the origin and, of a return that begins there, the prices that the forecast and its bounds mean."""
    close = pl.Series(panel.closes[origins, panel.assets.index(target.asset)], dtype=pl.Float64)
    is_return = target.is_traded and made.method is not None and not target.at_open
    none = pl.Series([None], dtype=pl.Float64).new_from_index(0, len(origins))
    prices = [close * one.exp() if is_return else none for one in returns]
    return dict(zip(("close", "price", "price_lower", "price_upper"), (close, *prices), strict=True))


def _ends(ends: Rows) -> pl.Series:
    series = pl.Series(ends)
    return series.set(series == UNKNOWN_END, None)


def _probabilities(predicted: Predicted, column: int, classes: int) -> dict[str, pl.Series]:
    """p0, p1, …, as many as the target with most classes has; null beyond a target's own."""
    if predicted.probabilities is None:
        return {}
    found = predicted.probabilities[:, column]
    nothing = pl.Series([None], dtype=pl.Float64).new_from_index(0, len(found))
    return {
        f"p{m}": pl.Series(found[:, m].astype(np.float64)) if m < classes else nothing
        for m in range(found.shape[1])
    }
