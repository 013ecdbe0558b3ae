"""When markets trade, by one definition: sessions, bars that are due, bars to come, numbers of bars and sessions."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core import errors
from longtape.core.calendars import (
    future_opens,
    is_due,
    ordinals,
    require_calendar,
    session_closes,
    session_numbers,
    session_opens,
    trading_spans,
)
from longtape.core.calendars.exchanges import build
from longtape.core.clock import DAY, HOUR, MINUTE, WEEK, Interval, iso, to_milliseconds
from longtape.core.errors import UserError
from tests.shared_data import shared

HOURLY = Interval.parse("1h")
EVENTS = Interval(0, "event")


def times_of(*texts):
    return np.array([to_milliseconds(text) for text in texts])


def shown(times):
    return [iso(int(time)) for time in times]


def test_names():
    for name in ("24/7", "24/5", "XNYS"):
        assert require_calendar(name) == name
    assert require_calendar("NYSE") == "XNYS"
    for name, nearest in (
        ("24-7", "24/7"),
        ("24/6", "24/7"),
        ("NYSEX", "NYSE"),
        ("xnys", "XNYS"),
        ("XLOM", "XLON"),
    ):
        with pytest.raises(UserError, match=f"unknown calendar '{name}'; did you mean '{nearest}'"):
            require_calendar(name)
    with pytest.raises(UserError, match=r"data\.csv: unknown calendar 'the moon'; write 24/7, 24/5 or"):
        require_calendar("the moon", "data.csv")


def test_without_the_package_only_exchanges_are_refused(monkeypatch):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    assert require_calendar("24/7") == "24/7"
    assert len(future_opens(0, 5, HOURLY, "24/5")) == 5
    with pytest.raises(UserError, match="did you mean '24/5'"):
        require_calendar("24-5")
    with pytest.raises(UserError, match=r"pip install 'longtape\[calendars\]'"):
        require_calendar("XNYS")


def test_the_package_is_imported_for_exchanges_alone():
    code = (
        "import sys, numpy; from longtape.core import calendars as c; from longtape.core.clock import Interval\n"
        "h = Interval.parse('1h'); c.future_opens(0, 9, h, '24/5'); c.calendar_features(numpy.arange(9), h, '24/7')\n"
        "c.bars_per_year(h, '24/5'); c.require_calendar('24/7'); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"exchange_calendars", "pandas", "torch", "polars"} & set(loaded)


def test_sessions_with_daylight_saving_holidays_and_a_half_day():
    """New York: Thanksgiving on 23 November 2023, a close at 13:00 the day after; Easter and summer time in London."""
    first, last = times_of("2023-11-22", "2023-11-28")
    assert shown(session_opens("XNYS", first, last)) == [f"2023-11-{day} 14:30Z" for day in (22, 24, 27)]
    assert [text[8:] for text in shown(session_closes("XNYS", first, last))] == [
        "22 21:00Z",
        "24 18:00Z",
        "27 21:00Z",
    ]
    spring = times_of("2024-03-28", "2024-04-03")
    assert shown(session_opens("XLON", *spring)) == ["2024-03-28 08:00Z", "2024-04-02 07:00Z"]
    assert shown(session_closes("XTKS", *spring))[0] == "2024-03-28 06:00Z"
    assert len(session_opens("XNYS", *times_of("2024-01-06", "2024-01-07"))) == 0


def test_lunch_is_taken_out_of_trading():
    starts, ends = trading_spans("XHKG", *times_of("2024-04-03", "2024-04-03T23:00"))
    assert shown(starts) == ["2024-04-03 01:30Z", "2024-04-03 05:00Z"]
    assert shown(ends) == ["2024-04-03 04:00Z", "2024-04-03 08:00Z"]
    assert [span.tolist() for span in trading_spans("24/7", 5, 9)] == [[5], [9]]


def test_what_a_calendar_does_not_cover_is_one_line():
    now = to_milliseconds("2024-01-01")
    with pytest.raises(UserError, match="a 24/7 market has no sessions"):
        session_opens("24/7", now, now + DAY)
    with pytest.raises(UserError, match=r"XKRX does not cover 1950-01-01 00:00Z to .*: it begins 1956-01-01"):
        session_opens("XKRX", to_milliseconds("1950-01-01"), now)


def test_what_the_package_cannot_give_is_one_line(monkeypatch):
    def broken(*_, **__):
        raise ValueError("Special dates\n[…] are not sessions. " + "x" * 10_000)

    monkeypatch.setattr("exchange_calendars.get_calendar", broken)
    with pytest.raises(
        UserError, match=r"XNYS: exchange_calendars cannot give .* \(Special dates \["
    ) as error:
        build("XNYS", "2024-01-01", "2024-02-01")
    assert len(str(error.value)) < 250


def test_foreign_exchange_turns_at_17_new_york():
    """Also where Europe has changed its clock and New York has not; 25 December and 1 January have no session."""
    assert [t[5:] for t in shown(session_opens("24/5", *times_of("2024-03-07", "2024-03-13")))] == [
        "03-07 22:00Z",
        "03-10 21:00Z",
        "03-11 21:00Z",
        "03-12 21:00Z",
    ]
    assert [t[5:] for t in shown(session_closes("24/5", *times_of("2023-10-27", "2023-11-07")))] == [
        "10-27 21:00Z",
        "10-30 21:00Z",
        "10-31 21:00Z",
        "11-01 21:00Z",
        "11-02 21:00Z",
        "11-03 21:00Z",
        "11-06 22:00Z",
    ]
    assert shown(session_opens("24/5", *times_of("2024-12-23T23:00", "2024-12-27"))) == [
        "2024-12-25 22:00Z",
        "2024-12-26 22:00Z",
    ]


def test_real_currency_trades_when_its_calendar_says():
    times = (
        pl.read_parquet(shared("fx_stocks_single/EURUSD_1h.parquet"))["timestamp"]
        .dt.timestamp("ms")
        .to_numpy()
    )
    grid = np.arange(times[0], times[-1] + HOUR, HOUR)
    due = grid[is_due(grid, HOURLY, "24/5")]
    assert not len(np.setdiff1d(due, times))
    assert shown(np.setdiff1d(times, due)) == ["2017-10-06 21:00Z", "2017-10-20 21:00Z"]  # two bars too many


@pytest.mark.parametrize(
    ("calendar", "interval", "yes", "no"),
    [
        ("24/7", "1h", ["2024-01-06T10:00"], []),
        ("24/5", "1h", ["2024-01-12T21:00", "2024-01-14T22:00"], ["2024-01-12T22:00", "2024-01-14T21:00"]),
        ("24/5", "1h", ["2024-07-12T20:00", "2024-07-14T21:00"], ["2024-07-12T21:00", "2024-12-25T12:00"]),
        ("24/5", "4h", ["2024-07-14T20:00"], ["2024-07-14T16:00"]),
        ("24/5", "1d", ["2024-07-12", "2024-07-15"], ["2024-07-13", "2024-07-14", "2024-12-25", "2025-01-01"]),
        # a day of foreign exchange that is stamped with its opening, the evening before
        ("24/5", "1d", ["2024-07-11T21:00", "2024-07-14T21:00"], ["2024-07-12T21:00", "2024-07-13T21:00"]),
        ("XNYS", "1d", ["2024-03-28", "2024-04-01"], ["2024-03-29", "2024-03-30"]),  # Good Friday
        # stamped with the open, over the change to summer time: the session is found an hour off
        ("XNYS", "1d", ["2024-03-08T14:30", "2024-03-11T14:30"], ["2024-03-09T14:30", "2024-03-10T14:30"]),
        ("CMES", "1d", ["2024-01-07T23:00", "2024-01-08"], ["2024-01-06T23:00", "2024-01-05T23:00", "2024-01-07"]),
        # Globex pauses from 16:00 to 17:00 in Chicago
        ("CMES", "1h", ["2024-01-04T21:00", "2024-01-04T23:00"], ["2024-01-04T22:00", "2024-01-05T22:00"]),
        ("XNYS", "2d", ["2024-03-28", "2024-03-31"], ["2024-03-29", "2024-03-30"]),
        ("XNYS", "1w", ["2024-03-25"], []),
        ("XNYS", "1M", ["2024-03-01"], []),
        ("XNYS", "1h", ["2024-01-02T14:00", "2024-01-02T20:30"], ["2024-01-02T13:30", "2024-01-02T21:00"]),
        ("XHKG", "30m", ["2024-04-03T03:30", "2024-04-03T05:00"], ["2024-04-03T04:00", "2024-04-03T04:30"]),
    ],
)  # fmt: skip
def test_bars_are_due_where_the_market_trades(calendar, interval, yes, no):
    due = is_due(times_of(*yes, *no), Interval.parse(interval), calendar)
    assert due.tolist() == [True] * len(yes) + [False] * len(no)


@pytest.mark.parametrize(
    ("calendar", "interval", "last", "expected"),
    [
        ("24/7", "1h", "2024-12-31T23:00", ["2025-01-01T00:00", "2025-01-01T01:00"]),
        ("24/7", "1M", "2024-12-01", ["2025-01-01", "2025-02-01"]),
        ("24/7", "3M", "2024-10-01", ["2025-01-01", "2025-04-01"]),
        ("24/5", "1h", "2024-12-27T20:00", ["2024-12-27T21:00", "2024-12-29T22:00"]),
        ("24/5", "1h", "2024-07-12T20:00", ["2024-07-14T21:00", "2024-07-14T22:00"]),
        ("24/5", "1d", "2024-12-26", ["2024-12-27", "2024-12-30"]),
        (
            "24/5",
            "4h",
            "2024-03-08T14:00",
            ["2024-03-08T18:00", "2024-03-10T21:00"],
        ),  # counted from 17:00 New York
        ("24/5", "4h", "2024-03-08T16:00", ["2024-03-08T20:00", "2024-03-10T20:00"]),  # on the grid of UTC
        ("XNYS", "1d", "2024-12-24", ["2024-12-26", "2024-12-27"]),
        ("XNYS", "1d", "2024-03-08T14:30", ["2024-03-11T13:30", "2024-03-12T13:30"]),
        ("XNYS", "1h", "2024-12-24T16:30", ["2024-12-24T17:30", "2024-12-26T14:30"]),  # a half day
        ("XNYS", "30m", "2025-03-07T20:30", ["2025-03-10T13:30", "2025-03-10T14:00"]),  # clocks go forward
        ("XNYS", "4h", "2025-03-07T18:30", ["2025-03-10T13:30", "2025-03-10T17:30"]),
        ("XNYS", "1w", "2024-12-23", ["2024-12-30", "2025-01-06"]),
        ("XHKG", "30m", "2024-04-03T03:30", ["2024-04-03T05:00", "2024-04-03T05:30"]),
        ("XTKS", "1d", "2024-04-26", ["2024-04-30", "2024-05-01"]),  # midnight UTC is 9:00 in Tokyo
        ("XASX", "1d", "2024-10-04", ["2024-10-07", "2024-10-08"]),  # Sydney's clock changes on the 6th
    ],
)
def test_bars_to_come_follow_the_market(calendar, interval, last, expected):
    found = future_opens(to_milliseconds(last), 2, Interval.parse(interval), calendar)
    assert shown(found) == [iso(to_milliseconds(when)) for when in expected]


def test_bars_to_come_end_where_the_calendar_does():
    last = to_milliseconds("2049-12-20")
    assert len(future_opens(last, 3, Interval.parse("1d"), "XHKG")) == 3
    with pytest.raises(UserError, match="XHKG is known up to 2049-12-31"):
        future_opens(last, 30, Interval.parse("1d"), "XHKG")
    with pytest.raises(UserError, match="events come at no fixed time"):
        future_opens(last, 3, EVENTS, "24/7")


@settings(max_examples=60, deadline=None)
@given(
    calendar=st.sampled_from(["24/7", "24/5", "XNYS", "XLON", "XHKG", "XASX", "CMES"]),
    interval=st.sampled_from(["5m", "30m", "1h", "4h", "1d"]),
    start=st.integers(0, 3 * 365 * 24),
    count=st.integers(1, 200),
)
def test_bars_to_come_rise_are_due_and_do_not_depend_on_where_one_stands(calendar, interval, start, count):
    length = Interval.parse(interval)
    last = int(
        future_opens(to_milliseconds("2021-01-01") + start * HOUR // DAY * DAY, 1, length, calendar)[0]
    )
    found = future_opens(last, count, length, calendar)
    assert (np.diff(found, prepend=last) > 0).all()
    assert is_due(found, length, calendar).all()
    assert future_opens(int(found[0]), count - 1, length, calendar).tolist() == found[1:].tolist()


def test_a_session_has_its_date_wherever_the_data_begin():
    times = to_milliseconds("2024-07-01T13:30") + 30 * MINUTE * np.arange(96)
    half_hour = Interval.parse("30m")
    numbers = session_numbers(times, half_hour, "XNYS")
    assert (
        times[np.flatnonzero(np.diff(numbers)) + 1].tolist()
        == times_of("2024-07-01T20:00", "2024-07-02T20:00").tolist()
    )
    assert numbers[[0, 40]].tolist() == (times_of("2024-07-01", "2024-07-02") // DAY).tolist()
    assert session_numbers(times[40:], half_hour, "XNYS").tolist() == numbers[40:].tolist()
    assert session_numbers(times, half_hour, "24/7").tolist() == (times // DAY).tolist()
    friday_night, sunday = times_of("2024-07-05T20:30", "2024-07-07T21:00")
    found = session_numbers(np.array([friday_night, sunday]), half_hour, "24/5")
    assert found.tolist() == (times_of("2024-07-05", "2024-07-08") // DAY).tolist()
    daily = times_of("2024-07-05", "2024-07-08")
    assert session_numbers(daily, Interval.parse("1d"), "XNYS").tolist() == (daily // DAY).tolist()


@pytest.mark.parametrize("interval", ["5m", "1h", "4h", "1d", "1w", "1M", "3M"])
def test_a_bars_number_does_not_depend_on_the_bars_before_it(interval):
    length = Interval.parse(interval)
    opens = future_opens(to_milliseconds("2023-10-01"), 200, length, "24/7")
    numbers = ordinals(opens, length)
    assert numbers.dtype == np.int64
    assert (np.diff(numbers) == 1).all()
    assert ordinals(opens[50:], length).tolist() == numbers[50:].tolist()
    with pytest.raises(UserError, match="events have no interval"):
        ordinals(opens, EVENTS)


def test_numbers_of_bars_whose_session_moves_with_the_clock():
    opens = session_opens("XNYS", *times_of("2023-01-01", "2024-01-01"))
    bars = (opens[:, None] + np.array([0, 4 * HOUR])).ravel()
    assert (np.diff(ordinals(bars, Interval.parse("4h"))) > 0).all()
    assert (np.diff(ordinals(opens, Interval.parse("1d"))) > 0).all()
    assert WEEK // DAY == 7


def test_a_time_taken_from_an_array_is_a_time():
    assert to_milliseconds(np.int64(5)) == 5
    assert type(to_milliseconds(np.int64(5))) is int
