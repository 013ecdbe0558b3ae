"""Bars in a year, from the calendar or from the bars' own times, and how they were found."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from longtape.backtest import run_backtest
from longtape.backtest.annual import infer_periods_per_year
from longtape.core.clock import DAY, HOUR, MINUTE
from longtape.core.instrument import Instrument
from tests.backtest.markets import START, bars, weights
from tests.shared_data import shared

WEEKS = np.arange(26 * 7) * DAY + START  # begins on a Monday
WEEKDAYS = WEEKS[np.arange(len(WEEKS)) % 7 < 5]
MONTHS = np.arange("2020-01", "2024-01", dtype="datetime64[M]").astype("datetime64[ms]").astype(np.int64)


def sessions(step, count, opens=13 * HOUR + 30 * MINUTE):
    return (WEEKDAYS[:, None] + opens + np.arange(count) * step).ravel()


@pytest.mark.parametrize(
    ("clock", "expected", "said"),
    [
        (START + np.arange(500) * HOUR, 8760, "24/7"),
        (START + np.arange(500) * 5 * MINUTE, 105_120, "24/7"),
        (START + np.arange(60) * MINUTE, 525_600, "24/7"),
        (WEEKS, 365, "24/7"),
        (WEEKDAYS, 252, "exchange days"),
        (np.delete(WEEKDAYS, [3, 40, 41]), 252, "exchange days"),
        (sessions(HOUR, 7), 252 * 7, "sessions of 7 bars"),
        (sessions(30 * MINUTE, 13), 252 * 13, "sessions of 13 bars"),
        ((WEEKDAYS[:, None] + np.arange(24) * HOUR).ravel(), 260 * 24, "24/5"),
        (WEEKS[::7], 52, "weeks"),
        (MONTHS, 12, "months"),
        (np.array([START]), math.nan, "one bar"),
    ],
)  # fmt: skip
def test_bars_in_a_year_are_read_from_the_times(clock, expected, said):
    found, how = infer_periods_per_year(clock)
    assert found == pytest.approx(expected, nan_ok=True)
    assert said in how


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("candles_1h_bybit_linear/BTCUSDT.parquet", 8760),
        ("candles_5m_binance_spot/BTCUSDT.parquet", 105_120),
        ("fx_stocks_single/GOOG_1d.parquet", 252),
        ("fx_stocks_single/EURUSD_1h.parquet", 6240),
    ],
)
def test_real_markets(name, expected):
    clock = pl.read_parquet(shared(name))["timestamp"].dt.timestamp("ms").to_numpy()
    assert infer_periods_per_year(clock)[0] == pytest.approx(expected)


def result(calendar_a, calendar_b=None, step=HOUR, **options):
    frame, target = bars([1.0] * 300, step=step), weights([0.0] * 300, step=step)
    known = {"A": Instrument("test", "spot", "A", calendar=calendar_a)}
    if calendar_b:
        frame = pl.concat([frame, bars([1.0] * 300, symbol="B", step=step)])
        target = target.with_columns(pl.lit(0.0).alias("B"))
        known["B"] = Instrument("test", "spot", "B", calendar=calendar_b)
    return run_backtest(target, frame, instruments=known, **options)


def test_the_calendar_of_the_instruments_counts_and_is_shown():
    exchange = result("XNYS", step=DAY)
    assert (exchange.periods_per_year, exchange.calendar) == (252, "calendar XNYS")
    assert result("24/7").periods_per_year == 8760
    assert result("XNYS").periods_per_year == pytest.approx(252 * 6.5)
    assert result("24/7").metrics["periods_per_year"] == 8760


def test_mixed_calendars_take_the_clock_they_share():
    mixed = result("24/7", "XNYS", step=DAY)
    assert mixed.periods_per_year == 365
    assert "inferred" in mixed.calendar


def test_a_figure_that_is_given_counts():
    given = result("24/7", periods_per_year=100.0)
    assert (given.periods_per_year, given.calendar) == (100, "as given")
