"""The forecast frame: one row per origin, symbol, target and horizon, in original units.

| column | meaning |
|---|---|
| timestamp | open of the newest bar of the window, or time of the event (UTC) |
| known_at | the moment at which the forecast is made: the bar's close |
| symbol, target, kind, horizon | what is forecast, and over how many bars |
| end | when the label will be known; in the future for the newest windows, null for events to come |
| period | where the run's split puts the origin: training, validation, calibration, test, after the test |
| mean, lower, upper | point forecast and interval; returns are log returns |
| p0, p1, … | probabilities of classes, where a target has classes |
| threshold | the size of forecast below which nothing is traded, chosen on calibration windows; 0: none |
| actual | what happened, null where it is not known yet |
"""

from __future__ import annotations

import numpy as np
import polars as pl

from longtape.features.panel import UNKNOWN_END, Panel, Rows
from longtape.features.splits import Periods
from longtape.forecasting.intervals import Calibration, intervals
from longtape.forecasting.predict import Predicted

_TIME = pl.Datetime("ms", "UTC")


def to_frame(
    panel: Panel, origins: Rows, predicted: Predicted, kept: Calibration, periods: Periods | None = None
) -> pl.DataFrame:
    """Forecasts of the windows that end at `origins` → forecast frame."""
    lower, upper = intervals(panel.target_columns, predicted, kept)
    period = np.full(len(origins), "") if periods is None else periods.period_of(panel.timestamps[origins])
    parts = []
    for column, target in enumerate(panel.target_columns):
        if target.auxiliary:
            continue
        part = {
            "timestamp": panel.timestamps[origins],
            "known_at": panel.known_at[origins],
            "symbol": target.asset,
            "target": target.name,
            "kind": target.of_kind.name,
            "horizon": target.horizon,
            "end": _ends(panel.target_ends[origins, column]),
            "period": period,
            "mean": predicted.mean[:, column],
            "lower": pl.Series(lower[:, column]).fill_nan(None),
            "upper": pl.Series(upper[:, column]).fill_nan(None),
            **_probabilities(predicted, column, target.of_kind.classes),
            "threshold": kept.targets[column].threshold,
            "actual": pl.Series(panel.targets[origins, column]).fill_nan(None),
        }
        parts.append(pl.DataFrame(part))
    return pl.concat(parts).with_columns(pl.col("timestamp", "known_at", "end").cast(_TIME))


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
