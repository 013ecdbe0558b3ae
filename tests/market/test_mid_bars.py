"""Bars of the mid, by hand."""

import numpy as np
import polars as pl
import pytest

from longtape.backtest.of_books import on_bars_of_mid
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.books import Books
from longtape.market.mid_bars import mid_bars

AT = [100, 400, 400, 2_100, 2_900, 3_000]  # ms
MID = [10.0, 12.0, 11.0, 9.0, 10.0, 13.0]


def books() -> Books:
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(AT).cast(pl.Datetime("ms", "UTC")),
            **{f"{side}_price_1": np.array(MID) + sign for side, sign in (("bid", -1), ("ask", 1))},
            **{f"{side}_size_1": np.ones(6) for side in ("bid", "ask")},
        }
    )
    return Books.checked(Instrument("file", "spot", "X"), frame)


def test_a_bar_opens_at_the_mid_in_force_and_stands_still_without_updates():
    bars = mid_bars(books(), "1s").frame
    assert bars["timestamp"].dt.timestamp("ms").to_list() == [0, 1_000, 2_000, 3_000]
    assert bars.select("open", "high", "low", "close", "volume").rows() == [
        (10.0, 12.0, 10.0, 11.0, 3.0),
        (11.0, 11.0, 11.0, 11.0, 0.0),
        (11.0, 11.0, 9.0, 10.0, 2.0),
        (10.0, 13.0, 10.0, 13.0, 1.0),
    ]
    with pytest.raises(UserError, match="a week"):
        mid_bars(books(), "1M")


def test_the_newest_decision_known_within_a_bar_is_in_force_at_its_close():
    times = pl.Series("timestamp", [100, 400, 2_100, 3_000]).cast(pl.Datetime("ms", "UTC"))
    weights = pl.DataFrame({"timestamp": times, "X": [0.1, 0.2, 0.3, 0.4]})
    decided, bars = on_bars_of_mid(weights, books(), "1s")
    assert decided["timestamp"].dt.timestamp("ms").to_list() == [0, 2_000], (
        "the last bar may still be running"
    )
    assert decided["X"].to_list() == [0.2, 0.3]
    assert len(bars) == 4
