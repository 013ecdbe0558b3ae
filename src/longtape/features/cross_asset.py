"""Features across symbols: one series against another, one symbol among all. `of("SYMBOL").` reads another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtape.features.registry import CrossSection, Series, feature, two_rows, window_rows
from longtape.features.rolling import Array, divide, rolling_covariance
from longtape.features.table import Table

SECTION = "cross-section of all symbols loaded, equal weights"


@feature(
    "cov(x, y) / √(var x · var y) over n bars", "Pearson's correlation", warm_up=window_rows, check=two_rows
)
def correlation(table: Table, x: Series, y: Series, n: int = 100) -> Array:
    """Rolling correlation of two series, in [−1, 1]; 0 where one of them is constant."""
    cov, var_x, var_y = rolling_covariance(x, y, n)
    return np.clip(
        divide(cov, np.sqrt(np.maximum(var_x, 0.0)) * np.sqrt(np.maximum(var_y, 0.0)), 0.0), -1.0, 1.0
    )


@feature(
    "cov(x, y) / var y over n bars",
    "Sharpe (1964), Capital Asset Prices: slope of x on y",
    warm_up=window_rows,
    check=two_rows,
)
def beta(table: Table, x: Series, y: Series, n: int = 100) -> Array:
    """Rolling slope of x on y, e.g. `beta(log_return, of("BTCUSDT").log_return, 100)`; 0 where y is constant."""
    cov, _, var_y = rolling_covariance(x, y, n)
    return divide(cov, np.maximum(var_y, 0.0), 0.0)


def _mean(series: Sequence[Array]) -> Array:
    """Mean over the symbols that are there, NaN where none is."""
    total, count = np.zeros(len(series[0])), np.zeros(len(series[0]))
    for values in series:
        there = ~np.isnan(values)
        total += np.where(there, values, 0.0)
        count += there
    return total / np.where(count > 0, count, np.nan)


@feature("(1/S) Σ_s x_s", SECTION, shared=True)
def average(table: Table, x: CrossSection) -> Array:
    """Mean over the symbols, e.g. `average(log_return)` for the return of the market."""
    return _mean(x.values)


@feature("√((1/S) Σ_s (x_s − mean)²)", SECTION, shared=True)
def dispersion(table: Table, x: CrossSection) -> Array:
    """Population deviation over the symbols; 0 for one symbol."""
    centre = _mean(x.values)
    return np.sqrt(_mean([(values - centre) ** 2 for values in x.values]))


@feature("x − (1/S) Σ_s x_s", SECTION)
def relative(table: Table, x: CrossSection) -> Array:
    """How far a symbol stands above the mean of all; 0 for one symbol."""
    return x.values[x.own] - _mean(x.values)


@feature("(1/(S − 1)) Σ_{s ≠ own} x_s", SECTION)
def others(table: Table, x: CrossSection) -> Array:
    """Mean over the other symbols that are there, e.g. `others(volatility(24))`; a symbol's own where no other is."""
    own = x.values[x.own]
    rest = [values for s, values in enumerate(x.values) if s != x.own]
    if not rest:
        return own.copy()
    mean = _mean(list(np.sort(rest, axis=0)))  # the same bits in whatever order the symbols come
    return np.where(np.isnan(mean), own, mean)


@feature("share of the other symbols below, ties count half", SECTION)
def rank(table: Table, x: CrossSection) -> Array:
    """Rank among the symbols, from 0 (lowest) to 1 (highest); 0.5 for one symbol."""
    own = x.values[x.own]
    below, count = np.zeros(len(own)), np.zeros(len(own))
    for values in (values for s, values in enumerate(x.values) if s != x.own):
        below += (values < own) + 0.5 * (values == own)
        count += ~np.isnan(values)
    share = np.where(count > 0, below / np.maximum(count, 1), 0.5)
    return np.where(np.isnan(own), np.nan, share)
