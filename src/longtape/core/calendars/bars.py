"""Bars on a market's clock: which are due, when the next ones open, and numbers that do not depend on the data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longtape.core.arrays import Flags
from longtape.core.calendars.exchanges import NEVER
from longtape.core.calendars.sessions import Sessions, last_known, sessions
from longtape.core.clock import ALWAYS_OPEN, DAY, WEEK, Interval, Milliseconds, iso
from longtape.core.errors import UserError


def is_due(opens: Milliseconds, interval: Interval, calendar: str) -> Flags:
    """True where the market trades at some moment of the bar that opens then [T], `opens` in any order.

    A bar of a day that is stamped at midnight UTC stands for that date, whatever the market's zone; at any other hour
    it stands for the session that is open then, or opens within twelve hours. UserError for an unknown calendar.
    """
    if calendar == ALWAYS_OPEN or not len(opens):
        return np.ones(len(opens), dtype=bool)
    market = sessions(calendar, int(opens.min()), int(opens.max()))
    if DAY <= interval.milliseconds < WEEK:
        return _day_is_due(opens, interval.milliseconds // DAY, market)
    starts, ends = market.spans
    return _next(starts, np.searchsorted(ends, opens, side="right")) < np.maximum(
        interval.close_of(opens), opens + 1
    )


def _day_is_due(opens: Milliseconds, days: int, market: Sessions) -> Flags:
    date = opens // DAY
    by_date = _next(market.dates, np.searchsorted(market.dates, date)) < date + days
    coming = np.searchsorted(market.closes, opens, side="right")
    by_open = _next(market.opens, coming) < opens + days * DAY - DAY // 2
    return np.where(opens % DAY == 0, by_date, by_open)


def _next(moments: Milliseconds, at: npt.NDArray[np.int64]) -> Milliseconds:
    return np.append(moments, NEVER)[at]


def future_opens(last: int, count: int, interval: Interval, calendar: str) -> Milliseconds:
    """When the next `count` bars after the one that opened at `last` will open, UTC milliseconds [count].

    Bars shorter than a week skip what the market's calendar says is closed. Where `last` stands a whole number of bars
    after its session's open, so do those to come (a change of the clock moves them too); else they keep to the UTC grid
    of `last`. UserError for an unknown calendar, or where it does not reach so far.
    """
    if not interval.milliseconds:
        raise UserError("events come at no fixed time, so none can be told ahead")
    if interval.is_month or calendar == ALWAYS_OPEN or interval.milliseconds >= WEEK:
        return _regular(last, count, interval)
    span = 2 * count * interval.milliseconds + 2 * WEEK
    while True:
        until = min(last + span, last_known(calendar))
        opens = _opens_between(last, until, interval, calendar)
        if len(opens) >= count:
            return opens[:count]
        if until < last + span:
            raise UserError(
                f"calendar {calendar} is known up to {iso(until)}, which is {len(opens)} bars of {interval} after"
                f" {iso(last)}, and {count} are needed; a newer exchange_calendars may reach farther"
            )
        span *= 2


def _regular(last: int, count: int, interval: Interval) -> Milliseconds:
    ahead = np.arange(1, count + 1)
    if not interval.is_month:
        return last + interval.milliseconds * ahead
    months = np.datetime64(last, "ms").astype("datetime64[M]") + ahead * int(interval.name[:-1])
    return months.astype("datetime64[ms]").astype(np.int64)


def _opens_between(last: int, until: int, interval: Interval, calendar: str) -> Milliseconds:
    step, market = interval.milliseconds, sessions(calendar, last, until)
    own = int(np.searchsorted(market.opens, last, side="right")) - 1
    dated = step >= DAY and last % DAY == 0
    in_session = own >= 0 and last < market.closes[own] and (last - market.opens[own]) % step == 0
    if in_session and not dated and step <= DAY:
        grid = _session_grid(market, step)
    else:
        grid = np.arange(last + step, until, step, dtype=np.int64)
    grid = grid[(grid > last) & (grid < until)]
    return grid[is_due(grid, interval, calendar)]


def _session_grid(market: Sessions, step: int) -> Milliseconds:
    """Every open + k · step before the close of its session."""
    counts = -(-(market.closes - market.opens) // step)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(market.opens, counts) + nth * step


def session_numbers(times: Milliseconds, interval: Interval, calendar: str) -> npt.NDArray[np.int64]:
    """The date (days since 1970) of the session to which each bar belongs [T], the same wherever the data begin.

    A bar that opens after a close belongs to the session that follows. 24/7 has the UTC day for a session, and a bar
    of a day or more is one of its own.
    """
    if calendar == ALWAYS_OPEN or interval.milliseconds >= DAY or not len(times):
        return times // DAY
    market = sessions(calendar, int(times.min()), int(times.max()))
    dates = np.append(market.dates, market.dates[-1] + 1)
    return dates[np.searchsorted(market.closes, times, side="right")]


def ordinals(times: Milliseconds, interval: Interval) -> npt.NDArray[np.int64]:
    """The calendar's number of each bar [T]: time // interval, or its month's number, counted from 1970.

    It does not depend on where the data begin, and rises strictly where bars lie at least one interval apart.
    UserError for events, which have no interval.
    """
    if interval.is_month:
        return times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64) // int(
            interval.name[:-1]
        )
    if not interval.milliseconds:
        raise UserError(
            "events have no interval, so the calendar gives them no number; number them by their ids"
        )
    return times // interval.milliseconds
