"""Bars: the candles of one symbol and one interval, in UTC, checked. What the store gives and features take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Flags, Floats
from longtape.core.clock import ALWAYS_OPEN, Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument
from longtape.market.rows import Rows, as_numbers, as_times, refuse_disorder, refuse_values, require_columns

PRICES = ("open", "high", "low", "close")
COLUMNS = ("timestamp", *PRICES, "volume")
TIME_TYPE = pl.Datetime("ms", "UTC")


@dataclass(frozen=True, eq=False)
class Bars(Rows):
    """One symbol, one interval. `frame` has `timestamp` (open, UTC), open, high, low, close, volume (float64)
    and may carry more columns (`turnover`, `adj_close`). Build it with `Bars.checked`.
    """

    instrument: Instrument
    interval: Interval
    frame: pl.DataFrame
    origin: str = field(default="data")

    @classmethod
    def checked(
        cls, instrument: Instrument, interval: Interval, frame: pl.DataFrame, origin: str = "data"
    ) -> Bars:
        """Check and take `frame`. UserError naming `origin`, the row and its time for anything a bar cannot be."""
        return cls(instrument, interval, _checked_frame(frame, interval, instrument.calendar, origin), origin)

    @property
    def known_at(self) -> Milliseconds:
        """Close times [T]: the moment at which each bar is known."""
        return self.interval.close_of(self.timestamps)

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        digest = hashlib.sha256(f"{self.instrument.key}/{self.interval}".encode())
        digest.update(self.timestamps.tobytes())
        for name in COLUMNS[1:]:
            digest.update(self.column(name).tobytes())
        return digest.hexdigest()


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
    columns = {name: frame[name].to_numpy() for name in COLUMNS[1:]}
    checks: list[tuple[str, str, Callable[[Floats], Flags]]] = [
        (name, "not a finite number", lambda x: ~np.isfinite(x)) for name in COLUMNS[1:]
    ]
    checks += [(name, "a price must be above zero", lambda x: x <= 0) for name in PRICES]
    checks += [("volume", "negative volume", lambda x: x < 0)]
    for name, what, is_bad in checks:
        refuse_values(is_bad(columns[name]), frame[name], what, times, origin)
    refuse_values(columns["high"] < columns["low"], frame["high"], "high below low", times, origin)
