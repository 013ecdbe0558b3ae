"""Stationary block bootstrap: how much of a figure the order of a dependent series could have made by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from longtape.backtest import metrics
from longtape.backtest.summary import as_returns, summarise
from longtape.core.arrays import Floats
from longtape.core.errors import UserError

Statistic = Callable[[Floats], float]


@dataclass(frozen=True)
class ConfidenceInterval:
    """A figure, and between which values it lies in `level` of the resampled series."""

    value: float
    lower: float
    upper: float
    level: float
    block: float  # mean length of the blocks
    resamples: int


@njit(cache=True)
def _resample(values: Floats, chance: float, draw: np.random.Generator, out: Floats) -> None:
    """One stationary resample: blocks from random places, going on with probability 1 − `chance`, wrapped round."""
    n = len(values)
    at = 0
    for t in range(n):
        if t == 0 or draw.random() < chance:
            at = int(draw.random() * n)
        else:
            at = at + 1 if at + 1 < n else 0
        out[t] = values[at]


def stationary_bootstrap(
    values: Any, statistic: Callable[[Floats], Any], *, block: float, resamples: int = 1000, seed: int = 0
) -> Floats:
    """`statistic` of each resampled series (Politis and Romano 1994) of `values` [n] → [resamples, …].

    `block`: mean length of the geometrically distributed blocks, ≥ 1.
    """
    series = as_returns(values)
    if len(series) < 2 or not np.isfinite(series).all():
        raise UserError(f"bootstrap: needs two finite values at least (given: {len(series)})")
    if not 1 <= block < np.inf or resamples < 1:
        raise UserError(f"bootstrap: block {block:g} and resamples {resamples} must be at least 1")
    draw, out, rows = np.random.default_rng(seed), np.empty(len(series)), []
    for _ in range(resamples):
        _resample(series, 1 / block, draw, out)
        rows.append(statistic(out))
    return np.array(rows, dtype=np.float64)


def block_length(values: Any) -> float:
    """Mean block length for the stationary bootstrap by Politis and White (2004) with the correction of Patton, Politis
    and White (2009): (G²/g(0)²)^(1/3)·n^(1/3), at least 1, at most min(3√n, n/3).
    """
    series = as_returns(values) - np.mean(as_returns(values))
    n = len(series)
    quiet = max(5, int(np.ceil(np.sqrt(np.log10(n))))) if n > 1 else 0
    most = int(np.ceil(np.sqrt(n))) + quiet
    if n <= most + 1 or not series.any():
        return 1.0
    covariance = np.array([series[: n - k] @ series[k:] for k in range(most + 1)]) / n
    width = min(2 * _last_correlated(covariance / covariance[0], n, quiet), most)
    if width == 0:
        return 1.0
    lags = np.arange(1, width + 1)
    flat_top = np.minimum(1.0, 2 * (1 - lags / width))
    spread = 2 * (flat_top * lags * covariance[1 : width + 1]).sum()
    long_run = covariance[0] + 2 * (flat_top * covariance[1 : width + 1]).sum()
    length = (spread**2 / long_run**2 * n) ** (1 / 3) if long_run else np.inf
    return float(np.clip(length, 1.0, np.ceil(min(3 * np.sqrt(n), n / 3))))


def _last_correlated(correlation: Floats, n: int, quiet: int) -> int:
    """The lag after which the next `quiet` correlations are all insignificant (|ρ| < 2√(log₁₀n / n)); where there is no
    such lag, the last significant one.
    """
    loud = np.abs(correlation[1:]) >= 2 * np.sqrt(np.log10(n) / n)
    for lag in range(len(loud) - quiet + 1):
        if not loud[lag : lag + quiet].any():
            return lag
    return int(np.flatnonzero(loud)[-1]) + 1


def strategy_block_length(returns: Any) -> float:
    """The longer of the block lengths for returns and for their squares: Sharpe and drawdown hang on both moments."""
    series = as_returns(returns)
    return max(block_length(series), block_length(series**2))


def bootstrap_metrics(
    returns: Any,
    periods_per_year: float,
    *,
    risk_free: float = 0.0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, ConfidenceInterval]:
    """Percentile intervals of annual return, Sharpe ratio and deepest drawdown of simple returns [n].

    Blocks as long as `strategy_block_length` says; `risk_free` is a rate a year.
    """
    series, block = as_returns(returns), strategy_block_length(returns)

    def figures(sample: Floats) -> tuple[float, float, float]:
        s = summarise(sample)
        return (
            metrics.annual_return_of(s, periods_per_year),
            metrics.sharpe_of(s, periods_per_year, risk_free),
            s.drawdown,
        )

    drawn = stationary_bootstrap(series, figures, block=block, resamples=resamples, seed=seed)
    names = ("annual_return", "sharpe", "max_drawdown")
    tail = (1 - level) / 2
    return {
        name: ConfidenceInterval(own, *_between(column, tail), level, block, resamples)
        for name, own, column in zip(names, figures(series), drawn.T, strict=True)
    }


def _between(values: Floats, tail: float) -> tuple[float, float]:
    """The central quantiles; resamples in which the figure does not exist are left out."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(
        known, [tail, 1 - tail], method="inverted_cdf"
    )  # no mean with an infinite neighbour
    return float(low), float(high)
