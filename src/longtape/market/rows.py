"""What candles, books and trades of one instrument have in common: rows in order of time, in UTC, checked."""

from __future__ import annotations

import copy
import hashlib
from datetime import date, datetime
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Flags, Floats
from longtape.core.clock import Milliseconds, iso, to_milliseconds
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.core.shown import Shown
from longtape.market.frames import to_pandas
from longtape.market.timestamps import TimeUnit, in_utc

Moment = str | datetime | date | int


class Rows(Shown):
    """Rows of one instrument in order of time: `frame` has `timestamp` (UTC). The base of Bars, Books and Trades."""

    instrument: Instrument
    frame: pl.DataFrame
    origin: str

    def __len__(self) -> int:
        return self.frame.height

    @property
    def symbol(self) -> str:
        """The instrument's symbol."""
        return self.instrument.symbol

    @property
    def timestamps(self) -> Milliseconds:
        """Times of the rows [T], UTC milliseconds; a finer time is rounded down."""
        return self.frame["timestamp"].dt.timestamp("ms").to_numpy()

    @property
    def known_at(self) -> Milliseconds:
        """When each row is known [T], UTC milliseconds."""
        raise NotImplementedError

    def column(self, name: str) -> Floats:
        """A column as float64 [T]; UserError if there is none of that name."""
        if name not in self.frame.columns:
            raise UserError(f"{self.origin}: no column '{name}'; there are {', '.join(self.frame.columns)}")
        return self.frame[name].cast(pl.Float64).to_numpy()

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        raise NotImplementedError

    def with_frame(self, frame: pl.DataFrame) -> Self:
        """The same with other rows of the same kind, which are not checked again."""
        made = copy.copy(self)
        object.__setattr__(made, "frame", frame)
        return made

    def between(self, since: Moment | None = None, until: Moment | None = None) -> Self:
        """Rows whose time is in [since, until): text, dates or datetimes in UTC, or milliseconds since 1970."""
        times = self.timestamps
        low = 0 if since is None else int(np.searchsorted(times, to_milliseconds(since, "since")))
        high = len(times) if until is None else int(np.searchsorted(times, to_milliseconds(until, "until")))
        return self.with_frame(self.frame.slice(low, max(high - low, 0)))

    def to_pandas(self) -> Any:
        """The rows as a pandas frame, their times (UTC) as its index."""
        return to_pandas(self.frame)

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        times = self.timestamps
        span = {"first": iso(int(times[0])), "last": iso(int(times[-1]))} if len(times) else {}
        return {"rows": len(self), **span, "columns": ", ".join(self.frame.columns[1:9])}

    @property
    def title(self) -> str:
        """The instrument's key."""
        return self.instrument.key

    def preview(self) -> pl.DataFrame:
        """The first and last rows."""
        return self.frame if len(self) <= 6 else pl.concat([self.frame.head(3), self.frame.tail(3)])


def require_columns(frame: pl.DataFrame, names: tuple[str, ...], origin: str) -> None:
    """UserError for the first column that is not there."""
    for name in names:
        if name not in frame.columns:
            listed = ", ".join(frame.columns[:20]) or "none"
            raise UserError(f"{origin}: column '{name}' is missing; there are {listed}")


def as_times(times: pl.Series, origin: str, unit: TimeUnit = "ms", sparse: bool = False) -> pl.Series:
    """A column of times in UTC and `unit`, none missing unless `sparse`; a time without zone is UTC."""
    if not isinstance(times.dtype, pl.Datetime):
        raise UserError(f"{origin}: column '{times.name}' is {times.dtype}, not a date and time")
    if times.null_count() and not sparse:
        raise UserError(f"{origin}: row {int(times.is_null().arg_max() or 0) + 1} has no {times.name}")
    return in_utc(times, unit)


def in_full_milliseconds(times: pl.Series) -> Milliseconds:
    """Times in µs → UTC milliseconds [T], rounded up: not before the event."""
    return -(-times.dt.timestamp("us").to_numpy() // 1_000)


def as_numbers(values: pl.Series, origin: str, dtype: type[pl.DataType] = pl.Float64) -> pl.Series:
    """A column as Float64 or another type of number; UserError where it holds something else."""
    try:
        return values.cast(dtype)
    except pl.exceptions.PolarsError:
        raise UserError(f"{origin}: column '{values.name}' holds {values.dtype}, not numbers") from None


def refuse_disorder(times: npt.NDArray[np.int64], at: Milliseconds, origin: str) -> None:
    """UserError where a row is earlier than the one before; `times` in any unit, `at` the same in UTC ms."""
    early = np.diff(times) < 0
    if early.any():
        row = int(np.argmax(early)) + 1
        raise UserError(
            f"{origin}: row {row + 1} ({iso(int(at[row]))}) is earlier than the row before; sort by time"
        )


def refuse_values(bad: Flags, values: pl.Series, what: str, at: Milliseconds, origin: str) -> None:
    """UserError naming the first row where `bad`, its time (`at`, UTC ms), the column and the value."""
    if not bad.any():
        return
    row = int(np.argmax(bad))
    value = "empty" if values[row] is None else f"{values[row]:g}"
    raise UserError(
        f"{origin}: row {row + 1} ({iso(int(at[row]))}), column '{values.name}': {what} ({value});"
        f" mend or remove the row ({int(bad.sum())} such)"
    )


def digest(label: str, frame: pl.DataFrame) -> str:
    """SHA-256 over the label and every column's name and values: the same on every machine."""
    found = hashlib.sha256(label.encode())
    for column in frame.iter_columns():
        found.update(f"/{column.name}/".encode())
        found.update(_bytes(column))
    return found.hexdigest()


def _bytes(column: pl.Series) -> bytes:
    if column.dtype == pl.String:
        return "\n".join(column.fill_null("")).encode()
    if column.dtype.is_float():
        return column.to_numpy().tobytes()  # what is missing becomes NaN
    return column.to_physical().fill_null(-1).to_numpy().tobytes()
