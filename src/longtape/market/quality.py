"""What is wrong with candles: gaps, duplicates, disorder, values that cannot be, and what only looks odd."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.arrays import Flags
from longtape.core.calendars import require_calendar
from longtape.core.clock import ALWAYS_OPEN, Interval, Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.market import gaps as clock
from longtape.market.bars import COLUMNS, PRICES, Bars
from longtape.market.files import read_raw
from longtape.market.gaps import Gap
from longtape.market.series import Series
from longtape.market.store import Store

Severity = Literal["error", "warning", "note"]
OUTLIER = 20.0  # times the median absolute return of its block: 13.5 σ of a Gaussian
BLOCK = 256
THIN = 0.5  # of the median volume of the block before it: a last bar below this may be unfinished
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of defect: how many rows (or places) have it, and the first few times (UTC ms)."""

    name: str
    severity: Severity
    count: int
    meaning: str
    times: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shown = [iso(moment) for moment in self.times]
        return {"name": self.name, "severity": self.severity, "count": self.count, "meaning": self.meaning,
                "first_times": shown}  # fmt: skip


@dataclass(frozen=True)
class QualityReport:
    """What a check found. `gaps` respect the market's calendar; `step_gaps` and `steps_left_out` count every place
    where the next row is more than one step away, nights and weekends included.
    """

    name: str
    interval: Interval | None
    rows: int
    first: int | None
    last: int | None
    findings: tuple[Finding, ...] = ()
    gaps: tuple[Gap, ...] = ()
    step_gaps: int = 0
    steps_left_out: int = 0
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if there is no error; warnings and notes do not count."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def missing(self) -> int:
        """Bars missing while the market was open."""
        return sum(gap.missing for gap in self.gaps)

    def count(self, name: str) -> int:
        """How often a defect was found; 0 where it was not."""
        return next((finding.count for finding in self.findings if finding.name == name), 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: a count for every defect, the gaps one by one, and the findings with their times."""
        return {
            "name": self.name,
            **self.identity,
            "interval": str(self.interval) if self.interval else None,
            "rows": self.rows,
            "first": None if self.first is None else iso(self.first),
            "last": None if self.last is None else iso(self.last),
            "ok": self.ok,
            "step_gaps": self.step_gaps,
            "steps_left_out": self.steps_left_out,
            "missing": self.missing,
            **{name: self.count(name) for name in DEFECTS},
            "gap_list": [
                {"first": iso(g.first), "last": iso(g.last), "missing": g.missing} for g in self.gaps
            ],
            "findings": [finding.to_dict() for finding in self.findings],
        }


DEFECTS: dict[str, tuple[Severity, str]] = {
    "gaps": ("error", "bars are missing although the market was open"),
    "duplicates": ("error", "a row repeats the time of another"),
    "disorder": ("error", "a row is earlier than the row before"),
    "off_grid": ("error", "the clock jumps: a time is not a multiple of the interval"),
    "empty": ("error", "a row without any price"),
    "nan": ("error", "a value is missing or not finite (empty rows included)"),
    "non_positive": ("error", "a price is zero or below, or a volume below zero"),
    "high_below_low": ("error", "high is below low"),
    "zero_volume": ("error", "nothing was traded"),
    "outside_range": ("warning", "open or close lies outside of low to high"),
    "outliers": ("warning", f"a move of more than {OUTLIER:g} times the usual one"),
    "unfinished": ("warning", "the last bar was not over yet"),
    "perhaps_unfinished": (
        "note",
        "the last bar has little volume: it may have been stored before it was over",
    ),
    "no_volume": ("note", "the series carries no volume at all"),
    "damaged": ("error", "a file of the store cannot be read"),
}


def check(bars: Bars, now: int | None = None) -> QualityReport:
    """Check bars. `now` (UTC ms, default the clock) tells whether the last bar was over."""
    instrument = bars.instrument
    identity = {"source": instrument.source, "category": instrument.category, "symbol": instrument.symbol}
    return check_frame(
        bars.frame,
        bars.interval,
        calendar=instrument.calendar,
        name=instrument.key,
        identity=identity,
        now=now,
    )


def check_frame(
    frame: pl.DataFrame,
    interval: Interval | str,
    *,
    calendar: str = ALWAYS_OPEN,
    name: str = "data",
    identity: dict[str, str] | None = None,
    now: int | None = None,
) -> QualityReport:
    """Check a raw frame (`timestamp`, open, high, low, close, volume), in whatever state it is.

    UserError if a column or a time is missing, or if the calendar is unknown.
    """
    interval = Interval.parse(interval)
    require_calendar(calendar, name)
    times = _times(frame, name)
    columns = {column: _numbers(frame, column, name) for column in COLUMNS[1:]}
    ordered = times if (np.diff(times) > 0).all() else np.unique(times)
    missing = clock.missing_times(ordered, interval, calendar)
    steps = clock.steps_between(ordered, interval)
    found = _gap_findings(missing, ordered)
    found += _time_findings(times, interval, calendar)
    found += _value_findings(times, columns)
    if len(times):
        found += _last_bar(
            times, columns["volume"], interval, int(time.time() * 1000) if now is None else now
        )
    return QualityReport(
        name=name,
        interval=interval,
        rows=frame.height,
        first=int(ordered[0]) if len(ordered) else None,
        last=int(ordered[-1]) if len(ordered) else None,
        findings=tuple(found),
        gaps=clock.group(missing, ordered),
        step_gaps=int((steps > 1).sum()),
        steps_left_out=int(np.maximum(steps - 1, 0).sum()),
        identity=identity or {},
    )


def check_stored(store: Store, series: Series, now: int | None = None) -> QualityReport:
    """Check a stored series: every byte of every file, and the values where it holds candles."""
    identity = {
        "source": series.source,
        "category": series.category,
        "symbol": series.symbol,
        "kind": series.kind.name,
    }
    if files := store.damaged(series):
        severity, meaning = DEFECTS["damaged"]
        text = (
            f"{meaning}: {', '.join(store.storage.where(file) for file in files)}; run longtape data repair"
        )
        found = (Finding("damaged", severity, len(files), text),)
        return QualityReport(series.key, series.interval, 0, None, None, found, identity=identity)
    if series.interval is None:
        entry = store.entry(series)
        return QualityReport(series.key, None, entry.rows, entry.first, entry.last, identity=identity)
    bars = store.read(series.key, series.interval, kind=series.kind.name)
    return check_frame(
        bars.frame,
        series.interval,
        calendar=bars.instrument.calendar,
        name=series.key,
        identity=identity,
        now=now,
    )


def check_file(
    path: str | Path, interval: Interval | str, calendar: str = ALWAYS_OPEN, symbol: str | None = None
) -> list[QualityReport]:
    """Check a CSV or Parquet file as it is, one report for each symbol of a long table (or only for `symbol`)."""
    frame = read_raw(path)
    if "symbol" not in frame.columns:
        return [check_frame(frame, interval, calendar=calendar, name=str(path))]
    parts = frame.partition_by("symbol", as_dict=True, maintain_order=True)
    names = [str(name) for (name,) in parts]
    if symbol is not None and symbol not in names:
        raise unknown_name("symbol", symbol, names, str(path))
    return [
        check_frame(part, interval, calendar=calendar, name=f"{path}: {name}", identity={"symbol": str(name)})
        for (name,), part in parts.items()
        if symbol in (None, name)
    ]


def _times(frame: pl.DataFrame, name: str) -> Milliseconds:
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(f"{name}: column '{missing[0]}' is missing; there are {', '.join(frame.columns)}")
    times = frame["timestamp"]
    if not isinstance(times.dtype, pl.Datetime):
        raise UserError(f"{name}: column 'timestamp' is {times.dtype}, not a date and time")
    if times.null_count():
        raise UserError(f"{name}: row {int(times.is_null().arg_max() or 0) + 1} has no timestamp")
    return times.dt.timestamp("ms").to_numpy()


def _numbers(frame: pl.DataFrame, column: str, name: str) -> npt.NDArray[np.float64]:
    try:
        return frame[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
    except pl.exceptions.PolarsError:
        raise UserError(f"{name}: column '{column}' holds {frame[column].dtype}, not numbers") from None


def _finding(name: str, times: Milliseconds, bad: Flags) -> list[Finding]:
    """A finding for the rows that are bad; none where there are none."""
    if not bad.any():
        return []
    severity, meaning = DEFECTS[name]
    shown = tuple(int(moment) for moment in times[np.flatnonzero(bad)[:_SHOWN]])
    return [Finding(name, severity, int(bad.sum()), meaning, shown)]


def _gap_findings(missing: Milliseconds, ordered: Milliseconds) -> list[Finding]:
    gaps = clock.group(missing, ordered)
    starts = np.array([gap.first for gap in gaps], dtype=np.int64)
    return _finding("gaps", starts, np.ones(len(gaps), dtype=bool))


def _time_findings(times: Milliseconds, interval: Interval, calendar: str) -> list[Finding]:
    if not len(times):
        return []
    steps = np.diff(times, prepend=times[0] - 1)
    earlier, repeated = steps < 0, steps == 0
    if earlier.any():  # a row may repeat one that is not beside it
        repeated = np.ones(len(times), dtype=bool)
        repeated[np.unique(times, return_index=True)[1]] = False
    return [
        *_finding("duplicates", times, repeated),
        *_finding("disorder", times, earlier),
        *_finding("off_grid", times, clock.off_grid(times, interval, calendar)),
    ]


def _value_findings(times: Milliseconds, columns: dict[str, npt.NDArray[np.float64]]) -> list[Finding]:
    prices = np.stack([columns[name] for name in PRICES])
    volume, (opens, high, low, close) = columns["volume"], prices
    silent: Flags = np.equal(volume, 0)
    whole = len(silent) > 0 and bool(silent.all())
    outside = (opens > high) | (opens < low) | (close > high) | (close < low)
    defects: dict[str, Flags] = {
        "empty": np.asarray(np.isnan(prices).all(axis=0)),
        "nan": ~np.isfinite(prices).all(axis=0) | ~np.isfinite(volume),
        "non_positive": (prices <= 0).any(axis=0) | (volume < 0),
        "high_below_low": high < low,
        "zero_volume": silent & (not whole),
        "no_volume": silent & whole,
        "outside_range": outside & ~(high < low),
        "outliers": outliers(close),
    }
    return [finding for name, bad in defects.items() for finding in _finding(name, times, bad)]


def outliers(close: npt.NDArray[np.float64]) -> Flags:
    """True where |log return| exceeds `OUTLIER` times the median |log return| of its block of `BLOCK` bars [T]."""
    flags = np.zeros(len(close), dtype=bool)
    usable = np.flatnonzero(close > 0)
    if len(usable) < 3:
        return flags
    moves = np.abs(np.diff(np.log(close[usable])))
    whole = max(len(moves) // BLOCK - 1, 0) * BLOCK  # the rest, one to two blocks long, is one block
    usual = np.repeat(np.median(moves[:whole].reshape(-1, BLOCK), axis=1), BLOCK)
    usual = np.append(usual, np.full(len(moves) - whole, np.median(moves[whole:])))
    flags[usable[1:]] = moves > OUTLIER * np.maximum(usual, 1e-6)
    return flags


def _last_bar(
    times: Milliseconds, volume: npt.NDArray[np.float64], interval: Interval, now: int
) -> list[Finding]:
    last = int(times.argmax())
    at = np.arange(len(times)) == last
    if int(interval.close_of(times[last : last + 1])[0]) > now:
        return _finding("unfinished", times, at)
    before = volume[max(last - BLOCK, 0) : last]
    thin = len(before) > 0 and volume[last] < THIN * np.median(before)
    return _finding("perhaps_unfinished", times, at & thin)
