"""From the times of a file to the opens of its bars: bars stamped at their close, days stamped at local midnight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longtape.core.calendars import is_due, local_time, wall_clock
from longtape.core.calendars.exchanges import BUILT_IN, exchange
from longtape.core.calendars.sessions import Sessions, sessions
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, MINUTE, SECOND, WEEK, Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.market.files.config import Stamp

_ENOUGH = 5  # days that tell where a market's midnight is
_CLEARLY = 0.2  # of the bars more inside the sessions by the local clock than by UTC
# Exchanges whose midnights are told from each other; of those that share a clock the largest stands here.
_MIDNIGHTS = (
    ("XNYS", "America/New_York"),
    ("XLON", "Europe/London"),
    ("XETR", "Europe/Berlin"),
    ("XHKG", "Asia/Hong_Kong"),
    ("XTKS", "Asia/Tokyo"),
    ("XBOM", "Asia/Kolkata"),
    ("XASX", "Australia/Sydney"),
    ("BVMF", "America/Sao_Paulo"),
)


def opens_of(
    times: Milliseconds, interval: Interval, calendar: str, stamp: Stamp | None, ends: bool, origin: str
) -> Milliseconds:
    """The opens of bars [T], UTC milliseconds, from their stamps.

    `ends`: the column is named as one of close times. Bars of a day become the date of their session at 00:00 UTC where
    the calendar is an exchange's. UserError for stamps that may be those of closes where `stamp` does not say, and for
    days that begin at some market's midnight where no calendar says which.
    """
    if not len(times):
        return times
    if stamp is None:
        _refuse_ends(times, interval, ends, origin)
    is_session = DAY <= interval.milliseconds < WEEK and calendar not in BUILT_IN and not interval.is_month
    if is_session:
        return _session_dates(times, interval, calendar, stamp, origin)
    if stamp == "close":
        times = _opens(_whole(times, interval), interval, calendar)
    if interval.milliseconds == DAY and calendar == ALWAYS_OPEN:
        _refuse_midnights(times, origin)
    return times


def _is_before(times: Milliseconds, interval: Interval) -> npt.NDArray[np.bool_]:
    """True where a time lies a hair before a boundary: a minute before the hour, a second before the minute, … [T]."""
    unit, hair = SECOND, 1
    if interval.milliseconds >= MINUTE:
        unit, hair = MINUTE, SECOND
    if interval.milliseconds >= 5 * MINUTE:
        unit, hair = min(interval.milliseconds, HOUR), MINUTE
    return np.asarray(times % unit >= unit - hair)


def _refuse_ends(times: Milliseconds, interval: Interval, ends: bool, origin: str) -> None:
    if _is_before(times, interval).all():
        raise UserError(
            f"{origin}: its times lie a hair before a boundary ({iso(int(times[0]))}): bars stamped at their close? say"
            " --stamp close, or --stamp open if they are not"
        )
    if ends:
        raise UserError(
            f"{origin}: the only time is that at which a bar closes; say --stamp close, or --stamp open if it is not"
        )


def _whole(times: Milliseconds, interval: Interval) -> Milliseconds:
    """A close a hair before a boundary (00:59:59.999) is that boundary."""
    unit = MINUTE if interval.milliseconds >= MINUTE else SECOND
    return np.where(_is_before(times, interval), (times // unit + 1) * unit, times)


def _opens(closes: Milliseconds, interval: Interval, calendar: str) -> Milliseconds:
    """Opens of bars that close then; on an exchange's calendar the last bar of a session may be cut short."""
    if interval.is_month:
        months = (closes - 1).astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64) + 1
        opened = (months - int(interval.name[:-1])).astype("datetime64[M]")
        return opened.astype("datetime64[ms]").astype(np.int64)
    step = interval.milliseconds
    if step > DAY and (closes % DAY == 0).all() and not _are_mondays(closes):
        closes = closes + DAY  # dates: a week that is named by its Friday closes at the end of that day
    if calendar in BUILT_IN or step >= DAY:
        return closes - step
    market = sessions(calendar, int(closes.min()) - DAY, int(closes.max()))
    own = np.clip(np.searchsorted(market.opens, closes, side="left") - 1, 0, None)
    inside = (closes > market.opens[own]) & (closes <= market.closes[own])
    in_session = market.opens[own] + (closes - 1 - market.opens[own]) // step * step
    return np.where(inside, in_session, closes - step)


def _are_mondays(times: Milliseconds) -> bool:
    return bool(((times // DAY + 3) % 7 == 0).all())


def doubtful_ends(times: Milliseconds, interval: Interval) -> str | None:
    """What to say of weeks that begin on another day than Monday, and of months that begin on their last day."""
    if not len(times) or (times % DAY).any():
        return None
    if interval.is_month:
        days = times.astype("datetime64[ms]").astype("datetime64[D]")
        last = (days + 1).astype("datetime64[M]") > days.astype("datetime64[M]")
        return (
            "months are stamped on their last day: --stamp close makes it their first" if last.all() else None
        )
    if interval.milliseconds % WEEK or _are_mondays(times):
        return None
    return "weeks do not begin on Mondays: if their times are the days on which they end, say --stamp close"


def _session_dates(
    times: Milliseconds, interval: Interval, calendar: str, stamp: Stamp | None, origin: str
) -> Milliseconds:
    """The dates, at 00:00 UTC, of the sessions that the stamps of days stand for.

    Midnight, UTC or the market's own, stands for that date; at --stamp close a market's midnight ends the date before.
    Any other moment stands for the session that is open then or opens next, at --stamp close for the one that ended
    last.
    """
    if (times % DAY == 0).all():
        return times
    if stamp == "close":
        ends = _whole(times, interval)
        if (ends % DAY == 0).all():  # the last moment of a date
            return ends - DAY
        times = ends
    local = local_time(times, calendar)
    if (local % DAY == 0).all():
        return (local // DAY - (stamp == "close")) * DAY
    market = sessions(calendar, int(times.min()) - DAY, int(times.max()) + DAY)
    found = _ended(market, times) if stamp == "close" else _opening(market, times, origin)
    if len(found) > 1 and (np.diff(found) == 0).any():
        row = int(np.argmax(np.diff(found) == 0)) + 2
        raise UserError(
            f"{origin}: row {row} ({iso(int(times[row - 1]))}) is of the same session of {calendar} as the row before;"
            " name the right --calendar and --interval"
        )
    return found * DAY


def _ended(market: Sessions, times: Milliseconds) -> npt.NDArray[np.int64]:
    return market.dates[np.clip(np.searchsorted(market.closes, times, side="right") - 1, 0, None)]


def _opening(market: Sessions, times: Milliseconds, origin: str) -> npt.NDArray[np.int64]:
    place = np.searchsorted(market.closes, times, side="right")
    far = market.opens[np.minimum(place, len(market.opens) - 1)] - times > DAY // 2
    if far.any():
        row = int(np.argmax(far)) + 1
        raise UserError(
            f"{origin}: row {row} ({iso(int(times[row - 1]))}) is of no session; if days are stamped at their close say"
            " --stamp close, else name the right --calendar"
        )
    return market.dates[place]


def _refuse_midnights(times: Milliseconds, origin: str) -> None:
    """Days of 24/7 begin at one hour. Two an hour apart, or another than 00:00 and no weekends, are an exchange's."""
    phases = np.unique(times % DAY)
    if len(times) < _ENOUGH or (len(phases) == 1 and phases[0] == 0):
        return
    fits = [code for code, zone in _MIDNIGHTS if (wall_clock(times, zone) % DAY == 0).all()]
    if not fits:
        return
    days = wall_clock(times, dict(_MIDNIGHTS)[fits[0]]) // DAY
    if (
        len(phases) == 1 and ((days + 3) % 7 >= 5).any()
    ):  # a market that never closes may turn its day at any hour
        return
    hours = " and ".join(f"{phase // HOUR:02}:{phase % HOUR // MINUTE:02}Z" for phase in phases)
    raise UserError(
        f"{origin}: days begin at {hours}, midnight of an exchange; name it: --calendar {' or --calendar '.join(fits)}"
    )


def calendar_is_doubtful(opens: Milliseconds, interval: Interval, calendar: str) -> bool:
    """Whether bars of a market that is said never to close leave out every weekend of two weeks or more."""
    if calendar != ALWAYS_OPEN or interval.milliseconds > DAY or not len(opens):
        return False
    weekdays = (opens // DAY + 3) % 7
    return bool(opens[-1] - opens[0] >= 2 * WEEK and not (weekdays == 5).any() and len(opens) >= 2 * _ENOUGH)


def refuse_local_times(times: Milliseconds, interval: Interval, calendar: str, origin: str) -> None:
    """UserError where times without a zone are not UTC: they fit the sessions of the exchange by its own clock alone,
    or leave out the very hour that some zone's clock skips in spring.
    """
    if interval.milliseconds >= DAY or not len(times):
        return
    if calendar in BUILT_IN:
        _refuse_skipped_hours(times, interval, origin)
        return
    zone = exchange(calendar).zone
    shift = wall_clock(times, zone) - times
    by_utc, by_clock = (is_due(moments, interval, calendar).mean() for moments in (times, times - shift))
    if by_clock > by_utc + _CLEARLY:
        raise UserError(
            f"{origin}: {1 - by_utc:.0%} of the bars lie outside the sessions of {calendar}, and {1 - by_clock:.0%} if"
            f" their times are those of its own clock; say --time-zone {zone}, or --time-zone UTC if they are not"
        )


def _refuse_skipped_hours(times: Milliseconds, interval: Interval, origin: str) -> None:
    """Bars around the clock that lack the hour after each change to summer time, and begin and end at its borders."""
    if HOUR % interval.milliseconds:
        return
    for zone in (zone for _, zone in _MIDNIGHTS):
        skipped = _skipped_hours(int(times[0]), int(times[-1]), zone)
        around = (skipped - interval.milliseconds, skipped + HOUR)
        if (
            len(skipped)
            and all(np.isin(t, times).all() for t in around)
            and not np.isin(skipped, times).any()
        ):
            raise UserError(
                f"{origin}: the hour from {iso(int(skipped[0]))} is missing, as it is on the clocks of {zone}; say"
                f" --time-zone {zone} if the times are theirs, or --time-zone UTC if they are not"
            )


def _skipped_hours(first: int, last: int, zone: str) -> Milliseconds:
    """Hours within [first, last] that the clock of a zone never shows: it is put on in spring."""
    hours = np.arange(first // HOUR, last // HOUR + 1, dtype=np.int64) * HOUR
    shown = wall_clock(hours, zone)
    put_on = np.flatnonzero(np.diff(shown) == 2 * HOUR)
    skipped = shown[put_on] + HOUR
    return skipped[(skipped > first) & (skipped + HOUR <= last)]
