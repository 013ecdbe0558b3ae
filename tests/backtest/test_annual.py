"""Bars in a year of an account: from the calendar of its instruments, or from the bars' own times."""

from __future__ import annotations

import polars as pl

from longtape.backtest import run_backtest
from longtape.core.clock import DAY, HOUR
from longtape.core.instrument import Instrument
from tests.backtest.markets import bars, weights


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
    assert result("XNYS").periods_per_year == 252 * 7
    assert result("24/7").metrics["periods_per_year"] == 8760


def test_mixed_calendars_take_the_clock_they_share():
    mixed = result("24/7", "XNYS", step=DAY)
    assert mixed.periods_per_year == 365
    assert "inferred" in mixed.calendar


def test_a_figure_that_is_given_counts():
    given = result("24/7", periods_per_year=100.0)
    assert (given.periods_per_year, given.calendar) == (100, "as given")
