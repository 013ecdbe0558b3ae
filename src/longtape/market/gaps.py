"""Which bars should be there and are not, by the market's calendar."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from longtape.core.arrays import Flags
from longtape.core.calendars import is_due, ordinals
from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, Interval, Milliseconds


@dataclass(frozen=True)
class Gap:
    """Bars that are missing between two that are there: opens of the first and last missing one (UTC ms), and count."""

    first: int
    last: int
    missing: int


def steps_between(times: Milliseconds, interval: Interval) -> npt.NDArray[np.int64]:
    """Whole steps from each row to the next [T − 1]; a day may be an hour short or long (daylight saving)."""
    if interval.is_month:
        return np.diff(ordinals(times, interval))
    steps = np.diff(times)
    if interval.milliseconds >= DAY:
        return np.rint(steps / interval.milliseconds).astype(np.int64)
    return steps // interval.milliseconds


def left_out(times: Milliseconds, interval: Interval) -> Milliseconds:
    """Every open time that a clock without closing hours would have between the rows and is not there.

    `times` rises strictly.
    """
    steps = steps_between(times, interval)
    before = np.flatnonzero(steps > 1)
    counts = steps[before] - 1
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    start = np.repeat(times[before], counts)
    if not interval.is_month:
        return start + nth * interval.milliseconds
    months = start.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    return (
        (months + nth * int(interval.name[:-1]))
        .astype("datetime64[M]")
        .astype("datetime64[ms]")
        .astype(np.int64)
    )


def missing_times(times: Milliseconds, interval: Interval, calendar: str) -> Milliseconds:
    """Open times of the bars that are missing although the market was open, between the first row and the last.

    `times` rises strictly. An exchange calendar needs the extra `calendars`; UserError for an unknown one.
    """
    absent = left_out(times, interval)
    return absent[is_due(absent, interval, calendar)]


def group(missing: Milliseconds, times: Milliseconds) -> tuple[Gap, ...]:
    """Missing open times → gaps, one for each pair of neighbouring rows that has any between them."""
    if not len(missing):
        return ()
    place = np.searchsorted(times, missing)
    edges = np.flatnonzero(np.r_[True, place[1:] != place[:-1], True])
    return tuple(Gap(int(missing[a]), int(missing[b - 1]), int(b - a)) for a, b in pairwise(edges))


def off_grid(times: Milliseconds, interval: Interval, calendar: str) -> Flags:
    """True where a row does not sit on the grid that most rows share [T].

    Around the clock the grid is the bar's own; a market with sessions shifts by whole hours with daylight saving; days
    may differ by two hours.
    """
    if interval.is_month or not len(times):
        return np.zeros(len(times), dtype=bool)
    if interval.milliseconds >= DAY:
        phase = times % DAY
        distance = np.abs(phase - np.median(phase))
        return np.minimum(distance, DAY - distance) > 2 * HOUR
    unit = interval.milliseconds if calendar == ALWAYS_OPEN else min(interval.milliseconds, HOUR)
    phase = times % unit
    if (phase == phase[0]).all():
        return np.zeros(len(times), dtype=bool)
    phases, counts = np.unique(phase, return_counts=True)
    return np.asarray(phase != phases[counts.argmax()])
