"""Bars: the candles of one symbol and one interval, in UTC, checked. What the store gives and features take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.clock import Interval, Milliseconds, iso
from longtape.core.errors import UserError
from longtape.core.instrument import Instrument

PRICES = ("open", "high", "low", "close")
COLUMNS = ("timestamp", *PRICES, "volume")
TIME_TYPE = pl.Datetime("ms", "UTC")


@dataclass(frozen=True, eq=False)
class Bars:
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
        return cls(instrument, interval, _checked_frame(frame, interval, origin), origin)

    def __len__(self) -> int:
        return self.frame.height

    @property
    def symbol(self) -> str:
        """The instrument's symbol."""
        return self.instrument.symbol

    @property
    def timestamps(self) -> Milliseconds:
        """Open times [T], UTC milliseconds."""
        return self.frame["timestamp"].dt.timestamp("ms").to_numpy()

    @property
    def known_at(self) -> Milliseconds:
        """Close times [T]: the moment at which each bar is known."""
        return self.interval.close_of(self.timestamps)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """A column as float64 [T]; UserError if there is none of that name."""
        if name not in self.frame.columns:
            raise UserError(f"{self.origin}: no column '{name}'; there are {', '.join(self.frame.columns)}")
        return self.frame[name].cast(pl.Float64).to_numpy()

    def fingerprint(self) -> str:
        """SHA-256 over times and values: the same data give the same text on every machine."""
        digest = hashlib.sha256(f"{self.instrument.key}/{self.interval}".encode())
        digest.update(self.timestamps.tobytes())
        for name in COLUMNS[1:]:
            digest.update(self.column(name).tobytes())
        return digest.hexdigest()

    def between(self, since: int | None = None, until: int | None = None) -> Bars:
        """Bars that open in [since, until), UTC milliseconds."""
        times = self.timestamps
        low = 0 if since is None else int(np.searchsorted(times, since))
        high = len(times) if until is None else int(np.searchsorted(times, until))
        return Bars(self.instrument, self.interval, self.frame.slice(low, max(high - low, 0)), self.origin)


def _checked_frame(frame: pl.DataFrame, interval: Interval, origin: str) -> pl.DataFrame:
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{origin}: column '{missing[0]}' is missing; there are {', '.join(frame.columns) or 'none'}"
        )
    frame = frame.with_columns(
        _utc(frame["timestamp"], origin), *(_number(frame[name], origin) for name in COLUMNS[1:])
    )
    times = frame["timestamp"].dt.timestamp("ms").to_numpy()
    _check_times(times, interval, origin)
    _check_values(frame, times, origin)
    return frame.select(*COLUMNS, *(name for name in frame.columns if name not in COLUMNS))


def _utc(times: pl.Series, origin: str) -> pl.Series:
    if not isinstance(times.dtype, pl.Datetime):
        raise UserError(f"{origin}: column 'timestamp' is {times.dtype}, not a date and time")
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise UserError(f"{origin}: row {row + 1} has no timestamp")
    zone = times.dtype.time_zone
    aware = times.dt.replace_time_zone("UTC") if zone is None else times.dt.convert_time_zone("UTC")
    return aware.cast(TIME_TYPE)


def _number(values: pl.Series, origin: str) -> pl.Series:
    try:
        return values.cast(pl.Float64)
    except pl.exceptions.PolarsError:
        raise UserError(f"{origin}: column '{values.name}' holds {values.dtype}, not numbers") from None


def _check_times(times: Milliseconds, interval: Interval, origin: str) -> None:
    steps = np.diff(times)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 1
        raise UserError(
            f"{origin}: row {row + 1} ({iso(int(times[row]))}) is earlier than the row before; sort by time"
        )
    if (steps == 0).any():
        row = int(np.argmax(steps == 0)) + 1
        raise UserError(
            f"{origin}: row {row + 1} repeats the time {iso(int(times[row]))}; remove the duplicate"
        )
    if interval.is_month or interval.milliseconds >= 86_400_000:
        short = steps < (20 * 86_400_000 if interval.is_month else interval.milliseconds - 3_600_000)
    else:
        short = steps % interval.milliseconds != 0
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
    def refuse(bad: npt.NDArray[np.bool_], name: str, what: str, values: npt.NDArray[np.float64]) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{origin}: row {row + 1} ({iso(int(times[row]))}), column '{name}': {what} ({values[row]:g});"
                f" mend or remove the row ({int(bad.sum())} such)"
            )

    columns: dict[str, npt.NDArray[np.float64]] = {name: frame[name].to_numpy() for name in COLUMNS[1:]}
    checks: list[tuple[str, str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]]] = [
        (name, "not a finite number", lambda x: ~np.isfinite(x)) for name in COLUMNS[1:]
    ]
    checks += [(name, "a price must be above zero", lambda x: x <= 0) for name in PRICES]
    checks += [("volume", "negative volume", lambda x: x < 0)]
    for name, what, is_bad in checks:
        refuse(is_bad(columns[name]), name, what, columns[name])
    refuse(columns["high"] < columns["low"], "high", "high below low", columns["high"])
