"""How many bars a market's year holds: by its calendar, or read from the bars' own times where no calendar is known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from longtape.core.calendars.exchanges import exchange
from longtape.core.calendars.sessions import Sessions, sessions
from longtape.core.clock import ALWAYS_OPEN, DAY, WEEK, WEEKDAYS_ONLY, Interval, Milliseconds, to_milliseconds
from longtape.core.errors import UserError

TRADING_DAYS = 252  # sessions of a year where no calendar says it
FX_DAYS = 260
_REFERENCE = ("2005-01-01", "2025-01-01")  # twenty whole years over which an exchange's sessions are counted
_MONTH = 30.44 * DAY


def bars_per_year(interval: Interval, calendar: str) -> float:
    """Bars of a year of this market: the days it trades times the bars of a usual day.

    24/7 has 365 days, 24/5 has 260, an exchange the sessions it held in a year, on average over 2005 to 2024 and
    rounded (XNYS: 252). A session holds as many bars as begin in it, counted from its open, the last one cut short by
    its close: 6.5 hours are 7 bars of an hour. UserError for an unknown calendar, and for events, which have no
    interval.
    """
    if interval.is_month:
        return 12.0 / int(interval.name[:-1])
    return _per_year(interval.milliseconds, calendar)


def bars_per_day(interval: Interval, calendar: str) -> float:
    """Bars of a usual day on which the market trades; below one for bars longer than a day."""
    return bars_per_year(interval, calendar) / days_per_year(calendar)


def days_per_year(calendar: str) -> int:
    """Days of a year on which the market trades."""
    built_in = {ALWAYS_OPEN: 365, WEEKDAYS_ONLY: FX_DAYS}
    return built_in[calendar] if calendar in built_in else _sessions_per_year(calendar)


def _per_year(step: int, calendar: str) -> float:
    if step <= 0:
        raise UserError("events have no interval, so no number of them makes a year")
    if step >= WEEK and calendar != ALWAYS_OPEN:
        return 52 * WEEK / step
    if step >= DAY or calendar in (ALWAYS_OPEN, WEEKDAYS_ONLY):
        return days_per_year(calendar) * DAY / step
    return float(days_per_year(calendar) * _bars_per_session(step, calendar))


@lru_cache(maxsize=64)
def _reference(calendar: str) -> Sessions:
    known = exchange(calendar)
    first, end = (to_milliseconds(day) for day in _REFERENCE)
    first = max(first, known.first)
    market = sessions(calendar, first, end - 1)
    inside = (market.dates >= first // DAY) & (market.dates < end // DAY)
    columns = (market.dates, market.opens, market.closes, market.break_starts, market.break_ends)
    return Sessions(*(column[inside] for column in columns))


@lru_cache(maxsize=64)
def _sessions_per_year(calendar: str) -> int:
    years = _reference(calendar).dates.astype("datetime64[D]").astype("datetime64[Y]")
    return round(len(years) / len(np.unique(years)))


@lru_cache(maxsize=64)
def _bars_per_session(step: int, calendar: str) -> int:
    """The usual number of bars of a session; those that lie wholly in its break are none."""
    market = _reference(calendar)
    bars = -(-(market.closes - market.opens) // step)
    in_break = (market.break_ends - market.opens) // step + (market.opens - market.break_starts) // step
    return int(np.median(bars - np.maximum(in_break, 0)))


def periods_per_year(times: Milliseconds, calendars: Iterable[str | None]) -> tuple[float, str]:
    """Bars a year of a clock [T] (opens, UTC ms), and how that was found.

    By the calendar where all instruments share one that is known, else inferred from the (mixed) clock.
    """
    known = set(calendars)
    calendar = known.pop() if len(known) == 1 else None
    if calendar is None or len(times) < 2 or (step := usual_step(times)) >= 26 * DAY:
        return infer_periods_per_year(times)
    return _per_year(step, calendar), f"calendar {calendar}"


def usual_step(times: Milliseconds) -> int:
    """The length of a bar as the distances between bars tell it, milliseconds: the lower third of them.

    Not the median: in a market with two bars a session every other distance is a night. Up to a third of the
    distances may be too short (bars that do not belong), up to two thirds too long.
    """
    steps = np.diff(times)
    at = (len(steps) - 1) // 3
    likely = steps[at]  # nearly always it: two counts are a tenth of the time of a partition of everything
    if (steps < likely).sum() <= at < (steps <= likely).sum():
        return int(likely)
    return int(np.partition(steps, at)[at])


def infer_periods_per_year(times: Milliseconds) -> tuple[float, str]:
    """Bars a year and how that was found, from opening times [T] in UTC milliseconds, strictly rising.

    - From 26 days a bar counts in months, from 6 days in weeks.
    - A market never closes where the median Saturday and the median Sunday have half or more of a full weekday's
      bars: 365 days of the mean over the week. A full day is the third quartile, over weeks that have a bar: a few
      bars on Saturdays, holidays, and holes of a bar or of weeks change nothing.
    - Else full weekdays of 90 % of 24 hours or more mean 260 days, less 252 sessions, of as many bars. Daily bars: 252.
    - Without a whole Saturday or Sunday in the data, a market never closes if no day between is empty and the bars run
      around the clock (or, within 24 hours, fill half of them).

    One bar has no clock: NaN.
    """
    if len(times) < 2:
        return float("nan"), "one bar has no clock"
    step = usual_step(times)
    if step >= 26 * DAY:
        return 12.0 / max(round(step / _MONTH), 1), "months"
    if step >= 6 * DAY:
        return 52.0 * WEEK / step, "weeks"
    if step >= 1.5 * DAY:
        return _several_days(times, step)
    return _within_weeks(times, step)


def _several_days(times: Milliseconds, step: int) -> tuple[float, str]:
    """Bars of two to five days fall on a weekend in two of seven cases, or next to never."""
    at_weekends = (_weekdays(times // DAY) >= 5).mean()
    days, how = (365, ALWAYS_OPEN) if at_weekends > 1 / 7 else (TRADING_DAYS, "exchange days")
    return days * DAY / step, f"{how}, inferred"


def _within_weeks(times: Milliseconds, step: int) -> tuple[float, str]:
    days, counts = _bars_by_day(times)
    full = _full_weekday(days, counts)
    around_the_clock = full * step >= 0.9 * DAY
    weekend = _weekend_counts(days, counts)
    if not weekend:
        if _has_no_pause(times, step, counts, around_the_clock):
            return 365 * DAY / step, f"{ALWAYS_OPEN}, inferred"
    elif min(np.median(kind) for kind in weekend) >= full / 2:
        at_weekends = float(np.mean([_third_quartile(kind) for kind in weekend]))
        return 365 * (5 * full + 2 * at_weekends) / 7, f"{ALWAYS_OPEN}, inferred"
    if step >= 0.8 * DAY:
        return float(TRADING_DAYS), "exchange days, inferred"
    if around_the_clock:
        return float(FX_DAYS * full), f"{WEEKDAYS_ONLY}, inferred"
    return float(TRADING_DAYS * full), f"exchange sessions of {full} bars, inferred"


def _bars_by_day(times: Milliseconds) -> tuple[Milliseconds, npt.NDArray[np.int64]]:
    """UTC days from the first bar's to the last one's, without weeks that have no bar, and the bars of each."""
    days = np.arange(times[0] // DAY, times[-1] // DAY + 1)
    counts = np.diff(np.searchsorted(times, np.append(days, days[-1] + 1) * DAY))
    weeks = (days + 3) // 7
    kept = np.isin(weeks, weeks[counts > 0])
    return days[kept], counts[kept]


def _weekdays(days: Milliseconds) -> npt.NDArray[np.int64]:
    return (days + 3) % 7  # 0 = Monday; 1970-01-01 was a Thursday


def _full_weekday(days: Milliseconds, counts: npt.NDArray[np.int64]) -> int:
    """Bars of a full weekday; of a few days the fullest, as the first and the last may be cut short."""
    traded = counts[(counts > 0) & (_weekdays(days) < 5)]
    return _third_quartile(traded) if len(traded) > 4 else int(counts.max())


def _third_quartile(counts: npt.NDArray[np.int64]) -> int:
    return int(np.quantile(counts, 0.75, method="lower"))


def _weekend_counts(days: Milliseconds, counts: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Bars of the Saturdays and of the Sundays that lie between the first and the last day; of those there are."""
    inner, weekday = counts[1:-1], _weekdays(days)[1:-1]
    return [inner[weekday == day] for day in (5, 6) if (weekday == day).any()]


def _has_no_pause(
    times: Milliseconds, step: int, counts: npt.NDArray[np.int64], around_the_clock: bool
) -> bool:
    span = int(times[-1] - times[0]) + step
    within_a_day = span <= DAY and len(times) * step >= span / 2
    return bool((counts > 0).all()) and (around_the_clock or within_a_day)
