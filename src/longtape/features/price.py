"""Features of price: returns, momentum, averages, oscillators."""

from __future__ import annotations

import math

import numpy as np

from longtape.features.registry import Series, feature, lag_rows, refuse_unless, two_rows, window_rows
from longtape.features.rolling import (
    Array,
    divide,
    exponential,
    lagged,
    log_ratio,
    memory,
    rolling_deviation,
    rolling_max,
    rolling_mean,
    rolling_moments,
    rolling_sum,
    rolling_zscore,
    wilder_rsi,
)
from longtape.features.table import Table

TSAY = "Tsay (2010), Analysis of Financial Time Series, ch. 1"
DEFINITION = "definition"


def one_bar_returns(table: Table) -> Array:
    """Log returns of one bar, computed once per table."""
    return table.cached("ln(close/previous)", lambda: log_ratio(table["close"], 1))


@feature("ln(close_t / close_{t−n})", TSAY, needs=("close",), warm_up=lag_rows)
def log_return(table: Table, n: int = 1) -> Array:
    """Log return over n bars."""
    return one_bar_returns(table).copy() if n == 1 else log_ratio(table["close"], n)


@feature("close_t / close_{t−n} − 1", TSAY, needs=("close",), warm_up=lag_rows)
def momentum(table: Table, n: int = 20) -> Array:
    """Simple return over n bars."""
    return table["close"] / lagged(table["close"], n) - 1.0


@feature("(high − low) / close", "definition", needs=("high", "low", "close"))
def range_(table: Table) -> Array:
    """Height of the bar as a fraction of its close."""
    out = table["high"] - table["low"]
    out /= table["close"]
    return out


@feature("(close − open) / open", "definition", needs=("open", "close"))
def body(table: Table) -> Array:
    """Move from open to close as a fraction of the open."""
    return (table["close"] - table["open"]) / table["open"]


@feature("x_{t−n}", "definition", warm_up=lag_rows)
def lag(table: Table, x: Series, n: int = 1) -> Array:
    """The value n bars ago."""
    return lagged(x, n)


@feature("x_t − x_{t−n}", "definition", warm_up=lag_rows)
def difference(table: Table, x: Series, n: int = 1) -> Array:
    """Change over n bars."""
    return x - lagged(x, n)


@feature("ln x_t", "definition")
def log(table: Table, x: Series) -> Array:
    """Natural logarithm of a series above zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


@feature("(1/n) Σ x", DEFINITION, warm_up=window_rows)
def mean(table: Table, x: Series, n: int = 20) -> Array:
    """Mean of the last n values."""
    return rolling_mean(x, n)


@feature("√(Σ(x − mean)² / (n − 1))", DEFINITION, warm_up=window_rows, check=two_rows)
def std(table: Table, x: Series, n: int = 20) -> Array:
    """Sample deviation of the last n values; 0 for a constant series."""
    return rolling_deviation(x, n)


@feature("max of the last n", DEFINITION, warm_up=window_rows)
def highest(table: Table, x: Series, n: int = 20) -> Array:
    """Largest of the last n values."""
    return rolling_max(x, n)


@feature("min of the last n", DEFINITION, warm_up=window_rows)
def lowest(table: Table, x: Series, n: int = 20) -> Array:
    """Smallest of the last n values."""
    return -rolling_max(-x, n)


@feature("x / mean(x, n)", DEFINITION, warm_up=window_rows, check=two_rows)
def ratio(table: Table, x: Series, n: int = 20) -> Array:
    """A series over its own mean; 1 where the mean is 0."""
    return divide(x, rolling_mean(x, n), 1.0)


@feature("close / mean(close, n)", DEFINITION, needs=("close",), warm_up=window_rows, check=two_rows)
def close_ratio(table: Table, n: int = 20) -> Array:
    """Close over its own mean."""
    return table["close"] / rolling_mean(table["close"], n)


@feature("(x − mean(x, n)) / std(x, n)", DEFINITION, warm_up=window_rows, check=two_rows)
def zscore(table: Table, x: Series, n: int = 100) -> Array:
    """Distance from the rolling mean in rolling sample deviations; 0 for a constant series."""
    return rolling_zscore(x, n)


@feature(
    "y_t = y_{t−1} + (2/(n+1))(x_t − y_{t−1})",
    "Brown (1959), Statistical Forecasting for Inventory Control",
    warm_up=lambda table, x, n: memory(2 / (n + 1)) - 1,
)
def ema(table: Table, x: Series, n: int = 20) -> Array:
    """Exponential moving average with span n."""
    return exponential(x, 2 / (n + 1))


WILDER = "Wilder (1978), New Concepts in Technical Trading Systems"


@feature(
    "100·U/(U+D), U and D the averages of gains and losses smoothed by 1/n",
    WILDER,
    needs=("close",),
    warm_up=lambda table, n: memory(1 / n),
)
def rsi(table: Table, n: int = 14) -> Array:
    """Relative strength index with Wilder's smoothing; 50 where there were neither gains nor losses."""
    return wilder_rsi(table["close"], n)


@feature(
    "100·ΣU/(ΣU+ΣD) over the last n changes",
    "Cutler's variant of Wilder (1978)",
    needs=("close",),
    warm_up=lag_rows,
)
def rsi_simple(table: Table, n: int = 14) -> Array:
    """Relative strength index with plain sums of n gains and losses; 50 where there were neither."""
    change = difference(table, table["close"], 1)
    up = rolling_sum(np.maximum(change, 0.0), n)
    down = rolling_sum(np.maximum(-change, 0.0), n)
    return divide(100.0 * up, up + down, 50.0)


def _macd_rows(table: Table, fast: int, slow: int) -> int:
    return memory(2 / (slow + 1)) - 1


def _signal_rows(table: Table, fast: int, slow: int, signal: int) -> int:
    return _macd_rows(table, fast, slow) + memory(2 / (signal + 1)) - 1


def _fast_is_faster(fast: int, slow: int, **_: object) -> None:
    refuse_unless(fast < slow, "fast must be below slow")


APPEL = "Appel (2005), Technical Analysis: Power Tools for Active Investors"


@feature(
    "ema(close, fast) − ema(close, slow)", APPEL, needs=("close",), warm_up=_macd_rows, check=_fast_is_faster
)
def macd(table: Table, fast: int = 12, slow: int = 26) -> Array:
    """Moving average convergence divergence, in units of price."""
    close = table["close"]
    return ema(table, close, fast) - ema(table, close, slow)


@feature("ema(macd, signal)", APPEL, needs=("close",), warm_up=_signal_rows, check=_fast_is_faster)
def macd_signal(table: Table, fast: int = 12, slow: int = 26, signal: int = 9) -> Array:
    """Signal line of MACD, in units of price."""
    return ema(table, macd(table, fast, slow), signal)


@feature("macd − macd_signal", APPEL, needs=("close",), warm_up=_signal_rows, check=_fast_is_faster)
def macd_histogram(table: Table, fast: int = 12, slow: int = 26, signal: int = 9) -> Array:
    """MACD above its signal line, in units of price."""
    line = macd(table, fast, slow)
    return line - ema(table, line, signal)


def _bands_have_width(n: int, k: float) -> None:
    two_rows(n=n)
    refuse_unless(k > 0, "k must be above 0")


@feature(
    "(close − lower) / (upper − lower), bands at mean ± k population deviations",
    "Bollinger (2001), Bollinger on Bollinger Bands",
    needs=("close",),
    warm_up=window_rows,
    check=_bands_have_width,
)
def bollinger(table: Table, n: int = 20, k: float = 2.0) -> Array:
    """Bollinger's %b: 0 at the lower band, 1 at the upper; 0.5 where the bands have no width."""
    average, deviation = rolling_moments(table["close"], n)
    width = k * deviation * math.sqrt((n - 1) / n)
    return divide(table["close"] - average + width, 2.0 * width, 0.5)
