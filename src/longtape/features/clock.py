"""Sessions and the bars to come: what an exchange calendar says of the clock of features and labels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEK, WEEKDAYS_ONLY, Interval, Milliseconds
from longtape.features.marks import session_times
from longtape.features.table import Rows, Table

FRIDAY_CLOSE = 22 * HOUR  # a 24/5 market rests from Friday 22:00 to Sunday 22:00 UTC


@lru_cache(maxsize=8)
def sessions(calendar: str, since: int, until: int) -> tuple[Milliseconds, Milliseconds]:
    """Opens, and closes after the first of them, of an exchange's sessions. Needs the extra `calendars`."""
    opens = session_times(calendar, since, until, "open")
    closes = session_times(calendar, since, until, "close")
    return opens, closes[closes > opens[0]] if len(opens) else closes[:0]


def session_of(table: Table) -> Rows:
    """A number per row that changes where a session begins: the UTC day, or the sessions of an exchange.

    A bar that opens after a close belongs to the session that follows.
    """
    times = table.timestamps
    if table.calendar in (ALWAYS_OPEN, WEEKDAYS_ONLY) or table.interval.milliseconds >= DAY or not len(times):
        return times // DAY
    since, until = int(times[0]) // DAY * DAY, int(times[-1]) // DAY * DAY
    closes = sessions(table.calendar, since - 2 * WEEK, until + WEEK)[1]
    return np.searchsorted(closes, times, side="right")


def future_opens(last: int, count: int, interval: Interval, calendar: str) -> Milliseconds:
    """When the next `count` bars after the one that opened at `last` will open."""
    if (
        interval.is_month
        or not interval.milliseconds
        or interval.milliseconds >= WEEK
        or calendar == ALWAYS_OPEN
    ):
        return _regular(last, count, interval)
    span = 2 * count * interval.milliseconds + 2 * WEEK
    while True:
        grid = np.arange(last + interval.milliseconds, last + span, interval.milliseconds)
        opens = grid[_is_open(grid, interval, calendar)]
        if len(opens) >= count:
            return opens[:count]
        span *= 2


def _regular(last: int, count: int, interval: Interval) -> Milliseconds:
    out = np.empty(count, np.int64)
    for i in range(count):
        last = int(interval.close_of(np.array([last]))[0])
        out[i] = last
    return out


def _is_open(
    grid: Milliseconds, interval: Interval, calendar: str
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if calendar == WEEKDAYS_ONLY:
        if interval.milliseconds >= DAY:
            return (grid // DAY + 3) % 7 < 5
        since_friday = (grid - DAY) % WEEK  # 1970-01-02 was a Friday
        return (since_friday < FRIDAY_CLOSE) | (since_friday >= FRIDAY_CLOSE + 2 * DAY)
    opens, closes = sessions(calendar, int(grid[0]) // DAY * DAY - WEEK, int(grid[-1]) // DAY * DAY + WEEK)
    if interval.milliseconds >= DAY:
        return np.isin(grid // DAY, opens // DAY)
    opened = np.searchsorted(opens, grid + interval.milliseconds, side="left")
    return opened > np.searchsorted(closes, grid, side="right")
