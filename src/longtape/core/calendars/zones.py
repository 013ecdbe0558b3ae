"""Time zones over whole arrays: UTC milliseconds to the clock on the wall, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from longtape.core.clock import DAY, SECOND, Milliseconds
from longtape.core.errors import UserError


def wall_clock(times: Milliseconds, zone: str) -> Milliseconds:
    """UTC milliseconds [T] → milliseconds of the clock on the wall in `zone` [T], daylight saving included.

    In autumn an hour of the wall clock comes twice; both stand for it. Raises UserError for an unknown zone.
    """
    if zone == "UTC" or not len(times):
        return times
    return times + _offsets_at(times, zone)


def from_wall_clock(wall: Milliseconds, zone: str) -> Milliseconds:
    """The UTC milliseconds at which the clock in `zone` shows `wall` [T]; exact but for the hours of a change."""
    if not len(wall):
        return wall
    near = wall - _offsets_at(wall, zone)
    return wall - _offsets_at(near, zone)


def _offsets_at(times: Milliseconds, zone: str) -> Milliseconds:
    changes, offsets = _changes(zone, year_of(int(times.min()) - DAY), year_of(int(times.max()) + DAY))
    return offsets[np.searchsorted(changes, times, side="right")]


def year_of(time: int) -> int:
    """The year (UTC) of a moment in milliseconds."""
    return int(np.datetime64(int(time), "ms").astype("datetime64[Y]").astype(np.int64)) + 1970


@lru_cache(maxsize=64)
def _changes(zone: str, first_year: int, last_year: int) -> tuple[Milliseconds, Milliseconds]:
    """When the clock changes in these years [K], and the offsets before, between and after [K + 1], milliseconds.

    `zoneinfo` tells the offset at a moment and not when it changes: it is asked once a day, and a day on which the
    answer changes is bisected.
    """
    known = time_zone(zone)
    years = np.array([f"{first_year:04}", f"{last_year + 1:04}"], "datetime64[Y]").astype("datetime64[D]")
    days = np.arange(*years.astype(np.int64)) * (DAY // SECOND)
    offsets = [_offset(known, int(day)) for day in days]
    at = np.flatnonzero(np.diff(offsets))
    changes = [_bisected(known, int(days[i]), int(days[i + 1])) for i in at]
    levels = [offsets[0], *(offsets[i + 1] for i in at)]
    return np.array(changes, np.int64) * SECOND, np.array(levels, np.int64) * SECOND


def time_zone(name: str) -> ZoneInfo:
    """The zone of a name such as America/New_York. Raises UserError for any other."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name at all; a folder of names
        raise UserError(f"unknown time zone '{name}'; zones have names like America/New_York") from None


def _offset(zone: ZoneInfo, seconds: int) -> int:
    moment = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
    return round(moment.utcoffset().total_seconds())  # type: ignore[union-attr]


def _bisected(zone: ZoneInfo, low: int, high: int) -> int:
    """The first second in (low, high] at which the offset is no longer that of `low`."""
    before = _offset(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(zone, middle) == before else (low, middle)
    return high
