"""The account balances, whatever is done to it, and does what a slow account in plain Python does."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.backtest import Costs, Limits, run_backtest
from longtape.core.instrument import Instrument
from tests.backtest.markets import HOUR, START, bars, random_bars, slow_account, times, weights

SYMBOLS = ("A", "B", "C", "D")


def market(rng, n, count, missing, quiet, delisted):
    frames = []
    for s in range(count):
        last = int(rng.integers(n // 3, n)) if delisted and 0 < s == count - 1 else None
        frames.append(random_bars(rng, n, SYMBOLS[s], missing if s else 0.0, quiet, last))
    return pl.concat(frames)


def path(rng, n, count, leverage, changes):
    """Random weights that change now and then, long and short."""
    values = rng.normal(size=(n, count)) * leverage / count
    stay = rng.random((n, count)) > changes
    for t in range(1, n):
        values[t] = np.where(stay[t], values[t - 1], values[t])
    return pl.DataFrame({"timestamp": times(n), **{SYMBOLS[s]: values[:, s] for s in range(count)}})


def balance(result):
    a = result.account
    paid = a["fees"] + a["spread"] + a["slippage"] + a["funding"] + a["borrow"]
    size = max(abs(a["start"]), abs(a["profit"]), paid, np.abs(result.history.cash).max())
    assert abs(a["start"] + a["profit"] - paid - a["end"]) <= 1e-9 * size


def marked(result, frame):
    """Value of the positions at each bar, from the positions table and the bars alone."""
    wide = frame.pivot(on="symbol", index="timestamp", values="close").sort("timestamp")
    closes = wide.select(result.symbols).fill_null(strategy="forward").fill_null(0.0).to_numpy()
    return (result.positions.select(result.symbols).to_numpy() * closes).sum(axis=1)


cases = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(2, 60),
    "count": st.integers(1, 4),
    "missing": st.sampled_from([0.0, 0.2, 0.6]),
    "quiet": st.sampled_from([0.0, 0.3]),
    "delisted": st.booleans(),
    "leverage": st.sampled_from([0.5, 1.0, 3.0, 20.0]),
    "changes": st.sampled_from([0.05, 0.5, 1.0]),
    "at_close": st.booleans(),
    "every_bar": st.booleans(),
}


@settings(max_examples=2500, deadline=None)
@given(
    **cases,
    stop=st.sampled_from([None, 0.02]),
    margin=st.sampled_from([None, 0.05]),
    lot=st.sampled_from([None, 1.0, 0.1]),
    end=st.booleans(),
)
def test_every_account_balances_at_every_bar(
    seed, n, count, missing, quiet, delisted, leverage, changes, at_close, every_bar, stop, margin, lot, end
):
    rng = np.random.default_rng(seed)
    frame = market(rng, n, count, missing, quiet, delisted)
    costs = Costs(
        fee=0.001,
        spread=0.0005,
        slippage=0.0002,
        impact=0.01,
        borrow=0.1,
        funding="rate",
        funding_rate=0.0003,
    )
    result = run_backtest(
        path(rng, n, count, leverage, changes),
        frame,
        costs=costs,
        fill="next_close" if at_close else "next_open",
        rebalance="every_bar" if every_bar else "on_change",
        limits=Limits(stop_loss=stop, take_profit=stop, maintenance_margin=margin, max_leverage=leverage),
        lot_size=lot,
        close_at_end=end,
        instruments={"A": Instrument("test", "linear", "A")},
    )
    balance(result)
    size = np.abs(result.history.cash).max() + np.abs(result.history.equity).max()
    value = marked(result, frame)
    assert (
        np.abs(result.ledger["cash"].to_numpy() + value - result.equity["equity"].to_numpy()).max()
        <= 1e-9 * size
    )
    fills = result.fills
    assert fills["fee"].sum() == pytest.approx(result.account["fees"], rel=1e-9)
    moved = fills.group_by("symbol").agg(pl.col("units").sum())
    held = result.positions.row(-1, named=True)
    for symbol, units in moved.iter_rows():
        assert units == pytest.approx(held[symbol], abs=1e-7 * max(1, fills["units"].abs().max()))


@settings(max_examples=400, deadline=None)
@given(**cases)
def test_the_compiled_account_is_the_slow_account(
    seed, n, count, missing, quiet, delisted, leverage, changes, at_close, every_bar
):
    rng = np.random.default_rng(seed)
    frame = market(rng, n, count, missing, quiet, delisted)
    target = path(rng, n, count, leverage, changes)
    ours = run_backtest(
        target,
        frame,
        costs=Costs(fee=0.001, spread=0.0005, slippage=0.0002),
        fill="next_close" if at_close else "next_open",
        rebalance="every_bar" if every_bar else "on_change",
    )
    slow = slow_account(target, frame, 0.001, 0.0005, 0.0002, every_bar, at_close)
    scale = np.maximum(np.abs(ours.history.cash), np.abs(slow)).max()
    assert np.abs(ours.equity["equity"].to_numpy() - slow).max() <= 1e-8 * scale


def equity(result):
    return result.equity["equity"].to_list()


def test_a_weight_fills_at_the_next_open_and_costs_come_out_of_cash():
    frame = bars([100, 110, 120], [105, 115, 125])
    result = run_backtest(weights([1, 1, 1]), frame, costs=Costs(fee=0.01), initial_capital=1000)
    units = 1000 / 110
    assert equity(result) == pytest.approx([1000, 1000 - 10 + units * 5, 1000 - 10 + units * 15])
    assert result.fills["price"].to_list() == [110]
    assert result.ledger["cash"].to_list() == pytest.approx([1000, -10, -10])


def test_next_close_fills_at_the_next_bars_close():
    frame = bars([100, 110, 120], [105, 115, 125])
    result = run_backtest(weights([1, 1, 1]), frame, costs=Costs(), fill="next_close", initial_capital=1150)
    assert equity(result) == pytest.approx([1150, 1150, 1250])
    assert result.fills["price"].to_list() == [115]


def test_the_last_bars_decision_is_not_filled():
    result = run_backtest(weights([0, 0, 1]), bars([100, 110, 120]))
    assert result.fills.height == 0
    assert equity(result) == [100_000.0] * 3
    assert result.metrics["unfilled"] == 0


def test_units_are_held_between_changes_unless_every_bar_is_asked_for():
    frame = bars([100, 100, 200, 200, 200])
    held = run_backtest(weights([0.5] * 5), frame, costs=Costs(), initial_capital=100)
    traded = run_backtest(
        weights([0.5] * 5), frame, costs=Costs(), initial_capital=100, rebalance="every_bar"
    )
    assert held.positions["A"].to_list() == [0, 0.5, 0.5, 0.5, 0.5]
    assert traded.positions["A"].to_list() == pytest.approx([0, 0.5, 0.375, 0.375, 0.375])


def test_a_stop_fills_at_its_level_and_a_gap_through_it_at_the_open():
    within = bars([100, 100, 100], [100, 100, 95], low=[100, 100, 90])
    gap = bars([100, 100, 80], [100, 100, 85])
    limits = Limits(stop_loss=0.05)
    at_level = run_backtest(weights([1, 1, 1]), within, costs=Costs(), limits=limits, initial_capital=100)
    at_open = run_backtest(weights([1, 1, 1]), gap, costs=Costs(), limits=limits, initial_capital=100)
    assert at_level.trades.select("exit_price", "reason").row(0) == (95.0, "stop_loss")
    assert at_open.trades.select("exit_price", "reason").row(0) == (80.0, "stop_loss")
    assert equity(at_open)[-1] == pytest.approx(80)


def test_a_short_stop_and_a_target_look_the_other_way():
    frame = bars(
        [100, 100, 100, 100], [100, 100, 104, 100], high=[100, 100, 106, 100], low=[100, 100, 88, 100]
    )
    stopped = run_backtest(
        weights([-1] * 4), frame, costs=Costs(), limits=Limits(stop_loss=0.05, take_profit=0.1)
    )
    target = run_backtest(weights([-1] * 4), frame, costs=Costs(), limits=Limits(take_profit=0.1))
    assert stopped.trades["exit_price"].to_list() == pytest.approx(
        [105]
    )  # both were reached: the stop counts
    assert target.trades["exit_price"].to_list() == pytest.approx([90])


def test_after_a_stop_the_account_stays_out_until_the_weight_changes():
    frame = bars([100, 100, 90, 90, 90, 90], low=[100, 100, 90, 90, 90, 90])
    for rebalance in ("on_change", "every_bar"):
        result = run_backtest(
            weights([1, 1, 1, 0.5, 0.5, 0.5]), frame, limits=Limits(stop_loss=0.05), rebalance=rebalance
        )
        assert [bool(u) for u in result.positions["A"]] == [False, True, False, False, True, True]


def test_a_bar_without_volume_does_not_fill():
    frame = bars([100, 110, 120, 130], volume=[5, 0, 0, 5])
    result = run_backtest(weights([1, 1, 1, 1]), frame, costs=Costs())
    assert result.fills["price"].to_list() == [130]
    silent = run_backtest(weights([1, 1, 1, 1]), bars([100, 110, 120, 130], volume=0))
    assert silent.fills.height == 0
    assert any("no volume" in note for note in silent.notes)
    filled = run_backtest(weights([1, 1, 1, 1]), bars([100, 110, 120, 130], volume=0), zero_volume="fill")
    assert filled.fills["price"].to_list() == [110]


def test_an_order_waits_for_the_symbols_next_bar_and_takes_the_newest_weight():
    a = bars([100] * 5)
    b = bars([50] * 5, symbol="B").filter(pl.Series([True, False, False, True, True]))
    target = pl.DataFrame({"timestamp": times(5), "A": [0.0] * 5, "B": [0.2, 0.4, 0.4, 0.4, 0.4]})
    result = run_backtest(target, pl.concat([a, b]), costs=Costs(), initial_capital=1000)
    assert result.fills.select("symbol", "units").rows() == [("B", 8.0)]
    assert result.fills["timestamp"].to_list() == [times(5)[3]]


def test_a_delisted_symbol_is_settled_at_its_last_close_without_cost():
    a, b = bars([100] * 6), bars([50, 50, 60], symbol="B")
    target = pl.DataFrame({"timestamp": times(6), "A": [0.0] * 6, "B": [1.0] * 6})
    result = run_backtest(target, pl.concat([a, b]), costs=Costs(fee=0.01), initial_capital=1000)
    assert result.trades.select("exit_price", "reason").row(0) == (60.0, "delisted")
    assert result.positions["B"].to_list() == [0, 20, 0, 0, 0, 0]
    assert equity(result)[-1] == pytest.approx(1000 - 10 + 200)


def test_a_market_that_is_only_closed_is_not_delisted():
    a = bars([100] * 10)
    open_b = pl.Series([True, True, False, False, False, True, True, True, False, False])
    b = bars([50] * 10, symbol="B").filter(open_b)
    target = pl.DataFrame({"timestamp": times(10), "A": [0.0] * 10, "B": [1.0] * 10})
    assert run_backtest(target, pl.concat([a, b])).trades.height == 0


def test_ruin_ends_the_account():
    result = run_backtest(
        weights([-1] * 5), bars([100, 100, 300, 50, 50]), costs=Costs(), initial_capital=1000
    )
    assert equity(result) == pytest.approx([1000, 1000, -1000, -1000, -1000])
    assert result.trades["reason"].to_list() == ["ruin"]
    metrics = result.metrics
    assert metrics["ended"] == 1
    assert metrics["annual_return"] == -1
    assert metrics["total_return"] == pytest.approx(-2)


def test_twice_levered_is_twice_levered_and_a_cap_says_how_often_it_cut():
    frame = bars([100, 100, 110])
    double = run_backtest(weights([2, 2, 2]), frame, costs=Costs(), initial_capital=100)
    capped = run_backtest(
        weights([2, 2, 2]), frame, costs=Costs(), initial_capital=100, limits=Limits(max_leverage=1.5)
    )
    assert equity(double)[-1] == pytest.approx(120)
    assert equity(capped)[-1] == pytest.approx(115)
    assert any("3 rows" in note for note in capped.notes)


def test_a_margin_call_closes_where_equity_meets_the_margin():
    # 5× long at 100: equity 100 − 5·(100 − p); 10 % of 5p is kept: p = 400 / 4.5.
    frame = bars([100, 100, 100, 100], [100, 100, 95, 100], low=[100, 100, 80, 100])
    call = run_backtest(
        weights([5] * 4), frame, costs=Costs(), initial_capital=100, limits=Limits(maintenance_margin=0.1)
    )
    assert call.trades.select("exit_price", "reason").row(0) == (pytest.approx(400 / 4.5), "margin_call")
    assert equity(call)[-1] == pytest.approx(100 - 5 * (100 - 400 / 4.5))
    assert call.metrics["margin_calls"] == 1
    without = run_backtest(weights([5] * 4), frame, costs=Costs(), initial_capital=100)
    assert equity(without)[-1] == pytest.approx(100)


def test_a_margin_call_after_a_gap_fills_at_the_open():
    frame = bars([100, 100, 82, 82], [100, 100, 82, 82])
    call = run_backtest(
        weights([5] * 4), frame, costs=Costs(), initial_capital=100, limits=Limits(maintenance_margin=0.1)
    )
    assert call.trades["exit_price"].to_list() == [82]


def test_lots_are_rounded_towards_zero():
    frame = bars([100, 30, 30])
    for weight, units in ((1, 33), (-1, -33)):
        result = run_backtest(weights([weight] * 3), frame, costs=Costs(), initial_capital=1000, lot_size=1)
        assert result.positions["A"][-1] == units
    exact = run_backtest(weights([0.3] * 3), bars([1, 1, 1]), costs=Costs(), initial_capital=1, lot_size=0.1)
    assert exact.positions["A"][-1] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="lot_size"):
        run_backtest(weights([1] * 3), frame, lot_size=-1)


def test_close_at_end_sells_at_the_last_open():
    frame = bars([100, 110, 120], [105, 115, 125])
    result = run_backtest(weights([1, 1, 0.5]), frame, costs=Costs(), close_at_end=True, initial_capital=110)
    assert result.trades.select("entry_price", "exit_price", "reason").row(0) == (110, 120, "end")
    assert equity(result)[-1] == pytest.approx(120)


def test_a_reversal_is_two_trades_and_one_fill():
    frame = bars([100, 100, 110, 110, 99])
    result = run_backtest(weights([1, -1, -1, 0, 0]), frame, costs=Costs(fee=0.001), initial_capital=100)
    assert result.fills.height == 3
    first, second = result.trades.rows(named=True)
    assert (first["side"], second["side"]) == ("long", "short")
    assert first["entry_price"] == 100
    assert first["exit_price"] == second["entry_price"] == 110
    assert result.trades["profit"].sum() == pytest.approx(equity(result)[-1] - 100)
    assert result.trades["costs"].sum() == pytest.approx(result.account["fees"])


def test_impact_grows_with_the_square_root_of_the_share_of_volume():
    result = run_backtest(
        weights([1] * 3), bars([1, 1, 1], volume=400), costs=Costs(impact=0.1), initial_capital=100
    )
    assert result.account["slippage"] == pytest.approx(0.1 * np.sqrt(100 / 400) * 100)


def test_a_multiplier_makes_contracts_and_keeps_the_money():
    instrument = {"A": Instrument("test", "future", "A", multiplier=50.0)}
    frame = bars([100, 100, 110])
    result = run_backtest(
        weights([1] * 3), frame, costs=Costs(), initial_capital=10_000, instruments=instrument
    )
    assert result.positions["A"][-1] == pytest.approx(2)
    assert result.fills["price"].to_list() == [100]
    assert equity(result)[-1] == pytest.approx(11_000)


def test_pandas_and_a_time_index_are_accepted():
    frame = bars([100, 110, 120])
    target = weights([1, 1, 1]).to_pandas().set_index("timestamp")
    assert equity(run_backtest(target, frame.to_pandas())) == equity(run_backtest(weights([1, 1, 1]), frame))


def test_rows_may_be_grouped_or_interleaved_and_weights_given_now_and_then():
    rng = np.random.default_rng(3)
    frame = market(rng, 50, 3, 0.2, 0.0, False)
    target = path(rng, 50, 3, 1.0, 0.2)
    grouped = run_backtest(target, frame)
    interleaved = run_backtest(target, frame.sort("timestamp", "symbol"))
    changes = target.filter(pl.any_horizontal(pl.exclude("timestamp").diff().fill_null(1) != 0))
    sparse = run_backtest(changes, frame)
    assert equity(grouped) == equity(interleaved) == equity(sparse)


def test_start_is_a_monday():
    assert (START // (24 * HOUR) + 3) % 7 == 0
