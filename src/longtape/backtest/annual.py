"""How many bars a year holds, read from the bars' own times where no calendar says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtape.core.clock import ALWAYS_OPEN, DAY, TRADING_DAYS, WEEKDAYS_ONLY, Interval, Milliseconds
from longtape.core.instrument import Instrument


def infer_periods_per_year(clock: Milliseconds) -> tuple[float, str]:
    """Bars a year and how that was found, from opening times [T] in UTC milliseconds.

    Bars on Saturdays mean a market that never closes (365 days); otherwise 252 sessions of as many bars as a
    session usually has here, or 260 days where bars run around the clock. One bar has no clock: NaN.
    """
    if len(clock) < 2:
        return float("nan"), "one bar has no clock"
    step = int(np.median(np.diff(clock)))
    if step >= 26 * DAY:
        return 12.0 / max(round(step / (30.44 * DAY)), 1), "months"
    if step >= 6 * DAY:
        return 52.0 * 7 * DAY / step, "weeks"
    if _never_closes(clock, step):
        return 365 * DAY / step, f"{ALWAYS_OPEN}, inferred"
    if step >= 0.8 * DAY:
        return float(TRADING_DAYS), "exchange days, inferred"
    days, counts = np.unique(clock // DAY, return_counts=True)
    usual = (
        float(np.median(counts[_weekday(days) < 5])) if (_weekday(days) < 5).any() else float(counts.max())
    )
    if usual * step >= 0.9 * DAY:
        return 260 * DAY / step, f"{WEEKDAYS_ONLY}, inferred"
    return TRADING_DAYS * usual, f"exchange sessions of {usual:g} bars, inferred"


def _weekday(days: Milliseconds) -> Milliseconds:
    """0 = Monday; 1970-01-01 was a Thursday."""
    return (days + 3) % 7


def _never_closes(clock: Milliseconds, step: int) -> bool:
    days = np.unique(clock // DAY)
    if (_weekday(days) == 5).any():
        return True
    spans_saturday = (_weekday(np.arange(days[0], days[-1] + 1)) == 5).any()
    return not spans_saturday and bool(np.diff(clock).max() <= 1.5 * step)


def periods_per_year(clock: Milliseconds, instruments: Sequence[Instrument | None]) -> tuple[float, str]:
    """Bars a year: by the instruments' calendar where all share one, else inferred from the (mixed) clock."""
    calendars = {i.calendar if i else None for i in instruments}
    calendar = calendars.pop() if len(calendars) == 1 else None
    if calendar is None or len(clock) < 2:
        return infer_periods_per_year(clock)
    step = int(np.median(np.diff(clock)))
    if step >= 26 * DAY:
        return infer_periods_per_year(clock)
    return Interval(step, "").bars_per_year(calendar), f"calendar {calendar}"
