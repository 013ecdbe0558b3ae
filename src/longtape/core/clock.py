"""Time: UTC milliseconds and bar intervals. What a market makes of it is in `core.calendars`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt

from longtape.core.errors import UserError

Milliseconds = npt.NDArray[np.int64]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK, "M": 30 * DAY}

FIRST_MONDAY = 4 * DAY  # 1970-01-05: weeks begin on Mondays

ALWAYS_OPEN = "24/7"
WEEKDAYS_ONLY = "24/5"


@dataclass(frozen=True, order=True)
class Interval:
    """The length of a bar, written `5m`, `1h`, `1d`, `1w` or `1M` (a calendar month)."""

    milliseconds: int
    name: str

    @classmethod
    def parse(cls, text: str | Interval) -> Interval:
        """`"1h"` → Interval. Raises UserError for anything else than a number and one of s, m, h, d, w, M."""
        if isinstance(text, Interval):
            return text
        match = re.fullmatch(r"(\d+)(s|m|h|d|w|M)", str(text).strip())
        if not match or int(match[1]) == 0:
            raise UserError(f"interval '{text}' is not understood; write 1m, 5m, 1h, 4h, 1d, 1w or 1M")
        return cls(int(match[1]) * _UNITS[match[2]], f"{match[1]}{match[2]}")

    @property
    def is_month(self) -> bool:
        """Calendar months have no fixed length."""
        return self.name.endswith("M")

    def close_of(self, open_times: Milliseconds) -> Milliseconds:
        """The moment at which each bar is known: its open plus its length (months by the calendar)."""
        if not self.is_month:
            return open_times + self.milliseconds
        months = open_times.astype("datetime64[ms]").astype("datetime64[M]")
        after = months + np.timedelta64(int(self.name[:-1]), "M")
        return after.astype("datetime64[ms]").astype(np.int64)

    def __str__(self) -> str:
        return self.name


def to_milliseconds(when: str | datetime | date | int, what: str = "time") -> int:
    """An ISO date or time, a datetime or milliseconds since 1970 → UTC milliseconds; a naive time is UTC."""
    if isinstance(when, bool):
        raise UserError(f"{what}: {when!r} is not a time")
    if isinstance(when, (int, np.integer)):
        return int(when)
    if isinstance(when, date) and not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day)
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when.strip())
        except ValueError:
            raise UserError(
                f"{what}: '{when}' is not a time; write 2024-01-31 or 2024-01-31T12:00Z"
            ) from None
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


def iso(milliseconds: int) -> str:
    """UTC milliseconds → `2024-01-31 12:00Z` (seconds and below only where they are not zero)."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    spec = "minutes" if moment.second == 0 and moment.microsecond == 0 else "auto"
    return moment.replace(tzinfo=None).isoformat(sep=" ", timespec=spec) + "Z"
