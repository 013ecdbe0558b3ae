"""Bars: the candles of one symbol and one interval, in UTC, checked. What the store gives and features take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Flags, Floats
from longtape.core.calendars import require_calendar
from longtape.core.clock import ALWAYS_OPEN, Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.frames import as_frame, lower_case
from longtape.market.rows import Rows, as_numbers, as_times, refuse_disorder, refuse_values, require_columns

PRICES = ("open", "high", "low", "close")
COLUMNS = ("timestamp", *PRICES, "volume")
TIME_TYPE = pl.Datetime("ms", "UTC")


@dataclass(frozen=True, eq=False, repr=False)
class Bars(Rows):
    """One symbol, one interval, checked when it is made: UserError names `origin`, the row and its time for anything a
    bar cannot be.

    `frame` has `timestamp` (open, UTC), open, high, low, close, volume (float64) and may carry more columns
    (`turnover`, `adj_close`). Open, high, low or volume may be null throughout, where the source has none. A pandas
    frame is taken too, its time in a column or the index. `stamp` is how the source wrote the times; `timestamp` is the
    open in any case.
    """

    instrument: Instrument
    interval: Interval
    frame: pl.DataFrame
    origin: str = field(default="data")
    stamp: str = field(default="open")

    def __post_init__(self) -> None:
        frame = lower_case(as_frame(self.frame, self.origin), COLUMNS)
        checked = _checked_frame(frame, self.interval, self.instrument.calendar, self.origin)
        object.__setattr__(self, "frame", checked)

    @classmethod
    def checked(
        cls, instrument: Instrument, interval: Interval, frame: pl.DataFrame, origin: str = "data"
    ) -> Bars:
        """The same as making one."""
        return cls(instrument, interval, frame, origin)

    @classmethod
    def stored(
        cls, instrument: Instrument, interval: Interval, frame: pl.DataFrame, origin: str, stamp: str = "open"
    ) -> Bars:
        """Rows that were checked before they were stored; they are not checked again."""
        made = object.__new__(cls)
        values = {
            "instrument": instrument,
            "interval": interval,
            "frame": frame,
            "origin": origin,
            "stamp": stamp,
        }
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    @classmethod
    def of(
        cls,
        frame: Any,
        symbol: str,
        interval: str | Interval,
        *,
        source: str = "frame",
        category: str = "spot",
        calendar: str = ALWAYS_OPEN,
    ) -> Bars:
        """Bars of a polars or pandas frame: `Bars.of(frame, "BTCUSDT", "1h")`.

        Of a frame with a column `symbol` its rows are taken. A volume, or open, high and low, that are not there
        are null.
        """
        origin = f"bars of {symbol}"
        taken = lower_case(as_frame(frame, origin), (*COLUMNS, "symbol", "adj_close"))
        if "symbol" in taken.columns:
            taken = taken.filter(pl.col("symbol").cast(pl.String) == symbol).drop("symbol")
            if taken.is_empty():
                raise UserError(f"{origin}: no row of the frame is of '{symbol}'")
        lacking = [name for name in COLUMNS[1:] if name not in taken.columns and name != "close"]
        taken = taken.with_columns(pl.lit(None, pl.Float64).alias(name) for name in _lacking(lacking))
        instrument = Instrument(source, category, symbol, calendar=require_calendar(calendar, origin))
        return cls(instrument, Interval.parse(interval), taken, origin)

    @property
    def known_at(self) -> Milliseconds:
        """Close times [T]: the moment at which each bar is known."""
        return self.interval.close_of(self.timestamps)

    def lacks(self, name: str) -> bool:
        """Whether the source has no such column: it is null throughout."""
        return bool(self.frame[name].null_count() == len(self.frame)) if len(self.frame) else False

    @property
    def absent(self) -> tuple[str, ...]:
        """Which of open, high, low and volume the source does not have."""
        return tuple(name for name in COLUMNS[1:] if self.lacks(name))

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        digest = hashlib.sha256(f"{self.instrument.key}/{self.interval}".encode())
        digest.update(self.timestamps.tobytes())
        for name in COLUMNS[1:]:
            digest.update(self.column(name).tobytes())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        return {"interval": self.interval.name, "calendar": self.instrument.calendar, **super().facts()}


def _lacking(names: list[str]) -> list[str]:
    """What a source may lack: the volume, and open, high and low together."""
    together = {*PRICES} - {"close"} <= {*names}
    return [name for name in names if name == "volume" or together]


def _checked_frame(frame: pl.DataFrame, interval: Interval, calendar: str, origin: str) -> pl.DataFrame:
    require_columns(frame, COLUMNS, origin)
    frame = frame.with_columns(
        as_times(frame["timestamp"], origin), *(as_numbers(frame[name], origin) for name in COLUMNS[1:])
    )
    times = frame["timestamp"].dt.timestamp("ms").to_numpy()
    _check_times(times, interval, calendar, origin)
    _check_values(frame, times, origin)
    return frame.select(*COLUMNS, *(name for name in frame.columns if name not in COLUMNS))


def _check_times(times: Milliseconds, interval: Interval, calendar: str, origin: str) -> None:
    refuse_disorder(times, times, origin)
    steps = np.diff(times)
    if (steps == 0).any():
        row = int(np.argmax(steps == 0)) + 1
        raise UserError(
            f"{origin}: row {row + 1} repeats the time {iso(int(times[row]))}; remove the duplicate"
        )
    if interval.is_month or interval.milliseconds >= 86_400_000:
        short = steps < (20 * 86_400_000 if interval.is_month else interval.milliseconds - 3_600_000)
    else:
        short = steps % interval.milliseconds != 0
        if calendar != ALWAYS_OPEN:  # bars are counted from each session's open, which moves with the clock
            short &= steps < interval.milliseconds
    if short.any():
        row = int(np.argmax(short)) + 1
        raise UserError(
            f"{origin}: row {row + 1} ({iso(int(times[row]))}) does not fit bars of {interval}: it comes"
            f" {steps[row - 1] / 60_000:g} minutes after the row before; name the right interval"
        )
    finest = _finest_step(steps)
    if not interval.is_month and finest >= 2 * interval.milliseconds:
        raise UserError(
            f"{origin}: rows are {finest / 60_000:g} minutes apart at least, not {interval}; name the right interval"
        )


def _finest_step(steps: npt.NDArray[np.int64]) -> int:
    """The step that the rows follow; a market with little trade leaves bars out, so two rows prove nothing."""
    if len(steps) < 2:
        return 0
    return int(steps.min()) if len(steps) >= 10 else int(np.gcd.reduce(steps))


def _check_values(frame: pl.DataFrame, times: Milliseconds, origin: str) -> None:
    """Values that a bar can have; a column that is null throughout, other than the close, is one the source lacks."""
    there = [
        n for n in COLUMNS[1:] if n == "close" or frame[n].null_count() < frame.height or not frame.height
    ]
    columns = {name: frame[name].to_numpy() for name in there}
    checks: list[tuple[str, str, Callable[[Floats], Flags]]] = [
        (name, "not a finite number", lambda x: ~np.isfinite(x)) for name in there
    ]
    checks += [(name, "a price must be above zero", lambda x: x <= 0) for name in PRICES if name in there]
    checks += [("volume", "negative volume", lambda x: x < 0)] if "volume" in there else []
    for name, what, is_bad in checks:
        refuse_values(is_bad(columns[name]), frame[name], what, times, origin)
    if {"high", "low"} <= {*there}:
        refuse_values(columns["high"] < columns["low"], frame["high"], "high below low", times, origin)
