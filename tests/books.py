"""A made-up order book with a known truth: where more waits at the bid, the mid goes up soon."""

import numpy as np
import polars as pl

from longtape.core.instrument import Instrument
from longtape.market.books import Books

START = 1_723_161_600_000
TICK = 0.01


def book_frame(rows: int = 900, levels: int = 3, seed: int = 0) -> pl.DataFrame:
    """Updates at random times, many at the same moment; the mid moves by ticks, after the imbalance."""
    draw = np.random.default_rng(seed)
    imbalance = np.zeros(rows)
    for t in range(1, rows):
        imbalance[t] = 0.95 * imbalance[t - 1] + 0.3 * draw.normal()
    moves = np.append(0, np.sign(imbalance[:-1]) * (draw.random(rows - 1) < 0.2 * np.abs(imbalance[:-1])))
    bid = 100 + TICK * np.cumsum(moves)
    columns = {}
    for i in range(levels):
        columns[f"bid_price_{i + 1}"] = np.round(bid - TICK * i, 2)
        columns[f"ask_price_{i + 1}"] = np.round(bid + TICK * (i + 1), 2)
        columns[f"bid_size_{i + 1}"] = np.exp(imbalance + 0.1 * draw.normal(size=rows))
        columns[f"ask_size_{i + 1}"] = np.exp(-imbalance + 0.1 * draw.normal(size=rows))
    times = START + np.cumsum(draw.integers(0, 120, rows))
    stamps = pl.Series("timestamp", times).cast(pl.Datetime("ms", "UTC"))
    return pl.DataFrame({"timestamp": stamps, "update_id": 7 * np.arange(rows), **columns})


def books(rows: int = 900, levels: int = 3, seed: int = 0) -> Books:
    """The same as checked books."""
    return Books.checked(Instrument("file", "spot", "X"), book_frame(rows, levels, seed), "book")
