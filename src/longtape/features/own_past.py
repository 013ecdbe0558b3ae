"""Features of a bar beside its symbol's own past, in which no level stands: of any two symbols they mean the same.

Variances are compared by their logarithms. A bar without any move tells no more than one that hardly moved: what is
below 10⁻⁴ of the mean of the longer past counts as that.
"""

from __future__ import annotations

import math

import numpy as np

from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.price import one_bar_returns
from longtape.features.registry import feature, lag_rows, refuse_unless, two_rows, window_rows
from longtape.features.rolling import (
    Array,
    lagged,
    rolling_deviation,
    rolling_max,
    rolling_mean,
    rolling_sum,
)
from longtape.features.table import Table

FLOOR = 1e-4  # of the mean over the longer past
PARKINSON = "Parkinson (1980), The Extreme Value Method"
RANGE = ("high", "low")


def _longer(table: Table, n: int, base: int) -> int:
    """A `warm_up`: the rows before the first whole window of either length."""
    return max(n, base) - 1


def _longer_returns(table: Table, n: int, base: int) -> int:
    return max(n, base - 1)


def _unequal(*, n: int, base: int) -> None:
    refuse_unless(n != base, "n and base must differ: a mean beside itself says nothing")


def _range_variance(table: Table) -> Array:
    """Variance of each bar from its range, computed once per table."""

    def compute() -> Array:
        return np.log(table["high"] / table["low"]) ** 2 / (4.0 * math.log(2.0))

    return table.cached("Parkinson's variance", compute)


def _usual(table: Table, base: int) -> Array:
    """Mean of the range's variance over the longer past."""
    return table.cached(
        f"Parkinson's variance over {base}",
        lambda: np.maximum(rolling_mean(_range_variance(table), base), SMALLEST_VARIANCE),
    )


def _log_beside(values: Array, usual: Array) -> Array:
    """ln(values / usual), floored."""
    return np.log(np.maximum(values / usual, FLOOR))


@feature("ln(mean v over n / mean v over base), v = ln(high/low)² / (4 ln 2)", PARKINSON, needs=RANGE,
         warm_up=_longer, check=_unequal)  # fmt: skip
def relative_range(table: Table, n: int = 24, base: int = 720) -> Array:
    """Variance by the range of the last n bars beside that of a longer past."""
    return _log_beside(rolling_mean(_range_variance(table), n), _usual(table, base))


@feature("ln(mean r² over n / mean v over base), v as in relative_range", PARKINSON,
         needs=("close", *RANGE), warm_up=_longer_returns)  # fmt: skip
def relative_move(table: Table, n: int = 24, base: int = 720) -> Array:
    """Mean squared return of the last n bars beside the range of a longer past."""
    returns = one_bar_returns(table)
    return _log_beside(rolling_mean(returns * returns, n), _usual(table, base))


@feature("mean of ln v over n − ln(mean v over base), v as in relative_range",
         "Alizadeh, Brandt & Diebold (2002), Range-Based Estimation of Stochastic Volatility Models", needs=RANGE,
         warm_up=lambda table, n, base: n + base - 2)  # fmt: skip
def relative_log_range(table: Table, n: int = 24, base: int = 720) -> Array:
    """Mean logarithm of the range of the last n bars, which single large bars do not rule, beside a longer past."""
    each = np.maximum(_range_variance(table), FLOOR * _usual(table, base))
    return rolling_mean(np.log(each), n) - np.log(_usual(table, base))


@feature("ln(mean volume over n / mean volume over base)", "definition", needs=("volume",), warm_up=_longer,
         check=_unequal)  # fmt: skip
def relative_volume(table: Table, n: int = 24, base: int = 720) -> Array:
    """Volume of the last n bars beside that of a longer past; 0 where nothing was traded in it."""
    usual = rolling_mean(table["volume"], base)
    recent = rolling_mean(table["volume"], n)
    traded = np.where(usual > 0, usual, 1.0)
    return np.log(np.maximum(np.where(usual > 0, recent / traded, 1.0), FLOOR))


@feature("ln(close_t / close_{t−n}) / √Σ r² over n bars", "Moskowitz, Ooi & Pedersen (2012), Time Series Momentum",
         needs=("close",), warm_up=lag_rows)  # fmt: skip
def trend(table: Table, n: int = 24) -> Array:
    """Return over n bars in units of their own volatility; 0 where nothing moved."""
    returns = one_bar_returns(table)
    variance = rolling_sum(returns * returns, n)
    moved = np.log(table["close"] / lagged(table["close"], n))
    return moved / np.sqrt(np.maximum(variance, SMALLEST_VARIANCE))


@feature("ln((π/2) Σ |r_t r_{t−1}| / Σ r²) over n bars",
         "Barndorff-Nielsen & Shephard (2004), Power and Bipower Variation with Stochastic Volatility and Jumps",
         needs=("close",), warm_up=lambda table, n: n + 1, check=two_rows)  # fmt: skip
def jump_ratio(table: Table, n: int = 24) -> Array:
    """How much of the variance of n bars is no jump, in logarithms: 0 without jumps, far below where one rules."""
    returns = one_bar_returns(table)
    smooth = 0.5 * math.pi * rolling_sum(np.abs(returns * lagged(returns, 1)), n)
    total = np.maximum(rolling_sum(returns * returns, n), SMALLEST_VARIANCE)
    return _log_beside(smooth, total)


@feature("ln(Σ min(r, 0)² / Σ r²) over n bars",
         "Barndorff-Nielsen, Kinnebrock & Shephard (2010), Measuring Downside Risk: Realised Semivariance",
         needs=("close",), warm_up=lag_rows, check=two_rows)  # fmt: skip
def downside(table: Table, n: int = 24) -> Array:
    """Share of the falling bars in the variance of n bars, in logarithms."""
    returns = one_bar_returns(table)
    fallen = np.minimum(returns, 0.0)
    total = np.maximum(rolling_sum(returns * returns, n), SMALLEST_VARIANCE)
    return np.log(np.maximum(rolling_sum(fallen * fallen, n) / total, 0.01))


@feature("ln(ln(highest/lowest) / √(n · mean v over n)), v as in relative_range", PARKINSON, needs=RANGE,
         warm_up=window_rows, check=two_rows)  # fmt: skip
def relative_span(table: Table, n: int = 720) -> Array:
    """Range of the price over n bars in units of what their own ranges would let a random walk cover."""
    height = np.log(rolling_max(table["high"], n) / -rolling_max(-table["low"], n))
    usual = np.sqrt(n * np.maximum(rolling_mean(_range_variance(table), n), SMALLEST_VARIANCE))
    return np.log(np.maximum(height / usual, FLOOR))


@feature("(close − lowest) / (highest − lowest) over n bars", "Lane (1984), Lane's Stochastics",
         needs=("close", *RANGE), warm_up=window_rows)  # fmt: skip
def place(table: Table, n: int = 720) -> Array:
    """Where the close stands in the range of n bars, 0 at its low and 1 at its high; 0.5 where it has no height."""
    lowest = -rolling_max(-table["low"], n)
    height = rolling_max(table["high"], n) - lowest
    return np.where(height > 0, (table["close"] - lowest) / np.where(height > 0, height, 1.0), 0.5)


@feature("ln(max v / mean v) over n bars, v as in relative_range", PARKINSON, needs=RANGE, warm_up=window_rows,
         check=two_rows)  # fmt: skip
def peak(table: Table, n: int = 720) -> Array:
    """How far the widest of n bars stands above their mean."""
    variance = _range_variance(table)
    mean = np.maximum(rolling_mean(variance, n), SMALLEST_VARIANCE)
    return _log_beside(rolling_max(variance, n), mean)


@feature("sample deviation of ln v over n bars, v as in relative_range",
         "Alizadeh, Brandt & Diebold (2002), Range-Based Estimation of Stochastic Volatility Models", needs=RANGE,
         warm_up=lambda table, n: 2 * n - 2, check=two_rows)  # fmt: skip
def unrest(table: Table, n: int = 168) -> Array:
    """How unequal the ranges of n bars are: the volatility of volatility."""
    each = np.maximum(_range_variance(table), FLOOR * _usual(table, n))
    return rolling_deviation(np.log(each), n)
