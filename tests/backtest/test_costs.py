"""Costs are named by whoever pays them: fees, borrow, and funding that is never assumed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longtape.backtest import Costs, run_backtest
from longtape.core.clock import DAY, Interval
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.bars import Bars
from tests.backtest.markets import HOUR, START, bars, weights

PERPETUAL = {"A": Instrument("test", "linear", "A")}


def history(rates, symbol="A", step=8 * HOUR, start=START):
    times = np.arange(len(rates), dtype=np.int64) * step + start
    return pl.DataFrame({"timestamp": times, "symbol": [symbol] * len(rates), "rate": rates})


def clock(hours):
    """Times that are `hours` after the start."""
    return pl.Series("timestamp", START + np.array(hours) * HOUR).cast(pl.Datetime("ms", "UTC"))


def run(values, frame, costs, **options):
    return run_backtest(
        weights(values), frame, costs=costs, instruments=PERPETUAL, initial_capital=1000, **options
    )


def test_a_perpetual_has_no_default_funding():
    with pytest.raises(UserError, match="test/linear/A is a perpetual: name its funding"):
        run([1] * 3, bars([100] * 3), Costs(fee=0.001))


def test_an_inverse_contract_is_refused():
    inverse = {"A": Instrument("test", "inverse", "A")}
    for funding in (None, "excluded"):
        with pytest.raises(UserError, match="inverse contracts are not modelled"):
            run_backtest(weights([1] * 3), bars([100] * 3), costs=Costs(funding=funding), instruments=inverse)


def test_excluded_funding_is_said():
    result = run([1] * 3, bars([100] * 3), Costs(funding="excluded"))
    assert result.account["funding"] == 0
    assert result.notes == ("funding of perpetuals is excluded",)


def test_spot_pays_no_funding_whatever_is_named():
    spot = {"A": Instrument("test", "spot", "A")}
    costs = Costs(funding="rate", funding_rate=0.01)
    result = run_backtest(weights([1] * 30), bars([100] * 30), costs=costs, instruments=spot)
    assert result.account["funding"] == 0


@pytest.mark.parametrize("side", [1, -1])
def test_a_flat_rate_is_paid_by_the_long_side_at_00_08_and_16(side):
    frame = bars([100.0] * 8 + [110.0] * 10)  # 00:00 to 17:00; flat at 00:00, so two payments of 1,100
    result = run([side] * 18, frame, Costs(funding="rate", funding_rate=0.001))
    paid = np.flatnonzero(np.diff(result.history.cash, prepend=1000)[2:]) + 2
    assert list(paid) == [8, 16]
    assert result.account["funding"] == pytest.approx(side * 2 * 10 * 110 * 0.001)
    assert result.trades.height == 0


def test_the_recorded_history_is_paid_when_it_was_due():
    frame = bars([100.0] * 17)
    result = run([1] * 17, frame, Costs(funding="history"), funding_history=history([0.5, 0.001, -0.003]))
    cash = np.diff(result.history.cash)
    assert cash[7] == pytest.approx(-1.0)  # 08:00, and 16:00 pays the long
    assert cash[15] == pytest.approx(3.0)
    assert result.account["funding"] == pytest.approx(-2.0)


def test_funding_inside_a_bar_is_paid_on_its_close():
    frame = bars([100.0, 100.0], [100.0, 120.0], step=DAY)
    result = run_backtest(
        weights([1, 1], step=DAY),
        frame,
        costs=Costs(funding="rate", funding_rate=0.001),
        instruments=PERPETUAL,
        initial_capital=1000,
    )
    # Bought at the open of the second day, after its 00:00 payment; 08:00 and 16:00 are inside.
    assert result.account["funding"] == pytest.approx(2 * 10 * 120 * 0.001)


def test_funding_after_the_last_close_does_not_exist():
    frame = bars([100.0] * 9)  # 00:00 to the close at 09:00
    late = history([0.001] * 7)  # 08:00, and five more from 16:00 on
    result = run([1] * 9, frame, Costs(funding="history"), funding_history=late)
    assert result.account["funding"] == pytest.approx(1.0)
    at_the_close = run([1] * 8, frame[:8], Costs(funding="history"), funding_history=late)
    assert at_the_close.account["funding"] == 0


@pytest.mark.parametrize("funding", ["history", "rate"])
def test_a_position_held_over_a_gap_pays_at_the_next_open(funding):
    """A session of three hours a day: 16:00 falls between the sessions, 00:00 on an open."""
    hours = [h + 24 * day for day in range(3) for h in range(3)]
    frame = bars([100.0 + h for h in range(9)]).with_columns(clock(hours))
    target = weights([1] * 9).with_columns(clock(hours))
    costs = Costs(funding=funding, funding_rate=0.001 if funding == "rate" else None)
    recorded = history([0.001] * 30) if funding == "history" else None
    result = run_backtest(
        target, frame, costs=costs, instruments=PERPETUAL, initial_capital=1010, funding_history=recorded
    )
    # Ten units from 01:00; 08:00, 16:00 and 00:00 are paid at each next open, and none after the last close.
    paid = -np.diff(result.history.cash)
    assert np.flatnonzero(paid[1:]).tolist() == [1, 4]
    assert paid[[2, 5]] == pytest.approx([3 * 10 * 103 * 0.001, 3 * 10 * 106 * 0.001])


def test_who_sells_before_the_gap_pays_nothing_for_it_and_who_buys_does():
    hours = [0, 1, 2, 12, 13, 14]
    frame = bars([100.0] * 6).with_columns(clock(hours))
    paid = {}
    for name, values in (("sells", [1, 0, 0, 0, 0, 0]), ("buys", [0, 1, 1, 1, 1, 1])):
        result = run_backtest(
            weights(values).with_columns(clock(hours)),
            frame,
            costs=Costs(funding="rate", funding_rate=0.001),
            instruments=PERPETUAL,
            initial_capital=1000,
            fill="next_close",
        )
        paid[name] = result.account["funding"]
    # Both filled at the close of the bar of 02:00; the payment of 08:00 comes after it.
    assert paid == pytest.approx({"sells": 0.0, "buys": 1.0})


def test_a_stamp_that_is_late_is_due_on_the_hour():
    """Bought at the open of 08:00, by which the payment of that hour was due."""
    recorded = history([0.001, 0.001]).with_columns(pl.col("timestamp") + pl.Series([0, 9]))
    result = run([0] * 7 + [1] * 2, bars([100.0] * 9), Costs(funding="history"), funding_history=recorded)
    assert result.fills.height == 1
    assert result.account["funding"] == 0


def test_bars_that_know_their_interval_end_with_it():
    """Two bars of 4 hours a day: the last bar's own span is paid, what comes after its close is not."""
    hours = clock([5, 9, 29, 33, 53])
    four = Bars.checked(
        PERPETUAL["A"], Interval.parse("4h"), bars([100.0] * 5).drop("symbol").with_columns(hours)
    )
    costs = Costs(funding="rate", funding_rate=0.001)
    known = run_backtest(weights([1] * 5).with_columns(hours), four, costs=costs, initial_capital=1000)
    # Bought at hour 9: hours 16, 24, 32, 40, 48 and 56 follow before the close at 57, hour 64 does not.
    assert known.account["funding"] == pytest.approx(6.0)


def test_bars_of_two_intervals_are_no_account():
    hourly = Bars.checked(PERPETUAL["A"], Interval.parse("1h"), bars([100.0] * 3).drop("symbol"))
    other = Instrument("test", "spot", "B")
    daily = Bars.checked(other, Interval.parse("1d"), bars([100.0] * 3, step=DAY).drop("symbol"))
    with pytest.raises(UserError, match="A comes in bars of 1h, B of 1d; one account is kept"):
        run_backtest(weights([1] * 3), [hourly, daily])


def test_one_bar_pays_no_funding():
    result = run([1], bars([100.0]), Costs(funding="rate", funding_rate=0.001))
    assert result.account["funding"] == 0


@pytest.mark.parametrize(
    ("rates", "start", "hole"),
    [([0.1, 0.1], START, "2024-01-01 16:00Z"), ([0.1, 0.1], START + 8 * HOUR, "2024-01-01 00:00Z")],
)
def test_a_history_that_begins_late_or_ends_early_is_an_error(rates, start, hole):
    with pytest.raises(UserError, match=f"funding_history of A has a hole at {hole}"):
        run(
            [1] * 17,
            bars([100.0] * 17),
            Costs(funding="history"),
            funding_history=history(rates, start=start),
        )


def test_a_hole_within_a_history_is_an_error_and_a_late_stamp_is_none():
    recorded = history([0.1] * 7)
    frame = bars([100.0] * 49)
    with pytest.raises(UserError, match=r"hole at 2024-01-01 16:00Z \(1 such\): fetch it again"):
        run([0] * 49, frame, Costs(funding="history"), funding_history=recorded.filter(pl.arange(7) != 2))
    late = recorded.with_columns(pl.col("timestamp") + pl.Series([0, 9, 0, 27, 0, 3, 0]))
    assert run([0] * 49, frame, Costs(funding="history"), funding_history=late).account["funding"] == 0


def test_histories_that_cannot_be():
    frame = bars([100.0] * 9)
    for bad, message in (
        (history([0.1, None]), "no rate at 2024-01-01 08:00Z for A"),
        (pl.concat([history([0.1, 0.1])] * 2), "a time comes twice"),
        (None, "needs funding_history: timestamp, symbol, rate"),
        (history([0.1, 0.1]).drop("rate"), "column 'rate' is missing"),
        (history(["x", "y"]), "column 'rate' holds String, not numbers"),
    ):
        with pytest.raises(UserError, match=message):
            run([1] * 9, frame, Costs(funding="history"), funding_history=bad)
    with pytest.raises(UserError, match="funding_history has no effect"):
        run([1] * 9, frame, Costs(funding="excluded"), funding_history=history([0.1, 0.1]))


def test_four_hourly_funding_is_known_from_the_instrument():
    four = {"A": Instrument("test", "linear", "A", funding_hours=4)}
    recorded = history([0.001] * 3, step=4 * HOUR)
    result = run_backtest(
        weights([1] * 9),
        bars([100.0] * 9),
        costs=Costs(funding="history"),
        instruments=four,
        initial_capital=1000,
        funding_history=recorded,
    )
    assert result.account["funding"] == pytest.approx(2.0)


def test_a_short_pays_borrow_by_the_time_it_is_held_and_a_perpetual_does_not():
    frame = bars([100.0] * 367, step=DAY)
    short = weights([-1] * 367, step=DAY)
    result = run_backtest(short, frame, costs=Costs(borrow=0.1), initial_capital=1000)
    assert result.account["borrow"] == pytest.approx(100.0)  # 365 days after the fill
    assert result.account["end"] == pytest.approx(900.0)
    long = run_backtest(weights([1] * 367, step=DAY), frame, costs=Costs(borrow=0.1))
    perpetual = run_backtest(short, frame, costs=Costs(borrow=0.1, funding="excluded"), instruments=PERPETUAL)
    assert long.account["borrow"] == perpetual.account["borrow"] == 0


def test_bars_bring_their_instrument_with_them():
    frame = bars([100.0] * 3).drop("symbol")
    perpetual = Bars.checked(PERPETUAL["A"], Interval.parse("1h"), frame)
    with pytest.raises(UserError, match="is a perpetual"):
        run_backtest(weights([1] * 3), perpetual)
    with pytest.raises(UserError, match="a symbol comes twice"):
        run_backtest(weights([1] * 3), [perpetual, perpetual])
    with pytest.raises(UserError, match="none were given"):
        run_backtest(weights([1] * 3), [])


def test_each_cost_is_its_own_line_and_they_add_up():
    result = run_backtest(
        weights([1] * 3), bars([100.0] * 3), costs=Costs(fee=0.01, spread=0.002, slippage=0.003)
    )
    paid = {name: result.account[name] for name in ("fees", "spread", "slippage")}
    assert paid == pytest.approx({"fees": 1000.0, "spread": 200.0, "slippage": 300.0})
    assert result.metrics["costs"] == pytest.approx(1500.0)
    assert result.account["end"] == pytest.approx(98_500.0)
    assert result.fills.select("value", "fee", "spread", "slippage").row(0) == pytest.approx(
        (100_000, 1000, 200, 300)
    )


def test_a_cost_that_is_not_named_is_zero():
    assert all(value in (0, None) for value in Costs().model_dump().values())
    assert Costs(fee=0.001, borrow=0.1).with_fee(0.002) == Costs(fee=0.002, borrow=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fee": -0.1}, r"costs\.fee: .*greater than or equal to 0 \(given: -0\.1\)"),
        ({"slippage": float("nan")}, r"costs\.slippage"),
        ({"fees": 0.1}, r"costs\.fees: .*not permitted"),
        ({"funding": "some"}, r"costs\.funding: .*'history', 'rate' or 'excluded'"),
        ({"funding": "rate"}, "funding='rate' and funding_rate go together"),
        ({"funding_rate": 0.1}, "funding='rate' and funding_rate go together"),
    ],
)
def test_bad_costs_are_one_line(values, message):
    with pytest.raises(UserError, match=message) as caught:
        Costs(**values)
    assert "\n" not in str(caught.value)
