"""The names of calendars, and the facts that exchange_calendars keeps of an exchange."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from longtape.core.clock import ALWAYS_OPEN, DAY, WEEKDAYS_ONLY
from longtape.core.errors import UserError, require

BUILT_IN = (ALWAYS_OPEN, WEEKDAYS_ONLY)
NEVER = np.iinfo(np.int64).max
_SAMPLE = ("2024-01-02", "2024-02-29")  # a span that every calendar of the package covers


def require_calendar(name: str, where: str = "") -> str:
    """The calendar's usual name (XNYS for NYSE), if `name` is one; `where` (a file, a field) opens the error's line.

    Raises UserError with the nearest name for an unknown one, and one that names the extra `calendars` where an
    exchange is asked for without it. 24/7 and 24/5 need no package.
    """
    if name not in BUILT_IN:
        nearest = get_close_matches(str(name), BUILT_IN, n=1)
        if nearest or name not in _library().get_calendar_names():
            raise _unknown(name, nearest, where)
        return str(_library().resolve_alias(name))
    return name


def _unknown(name: object, nearest: list[str], where: str) -> UserError:
    near = nearest or get_close_matches(str(name).upper(), _library().get_calendar_names(), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "write 24/7, 24/5 or an exchange code such as XNYS"
    return UserError(f"{where + ': ' if where else ''}unknown calendar '{name}'; {hint}")


def _library() -> ModuleType:
    return require("exchange_calendars", "calendars")


@dataclass(frozen=True)
class Exchange:
    """An exchange's time zone, and the span in which its sessions are known (UTC ms; half-open)."""

    code: str
    zone: str
    first: int
    end: int


@lru_cache(maxsize=64)
def exchange(code: str) -> Exchange:
    """Facts of an exchange. UserError for a name that is none."""
    calendar = build(require_calendar(code), *_SAMPLE)
    known = type(calendar)
    return Exchange(
        code,
        str(calendar.tz),
        -NEVER if known.bound_min() is None else _midnight(known.bound_min()),
        NEVER if known.bound_max() is None else _midnight(known.bound_max()) + DAY,
    )


def _midnight(day: Any) -> int:
    return int(day.to_datetime64().astype("datetime64[ms]").astype(np.int64))


def build(code: str, first_day: str, last_day: str) -> Any:
    """The calendar object of exchange_calendars for [first_day, last_day] (ISO dates)."""
    library = _library()
    try:
        return library.get_calendar(code, start=first_day, end=last_day)
    except (ValueError, NotImplementedError, library.errors.CalendarError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"calendar {code}: exchange_calendars cannot give {first_day} to {last_day} ({why})"
        ) from None
