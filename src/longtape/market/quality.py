"""What is wrong with candles: gaps, duplicates, disorder, values that cannot be, and what only looks odd."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from longtape.market.agreement import leads, named_most
from longtape.market.bars import COLUMNS, PRICES, TIME_TYPE, Bars
from longtape.market.files import FileConfig, read_raw
from longtape.market.files.stamps import opens_of
from longtape.market.gaps import Gap
from longtape.market.series import Series
from longtape.market.store import Store

Severity = Literal["error", "warning", "note"]
OUTLIER = 20.0  # times the median absolute return of its block: 13.5 σ of a Gaussian
BLOCK = 256
BEYOND = (
    10.0  # times the open and close that a high or low may reach, and that a price may jump and fall back
)
JUMP = 1.7  # times: a split of 2 to 1 is seen, whatever the bars beside it moved
THIN = 0.5  # of the median volume of the block before it: a last bar below this may be unfinished
_SHOWN = 5
_FEW = 10  # bars, in which nothing can be seen


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
    "implausible": (
        "error",
        f"a price {BEYOND:g} times beyond its own bar's open and close, or beyond the bars on both sides",
    ),
    "zero_volume": ("error", "nothing was traded"),
    "outside_range": ("warning", "open or close lies outside of low to high"),
    "outliers": ("warning", f"a move of more than {OUTLIER:g} times the usual one"),
    "jumps": (
        "warning",
        "prices are nearly twice as high or low from one bar to the next, or more, and stay there: a split, a unit?",
    ),
    "unfinished": ("warning", "the last bar was not over yet"),
    "perhaps_unfinished": (
        "note",
        "the last bar has little volume: it may have been stored before it was over",
    ),
    "no_volume": ("note", "the series carries no volume at all"),
    "closes_only": ("note", "the series has no open, high or low"),
    "exchanged": (
        "warning",
        "open and close may be exchanged: bars close where the bar before opened, and do not open where it closed",
    ),
    "leads": (
        "warning",
        "its returns agree with another series' of the bar before or after, more than of the same bar",
    ),
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
    absent = frozenset(n for n in COLUMNS[1:] if n != "close" and frame.height and _is_absent(frame[n]))
    found += _value_findings(times, columns, absent)
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


def check_store(store: Store, chosen: Sequence[Series], now: int | None = None) -> list[QualityReport]:
    """Check stored series, each by itself and the candles of one interval against each other."""
    reports = [check_stored(store, series, now) for series in chosen]
    sound = [
        series
        for series, report in zip(chosen, reports, strict=True)
        if series.kind.name == "candles" and series.interval is not None and not report.count("damaged")
    ]
    bars = [store.read(series.key, str(series.interval)) for series in sound]
    return with_leads(reports, bars)


def with_leads(reports: Sequence[QualityReport], bars: Sequence[Bars]) -> list[QualityReport]:
    """The reports with a warning where one series' returns agree with another's of the bar before or after."""
    late = named_most(leads(bars))
    found = {
        (name, group[0].interval): Finding(
            "leads", "warning", len(group), "; ".join(lead.text for lead in group[:3])
        )
        for name, group in late
    }
    return [
        replace(report, findings=(*report.findings, found[(report.name, report.interval)]))
        if report.interval is not None and (report.name, report.interval) in found
        else report
        for report in reports
    ]


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
    path: str | Path,
    interval: Interval | str,
    calendar: str = ALWAYS_OPEN,
    symbol: str | None = None,
    config: FileConfig | None = None,
) -> list[QualityReport]:
    """Check a file of candles as it is, one report for each symbol of a long table (or only for `symbol`)."""
    frame = read_raw(path, config)
    if config is not None and config.stamp == "close":
        times = _times(frame, str(path))
        opened = opens_of(times, Interval.parse(interval), calendar, "close", False, str(path))
        frame = frame.with_columns(pl.Series("timestamp", opened).cast(TIME_TYPE))
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


def _is_absent(values: pl.Series) -> bool:
    """Null throughout: a column that the source does not have."""
    return values.null_count() == len(values)


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


def _value_findings(
    times: Milliseconds, columns: dict[str, npt.NDArray[np.float64]], absent: frozenset[str]
) -> list[Finding]:
    prices = np.stack([columns[name] for name in PRICES])
    volume, (opens, high, low, close) = columns["volume"], prices
    there = np.stack([columns[name] for name in PRICES if name not in absent])
    silent: Flags = np.equal(volume, 0) | ("volume" in absent)
    whole = len(silent) > 0 and bool(silent.all())
    outside = (opens > high) | (opens < low) | (close > high) | (close < low)
    missing = np.zeros(len(times), bool) if "volume" in absent else ~np.isfinite(volume)
    defects: dict[str, Flags] = {
        "empty": np.asarray(np.isnan(there).all(axis=0)),
        "nan": ~np.isfinite(there).all(axis=0) | missing,
        "non_positive": (prices <= 0).any(axis=0) | (volume < 0),
        "high_below_low": high < low,
        "implausible": implausible(opens, high, low, close),
        "zero_volume": silent & (not whole),
        "no_volume": silent & whole,
        "closes_only": np.full(len(times), len(absent & {*PRICES}) == len(PRICES) - 1),
        "outside_range": outside & ~(high < low),
        "exchanged": exchanged(opens, close),
        "outliers": outliers(close),
        "jumps": jumps(close),
    }
    return [finding for name, bad in defects.items() for finding in _finding(name, times, bad)]


def implausible(
    opens: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    close: npt.NDArray[np.float64],
) -> Flags:
    """True where a high or low lies `BEYOND` times beyond open and close of its bar, or a close that much beyond those
    of the bars on both sides, which agree within a factor of two [T]. A price that is missing tells nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        top, bottom = np.fmax(opens, close), np.fmin(opens, close)
        beyond = (high > BEYOND * top) | ((low * BEYOND < bottom) & (low > 0))
        before, after = close[:-2], close[2:]
        agree = np.abs(np.log(after / before)) < np.log(2)
        jumped = np.abs(np.log(close[1:-1] / np.sqrt(before * after))) > np.log(BEYOND)
    beyond[1:-1] |= agree & jumped
    return np.asarray(beyond)


def jumps(close: npt.NDArray[np.float64]) -> Flags:
    """True where a close and the next one are `JUMP` times above or below both closes before [T]."""
    flags = np.zeros(len(close), dtype=bool)
    if len(close) < 4:
        return flags
    with np.errstate(invalid="ignore"):
        high, low = (
            np.fmax(close[:-1], close[1:]),
            np.fmin(close[:-1], close[1:]),
        )  # of each close and the next
        flags[2:-1] = (low[2:] > JUMP * high[:-2]) | (high[2:] * JUMP < low[:-2])
    return flags


def exchanged(opens: npt.NDArray[np.float64], close: npt.NDArray[np.float64]) -> Flags:
    """True throughout where most bars close at the very open of the bar before, and few open at its close [T]."""
    if len(close) < _FEW:
        return np.zeros(len(close), bool)
    backwards, forwards = (close[1:] == opens[:-1]).mean(), (opens[1:] == close[:-1]).mean()
    return np.full(len(close), bool(backwards > 0.5 and forwards < 0.1))


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
