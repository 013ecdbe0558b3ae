"""Real daily candles that come with a library: the S&P 500 and the NASDAQ Composite, 1999 to 2018."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from longtape.core.clock import DAY, Interval, Milliseconds
from longtape.core.errors import UserError, require, unknown_name
from longtape.core.instrument import Instrument
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.sources import Source

NAMES = {"SP500": "arch.data.sp500", "NASDAQ": "arch.data.nasdaq"}
CALENDAR = "XNYS"


def load(name: str = "SP500") -> Bars:
    """5,031 trading days from 1999-01-04 to 2018-12-31 (extra `sample`); `timestamp` is the day at 00:00 UTC.

    Source: the data sets of the package `arch`, which took them from Yahoo Finance; `adj_close` is carried along.
    """
    known = instrument(name)
    table = require(NAMES[name], "sample").load()
    days: Milliseconds = table.index.to_numpy().astype("datetime64[ms]").astype("int64")
    columns = {ours: table[theirs].to_numpy(dtype="float64") for ours, theirs in _COLUMNS.items()}
    frame = pl.DataFrame(
        {"timestamp": pl.Series(days).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"), **columns}
    )
    return Bars.checked(known, Interval.parse("1d"), frame, f"sample {name}")


_COLUMNS = {
    "open": "Open",
    "high": "High",
    "low": "Low",
    "close": "Close",
    "volume": "Volume",
    "adj_close": "Adj Close",
}


def instrument(name: str) -> Instrument:
    """What is known about a sample; UserError with the nearest name for another."""
    if name not in NAMES:
        raise unknown_name("sample", name, NAMES)
    return Instrument("sample", "index", name, calendar=CALENDAR)


class Sample(Source):
    """The samples as a source: daily candles only."""

    name = "sample"
    categories: tuple[str, ...] = ("index",)

    def instrument(self, symbol: str, category: str = "index") -> Instrument:
        """What is known about the index."""
        return instrument(symbol)

    def refuse_interval(self, interval: Interval) -> None:
        """UserError for anything but days."""
        if interval.milliseconds != DAY:
            raise UserError("the samples are daily candles; ask for --interval 1d")

    def candles(
        self,
        symbol: str,
        interval: str | Interval,
        since: int | None,
        until: int | None,
        category: str = "index",
        kind: str = "candles",
    ) -> Iterator[pl.DataFrame]:
        """All days of [since, until) as one page."""
        if Interval.parse(interval).milliseconds != DAY or kind != "candles":
            raise UserError("the samples are daily candles; ask for --interval 1d")
        page = load(symbol).between(since, until).frame
        if page.height:
            yield page.with_columns(pl.col("timestamp").cast(TIME_TYPE))
