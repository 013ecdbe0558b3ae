"""The forecast frame: one row per origin, symbol and target, in original units.

| column | meaning |
|---|---|
| timestamp | open of the newest bar of the window (UTC) |
| known_at | close of that bar: the moment at which the forecast is made |
| symbol, target, kind, horizon | what is forecast, and over how many bars |
| end | when the label will be known; in the future for the newest windows |
| mean, lower, upper | point forecast and interval; returns are log returns |
| threshold | the size of forecast below which nothing is traded, chosen on validation windows; 0: none |
| actual | what happened, null where it is not known yet |
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.features.panel import Panel
from longtape.forecasting.intervals import Calibration, intervals

_TIME = pl.Datetime("ms", "UTC")


def to_frame(
    panel: Panel, origins: npt.NDArray[np.int64], predicted: npt.NDArray[np.float64], kept: Calibration
) -> pl.DataFrame:
    """Predictions [n, K] of the windows that end at `origins` → forecast frame."""
    lower, upper = intervals(panel.target_columns, predicted, kept)
    parts = []
    for column, target in enumerate(panel.target_columns):
        actual = pl.Series("actual", panel.targets[origins, column]).fill_nan(None)
        parts.append(
            pl.DataFrame(
                {
                    "timestamp": panel.timestamps[origins],
                    "known_at": panel.known_at[origins],
                    "symbol": target.symbol,
                    "target": target.name,
                    "kind": target.kind,
                    "horizon": target.horizon,
                    "end": panel.target_ends[origins, column],
                    "mean": predicted[:, column],
                    "lower": lower[:, column],
                    "upper": upper[:, column],
                    "threshold": kept.threshold[column],
                    "actual": actual,
                }
            )
        )
    return pl.concat(parts).with_columns(pl.col("timestamp", "known_at", "end").cast(_TIME))
