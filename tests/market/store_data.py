"""Bars whose values follow from their time, so that any stored bar can be judged by itself."""

import numpy as np
import polars as pl

from longtape.core.clock import Interval
from longtape.core.instrument import Instrument
from longtape.market.bars import TIME_TYPE, Bars

START = 1_704_067_200_000  # 2024-01-01
BTC = Instrument("bybit", "linear", "BTCUSDT")
HOUR = Interval.parse("1h")


def values_at(times: np.ndarray) -> pl.DataFrame:
    """The one true bar of each time."""
    minute = times // 60_000
    price = 100 + 10 * np.sin(minute / 5_000) + minute % 9_973 * 1e-5
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(TIME_TYPE),
            "open": price,
            "high": price + 1,
            "low": price - 1,
            "close": price + 0.5,
            "volume": 1 + minute % 7 / 10,
        }
    )


def make_bars(first: int, n: int, interval: Interval = HOUR, instrument: Instrument = BTC) -> Bars:
    """`n` bars from the `first` step after 2024-01-01."""
    times = START + (first + np.arange(n)) * interval.milliseconds
    return Bars.checked(instrument, interval, values_at(times), "made bars")


def make_trades(n: int, seed: int = 0, ids: bool = True) -> pl.DataFrame:
    """`n` trades in order of time, many of them at the same moment."""
    rng = np.random.default_rng(seed)
    times = START + np.sort(rng.integers(0, 3 * n, n)) // 10 * 7
    trades = pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(pl.Datetime("ms", "UTC")),
            "price": 100 + rng.integers(-3, 4, n) / 2,
            "size": rng.integers(1, 4, n) / 10,
            "side": rng.choice(["buy", "sell"], n),
        }
    )
    return trades.with_columns(id=pl.int_range(n).cast(pl.String)) if ids else trades
