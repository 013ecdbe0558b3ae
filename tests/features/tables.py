"""Bars made for tests of features: prices, volumes, a book and trades in one frame."""

import numpy as np
import polars as pl

from longtape.core.clock import ALWAYS_OPEN, HOUR, Interval
from longtape.core.instrument import Instrument
from longtape.features.table import Table
from longtape.market.bars import TIME_TYPE, Bars

START = 1_704_067_200_000  # 2024-01-01 00:00 UTC, a Monday
LEVELS = 5


def columns(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns that every feature finds what it needs in."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(0.01 * rng.standard_normal(rows)))
    start = np.append(close[:1], close[:-1]) * np.exp(0.002 * rng.standard_normal(rows))
    up, down = 1.0 + 0.01 * rng.random((2, rows))
    volume = rng.lognormal(2.0, 1.0, rows) * (rng.random(rows) > 0.05)
    found = {
        "open": start,
        "high": np.maximum(start, close) * up,
        "low": np.minimum(start, close) / down,
        "close": close,
        "volume": volume,
        "buy_volume": volume * rng.random(rows),
        "price": np.round(close, 1),
        "size": rng.lognormal(0.0, 1.0, rows),
        "side": np.where(rng.random(rows) > 0.5, 1.0, -1.0),
    }
    for level in range(1, LEVELS + 1):
        found[f"bid_price_{level}"] = close - 0.01 * level
        found[f"ask_price_{level}"] = close + 0.01 * level
        found[f"bid_size_{level}"] = rng.lognormal(0.0, 1.0, rows)
        found[f"ask_size_{level}"] = rng.lognormal(0.0, 1.0, rows)
    return found


def as_bars(
    values: dict[str, np.ndarray],
    symbol: str = "BTCUSDT",
    interval: str = "1h",
    start: int = START,
    calendar: str = ALWAYS_OPEN,
) -> Bars:
    """Bars that follow one another without a gap."""
    length = Interval.parse(interval)
    times = start + length.milliseconds * np.arange(len(values["close"]))
    frame = pl.DataFrame({"timestamp": pl.Series(times).cast(TIME_TYPE), **values})
    return Bars.checked(Instrument("test", "spot", symbol, calendar), length, frame, symbol)


def as_table(**values: object) -> Table:
    """A table of hourly rows."""
    arrays = {name: np.asarray(value, float) for name, value in values.items()}
    times = START + HOUR * np.arange(len(next(iter(arrays.values()))))
    return Table("X", Interval.parse("1h"), ALWAYS_OPEN, times, times + HOUR, arrays, "X")
