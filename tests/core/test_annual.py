"""Bars in a year, from a calendar or from the bars' own times, and how they were found."""

import math

import numpy as np
import polars as pl
import pytest

from longtape.core.calendars import (
    bars_per_day,
    bars_per_year,
    infer_periods_per_year,
    is_due,
    periods_per_year,
    session_opens,
    usual_step,
)
from longtape.core.clock import DAY, HOUR, MINUTE, WEEK, Interval, to_milliseconds
from longtape.core.errors import UserError
from tests.shared_data import shared

START = to_milliseconds("2024-01-01")  # a Monday
WEEKS = np.arange(26 * 7) * DAY + START
WEEKDAYS = WEEKS[np.arange(len(WEEKS)) % 7 < 5]
MONTHS = np.arange("2020-01", "2024-01", dtype="datetime64[M]").astype("datetime64[ms]").astype(np.int64)


def sessions(step, count, opens=13 * HOUR + 30 * MINUTE):
    return (WEEKDAYS[:, None] + opens + np.arange(count) * step).ravel()


def per_year(interval, calendar):
    return bars_per_year(Interval.parse(interval), calendar)


@pytest.mark.parametrize(
    ("calendar", "interval", "expected"),
    [
        ("24/7", "5m", 105_120),
        ("24/7", "1h", 8760),
        ("24/7", "1d", 365),
        ("24/7", "1w", 365 / 7),
        ("24/5", "1h", 6240),
        ("24/5", "1d", 260),
        ("XNYS", "1h", 1764),  # seven bars a session, the last one of half an hour
        ("XNYS", "4h", 504),
        ("XNYS", "30m", 252 * 13),
        ("XNYS", "12h", 252),
        ("XNYS", "1d", 252),
        ("XNYS", "1w", 52),
        ("XNYS", "1M", 12),
        ("XNYS", "3M", 4),
        ("XLON", "1h", 253 * 9),
        ("XHKG", "1h", 246 * 7),  # of 9:30, 10:30, … 15:30 each holds trading, though lunch is an hour
        ("XHKG", "30m", 246 * 11),  # 13 half-hours less two of lunch
        ("XTKS", "5m", 245 * 60),
        ("CMES", "1h", 258 * 23),  # an hour of maintenance a day
    ],
)  # fmt: skip
def test_bars_in_a_year_follow_the_sessions_of_the_calendar(calendar, interval, expected):
    assert per_year(interval, calendar) == pytest.approx(expected)


def test_a_year_by_the_calendar_is_what_its_sessions_hold():
    """Against counting: all bars of 2005 to 2024 that are due; half days make the mean a little less."""
    since, until = to_milliseconds("2005-01-01"), to_milliseconds("2025-01-01")
    markets = [("XNYS", "30m", 1.006), ("XLON", "30m", 1.006), ("CMES", "1h", 1.01), ("24/5", "1h", 1.01)]
    for calendar, interval, most in [
        *markets,
        ("XHKG", "30m", 1.04),
    ]:  # whose sessions grew by an hour in 2012
        length = Interval.parse(interval)
        counted = is_due(np.arange(since, until, length.milliseconds), length, calendar).sum() / 20
        assert 0.997 <= per_year(interval, calendar) / counted < most


def test_bars_of_a_day():
    assert bars_per_day(Interval.parse("1h"), "XNYS") == 7
    assert bars_per_day(Interval.parse("1h"), "24/7") == 24
    assert bars_per_day(Interval.parse("1d"), "24/5") == 1
    assert bars_per_day(Interval.parse("1w"), "XNYS") == pytest.approx(52 / 252)


def test_what_has_no_year_is_refused():
    with pytest.raises(UserError, match="events have no interval"):
        bars_per_year(Interval(0, "event"), "24/7")
    with pytest.raises(UserError, match="unknown calendar 'NYSEX'; did you mean 'NYSE'"):
        per_year("1h", "NYSEX")


@pytest.mark.parametrize(
    ("clock", "expected", "said"),
    [
        (START + np.arange(500) * HOUR, 8760, "24/7"),
        (START + np.arange(500) * 5 * MINUTE, 105_120, "24/7"),
        (START + np.arange(60) * MINUTE, 525_600, "24/7"),
        (WEEKS, 365, "24/7"),
        (WEEKS[:9], 365, "24/7"),
        (WEEKS[::2], 182.5, "24/7"),
        (WEEKDAYS, 252, "exchange days"),
        (WEEKDAYS[:6], 252, "exchange days"),
        (np.delete(WEEKDAYS, [3, 40, 41]), 252, "exchange days"),
        (sessions(HOUR, 7), 252 * 7, "sessions of 7 bars"),
        (sessions(HOUR, 7)[3:19], 252 * 7, "sessions of 7 bars"),
        (sessions(4 * HOUR, 2), 252 * 2, "sessions of 2 bars"),
        (sessions(30 * MINUTE, 13), 252 * 13, "sessions of 13 bars"),
        ((WEEKDAYS[:, None] + np.arange(24) * HOUR).ravel(), 260 * 24, "24/5"),
        (WEEKS[::7], 52, "weeks"),
        (MONTHS, 12, "months"),
        (MONTHS[::3], 4, "months"),
        (np.array([START]), math.nan, "one bar"),
    ],
)  # fmt: skip
def test_bars_in_a_year_are_read_from_the_times(clock, expected, said):
    found, how = infer_periods_per_year(clock)
    assert found == pytest.approx(expected, nan_ok=True)
    assert said in how


@pytest.mark.parametrize("weeks", [1, 2, 4, 26])
def test_a_stray_saturday_does_not_make_a_market_that_never_closes(weeks):
    for regular in (WEEKDAYS, sessions(HOUR, 7), sessions(4 * HOUR, 2)):
        cut = regular[regular < START + weeks * WEEK + 3 * DAY]
        stray = np.sort(np.append(cut, START + 5 * DAY + 15 * HOUR))
        assert infer_periods_per_year(stray) == infer_periods_per_year(regular)


def test_a_year_without_bars_between_two_that_have_them():
    hole = np.concatenate([START - 104 * WEEK + sessions(HOUR, 7) - START, sessions(HOUR, 7)])
    assert infer_periods_per_year(hole)[0] == 252 * 7


def test_two_clocks_in_one_count_the_rows_of_both():
    both = np.union1d(START + np.arange(26 * 168) * HOUR, sessions(HOUR, 7))
    assert infer_periods_per_year(both)[0] == pytest.approx(8760 + 365 / 7 * 35)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("candles_1h_bybit_linear/BTCUSDT.parquet", 8760),
        ("candles_1h_binance_spot/ETHUSDT.parquet", 8760),
        ("candles_5m_binance_spot/BTCUSDT.parquet", 105_120),
        ("fx_stocks_single/GOOG_1d.parquet", 252),
        ("fx_stocks_single/EURUSD_1h.parquet", 6240),
    ],
)
def test_real_markets(name, expected):
    clock = pl.read_parquet(shared(name))["timestamp"].dt.timestamp("ms").to_numpy()
    assert infer_periods_per_year(clock)[0] == pytest.approx(expected)


CALENDARS = (
    "24/7",
    "24/5",
    "XNYS",
    "XLON",
    "XHKG",
    "XASX",
    "XNZE",
    "CMES",
)  # two open at midnight UTC; breaks; 24 h


def simulated(calendar, interval, start, weeks):
    """Bars as a feed has them: counted from each session's open, or days by their dates."""
    length, end = Interval.parse(interval), start + weeks * WEEK
    times = np.arange(start, end, length.milliseconds)
    if length.milliseconds < DAY and calendar != "24/7":
        opens = session_opens(calendar, start, end)
        of_session = opens[:, None] + np.arange(0, DAY, length.milliseconds)
        times = of_session[of_session < np.append(opens[1:], end)[:, None]]
    return times[is_due(times, length, calendar)]


def damaged_clock(rng):
    """Bars missing at random, perhaps a hole of a tenth, up to two that do not belong; and what they are of."""
    calendar, interval = str(rng.choice(CALENDARS)), str(rng.choice(["1d", "4h", "1h", "30m"]))
    weeks = int(rng.choice([3, 5, 12]))
    times = simulated(calendar, interval, to_milliseconds("2022-01-03") + int(rng.integers(700)) * DAY, weeks)
    kept = rng.random(len(times)) >= rng.choice([0.0, 0.01, 0.03])
    if weeks > 3 and rng.random() < 0.5:
        first = int(rng.integers(len(times)))
        kept[first : first + len(times) // 10] = False
    stray = (times[0] + rng.integers(0, times[-1] - times[0], int(rng.integers(3)))) // MINUTE * MINUTE
    return calendar, interval, np.union1d(times[kept], stray)


def test_the_year_of_simulated_clocks():
    """Of a thousand damaged clocks of a few weeks all but a handful come within 6 % of the calendar.

    Some cannot: where both Sundays of three weeks are missing, nothing says that the market trades on Sundays.
    """
    wrong, rng = [], np.random.default_rng(0)
    for _ in range(1000):
        calendar, interval, times = damaged_clock(rng)
        found, how = infer_periods_per_year(times)
        if found != pytest.approx(per_year(interval, calendar), rel=0.06):
            wrong.append((calendar, interval, len(times), how))
    assert len(wrong) <= 4, wrong


def test_the_calendar_counts_where_all_share_one():
    hours = START + np.arange(300) * HOUR
    assert periods_per_year(hours, ["XNYS", "XNYS"]) == (1764, "calendar XNYS")
    assert periods_per_year(hours, ["24/7"]) == (8760, "calendar 24/7")
    assert periods_per_year(hours, ["XNYS", "24/7"]) == (8760, "24/7, inferred")
    assert periods_per_year(hours, [None]) == (8760, "24/7, inferred")
    assert periods_per_year(sessions(4 * HOUR, 2), ["XNYS"])[0] == 504
    assert periods_per_year(MONTHS, ["XNYS"]) == (12, "months")
    assert math.isnan(periods_per_year(hours[:1], ["XNYS"])[0])


def test_the_length_of_a_bar_survives_nights_and_strays():
    assert usual_step(sessions(4 * HOUR, 2)) == 4 * HOUR
    assert usual_step(WEEKDAYS) == DAY
    assert usual_step(np.sort(np.append(WEEKDAYS[:8], START + 5 * HOUR))) == DAY
    assert usual_step(np.array([0, HOUR])) == HOUR
