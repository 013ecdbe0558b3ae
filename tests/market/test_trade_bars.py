"""Bars from trades equal the plain loop, whatever the times."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.clock import MINUTE, to_milliseconds
from longtape.core.errors import UserError
from longtape.market.bars import TIME_TYPE
from longtape.market.trade_bars import dollar_bars, tick_bars, time_bars, volume_bars
from tests.market.store_data import BTC, START, make_trades
from tests.shared_data import shared

OHLC = ["open", "high", "low", "close", "volume", "turnover", "buy_volume", "trades"]


def bar_of(rows: list[dict]) -> dict:
    """The specification of a bar: its trades, one after the other."""
    bar = dict.fromkeys(("volume", "turnover", "buy_volume"), 0.0)
    for row in rows:
        bar["volume"] += row["size"]
        bar["turnover"] += row["price"] * row["size"]
        bar["buy_volume"] += row["size"] if row["side"] == "buy" else 0.0
    prices = [row["price"] for row in rows]
    bar |= {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "trades": len(rows),
    }
    return {name: bar[name] for name in OHLC}


def gathered(trades: pl.DataFrame, is_full) -> tuple[list[list[dict]], list[dict]]:
    """Trades dealt out into bars that end when `is_full`, and those of the unfinished last bar."""
    bars, rest = [], []
    for row in trades.iter_rows(named=True):
        rest.append(row)
        if is_full(rest):
            bars.append(rest)
            rest = []
    return bars, rest


KINDS = {
    "tick": (lambda trades, **k: tick_bars(trades, 7, **k), lambda rows: len(rows) == 7),
    "volume": (
        lambda trades, **k: volume_bars(trades, 1.5, **k),
        lambda rows: sum(row["size"] for row in rows) >= 1.5,
    ),
    "dollar": (
        lambda trades, **k: dollar_bars(trades, 123.0, **k),
        lambda rows: sum(row["price"] * row["size"] for row in rows) >= 123.0,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 200), seed=st.integers(0, 1000))
def test_bars_by_activity_equal_the_plain_loop(kind, n, seed):
    make, is_full = KINDS[kind]
    trades = make_trades(n, seed)
    bars, rest = gathered(trades, is_full)
    made = make(trades)
    assert made.select(OHLC).to_dicts() == [bar_of(rows) for rows in bars]
    assert made["timestamp"].to_list() == [rows[0]["timestamp"] for rows in bars]
    assert made["known_at"].to_list() == [rows[-1]["timestamp"] for rows in bars]
    whole = make(trades, keep_partial=True)
    assert whole.select(OHLC).to_dicts() == [bar_of(rows) for rows in [*bars, *([rest] if rest else [])]]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 1000))
def test_bars_by_time_equal_the_plain_loop(n, seed):
    trades = make_trades(n, seed)
    bars: dict = {}
    for row in trades.iter_rows(named=True):
        bars.setdefault(round(row["timestamp"].timestamp() * 1000) // 1000 * 1000, []).append(row)
    end = round(trades["timestamp"][-1].timestamp() * 1000)
    made = time_bars(trades, BTC, "1s", complete_until=end // 1000 * 1000 + 1000)
    assert made.timestamps.tolist() == sorted(bars)
    assert made.frame.select(OHLC).to_dicts() == [bar_of(bars[time]) for time in sorted(bars)]


def test_a_bar_by_time_is_given_once_it_is_over():
    trades = make_trades(100)  # within a few hundred milliseconds
    assert len(time_bars(trades, BTC, "1m")) == 0
    assert len(time_bars(trades, BTC, "1m", complete_until=START + MINUTE - 1)) == 0
    assert len(time_bars(trades, BTC, "1m", complete_until=START + MINUTE)) == 1


def test_trades_of_one_moment_keep_their_order():
    moment = pl.Series([START] * 6).cast(TIME_TYPE)
    trades = pl.DataFrame({"timestamp": moment, "price": [1.0, 2, 3, 4, 5, 6], "size": [1.0] * 6})
    bars = tick_bars(trades, 2)
    assert bars["open"].to_list() == [1, 3, 5]
    assert bars["close"].to_list() == [2, 4, 6]
    assert bars["timestamp"].n_unique() == 1
    assert "buy_volume" not in bars.columns


def test_microseconds_round_down_to_open_and_up_to_known():
    times = pl.Series([START * 1000 + 999, START * 1000 + 1001]).cast(pl.Datetime("us", "UTC"))
    bars = tick_bars(pl.DataFrame({"timestamp": times, "price": [1.0, 1.0], "size": [1.0, 1.0]}), 2)
    assert bars["timestamp"].dt.timestamp("ms").item() == START
    assert bars["known_at"].dt.timestamp("ms").item() == START + 2


def test_no_trades_give_no_bars():
    none = make_trades(10).head(0)
    assert tick_bars(none, 3).is_empty()
    assert dollar_bars(none, 3, keep_partial=True).is_empty()
    assert len(time_bars(none, BTC, "1m")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": np.nan}, "row 4 .* has no price above zero .1 such"),
        ({"price": -1.0}, "has no price above zero"),
        ({"size": -0.5}, "has no size of zero or above"),
        ({"size": None}, "has no size"),
    ],
)
def test_values_that_cannot_be_are_refused(change, message):
    [(name, value)] = change.items()
    trades = make_trades(9).with_columns(
        pl.when(pl.int_range(pl.len()) == 3)
        .then(pl.lit(value, pl.Float64))
        .otherwise(pl.col(name))
        .alias(name)
    )
    with pytest.raises(UserError, match=message):
        tick_bars(trades, 2)


def test_disorder_missing_columns_and_thresholds_are_refused():
    with pytest.raises(UserError, match="earlier than the trade before; sort by time"):
        tick_bars(make_trades(50).reverse(), 2)
    with pytest.raises(UserError, match="trades need the column 'size'"):
        tick_bars(make_trades(50).drop("size"), 2)
    for make in (tick_bars, volume_bars, dollar_bars):
        with pytest.raises(UserError, match="above zero"):
            make(make_trades(50), 0)
    with pytest.raises(UserError, match="a week"):
        time_bars(make_trades(50), BTC, "1M")


def test_a_real_day_of_trades():
    trades = pl.read_parquet(shared("trades/SPY_2013-10-08.parquet"))
    bars = time_bars(trades, BTC, "1m", complete_until=to_milliseconds("2013-10-09"))
    assert bars.column("trades").sum() == trades.height
    assert bars.column("volume").sum() == trades["size"].sum()
    regular = bars.between(to_milliseconds("2013-10-08T13:30"), to_milliseconds("2013-10-08T20:00"))
    assert len(regular) == 390
    whole = tick_bars(trades, 1000, keep_partial=True)
    assert whole.height == -(-trades.height // 1000)
    assert whole["high"].max() == trades["price"].max()
    np.testing.assert_allclose(whole["turnover"].sum(), (trades["price"] * trades["size"]).sum())
