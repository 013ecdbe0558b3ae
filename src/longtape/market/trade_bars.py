"""Bars from trades: by time, by number of trades, by volume, by value.

The last three sample by activity instead of by the clock (M. López de Prado, Advances in Financial Machine Learning,
2018, section 2.3). A trade belongs wholly to one bar: a volume bar ends with the trade that brings it to the threshold,
and the next one begins empty. Trades of one moment keep their order, so two such bars may open at the same time.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Floats, Ints
from longtape.core.clock import Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import TIME_TYPE, Bars


def time_bars(
    trades: pl.DataFrame,
    instrument: Instrument,
    interval: Interval | str,
    *,
    complete_until: int | None = None,
) -> Bars:
    """Trades → bars of a fixed length that open at whole multiples of it; with `turnover`, `trades`, `buy_volume`.

    `trades` has `timestamp`, `price`, `size`, optionally `side` (`buy` or `sell`), in order of time. A bar without a
    trade is left out, as a gap. A bar is given once it is over: every trade up to `complete_until` (UTC ms, by
    default the last trade) is taken to be known. UserError for trades out of order or values that cannot be.
    """
    interval = Interval.parse(interval)
    if interval.is_month:
        raise UserError(f"trades cannot be gathered into bars of {interval}; a week (1w) is the longest")
    times, price, size, buys = _columns(trades)
    bucket = times // (interval.milliseconds * 1000)
    starts = np.r_[0, np.flatnonzero(np.diff(bucket)) + 1] if len(times) else np.empty(0, dtype=np.int64)
    opens = bucket[starts] * interval.milliseconds
    frame = _frame(opens, starts, len(times), price, size, buys)
    last = int(times[-1]) // 1000 if len(times) else 0
    known = last if complete_until is None else complete_until
    frame = frame.filter(pl.Series(interval.close_of(opens) <= known))
    return Bars.checked(instrument, interval, frame, f"trades of {instrument.key}")


def tick_bars(trades: pl.DataFrame, n: int, *, keep_partial: bool = False) -> pl.DataFrame:
    """Trades → bars of `n` trades each: `timestamp` (first trade), `known_at` (last trade), open … volume, `turnover`,
    `trades`, `buy_volume`. The unfinished last bar is left out unless `keep_partial`.
    """
    _check_threshold(n, "trades")
    times, price, size, buys = _columns(trades)
    stops = np.arange(n, len(times) + 1, n)
    return _event_bars(stops, times, price, size, buys, keep_partial)


def volume_bars(trades: pl.DataFrame, volume: float, *, keep_partial: bool = False) -> pl.DataFrame:
    """Trades → bars that end once at least `volume` (base units) was traded. Columns as in `tick_bars`."""
    _check_threshold(volume, "volume")
    times, price, size, buys = _columns(trades)
    return _event_bars(_stops(size, float(volume)), times, price, size, buys, keep_partial)


def dollar_bars(trades: pl.DataFrame, value: float, *, keep_partial: bool = False) -> pl.DataFrame:
    """Trades → bars that end once at least `value` (price × size) was traded. Columns as in `tick_bars`."""
    _check_threshold(value, "value")
    times, price, size, buys = _columns(trades)
    return _event_bars(_stops(price * size, float(value)), times, price, size, buys, keep_partial)


def _check_threshold(threshold: float, what: str) -> None:
    if not (math.isfinite(threshold) and threshold > 0):
        raise UserError(f"a bar needs a number of {what} above zero, not {threshold}")


def _event_bars(
    stops: Ints, times: Ints, price: Floats, size: Floats, buys: Floats | None, keep_partial: bool
) -> pl.DataFrame:
    if keep_partial and len(times) and (not len(stops) or stops[-1] < len(times)):
        stops = np.r_[stops, len(times)]
    starts = np.r_[0, stops[:-1]][: len(stops)]
    end = int(stops[-1]) if len(stops) else 0
    frame = _frame(times[starts] // 1000, starts, end, price, size, buys)
    known_at = -(-times[stops - 1] // 1000)  # rounded up: not before the trade
    return frame.insert_column(1, pl.Series("known_at", known_at).cast(TIME_TYPE))


def _columns(trades: pl.DataFrame) -> tuple[Ints, Floats, Floats, Floats | None]:
    """Times in microseconds, prices, sizes, and the sizes bought where the trades have a side."""
    missing = [name for name in ("timestamp", "price", "size") if name not in trades.columns]
    if missing:
        raise UserError(f"trades need the column '{missing[0]}'; there are {', '.join(trades.columns)}")
    times = trades["timestamp"].dt.timestamp("us").to_numpy()
    price, size = (trades[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("price", "size"))
    _refuse(
        np.r_[False, np.diff(times) < 0][: len(times)],
        times,
        "is earlier than the trade before; sort by time",
    )
    _refuse(~(np.isfinite(price) & (price > 0)), times, "has no price above zero")
    _refuse(~(np.isfinite(size) & (size >= 0)), times, "has no size of zero or above")
    buys = (trades["side"] == "buy").fill_null(False).to_numpy() * size if "side" in trades.columns else None
    return times, price, size, buys


def _refuse(bad: npt.NDArray[np.bool_], times: Ints, what: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"trades: row {row + 1} ({iso(int(times[row]) // 1000)}) {what} ({int(bad.sum())} such)"
        )


def _frame(
    opens: Milliseconds, starts: Ints, end: int, price: Floats, size: Floats, buys: Floats | None
) -> pl.DataFrame:
    """One row for each bar of the trades `starts[i]` … `starts[i + 1]` − 1."""
    values = _gather(np.append(starts, end), price, size, size if buys is None else buys)
    columns = dict(
        zip(("open", "high", "low", "close", "volume", "turnover", "buy_volume"), values, strict=True)
    )
    if buys is None:
        del columns["buy_volume"]
    counts = np.diff(np.append(starts, end))
    return pl.DataFrame({"timestamp": pl.Series(opens).cast(TIME_TYPE), **columns, "trades": counts})


@numba.njit(cache=True)
def _stops(amount: Floats, threshold: float) -> Ints:
    """One past the last trade of each bar whose sum of `amount` has reached the threshold."""
    stops = np.empty(len(amount), dtype=np.int64)
    n, total = 0, 0.0
    for i in range(len(amount)):
        total += amount[i]
        if total >= threshold:
            stops[n] = i + 1
            n, total = n + 1, 0.0
    return stops[:n]


@numba.njit(cache=True)
def _gather(edges: Ints, price: Floats, size: Floats, buys: Floats) -> Floats:
    """Open, high, low, close, volume, turnover and bought volume [7, bars] of the trades between the edges."""
    bars = np.zeros((7, len(edges) - 1))
    for b in range(len(edges) - 1):
        first = edges[b]
        bars[0, b] = bars[1, b] = bars[2, b] = price[first]
        for i in range(first, edges[b + 1]):
            bars[1, b] = max(bars[1, b], price[i])
            bars[2, b] = min(bars[2, b], price[i])
            bars[3, b] = price[i]
            bars[4, b] += size[i]
            bars[5, b] += price[i] * size[i]
            bars[6, b] += buys[i]
    return bars
