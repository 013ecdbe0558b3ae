"""Features of volume, and prices weighted by it."""

from __future__ import annotations

import numpy as np

from longtape.core.calendars import session_numbers
from longtape.core.clock import Interval, to_milliseconds
from longtape.core.errors import UserError
from longtape.features.price import one_bar_returns
from longtape.features.registry import Series, feature, refuse_unless, two_rows, window_rows
from longtape.features.rolling import Array, divide, grouped_ratio, rolling_mean, rolling_sum
from longtape.features.table import Rows, Table, period_starts

PRICES = ("high", "low", "close", "volume")
VWAP = "Berkowitz, Logue & Noser (1988), The Total Cost of Transactions on the NYSE"
PERIODS = {"day": "1d", "week": "1w", "month": "1M", "year": "12M"}


@feature("ln(1 + volume)", "definition", needs=("volume",))
def log_volume(table: Table) -> Array:
    """Logarithm of one plus the volume."""
    return np.log1p(table["volume"])


@feature("mean(volume, n)", "definition", needs=("volume",), warm_up=window_rows)
def volume_mean(table: Table, n: int = 20) -> Array:
    """Mean volume of the last n bars."""
    return rolling_mean(table["volume"], n)


@feature("volume / mean(volume, n)", "definition", needs=("volume",), warm_up=window_rows, check=two_rows)
def volume_ratio(table: Table, n: int = 20) -> Array:
    """Volume over its own mean; 1 where nothing was traded in n bars."""
    return divide(table["volume"], rolling_mean(table["volume"], n), 1.0)


def _typical(table: Table) -> Array:
    return (table["high"] + table["low"] + table["close"]) / 3.0


@feature(
    "Σ p·volume / Σ volume over n bars, p = (high + low + close)/3", VWAP, needs=PRICES, warm_up=window_rows
)
def vwap(table: Table, n: int = 20) -> Array:
    """Volume-weighted average price of the last n bars; the plain mean of p where nothing was traded."""
    price = _typical(table)
    traded = rolling_sum(table["volume"], n)
    weighted = divide(rolling_sum(price * table["volume"], n), traded, 0.0)
    return np.where(traded == 0.0, rolling_mean(price, n), weighted)


def _grouped(table: Table, group: Rows) -> Array:
    price = _typical(table)
    return grouped_ratio(price * table["volume"], table["volume"], group, price)


@feature(
    "Σ p·volume / Σ volume since the session opened",
    VWAP,
    needs=PRICES,
    warm_up=lambda table: _until_the_second(_sessions(table)),
)
def vwap_session(table: Table) -> Array:
    """Volume-weighted average price of the session so far (24/7: the UTC day)."""
    return _grouped(table, _sessions(table))


def _sessions(table: Table) -> Rows:
    return session_numbers(table.timestamps, table.interval, table.calendar)


def _until_the_second(periods: Rows) -> int:
    """Rows before the first period that begins inside the data: the one they begin in may be cut short."""
    begins = np.flatnonzero(np.diff(periods)) + 1
    return int(begins[0]) if len(begins) else len(periods)


@feature(
    "Σ p·volume / Σ volume since an anchor",
    VWAP,
    needs=PRICES,
    warm_up=lambda table, since: _anchored_after(table, since),
    check=lambda since: refuse_unless(
        since in PERIODS or _is_a_date(since), 'since must be "day", "week", "month" or "year", or a date'
    ),
)
def vwap_cumulative(table: Table, since: str = "month") -> Array:
    """Volume-weighted average price since the "day", "week", "month" or "year" began, or since a date.

    There is no form that begins with the data: its value would depend on what was loaded.
    """
    if since in PERIODS:
        return _grouped(table, _periods(table, since))
    return _grouped(table, (table.timestamps >= to_milliseconds(since)).astype(np.int64))


def _periods(table: Table, name: str) -> Rows:
    return period_starts(table.timestamps, Interval.parse(PERIODS[name]))


def _is_a_date(text: str) -> bool:
    try:
        to_milliseconds(text)
    except UserError:
        return False
    return True


def _anchored_after(table: Table, since: str) -> int:
    if since in PERIODS:
        return _until_the_second(_periods(table, since))
    times, at = table.timestamps, to_milliseconds(since)
    if len(times) and at < times[0]:
        raise UserError(
            f'features: vwap_cumulative("{since}"): {table.origin} begins later; name a later date'
        )
    return int(np.searchsorted(times, at))


@feature("close / x − 1", "definition", needs=("close",))
def distance(table: Table, x: Series) -> Array:
    """How far the close stands from a level, e.g. `distance(vwap_session)`; 0 where the level is 0."""
    return divide(table["close"] - x, x, 0.0)


@feature("close / vwap(n) − 1", VWAP, needs=PRICES, warm_up=window_rows)
def vwap_distance(table: Table, n: int = 20) -> Array:
    """How far the close stands from the rolling VWAP."""
    return table["close"] / vwap(table, n) - 1.0


@feature(
    "mean over n bars of |ln(close_t / close_{t−1})| / (close·volume)",
    "Amihud (2002), Illiquidity and Stock Returns",
    needs=("close", "volume"),
    warm_up=lambda table, n: n,
)
def illiquidity(table: Table, n: int = 20) -> Array:
    """Price impact per unit of money traded, times 10⁶; a bar without trades counts 0."""
    impact = divide(np.abs(one_bar_returns(table)), table["close"] * table["volume"], 0.0)
    return 1e6 * rolling_mean(impact, n)
