"""How good intervals are: how often they hold, how wide they are, and what they lose by the scores proper to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.backtest.bootstrap import block_length, stationary_bootstrap
from longtape.core import scoring
from longtape.forecasting.config import bounds_of

Array = npt.NDArray[np.float64]
Rows = list[dict[str, Any]]
SURE = 0.95  # of the bounds of a coverage
_RESAMPLES = 300


def coverage(forecast: pl.DataFrame, level: float, further: Sequence[float] = ()) -> Rows:
    """A row for each target, horizon and level: the share of labels that the interval held, between which values that
    share lies by a block bootstrap (blocks as long as the horizon at least), the mean width, the interval score
    (Gneiting & Raftery 2007) and the pinball loss of its two bounds.

    forecast: a forecast frame; `further` levels have columns of their own. Rows without a label or an interval are left
    out.
    """
    rows = []
    for (symbol, target, horizon), own in forecast.group_by(
        "symbol", "target", "horizon", maintain_order=True
    ):
        for one, (low, high) in _columns(level, further).items():
            known = own.drop_nulls(("actual", low, high))
            if known.height:
                named = {"symbol": symbol, "target": target, "horizon": horizon, "level": one}
                actual, lower, upper = (known[name].to_numpy() for name in ("actual", low, high))
                rows.append(named | _row(actual, lower, upper, one, int(str(horizon))))
    return rows


def _columns(level: float, further: Sequence[float]) -> dict[float, tuple[str, str]]:
    """Names of the bounds of each level; the first one has `lower` and `upper`."""
    found = {one: (f"q{bounds_of(one)[0]:g}", f"q{bounds_of(one)[1]:g}") for one in further}
    return {level: ("lower", "upper"), **{k: v for k, v in found.items() if k != level}}


def _row(actual: Array, lower: Array, upper: Array, level: float, horizon: int) -> dict[str, Any]:
    inside = ((lower <= actual) & (actual <= upper)).astype(np.float64)
    least, most = share_bounds(inside, horizon)
    below, above = bounds_of(level)
    pinball = scoring.pinball(actual, lower, below) + scoring.pinball(actual, upper, above)
    return {
        "coverage": float(inside.mean()),
        "from": least,
        "to": most,
        "mean width": float((upper - lower).mean()),
        "interval score": float(scoring.interval_score(actual, lower, upper, level).mean()),
        "pinball": float(pinball.mean() / 2),
        "forecasts": len(actual),
    }


def share_bounds(flags: Array, horizon: int) -> tuple[float, float]:
    """Between which values the share of `flags` [n] (0 or 1, in order of time) lies, by a stationary bootstrap."""
    if len(flags) < 2 or flags.min() == flags.max():
        return float("nan"), float("nan")
    block = min(max(block_length(flags), float(horizon)), float(len(flags)))
    drawn = stationary_bootstrap(flags, np.mean, block=block, resamples=_RESAMPLES)
    low, high = np.quantile(drawn, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)
