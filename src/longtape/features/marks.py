"""Marks of market time: bars that a sparse attention lets every other bar see.

A mark is a moment: a session opens or closes, a day or a week begins, funding is paid, an event takes place. It stands
at the last bar of the window that does not open after it. A window gets it only when, at the window's last close, the
moment has passed and was publicly known; so no position tells of the future, and cutting the data changes none. What
begins at the very moment of that close (a day, a session) belongs to the bar that opens then; a session that closes at
it has closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.core.calendars import require_calendar, session_closes, session_opens
from longtape.core.clock import ALWAYS_OPEN, DAY, FIRST_MONDAY, HOUR, WEEK, Milliseconds, to_milliseconds
from longtape.core.errors import UserError
from longtape.features.panel import Panel
from longtape.features.windows import Rows

MarkKind = Literal["session_open", "session_close", "day", "week", "funding"]


class MarksConfig(BaseModel):
    """Which moments become global tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[MarkKind, ...] = Field((), description="regular moments")
    calendar: str | None = Field(
        None, description="calendar of the sessions, e.g. XNYS or 24/5; left out: the data's"
    )
    funding_hours: int | None = Field(
        None, gt=0, le=24, description="hours between funding payments, from 00:00 UTC"
    )
    events: Path | None = Field(None, description="CSV with the columns time, announced and, if wanted, name")
    limit: int = Field(16, ge=1, description="marks per window at most, the newest")

    @model_validator(mode="after")
    def _every_option_has_effect(self) -> MarksConfig:
        if not self.kinds and self.events is None:
            raise ValueError("marks: name kinds (session_open, day, …) or an events file")
        if self.calendar is not None and not {"session_open", "session_close"} & set(self.kinds):
            raise ValueError("marks: calendar is for session_open and session_close, and neither is named")
        if self.calendar is not None:
            require_calendar(self.calendar, "marks")
        if ("funding" in self.kinds) != (self.funding_hours is not None):
            raise ValueError("marks: the kind funding and funding_hours go together")
        return self

    def refuse_market_without_sessions(self, calendar: str) -> None:
        """UserError where sessions are marked and neither these options nor the data's calendar have any."""
        asks = {"session_open", "session_close"} & set(self.kinds)
        if asks and self.calendar is None and calendar == ALWAYS_OPEN:
            raise UserError(
                f"marks: a {calendar} market has no sessions; name marks.calendar (e.g. XNYS), or use day, week,"
                " funding"
            )


@dataclass(frozen=True, eq=False)
class Events:
    """Moments from a list, and when each was announced: UTC milliseconds [E], ascending in time."""

    times: Milliseconds
    announced: Milliseconds
    names: tuple[str, ...] = field(default=())

    def as_of(self, time: int) -> Events:
        """The events that had been announced by `time`."""
        known = self.announced <= time
        names = tuple(name for name, keep in zip(self.names, known, strict=False) if keep)
        return Events(self.times[known], self.announced[known], names)


def read_events(path: str | Path) -> Events:
    """Events of a CSV with the columns `time` and `announced` (ISO times, UTC if naive) and optionally `name`.

    When an event was announced must be given for each: without it nobody could say from when it was known.
    """
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]})") from None
    for column in ("time", "announced"):
        if column not in frame.columns:
            raise UserError(f"{path}: column '{column}' is missing; there are {', '.join(frame.columns)}")
    frame = frame.with_columns(_moments(frame[name], path) for name in ("time", "announced")).sort("time")
    names = tuple(frame["name"].fill_null("").to_list()) if "name" in frame.columns else ()
    return Events(frame["time"].to_numpy(), frame["announced"].to_numpy(), names)


def _moments(texts: pl.Series, path: str | Path) -> pl.Series:
    moments = []
    for row, text in enumerate(texts, start=2):
        if text is None:
            raise UserError(f"{path}: line {row} has no '{texts.name}'")
        moments.append(to_milliseconds(text, f"{path}: line {row}, {texts.name}"))
    return pl.Series(texts.name, moments, dtype=pl.Int64)


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks of one panel: the row each stands at and from when it is known [M], rows ascending."""

    rows: Rows
    known: Milliseconds
    panel: Panel
    limit: int

    def positions(self, origins: Rows, lookback: int) -> Rows:
        """Positions [B, limit] inside the windows that end at `origins`: ascending, 0 = oldest bar, then −1 = none.

        Ready for `global_positions` of BigBird and Longformer. Of more marks than `limit` the newest stay.
        """
        out = np.full((len(origins), self.limit), -1, np.int64)
        lows = np.searchsorted(self.rows, origins - lookback + 1)
        highs = np.searchsorted(
            self.rows, origins + 1, side="right"
        )  # the next bar may open as this one closes
        for window, origin, low, high in zip(out, origins, lows, highs, strict=True):
            passed = self.known[low:high] <= self.panel.known_at[origin]
            rows = np.minimum(self.rows[low:high][passed], origin)
            inside = np.unique(rows)[-self.limit :] - (origin - lookback + 1)
            window[: len(inside)] = inside
        return out


def build_marks(panel: Panel, config: MarksConfig, events: Events | None = None) -> Marks:
    """Marks of `panel`. `events` stands for the file named in the configuration, e.g. cut to what was announced."""
    moments, known = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for kind in config.kinds:
        moments.append(_regular(kind, panel, config))
        known.append(moments[-1] + (kind != "session_close"))
    if config.events is not None:
        listed = read_events(config.events) if events is None else events
        moments.append(listed.times)
        known.append(np.maximum(listed.times + 1, listed.announced))
    times, when = np.concatenate(moments), np.concatenate(known)
    rows = np.searchsorted(panel.timestamps, times, side="right") - 1
    covered = (rows >= 0) & (times <= panel.known_at[-1])
    order = np.lexsort((when[covered], rows[covered]))
    return Marks(rows[covered][order], when[covered][order], panel, config.limit)


def _regular(kind: MarkKind, panel: Panel, config: MarksConfig) -> Milliseconds:
    first, last = int(panel.timestamps[0]), int(panel.known_at[-1])
    if kind == "day":
        return _every(first, last, DAY, 0)
    if kind == "week":
        return _every(first, last, WEEK, FIRST_MONDAY)
    if kind == "funding":
        return _every(first, last, (config.funding_hours or 0) * HOUR, 0)
    calendar = config.calendar or panel.calendar
    config.refuse_market_without_sessions(panel.calendar)
    return (session_opens if kind == "session_open" else session_closes)(calendar, first, last)


def _every(first: int, last: int, step: int, offset: int) -> Milliseconds:
    begin = -(-(first - offset) // step) * step + offset
    return np.arange(begin, last + 1, step, dtype=np.int64)
