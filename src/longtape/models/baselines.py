"""Honest baselines: what a model must beat. Each forecasts one target at given origins from what was known there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from longtape.core.clock import DAY, HOUR
from longtape.features.panel import Panel

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Baseline = Callable[
    [Panel, int, Rows, Rows], Array
]  # (panel, target column, training origins, origins) → [n]

HAR_LAG_HOURS = (3, 6, 12, 24, 72, 168, 720)
HAR_LAG_DAYS = (1, 2, 3, 5, 10, 22, 66)
_TINY = 1e-12


def zero(panel: Panel, target: int, train: Rows, origins: Rows) -> Array:
    """Nothing moves."""
    return np.zeros(len(origins))


def training_mean(panel: Panel, target: int, train: Rows, origins: Rows) -> Array:
    """The mean of the training labels: for returns, always long or always short."""
    return np.full(len(origins), panel.targets[train, target].mean())


def last_value(panel: Panel, target: int, train: Rows, origins: Rows) -> Array:
    """The target's own value over the `horizon` bars that end at the origin."""
    column = panel.target_columns[target]
    returns = _log_returns(panel, target)
    if column.kind == "volatility":
        return np.sqrt(_trailing_mean(returns**2, column.horizon)[origins] * column.horizon)
    return _trailing_mean(returns, column.horizon)[origins] * column.horizon


def ar1(panel: Panel, target: int, train: Rows, origins: Rows) -> Array:
    """Regression of the return on the return over the `horizon` bars before, by least squares."""
    known = last_value(panel, target, train, np.arange(len(panel)))
    slope, level = np.polyfit(known[train], panel.targets[train, target], 1)
    return level + slope * known[origins]


def log_har(panel: Panel, target: int, train: Rows, origins: Rows) -> Array:
    """Log-HAR with seven lags and a level for every hour of the week, refitted every month on all labels known by then.

    Corsi 2009, in logarithms; bias corrected by s²/2. Bars of a day or longer: lags in days, a level for every weekday.
    Gives the root of the expected variance.
    """
    design = _har_design(panel, target)
    label = np.log(np.maximum(panel.targets[:, target] ** 2, _TINY))
    out = np.empty(len(origins))
    months = panel.timestamps[origins].astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    for month in np.unique(months):
        rows = np.flatnonzero(months == month)
        now = panel.known_at[origins[rows[0]]]
        known = np.arange(train[0], len(panel))
        known = known[(panel.target_ends[known, target] <= now) & np.isfinite(label[known])]
        out[rows] = _har_fit(design[known], label[known], design[origins[rows]])
    return out


def _har_fit(x: Array, y: Array, x_new: Array) -> Array:
    gram = x.T @ x
    weights = np.linalg.solve(gram + 1e-8 * len(x) * np.eye(len(gram)), x.T @ y)
    spread = float(np.mean((y - x @ weights) ** 2))
    return np.exp(0.5 * (x_new @ weights + spread / 2))


def _har_design(panel: Panel, target: int) -> Array:
    squares = _log_returns(panel, target) ** 2
    step = panel.interval.milliseconds
    daily = step >= DAY
    lags = HAR_LAG_DAYS if daily else tuple(max(1, hours * HOUR // step) for hours in HAR_LAG_HOURS)
    lagged = np.stack([_trailing_mean(squares, lag) for lag in dict.fromkeys(lags)], 1)
    cell = panel.known_at // DAY % 7 if daily else panel.known_at // HOUR % 168
    dummies = np.zeros((len(panel), 7 if daily else 168))
    dummies[np.arange(len(panel)), cell] = 1.0
    return np.concatenate([np.log(np.maximum(lagged, _TINY)), dummies], 1)


def _log_returns(panel: Panel, target: int) -> Array:
    symbol = panel.symbols.index(panel.target_columns[target].symbol)
    return np.diff(np.log(panel.closes[:, symbol]), prepend=np.nan)


def _trailing_mean(values: Array, width: int) -> Array:
    """Mean over the last `width` values, over fewer where there are fewer; NaN counts as 0."""
    total = np.cumsum(np.nan_to_num(values))
    shifted = np.concatenate([np.zeros(min(width, len(total))), total[:-width]])[: len(total)]
    return (total - shifted) / np.minimum(np.arange(1, len(total) + 1), width)


BASELINES: dict[str, dict[str, Baseline]] = {
    "return": {
        "zero": zero,
        "always long (training mean)": training_mean,
        "last value": last_value,
        "AR(1)": ar1,
    },
    "volatility": {"training mean": training_mean, "last value": last_value, "log-HAR": log_har},
}
