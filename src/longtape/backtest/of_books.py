"""From forecasts of a book's events to an account on bars of its mid.

An event's forecast is decided when the event is known, and fills at the open of the first bar of the mid that begins
after that: at the mid then, plus the constant half spread that the costs name.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from longtape.core.clock import Interval
from longtape.features.target_kinds import TERCILES
from longtape.market.bars import TIME_TYPE, Bars
from longtape.market.books import Books
from longtape.market.mid_bars import mid_bars

SIGNALS_OF_EVENTS = ("threshold", "tanh", "proportional")


def leaning(forecast: pl.DataFrame) -> pl.DataFrame:
    """Forecasts as signals read them: of each moment the last, and of classes P(up) − P(down) in the place of a return.

    When an event to come will end a label nobody knows, and as forecasts are traded as they come, nothing asks.
    """
    last = forecast.unique(("timestamp", "symbol", "target", "horizon"), keep="last", maintain_order=True)
    last = last.with_columns(pl.col("end").fill_null(pl.col("known_at")))
    classed = pl.col("kind") == TERCILES.name
    if "p0" not in last.columns:
        return last
    return last.with_columns(
        pl.when(classed).then(pl.col("p2") - pl.col("p0")).otherwise("mean").alias("mean"),
        pl.when(classed).then(pl.lit("return")).otherwise("kind").alias("kind"),
    )


def on_bars_of_mid(
    weights: pl.DataFrame, books: Books, interval: Interval | str
) -> tuple[pl.DataFrame, Bars]:
    """Weights decided at events → those in force at the close of each bar of the mid, and the bars.

    The last bar may still be running where the data end; nothing is decided at its close.
    """
    bars = mid_bars(books, interval)
    events = weights["timestamp"].dt.timestamp("ms").to_numpy()
    last = np.searchsorted(books.timestamps, events, side="right") - 1
    known = books.known_at[np.maximum(last, 0)]
    place = np.searchsorted(bars.timestamps, known, side="right") - 1
    final = np.append(place[1:] != place[:-1], True)  # of each bar the newest decision
    kept = np.flatnonzero(final & (last >= 0) & (place < len(bars) - 1))
    opens = pl.Series("timestamp", bars.timestamps[place[kept]]).cast(TIME_TYPE)
    return weights[kept].with_columns(opens), bars
