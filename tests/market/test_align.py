"""Many symbols on one clock: nothing is filled, dropped or masked without being asked and counted."""

import numpy as np
import polars as pl
import pytest

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.align import align
from longtape.market.bars import Bars
from longtape.market.files import read_bars
from tests.market.store_data import HOUR, START, make_bars, values_at
from tests.shared_data import shared

A, B, C = (Instrument("bybit", "linear", name) for name in ("AUSDT", "BUSDT", "CUSDT"))


def bars_at(instrument, *steps, interval=HOUR):
    times = START + np.array(steps) * interval.milliseconds
    return Bars.checked(instrument, interval, values_at(times))


@pytest.fixture
def pair():
    """Two symbols of the hours 0 to 9: the first lacks 4 and 5, the second 5; both have more outside."""
    return [bars_at(A, *range(-3, 4), *range(6, 10)), bars_at(B, *range(5), *range(6, 15))]


def test_shared_period_of_complete_bars():
    aligned = align([make_bars(0, 50, instrument=A), make_bars(20, 50, instrument=B)])
    assert len(aligned) == 30
    assert aligned.names == ("AUSDT", "BUSDT")
    assert aligned.present.all()
    assert aligned.missing == {"AUSDT": 0, "BUSDT": 0}
    assert np.array_equal(aligned.known_at, aligned.timestamps + HOUR.milliseconds)
    for frame in aligned.frames.values():
        assert frame.equals(make_bars(20, 30).frame)


def test_missing_bars_are_an_error_unless_told(pair):
    with pytest.raises(
        UserError,
        match=r"AUSDT 2, BUSDT 1 \(first at 2024-01-01 04:00Z, 2 in a row to .*\); .* choose .* forward_fill",
    ):
        align(pair)
    with pytest.raises(UserError, match="unknown policy for missing bars 'ffill'"):
        align(pair, "ffill")


def test_forward_fill_holds_the_price_and_trades_nothing(pair, capsys):
    aligned = align(pair, "forward_fill")
    assert len(aligned) == 10
    frame, before = aligned.frames["AUSDT"], make_bars(3, 1).frame["close"].item()
    assert frame[4:6].select("open", "high", "low", "close").rows() == [(before,) * 4] * 2
    assert frame["volume"][4:6].to_list() == [0.0, 0.0]
    assert frame[[0, 1, 2, 3, 6, 7, 8, 9]].equals(make_bars(0, 10).frame[[0, 1, 2, 3, 6, 7, 8, 9]])
    assert aligned.present[:, 0].tolist() == [True] * 4 + [False] * 2 + [True] * 4
    assert aligned.missing == {"AUSDT": 2, "BUSDT": 1}
    assert "filled forward" in capsys.readouterr().err


def test_drop_takes_the_row_from_all(pair, capsys):
    aligned = align(pair, "drop")
    assert aligned.dropped == 2
    expected = make_bars(0, 10).frame[[0, 1, 2, 3, 6, 7, 8, 9]]
    assert all(frame.equals(expected) for frame in aligned.frames.values())
    assert aligned.present.all()
    assert "dropped for all" in capsys.readouterr().err


def test_mask_leaves_nan_and_says_where(pair):
    aligned = align(pair, "mask")
    for i, frame in enumerate(aligned.frames.values()):
        assert frame["close"].is_nan().to_list() == (~aligned.present[:, i]).tolist()
        assert frame["timestamp"].null_count() == 0
    assert aligned.missing == {"AUSDT": 2, "BUSDT": 1}


def test_a_hole_that_all_symbols_have_is_on_the_clock_too():
    with pytest.raises(UserError, match="AUSDT 2, BUSDT 2"):
        align([bars_at(A, 0, 1, 4, 5), bars_at(B, 0, 1, 4, 5)])
    with pytest.raises(UserError, match="AUSDT 2"):
        align([bars_at(A, 0, 1, 4, 5)])


def test_the_price_of_before_the_shared_period_holds():
    aligned = align([bars_at(A, -3, 2), bars_at(B, 0, 1, 2)], "forward_fill")
    before = values_at(np.array([START - 3 * HOUR.milliseconds]))["close"].item()
    assert aligned.frames["AUSDT"]["close"].to_list()[:2] == [before, before]


def test_weekends_are_not_due_but_counted_beside_a_market_that_never_rests():
    day = Interval.parse("1d")
    stock = Instrument("yahoo", "stock", "SPY", calendar="XNYS")
    week = [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]  # 2024-01-01 was a Monday
    fx = Instrument("yahoo", "fx", "EURUSD", calendar="24/5")
    assert len(align([bars_at(stock, *week, interval=day)])) == 10
    assert len(align([bars_at(stock, *week, interval=day), bars_at(fx, *week, interval=day)])) == 10
    aligned = align(
        [bars_at(stock, *week, interval=day), bars_at(A, *range(12), interval=day)], "forward_fill"
    )
    assert aligned.missing == {"SPY": 2, "AUSDT": 0}


def test_more_columns_are_carried(pair):
    wide = [
        Bars.checked(
            b.instrument, HOUR, b.frame.with_columns(turnover=pl.lit(5.0), adj_close=pl.col("close") / 2)
        )
        for b in pair
    ]
    frame = align(wide, "forward_fill").frames["AUSDT"]
    assert frame["turnover"].to_list() == [5.0] * 4 + [0.0] * 2 + [5.0] * 4
    assert frame["adj_close"][4] == frame["adj_close"][3]


def test_one_symbol_from_two_sources_goes_by_its_key():
    aligned = align([make_bars(0, 5), make_bars(0, 5, instrument=Instrument("binance", "spot", "BTCUSDT"))])
    assert aligned.names == ("bybit/linear/BTCUSDT", "binance/spot/BTCUSDT")


@pytest.mark.parametrize(
    ("bars", "message"),
    [
        ([], "no bars to align"),
        ([make_bars(0, 5), make_bars(0, 5)], "bybit/linear/BTCUSDT is given twice"),
        ([make_bars(0, 5), make_bars(0, 5, Interval.parse("1d"), A)], "different intervals"),
        (
            [make_bars(0, 5), make_bars(9, 5, instrument=A)],
            "share no period: BTCUSDT 2024-01-01 00:00Z to 2024-01-01",
        ),
        ([make_bars(0, 5).between(0, 1)], "there are no bars"),
    ],
)
def test_what_cannot_be_aligned_is_named(bars, message):
    with pytest.raises(UserError, match=message):
        align(bars, "drop")


def test_no_moment_shared_by_all():
    with pytest.raises(UserError, match="no moment has a bar of every symbol"):
        align([bars_at(A, 0, 2, 4, 5), bars_at(B, 1, 3)], "drop")


def test_five_real_symbols_share_31120_hours():
    names = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT")
    bars = [
        read_bars(shared(f"candles_1h_bybit_linear/{name}.parquet"), symbol=name, interval="1h")
        for name in names
    ]
    aligned = align(bars)
    assert (len(aligned), aligned.names) == (31_120, names)
    assert aligned.present.all()


def test_the_union_keeps_the_time_before_a_symbol_was_listed(capsys):
    old, young, gone = bars_at(A, *range(10)), bars_at(B, *range(6, 10)), bars_at(C, *range(4))
    aligned = align([old, young, gone], span="union")
    assert aligned.timestamps.tolist() == old.timestamps.tolist()
    assert aligned.present.sum(axis=0).tolist() == [10, 4, 4]
    assert aligned.present[:, 1].tolist() == [False] * 6 + [True] * 4
    assert aligned.present[:, 2].tolist() == [True] * 4 + [False] * 6
    assert aligned.missing == {"AUSDT": 0, "BUSDT": 0, "CUSDT": 0}
    assert capsys.readouterr().err == ""
    assert aligned.frames["AUSDT"].equals(old.frame)
    for name, bars in (("BUSDT", young), ("CUSDT", gone)):
        frame, present = aligned.frames[name], pl.Series(aligned.present[:, aligned.names.index(name)])
        assert frame.filter(present).equals(bars.frame)
        absent = frame.filter(~present).select("open", "high", "low", "close", "volume")
        assert absent.select(pl.all_horizontal(pl.all().is_nan())).to_series().all()
        assert frame["timestamp"].equals(old.frame["timestamp"])


@pytest.mark.parametrize("policy", ["mask", "forward_fill", "drop"])
def test_the_policy_is_for_gaps_while_a_symbol_is_listed(policy, capsys):
    aligned = align([bars_at(A, *range(10)), bars_at(B, 4, 5, 8, 9)], policy, span="union")
    assert aligned.missing == {"AUSDT": 0, "BUSDT": 2}
    rows = [4, 5, 8, 9]
    present = np.isin(range(10), rows)
    close = aligned.frames["BUSDT"]["close"].to_numpy()
    expected = np.where(
        present, values_at(START + np.arange(10) * HOUR.milliseconds)["close"].to_numpy(), np.nan
    )
    if policy == "forward_fill":
        expected[6:8] = expected[5]
    kept = np.isin(range(10), [6, 7], invert=True) if policy == "drop" else np.ones(10, dtype=bool)
    assert aligned.present[:, 1].tolist() == present[kept].tolist()
    np.testing.assert_array_equal(close, expected[kept])
    assert aligned.dropped == (2 if policy == "drop" else 0)
    assert "BUSDT 2 (first at 2024-01-01 06:00Z)" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"BUSDT 2 \(first at 2024-01-01 06:00Z, 2 in a row to .*\); .* choose"
    ):
        align([bars_at(A, *range(10)), bars_at(B, 4, 5, 8, 9)], span="union")


def test_periods_that_only_touch_or_do_not_are_one_clock_as_a_union():
    early, late = bars_at(A, *range(3)), bars_at(B, *range(5, 8))
    with pytest.raises(UserError, match="share no period"):
        align([early, late])
    aligned = align([early, late], span="union")
    assert aligned.timestamps.tolist() == [*early.timestamps, *late.timestamps]
    assert aligned.present.sum(axis=1).tolist() == [1] * 6


def test_a_union_of_equal_periods_is_the_shared_period(pair):
    same = [bars.between(START, START + 10 * HOUR.milliseconds) for bars in pair]
    for policy in ("mask", "forward_fill", "drop"):
        shared_span, union = align(same, policy), align(same, policy, span="union")
        assert np.array_equal(shared_span.timestamps, union.timestamps)
        assert np.array_equal(shared_span.present, union.present)
        for name in union.names:
            assert union.frames[name].equals(shared_span.frames[name])


def test_a_span_or_a_union_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="unknown span 'unoin'; did you mean 'union'"):
        align([bars_at(A, 0, 1)], span="unoin")
    with pytest.raises(
        UserError, match="no moment is left with a bar of BUSDT; align with forward_fill or mask"
    ):
        align([bars_at(A, 0, 1, 2, 5), bars_at(B, 3)], "drop", span="union")


def test_stocks_listed_late_come_into_the_union_when_they_are():
    path = shared("stocks_1d/us_stocks_2012-2017.parquet")
    names = ("AAPL", "BABA", "ABBV", "GMRE")
    bars = [read_bars(path, symbol=name, interval="1d", category="stock", calendar="XNYS") for name in names]
    aligned = align(bars, "mask", span="union")
    assert aligned.present.sum(axis=0).tolist() == [len(one) for one in bars] == [1_258, 745, 1_177, 297]
    assert len(align(bars)) == 297
    for i, one in enumerate(bars):
        first = int(np.argmax(aligned.present[:, i]))
        assert aligned.timestamps[first] == one.timestamps[0]
        assert np.isnan(aligned.frames[names[i]]["close"].to_numpy()[:first]).all()
