"""A market's own clock, and what is known of it ahead of time: hours, weekdays, dates as sine and cosine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longtape.core.arrays import Ints
from longtape.core.calendars.exchanges import exchange
from longtape.core.calendars.sessions import FX_ROLLOVER, NEW_YORK
from longtape.core.calendars.zones import wall_clock
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEKDAYS_ONLY, Interval, Milliseconds

_CYCLES = ("time_of_day", "weekday", "day_of_month", "month")
CALENDAR_COLUMNS = tuple(f"{cycle}_{wave}" for cycle in _CYCLES for wave in ("sin", "cos"))


def local_time(times: Milliseconds, calendar: str) -> Milliseconds:
    """UTC milliseconds [T] → milliseconds of the market's own clock [T]: 24/7 keeps UTC, 24/5 New York's, an exchange
    its zone's. UserError for an unknown calendar.
    """
    return wall_clock(times, _zone_of(calendar))


def _zone_of(calendar: str) -> str:
    built_in = {ALWAYS_OPEN: "UTC", WEEKDAYS_ONLY: NEW_YORK}
    return built_in[calendar] if calendar in built_in else exchange(calendar).zone


def hour_of_week(times: Milliseconds, calendar: str) -> Ints:
    """Hour of the week of each moment by the market's own clock [T], 0 (Monday, 00:00) to 167.

    A session keeps its hours through a change of the clock.
    """
    return (local_time(times, calendar) // HOUR + 3 * 24) % 168  # 1970-01-01 was a Thursday


def day_of_week(times: Milliseconds, calendar: str) -> Ints:
    """Day of the week of each moment by the market's own clock [T], 0 (Monday) to 6.

    A bar of a day that is stamped at midnight UTC stands for a date: its weekday is that of `market_dates`.
    """
    return _weekday(local_time(times, calendar) // DAY)


def _weekday(days: Ints) -> Ints:
    return (days + 3) % 7


def market_dates(times: Milliseconds, interval: Interval, calendar: str) -> Ints:
    """The market's date of each bar [T], in days since 1970.

    A bar of a day or more that is stamped at midnight UTC stands for that date; any other by the market's own clock,
    where a day of foreign exchange (24/5) of which the bar is opens the evening before, at 17:00 New York.
    """
    local = local_time(times, calendar)
    if interval.milliseconds < DAY:
        return local // DAY
    turned = local + (DAY - FX_ROLLOVER if calendar == WEEKDAYS_ONLY else 0)
    return np.where(times % DAY == 0, times, turned) // DAY


def calendar_features(times: Milliseconds, interval: Interval, calendar: str) -> npt.NDArray[np.float32]:
    """What the calendar says of bars that open at `times`, rows to come included [T, len(CALENDAR_COLUMNS)].

    Sine and cosine of time of day, weekday, day of the month and month by the market's own clock, each a full turn, so
    that the last lies beside the first. Bars of a day or more have a constant time of day.
    """
    dates = market_dates(times, interval, calendar)
    days = dates.astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    starts, ends = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]")
    short = interval.milliseconds < DAY
    turns = (
        (local_time(times, calendar) % DAY) / DAY if short else np.zeros(len(times)),
        _weekday(dates) / 7,
        (days - starts).astype(np.int64) / (ends - starts).astype(np.int64),
        months.astype(np.int64) % 12 / 12,
    )
    out = np.empty((len(times), len(CALENDAR_COLUMNS)), np.float32)
    for k, turn in enumerate(turns):
        out[:, 2 * k], out[:, 2 * k + 1] = np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)
    return out
