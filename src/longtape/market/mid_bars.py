"""Bars of the middle of a book: what a forecast from books is traded on."""

from __future__ import annotations

import numpy as np
import polars as pl

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.books import Books


def mid_bars(books: Books, interval: Interval | str) -> Bars:
    """Bars of fixed length of the mid price, by the time at which each update is known; `volume` counts updates.

    A bar opens at the mid in force then, the close of the bar before it, and stands still, with volume 0, while no
    update comes. The first opens at its own first mid. UserError for an interval of months.
    """
    interval = Interval.parse(interval)
    if interval.is_month:
        raise UserError(f"bars of the mid cannot be of {interval}; a week (1w) is the longest")
    mid = (pl.col("bid_price_1") + pl.col("ask_price_1")) / 2
    opens = books.known_at // interval.milliseconds * interval.milliseconds
    own = (
        books.frame.select(mid.alias("mid"), timestamp=pl.Series(opens))
        .group_by("timestamp", maintain_order=True)
        .agg(
            pl.col("mid").first().alias("first"),
            pl.col("mid").max().alias("high"),
            pl.col("mid").min().alias("low"),
            pl.col("mid").last().alias("close"),
            pl.len().cast(pl.Float64).alias("volume"),
        )
    )
    clock = pl.DataFrame({"timestamp": np.arange(opens[0], opens[-1] + 1, interval.milliseconds)})
    whole = clock.join(own, on="timestamp", how="left", maintain_order="left").with_columns(
        pl.col("close").forward_fill(), pl.col("volume").fill_null(0.0)
    )
    whole = whole.with_columns(pl.col("close").shift(1).fill_null(pl.col("first")).alias("open"))
    frame = whole.select(
        pl.col("timestamp").cast(TIME_TYPE),
        "open",
        pl.max_horizontal("open", "high", "close").alias("high"),
        pl.min_horizontal("open", "low", "close").alias("low"),
        "close",
        "volume",
    )
    return Bars.checked(books.instrument, interval, frame, f"mid of {books.instrument.key}")
