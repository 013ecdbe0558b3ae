"""Which bars should be there and are not, by the market's calendar."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.clock import ALWAYS_OPEN, DAY, HOUR, WEEK, WEEKDAYS_ONLY, Interval, Milliseconds
from longtape.core.errors import UserError, require

Flags = npt.NDArray[np.bool_]
Dates = npt.NDArray[np.datetime64]
_FX_ZONE, _FX_TURN = "America/New_York", 17


@dataclass(frozen=True)
class Gap:
    """Bars that are missing between two that are there: opens of the first and last missing one (UTC ms), and count."""

    first: int
    last: int
    missing: int


def steps_between(times: Milliseconds, interval: Interval) -> npt.NDArray[np.int64]:
    """Whole steps from each row to the next [T − 1]; a day may be an hour short or long (daylight saving)."""
    if interval.is_month:
        months = times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        return np.diff(months) // int(interval.name[:-1])
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
    return absent[market_open(absent, interval, calendar)] if len(absent) else absent


def group(missing: Milliseconds, times: Milliseconds) -> tuple[Gap, ...]:
    """Missing open times → gaps, one for each pair of neighbouring rows that has any between them."""
    if not len(missing):
        return ()
    place = np.searchsorted(times, missing)
    edges = np.flatnonzero(np.r_[True, place[1:] != place[:-1], True])
    return tuple(Gap(int(missing[a]), int(missing[b - 1]), int(b - a)) for a, b in pairwise(edges))


def market_open(opens: Milliseconds, interval: Interval, calendar: str) -> Flags:
    """True where the market trades at some moment of the bar that opens then [T]."""
    if calendar == ALWAYS_OPEN or not len(opens):
        return np.ones(len(opens), dtype=bool)
    if calendar == WEEKDAYS_ONLY:
        return _weekdays_open(opens, interval)
    return _exchange_open(opens, interval, calendar)


def _weekdays_open(opens: Milliseconds, interval: Interval) -> Flags:
    """Foreign exchange: days that end at 17:00 New York, Monday to Friday, without 25 December and 1 January."""
    if interval.milliseconds >= WEEK:
        return np.ones(len(opens), dtype=bool)
    if interval.milliseconds >= DAY:
        return _is_weekday(_session_dates(opens, _FX_ZONE))
    ends = interval.close_of(opens) - 1
    return _is_weekday(_fx_dates(opens)) | _is_weekday(_fx_dates(ends))


def _fx_dates(moments: Milliseconds) -> Dates:
    return ((_local(moments, _FX_ZONE) + (24 - _FX_TURN) * HOUR) // DAY).astype("datetime64[D]")


def _is_weekday(dates: Dates) -> Flags:
    in_year = dates - dates.astype("datetime64[Y]").astype("datetime64[D]")
    to_next = (dates.astype("datetime64[Y]") + 1).astype("datetime64[D]") - dates
    return np.is_busday(dates) & (in_year.astype(np.int64) != 0) & (to_next.astype(np.int64) != 7)


def _local(moments: Milliseconds, zone: str) -> Milliseconds:
    """UTC milliseconds → milliseconds of the clock on the wall there."""
    local = pl.Series(moments).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(zone)
    return local.dt.replace_time_zone(None).dt.timestamp("ms").to_numpy()


def _exchange_open(opens: Milliseconds, interval: Interval, code: str) -> Flags:
    calendar = _exchange(code, int(opens[0]), int(interval.close_of(opens[-1:])[0]))
    if DAY <= interval.milliseconds < WEEK:
        sessions = calendar.sessions.values.astype("datetime64[D]")
        return np.isin(_session_dates(opens, str(calendar.tz)), sessions)
    starts, ends = _trading_spans(calendar)
    following = np.searchsorted(ends, opens, side="right")
    starts = np.r_[starts, np.iinfo(np.int64).max]
    return starts[following] < interval.close_of(opens)


def _session_dates(opens: Milliseconds, zone: str) -> Dates:
    """Midnight UTC stands for the date itself; any other hour is a moment, and its date is the market's."""
    moments = _local(opens, zone) if (opens % DAY != 0).any() else opens
    return (moments // DAY).astype("datetime64[D]")


def _trading_spans(calendar: Any) -> tuple[Milliseconds, Milliseconds]:
    """Starts and ends of trading, lunch breaks taken out."""
    table = calendar.schedule[["open", "break_start", "break_end", "close"]]
    moments = np.stack(
        [table[name].dt.tz_localize(None).to_numpy("datetime64[ms]") for name in table.columns], axis=1
    )
    whole = np.isnat(moments[:, 1])
    spans = np.concatenate(
        [moments[whole][:, [0, 3]], moments[~whole][:, [0, 1]], moments[~whole][:, [2, 3]]]
    )
    spans = np.sort(spans.astype(np.int64), axis=0)
    return spans[:, 0], spans[:, 1]


def _exchange(code: str, first: int, last: int) -> Any:
    library = require("exchange_calendars", "calendars")
    if code not in library.get_calendar_names():
        raise UserError(f"calendar '{code}' is not known; write 24/7, 24/5 or an exchange code such as XNYS")
    dates = [
        str(np.datetime64(moment, "ms").astype("datetime64[D]")) for moment in (first - WEEK, last + WEEK)
    ]
    return library.get_calendar(code, start=dates[0], end=dates[1])


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
