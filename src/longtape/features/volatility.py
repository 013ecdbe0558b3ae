"""Features of volatility: from closes, from the four prices of a bar, and over calendar periods. None is annualised."""

from __future__ import annotations

import math

import numpy as np

from longtape.core.calendars import bars_per_day
from longtape.core.clock import ALWAYS_OPEN
from longtape.core.errors import UserError
from longtape.features.price import WILDER, one_bar_returns
from longtape.features.registry import feature, lag_rows, refuse_unless, two_rows, window_rows
from longtape.features.rolling import (
    Array,
    exponential,
    lagged,
    memory,
    rolling_deviation,
    rolling_mean,
    rolling_sum,
)
from longtape.features.table import Table

BAR = ("open", "high", "low", "close")
DAYS = {"day": (1, 1), "week": (7, 5), "month": (30, 22)}  # days of 24/7 markets, trading days of exchanges


def _log_of(a: Array, b: Array) -> Array:
    return np.log(a / b)


@feature(
    "sample deviation of ln(close_t / close_{t−1}) over n bars",
    "Hull (2018), Options, Futures, and Other Derivatives, ch. 15",
    needs=("close",),
    warm_up=lag_rows,
    check=two_rows,
)
def volatility(table: Table, n: int = 20) -> Array:
    """Deviation of the log returns of the last n bars, per bar."""
    return rolling_deviation(one_bar_returns(table), n)


@feature(
    "√Σ ln(close_t / close_{t−1})² over the bars of one day, week or month",
    "Corsi (2009), A Simple Approximate Long-Memory Model of Realized Volatility",
    needs=("close",),
    warm_up=lambda table, period: bars_in(table, period),
    check=lambda period: refuse_unless(period in DAYS, 'period must be "day", "week" or "month"'),
)
def realised_volatility(table: Table, period: str = "day") -> Array:
    """Realised volatility of the last "day", "week" or "month" (1, 7, 30 days; 1, 5, 22 sessions of an exchange)."""
    returns = one_bar_returns(table)
    return np.sqrt(rolling_sum(returns * returns, bars_in(table, period)))


def bars_in(table: Table, period: str) -> int:
    """Bars of a day, a week or a month on this table's clock."""
    if not table.interval.milliseconds:
        raise UserError("features: realised_volatility needs bars of a fixed interval")
    always, sessions = DAYS[period]
    days = always if table.calendar == ALWAYS_OPEN else sessions
    bars = days * bars_per_day(table.interval, table.calendar)
    if bars < 0.95:  # a month of 30 days falls a little short of a bar of a month
        raise UserError(
            f'features: realised_volatility("{period}"): a bar of {table.interval} is longer than that'
        )
    return max(1, round(bars))


@feature(
    "√(mean of ln(high/low)² / (4 ln 2))",
    "Parkinson (1980), The Extreme Value Method",
    needs=("high", "low"),
    warm_up=window_rows,
)
def parkinson(table: Table, n: int = 20) -> Array:
    """Volatility from the range of the bar."""
    height = _log_of(table["high"], table["low"])
    return np.sqrt(rolling_mean(height * height, n) / (4.0 * math.log(2.0)))


@feature(
    "√mean of ½ ln(high/low)² − (2 ln 2 − 1) ln(close/open)²",
    "Garman & Klass (1980), On the Estimation of Security Price Volatilities",
    needs=BAR,
    warm_up=window_rows,
)
def garman_klass(table: Table, n: int = 20) -> Array:
    """Volatility from range and body of the bar."""
    height = _log_of(table["high"], table["low"])
    move = _log_of(table["close"], table["open"])
    variance = 0.5 * height * height - (2.0 * math.log(2.0) - 1.0) * move * move
    return np.sqrt(np.maximum(rolling_mean(variance, n), 0.0))


def _rogers_satchell(table: Table) -> Array:
    high, low = table["high"], table["low"]
    up = _log_of(high, table["close"]) * _log_of(high, table["open"])
    return up + _log_of(low, table["close"]) * _log_of(low, table["open"])


@feature(
    "√mean of ln(h/c)ln(h/o) + ln(l/c)ln(l/o)",
    "Rogers & Satchell (1991), Estimating Variance from High, Low and Closing Prices",
    needs=BAR,
    warm_up=window_rows,
)
def rogers_satchell(table: Table, n: int = 20) -> Array:
    """Volatility from the four prices, free of drift."""
    return np.sqrt(np.maximum(rolling_mean(_rogers_satchell(table), n), 0.0))


@feature(
    "√(V_o + k·V_c + (1−k)·V_rs), k = 0.34/(1.34 + (n+1)/(n−1))",
    "Yang & Zhang (2000), Drift-Independent Volatility Estimation",
    needs=BAR,
    warm_up=lag_rows,
    check=two_rows,
)
def yang_zhang(table: Table, n: int = 20) -> Array:
    """Volatility from gaps, bodies and Rogers–Satchell, free of drift; n is at least 2."""
    gap = rolling_deviation(_log_of(table["open"], lagged(table["close"], 1)), n)
    move = rolling_deviation(_log_of(table["close"], table["open"]), n)
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    variance = gap * gap + k * move * move + (1.0 - k) * rolling_mean(_rogers_satchell(table), n)
    return np.sqrt(np.maximum(variance, 0.0))


def _true_range(table: Table) -> Array:
    before = lagged(table["close"], 1)
    return np.maximum(table["high"], before) - np.minimum(table["low"], before)


@feature(
    "max(high, close_{t−1}) − min(low, close_{t−1}), smoothed by 1/n",
    WILDER,
    needs=("high", "low", "close"),
    warm_up=lambda table, n: memory(1 / n),
)
def atr(table: Table, n: int = 14) -> Array:
    """Average true range with Wilder's smoothing, in units of price."""
    return exponential(_true_range(table), 1 / n)


@feature("atr(n) / close", WILDER, needs=("high", "low", "close"), warm_up=lambda table, n: memory(1 / n))
def atr_ratio(table: Table, n: int = 14) -> Array:
    """Average true range as a fraction of the close."""
    return atr(table, n) / table["close"]


@feature(
    "√y_t, y_t = λ·y_{t−1} + (1−λ)·ln(close_t / close_{t−1})²",
    "J.P. Morgan (1996), RiskMetrics Technical Document",
    needs=("close",),
    warm_up=lambda table, decay: memory(1 - decay),
    check=lambda decay: refuse_unless(0 < decay < 1, "decay must lie between 0 and 1"),
)
def ewma_volatility(table: Table, decay: float = 0.94) -> Array:
    """Exponentially weighted volatility per bar; 0 < decay < 1."""
    returns = one_bar_returns(table)
    return np.sqrt(exponential(returns * returns, 1 - decay))
