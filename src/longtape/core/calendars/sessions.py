"""Sessions: the spans in which a market trades.

24/5 is foreign exchange. Its day ends at 17:00 in New York, daylight saving included: trading begins on Sunday at
17:00 and ends on Friday at 17:00, without the days of 25 December and 1 January. A fixed hour in UTC would be an hour
off for half of the year: hourly EURUSD candles stop at 21:00 UTC in summer and 22:00 in winter, on the dates of New
York's clock change and not London's, and begin again 48 hours later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from longtape.core.calendars.exchanges import NEVER, Exchange, build, exchange
from longtape.core.calendars.zones import from_wall_clock, year_of
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEK, WEEKDAYS_ONLY, Milliseconds, iso
from longtape.core.errors import UserError

NEW_YORK = "America/New_York"
FX_ROLLOVER = 17 * HOUR  # where one day of foreign exchange ends and the next begins, New York
# CME Globex stops for maintenance from 16:00 to 17:00 in Chicago, the last hour of what its calendars in
# exchange_calendars call a session of 24 hours.
_MAINTENANCE = {"CMES": HOUR, "us_futures": HOUR}


@dataclass(frozen=True, eq=False)
class Sessions:
    """Sessions in order of time: their dates (days since 1970), and UTC milliseconds of open and close [S].

    A break (lunch) lies between; where there is none, it begins and ends at the close.
    """

    dates: Milliseconds
    opens: Milliseconds
    closes: Milliseconds
    break_starts: Milliseconds
    break_ends: Milliseconds

    @cached_property
    def spans(self) -> tuple[Milliseconds, Milliseconds]:
        """Starts and ends of trading, breaks taken out."""
        starts = np.stack([self.opens, self.break_ends], axis=1).ravel()
        ends = np.stack([self.break_starts, self.closes], axis=1).ravel()
        return starts[starts < ends], ends[starts < ends]


def sessions(calendar: str, first: int, last: int) -> Sessions:
    """Every session that overlaps [first, last] (UTC ms), and those of the rest of these years.

    Raises UserError for 24/7, for an unknown calendar, and where the calendar does not reach.
    """
    if calendar == ALWAYS_OPEN:
        raise UserError(f"a {ALWAYS_OPEN} market has no sessions; name an exchange's calendar such as XNYS")
    if calendar == WEEKDAYS_ONLY:
        return _foreign_exchange(year_of(first - 2 * WEEK), year_of(last + 2 * WEEK))
    known = exchange(calendar)
    if first < known.first or last >= known.end:
        spans = f"{iso(first)} to {iso(last)}", _reach(known)
        raise UserError(f"calendar {calendar} does not cover {spans[0]}: it {spans[1]}")
    return _exchange(
        calendar, year_of(max(first - 2 * WEEK, known.first)), year_of(min(last + 2 * WEEK, known.end - 1))
    )


def _reach(known: Exchange) -> str:
    begins = [f"begins {iso(known.first)}"] if known.first > -NEVER else []
    return " and ".join(begins + ([f"ends {iso(known.end)}"] if known.end < NEVER else []))


def last_known(calendar: str) -> int:
    """The end of what is known of a market's sessions, UTC milliseconds."""
    return NEVER if calendar in (ALWAYS_OPEN, WEEKDAYS_ONLY) else exchange(calendar).end - 1


@lru_cache(maxsize=32)
def _foreign_exchange(first_year: int, last_year: int) -> Sessions:
    days = np.arange(f"{first_year:04}-01-01", f"{last_year + 1:04}-01-01", dtype="datetime64[D]")
    dates = days[_is_fx_day(days)].astype(np.int64)
    opens = from_wall_clock((dates - 1) * DAY + FX_ROLLOVER, NEW_YORK)
    closes = from_wall_clock(dates * DAY + FX_ROLLOVER, NEW_YORK)
    return Sessions(dates, opens, closes, closes, closes)


def _is_fx_day(
    days: np.ndarray[tuple[int], np.dtype[np.datetime64]],
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    text = days.astype(str)
    holiday = np.char.endswith(text, "-12-25") | np.char.endswith(text, "-01-01")
    return np.is_busday(days) & ~holiday


@lru_cache(maxsize=32)
def _exchange(code: str, first_year: int, last_year: int) -> Sessions:
    known = exchange(code)
    first_day, last_day = _days(known.first, known.end, first_year, last_year)
    calendar = build(code, first_day, last_day)
    schedule = calendar.schedule
    dates = schedule.index.to_numpy().astype("datetime64[D]").astype(np.int64)
    columns = {
        name: schedule[name].dt.tz_localize(None).to_numpy("datetime64[ms]") for name in schedule.columns
    }
    closes = columns["close"] - _maintenance(calendar.name, columns["close"] - columns["open"])
    breaks = [
        np.where(np.isnat(columns[name]), closes, columns[name]) for name in ("break_start", "break_end")
    ]
    return Sessions(dates, *(moments.astype(np.int64) for moments in (columns["open"], closes, *breaks)))


def _maintenance(name: str, lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How long before its end [S] a session that leaves no hour of the day free stops trading."""
    pause = np.timedelta64(_MAINTENANCE.get(name, 0), "ms")
    return np.where(lengths == np.timedelta64(DAY, "ms"), pause, np.timedelta64(0, "ms"))


def _days(first: int, end: int, first_year: int, last_year: int) -> tuple[str, str]:
    """The first and last day of these years that the calendar knows."""
    whole = np.array([f"{first_year:04}", f"{last_year + 1:04}"], "datetime64[Y]").astype("datetime64[ms]")
    since, until = whole.astype(np.int64)
    days = np.array([max(since, first), min(until, end) - 1]).astype("datetime64[ms]").astype("datetime64[D]")
    return str(days[0]), str(days[1])


def session_opens(calendar: str, first: int, last: int) -> Milliseconds:
    """When sessions open in [first, last], UTC milliseconds. UserError as for `sessions`."""
    return _within(sessions(calendar, first, last).opens, first, last)


def session_closes(calendar: str, first: int, last: int) -> Milliseconds:
    """When sessions close in [first, last], UTC milliseconds. UserError as for `sessions`."""
    return _within(sessions(calendar, first, last).closes, first, last)


def _within(moments: Milliseconds, first: int, last: int) -> Milliseconds:
    return moments[(moments >= first) & (moments <= last)]


def trading_spans(calendar: str, first: int, last: int) -> tuple[Milliseconds, Milliseconds]:
    """Starts and ends of trading that overlap [first, last], UTC milliseconds, breaks taken out; 24/7: one span."""
    if calendar == ALWAYS_OPEN:
        return np.array([first], np.int64), np.array([last], np.int64)
    starts, ends = sessions(calendar, first, last).spans
    inside = (starts <= last) & (ends > first)
    return starts[inside], ends[inside]
