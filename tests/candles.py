"""Made-up candles: a geometric walk with volatility that comes in waves. For tests that need no real market."""

import numpy as np
import polars as pl

from longtape.core.clock import Interval
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars

START = 1_600_000_000_000 - 1_600_000_000_000 % 86_400_000


def candle_frame(n: int, seed: int = 0, step: int = 3_600_000) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    spread = 0.004 * np.exp(0.7 * np.sin(np.arange(n) / 40))
    close = 100 * np.exp(np.cumsum(spread * rng.standard_normal(n)))
    open_ = np.concatenate([[100.0], close[:-1]])
    reach = np.abs(rng.standard_normal((2, n))) * spread
    return pl.DataFrame(
        {
            "timestamp": START + step * np.arange(n),
            "open": open_,
            "high": np.maximum(open_, close) * (1 + reach[0]),
            "low": np.minimum(open_, close) * (1 - reach[1]),
            "close": close,
            "volume": rng.lognormal(3, 1, n),
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))


def candles(n: int, seed: int = 0, symbol: str = "TEST", category: str = "spot") -> Bars:
    instrument = Instrument("test", category, symbol)
    return Bars.checked(instrument, Interval.parse("1h"), candle_frame(n, seed), "made-up candles")
