"""A market's own clock: against Python's, and through changes of the clock."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.calendars import (
    CALENDAR_COLUMNS,
    calendar_features,
    day_of_week,
    hour_of_week,
    local_time,
    market_dates,
    session_opens,
    wall_clock,
)
from longtape.core.calendars.zones import from_wall_clock
from longtape.core.clock import DAY, HOUR, MINUTE, SECOND, Interval, to_milliseconds
from longtape.core.errors import UserError

ZONES = [
    "UTC",
    "America/New_York",
    "Europe/London",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
]
HOURLY, DAILY = Interval.parse("1h"), Interval.parse("1d")


def by_python(time: int, zone: str) -> int:
    moment = datetime.fromtimestamp(time / 1000, ZoneInfo(zone)).replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


@settings(max_examples=200, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    times=st.lists(st.integers(-(10**12) // 1000, 2 * 10**12 // 1000), min_size=1, max_size=20),
)
def test_the_clock_on_the_wall_is_pythons(zone, times):
    seconds = np.array(times) * SECOND
    assert wall_clock(seconds, zone).tolist() == [by_python(int(time), zone) for time in seconds]


@pytest.mark.parametrize("zone", ZONES)
def test_every_change_of_the_clock_is_met_to_the_second(zone):
    hours = np.arange(to_milliseconds("2019-01-01"), to_milliseconds("2025-01-01"), HOUR)
    wall = wall_clock(hours, zone)
    for change in np.flatnonzero(np.diff(wall) != HOUR):
        seconds = hours[change] + np.arange(0, 3601, 7) * SECOND
        assert wall_clock(seconds, zone).tolist() == [by_python(int(time), zone) for time in seconds]
    noon = (wall // DAY * DAY + 12 * HOUR)[::24]
    assert wall_clock(from_wall_clock(noon, zone), zone).tolist() == noon.tolist()


def test_a_time_stands_alone():
    times = np.random.default_rng(0).integers(0, to_milliseconds("2030-01-01"), 1_000)
    together = local_time(times, "24/5")
    assert [int(local_time(times[i : i + 1], "24/5")[0]) for i in range(50)] == together[:50].tolist()
    assert len(local_time(times[:0], "24/5")) == 0


def test_clocks_of_markets():
    summer = np.array([to_milliseconds("2024-07-01T12:00")])
    for calendar, hour in (("24/7", 12), ("24/5", 8), ("XNYS", 8), ("XLON", 13), ("XTKS", 21)):
        assert int(local_time(summer, calendar)[0]) % DAY == hour * HOUR
    with pytest.raises(UserError, match="unknown calendar 'XXXX'"):
        local_time(summer, "XXXX")
    with pytest.raises(
        UserError, match="unknown time zone 'Mars/Olympus'; zones have names like America/New_York"
    ):
        wall_clock(summer, "Mars/Olympus")
    for folder in ("America", "../etc/passwd", ""):
        with pytest.raises(UserError, match="unknown time zone"):
            wall_clock(summer, folder)


@pytest.mark.parametrize("calendar", ["XNYS", "XLON", "XASX", "24/5"])
def test_a_session_keeps_its_hours_of_the_week_through_the_year(calendar):
    """Hours by UTC move with the clock, so that a model trained in winter has never seen those of summer."""
    opens = session_opens(calendar, to_milliseconds("2024-01-01"), to_milliseconds("2025-01-01"))
    cells = hour_of_week(opens, calendar)
    assert len(np.unique(cells % 24)) == 1
    assert len(np.unique(cells)) == 5
    assert len(np.unique(opens // HOUR % 168)) > 5


def test_hours_and_days_of_the_week_begin_on_monday():
    week = to_milliseconds("2024-01-01") + np.arange(168) * HOUR
    assert hour_of_week(week + 59 * MINUTE, "24/7").tolist() == list(range(168))
    assert day_of_week(week, "24/7").tolist() == [hour // 24 for hour in range(168)]
    assert hour_of_week(np.array([to_milliseconds("2024-01-01T14:30")]), "XNYS").tolist() == [9]
    assert day_of_week(np.array([to_milliseconds("2024-01-01T02:00")]), "XNYS").tolist() == [6]


def test_the_date_of_a_daily_bar_is_that_which_it_is_stamped_with():
    monday, evening = to_milliseconds("2024-01-08"), to_milliseconds("2024-01-07T22:00")
    assert market_dates(np.array([monday]), DAILY, "XNYS").tolist() == [monday // DAY]
    assert market_dates(np.array([monday + 14 * HOUR]), DAILY, "XNYS").tolist() == [monday // DAY]
    assert market_dates(np.array([evening, monday]), DAILY, "24/5").tolist() == [monday // DAY] * 2
    assert market_dates(np.array([monday]), HOURLY, "XNYS").tolist() == [monday // DAY - 1]


def column(features, name):
    return features[:, CALENDAR_COLUMNS.index(name)]


def test_what_the_calendar_says_by_hand():
    times = np.array(
        [to_milliseconds(t) for t in ("2024-07-01T10:00", "2024-02-15T23:00", "2024-12-31T05:00")]
    )
    found = calendar_features(
        times, HOURLY, "24/5"
    )  # 6:00 on a Monday; 18:00 on a Thursday; midnight of a Tuesday
    assert found.dtype == np.float32
    assert found.shape == (3, 8)
    np.testing.assert_allclose(column(found, "time_of_day_sin"), [1, -1, 0], atol=1e-6)
    np.testing.assert_allclose(column(found, "time_of_day_cos"), [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(
        column(found, "weekday_sin"), np.sin(2 * np.pi * np.array([0, 3, 1]) / 7), atol=1e-6
    )
    days = np.array([0, 14 / 29, 30 / 31])
    np.testing.assert_allclose(column(found, "day_of_month_sin"), np.sin(2 * np.pi * days), atol=1e-6)
    np.testing.assert_allclose(column(found, "day_of_month_cos"), np.cos(2 * np.pi * days), atol=1e-6)
    np.testing.assert_allclose(
        column(found, "month_cos"), np.cos(2 * np.pi * np.array([6, 1, 11]) / 12), atol=1e-6
    )


def test_daily_bars_have_all_columns_and_one_time_of_day():
    days = np.arange(to_milliseconds("2024-01-01"), to_milliseconds("2025-01-01"), DAY)
    for calendar in ("24/7", "XNYS", "24/5"):
        found = calendar_features(days, DAILY, calendar)
        assert (column(found, "time_of_day_sin") == 0).all()
        assert (column(found, "time_of_day_cos") == 1).all()
        assert found[:, 2:].tobytes() == calendar_features(days, DAILY, "24/7")[:, 2:].tobytes()


@pytest.mark.parametrize("interval", ["1m", "1h", "1d", "1w", "1M"])
def test_a_row_is_the_same_in_any_company(interval):
    length = Interval.parse(interval)
    times = to_milliseconds("2024-01-01") + np.arange(300) * length.milliseconds
    whole = calendar_features(times, length, "XNYS")
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole[:, ::2] ** 2 + whole[:, 1::2] ** 2, 1, rtol=1e-5)
    for first, last in ((0, 1), (17, 18), (100, 250)):
        assert calendar_features(times[first:last], length, "XNYS").tobytes() == whole[first:last].tobytes()
