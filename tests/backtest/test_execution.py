"""When an order fills, and what it may not know."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.backtest import Costs, Limits, run_backtest
from longtape.backtest.benchmarks import random_strategies
from tests.backtest.markets import bars, random_bars, times, weights

FILLS = ("next_open", "next_close")


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("rebalance", ["on_change", "every_bar"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 50), data=st.data())
def test_the_future_moves_nothing_before_it(fill, rebalance, seed, n, data):
    """Other weights from bar `cut` on, and other prices after it, leave the books up to `cut` as they are."""
    rng = np.random.default_rng(seed)
    cut = data.draw(st.integers(0, n - 2))
    frame, values = random_bars(rng, n), rng.normal(size=n)
    other = np.where(np.arange(n) >= cut, -values, values)
    bent = frame.with_columns(
        pl.when(pl.arange(n) > cut).then(pl.col(name) * 1.7).otherwise(pl.col(name)).alias(name)
        for name in ("open", "high", "low", "close")
    )
    limits = Limits(stop_loss=0.03, take_profit=0.05)
    options = {"costs": Costs(fee=0.001), "fill": fill, "rebalance": rebalance, "limits": limits}
    one, two = run_backtest(weights(values), frame, **options), run_backtest(weights(other), bent, **options)
    for first, second in ((one.equity, two.equity), (one.positions, two.positions), (one.ledger, two.ledger)):
        assert first[: cut + 1].equals(second[: cut + 1])
    until = times(n)[cut]
    early = [r.fills.filter(pl.col("timestamp") <= until) for r in (one, two)]
    assert early[0].equals(early[1])


@pytest.mark.parametrize(("fill", "column"), [("next_open", "open"), ("next_close", "close")])
def test_each_fill_is_at_the_next_bars_price(fill, column):
    rng = np.random.default_rng(7)
    frame = random_bars(rng, 200)
    values = np.sign(rng.normal(size=200))
    fills = run_backtest(weights(values), frame, fill=fill).fills
    changed = np.flatnonzero(np.diff(values, prepend=0.0)[:-1]) + 1
    assert fills["timestamp"].to_list() == times(200)[changed.tolist()].to_list()
    assert fills["price"].to_list() == frame[column][changed.tolist()].to_list()


@pytest.mark.parametrize("rebalance", ["on_change", "every_bar"])
@pytest.mark.parametrize("side", [1, -1])
def test_a_gap_through_a_stop_fills_at_the_open_even_where_an_order_fills_there_too(rebalance, side):
    prices = np.array([100.0, 100.0, 80.0, 90.0]) if side > 0 else np.array([100.0, 100.0, 120.0, 110.0])
    target = weights(side * np.array([1.0, 0.5, 0.5, 0.5]))
    result = run_backtest(
        target,
        bars(prices),
        costs=Costs(),
        limits=Limits(stop_loss=0.05),
        rebalance=rebalance,
        initial_capital=100,
    )
    assert result.fills["price"].to_list() == [100, prices[2], prices[2]]
    assert result.fills["reason"].to_list() == ["signal", "signal", "stop_loss"]
    assert result.equity["equity"].to_list() == pytest.approx([100, 100, 80, 80])


def stopped_at(values, opens, **limits):
    """Exit prices of a stop of 10 %, which the last bar's range reaches whatever the entry price, and the account."""
    opens = np.array(opens, float)
    low = np.append(opens[:-1], 1.0) if values[-1] > 0 else opens
    high = opens if values[-1] > 0 else np.append(opens[:-1], 1e4)
    frame = bars(opens, opens, high, low)
    result = run_backtest(
        weights(values), frame, costs=Costs(), limits=Limits(stop_loss=0.1), initial_capital=1e9
    )
    return result.fills.filter(pl.col("reason") == "stop_loss")["price"].to_list(), result


def test_a_stop_counts_from_the_entry_price_of_the_units_that_are_held():
    # Bought a little at 100, sold most of it at 200, bought much more at 200: what is held cost nearly 200.
    prices = [100, 100, 200, 200, 200]
    (level,), result = stopped_at([1e-3, 1e-5, 1e-2, 1e-2, 1e-2], prices)
    units = np.abs(result.fills["units"].to_numpy())
    kept = units[0] - units[1]
    average = (kept * 100 + units[2] * 200) / (kept + units[2])
    assert average > 199
    assert level == pytest.approx(0.9 * average)
    entry = (units[0] * 100 + units[2] * 200) / (units[0] + units[2])
    assert result.trades["entry_price"].to_list() == pytest.approx([entry])  # of the whole round trip


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12))
def test_the_stop_level_is_that_of_the_average_cost_method(seed, n):
    """Additions move the average, sales leave it, a reversal begins anew; against the books kept by hand."""
    rng = np.random.default_rng(seed)
    values = np.append(rng.choice([-1.0, -0.5, 0.0, 0.3, 0.5, 1.0], n), rng.choice([-0.7, 0.7])) / 1e3
    opens = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n + 3)))
    target = np.append(values, [values[-1]] * 2)
    levels, result = stopped_at(target, opens)
    held = average = 0.0
    for units, price, reason in result.fills.select("units", "price", "reason").iter_rows():
        if reason == "stop_loss":
            assert price == pytest.approx(average * (1 - 0.1 * np.sign(held)))
            break
        grown = held + units
        if held * grown <= 0:
            average = price
        elif abs(grown) > abs(held):
            average = (average * held + price * units) / grown
        held = grown
    assert len(levels) == 1


def test_a_gap_through_a_target_fills_at_the_open():
    for rebalance in ("on_change", "every_bar"):
        result = run_backtest(
            weights([1.0] * 4),
            bars([100.0, 100.0, 130.0, 100.0]),
            costs=Costs(),
            limits=Limits(take_profit=0.1),
            rebalance=rebalance,
        )
        assert result.trades.select("exit_price", "reason").row(0) == (130.0, "take_profit")


def test_a_bar_without_volume_neither_stops_nor_fills_a_target():
    frame = bars([100, 100, 80, 90], volume=[1, 1, 0, 1])
    result = run_backtest(weights([1] * 4), frame, costs=Costs(), limits=Limits(stop_loss=0.05))
    assert result.trades["exit_price"].to_list() == [90]


def test_a_stop_may_fill_on_the_bar_of_its_entry_but_not_before_it():
    frame = bars([100, 100, 100], [100, 96, 100], low=[50, 90, 100])
    result = run_backtest(weights([1] * 3), frame, costs=Costs(), limits=Limits(stop_loss=0.05))
    assert result.trades.select("exit_price", "bars").row(0) == (95.0, 0)
    late = run_backtest(
        weights([1] * 3), frame, costs=Costs(), limits=Limits(stop_loss=0.05), fill="next_close"
    )
    assert late.trades.height == 0  # filled at the close of 96, after the low


def test_rounding_alone_is_no_trade():
    rng = np.random.default_rng(1)
    frame = random_bars(rng, 500)
    result = run_backtest(weights([1.0] * 500), frame, costs=Costs(), rebalance="every_bar")
    assert result.fills.height == 1


@pytest.mark.parametrize("rebalance", ["on_change", "every_bar"])
def test_an_order_that_was_decided_before_the_stop_does_not_undo_it(rebalance):
    """Stopped out within the third bar, at whose close the order of the bar before would have filled."""
    frame = bars([100, 100, 100, 100, 100], low=[100, 100, 90, 100, 100])
    result = run_backtest(
        weights([1.0, 0.5, 0.5, 0.7, 0.7]),
        frame,
        costs=Costs(),
        limits=Limits(stop_loss=0.05),
        fill="next_close",
        rebalance=rebalance,
    )
    assert result.fills["reason"].to_list() == ["signal", "stop_loss", "signal"]
    assert [bool(units) for units in result.positions["A"]] == [False, True, False, False, True]


def test_a_margin_call_leaves_no_order_behind():
    """B waits for volume when the call closes everything."""
    frame = pl.concat(
        [
            bars([100, 100, 100, 100], low=[100, 100, 70, 100]),
            bars([50.0] * 4, symbol="B", volume=[1, 0, 0, 1]),
        ]
    )
    target = pl.DataFrame({"timestamp": times(4), "A": [3.0] * 4, "B": [0.5] * 4})
    result = run_backtest(target, frame, costs=Costs(), limits=Limits(maintenance_margin=0.2))
    assert result.fills.select("symbol", "reason").rows() == [("A", "signal"), ("A", "margin_call")]


def test_an_order_for_nothing_is_not_one_that_never_filled():
    silent = bars([20.0] * 4, symbol="B", volume=0)
    target = pl.DataFrame({"timestamp": times(4), "A": [1.0] * 4, "B": [0.0, 0.5, 0.0, 0.0]})
    for rebalance in ("on_change", "every_bar"):
        result = run_backtest(target, pl.concat([bars([10.0] * 4), silent]), rebalance=rebalance)
        assert result.metrics["unfilled"] == 0


def test_nothing_is_ordered_behind_the_last_bar_of_a_symbol_that_was_closed_there():
    frame = pl.concat([bars([10.0] * 6), bars([20.0, 20.0, 25.0], symbol="B")])
    target = pl.DataFrame({"timestamp": times(6), "A": [0.5] * 6, "B": [0.5] * 6})
    for rebalance in ("on_change", "every_bar"):
        result = run_backtest(target, frame, close_at_end=True, rebalance=rebalance)
        assert set(result.trades["reason"]) == {"end"}
        assert result.metrics["unfilled"] == 0
        assert result.notes == ()


def test_lots_by_symbol():
    frame = pl.concat([bars([30.0] * 3), bars([7.0] * 3, symbol="B")])
    target = pl.DataFrame({"timestamp": times(3), "A": [0.5] * 3, "B": [0.5] * 3})
    result = run_backtest(target, frame, costs=Costs(), initial_capital=100, lot_size={"A": 1.0})
    assert result.positions.row(-1)[1:] == pytest.approx((1.0, 50 / 7))


def test_close_at_end_ends_a_symbol_at_its_own_last_bar():
    frame = pl.concat([bars([10.0] * 5), bars([20.0, 20.0, 25.0], symbol="B")])
    target = pl.DataFrame({"timestamp": times(5), "A": [0.5] * 5, "B": [0.5] * 5})
    result = run_backtest(target, frame, costs=Costs(fee=0.01), close_at_end=True)
    ends = {row["symbol"]: (row["exit_time"], row["reason"]) for row in result.trades.iter_rows(named=True)}
    assert ends == {"A": (times(5)[4], "end"), "B": (times(5)[2], "end")}


def test_orders_that_never_fill_are_counted_and_said():
    frame = pl.concat([bars([10.0] * 4), bars([20.0, 20.0, 25.0, 25.0], symbol="B", volume=[1, 1, 0, 0])])
    target = pl.DataFrame({"timestamp": times(4), "A": [0.0] * 4, "B": [0.0, 1.0, 1.0, 1.0]})
    result = run_backtest(target, frame)
    assert result.metrics["unfilled"] == 1
    assert result.notes == ("1 orders never filled: no later bar with volume",)


def test_a_ruined_account_has_no_turnover_to_speak_of():
    frame = bars([100, 100, 900, 900])
    metrics = run_backtest(weights([-1.0] * 4), frame, costs=Costs(), initial_capital=1000).metrics
    assert metrics["ended"] == 1
    assert np.isnan(metrics["turnover"])
    assert 0 < metrics["exposure"] < 1
    long = run_backtest(weights([-1.0] * 9), bars([100] * 7 + [210] * 2), costs=Costs(), initial_capital=1000)
    assert long.history.equity.mean() > 0
    assert np.isnan(long.metrics["turnover"])  # a mean over money and debt is no base
    assert np.isnan(random_strategies(long, 3, 0).turnover).any()
