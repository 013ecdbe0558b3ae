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
    step = usual_step(clock)
    if step >= 26 * DAY:
        return 12.0 / max(round(step / (30.44 * DAY)), 1), "months"
    if step >= 6 * DAY:
        return 52.0 * 7 * DAY / step, "weeks"
    days = np.arange(clock[0] // DAY, clock[-1] // DAY + 1)
    counts = np.diff(np.searchsorted(clock, np.append(days, days[-1] + 1) * DAY))
    weekday = (days + 3) % 7  # 0 = Monday; 1970-01-01 was a Thursday
    if _never_closes(clock, step, counts[weekday == 5]):
        return 365 * DAY / step, f"{ALWAYS_OPEN}, inferred"
    if step >= 0.8 * DAY:
        return float(TRADING_DAYS), "exchange days, inferred"
    usual = float(np.median(counts[(counts > 0) & (weekday < 5)]))
    if usual * step >= 0.9 * DAY:
        return 260 * DAY / step, f"{WEEKDAYS_ONLY}, inferred"
    return TRADING_DAYS * usual, f"exchange sessions of {usual:g} bars, inferred"


def usual_step(clock: Milliseconds) -> int:
    """Median distance between bars, in milliseconds, from a few thousand of them."""
    at = np.unique(np.linspace(0, len(clock) - 2, 4097).astype(np.int64))
    return int(np.median(clock[at + 1] - clock[at]))


def _never_closes(clock: Milliseconds, step: int, saturdays: Milliseconds) -> bool:
    """Bars on Saturdays; where the data hold no Saturday, no break between bars."""
    if len(saturdays):
        return bool(saturdays.any())
    return bool(np.diff(clock).max() <= 1.5 * step)


def periods_per_year(clock: Milliseconds, instruments: Sequence[Instrument | None]) -> tuple[float, str]:
    """Bars a year: by the instruments' calendar where all share one, else inferred from the (mixed) clock."""
    calendars = {i.calendar if i else None for i in instruments}
    calendar = calendars.pop() if len(calendars) == 1 else None
    if calendar is None or len(clock) < 2:
        return infer_periods_per_year(clock)
    step = usual_step(clock)
    if step >= 26 * DAY:
        return infer_periods_per_year(clock)
    return Interval(step, "").bars_per_year(calendar), f"calendar {calendar}"
