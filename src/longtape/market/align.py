"""Bars of many symbols on one clock, with a stated policy for those that are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from longtape.core.arrays import Flags
from longtape.core.clock import ALWAYS_OPEN, WEEKDAYS_ONLY, Interval, Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.core.progress import say
from longtape.core.shown import Shown
from longtape.market import gaps
from longtape.market.bars import COLUMNS, PRICES, TIME_TYPE, Bars

Policy = Literal["error", "forward_fill", "drop", "mask"]
Span = Literal["shared", "union"]
TRADED = ("volume", "turnover")  # nothing was traded in a bar that is not there
_DONE = {"forward_fill": "filled forward with no volume", "drop": "dropped for all symbols", "mask": "masked"}


@dataclass(frozen=True, eq=False, repr=False)
class Aligned(Shown):
    """Bars on one clock of T rows. `frames[name]` [T rows] has that clock as its `timestamp`; `present` [T, S] is False
    where a symbol had no bar, `missing[name]` counts these between its first bar and its last before the policy was
    applied, and `dropped` counts rows that the policy took out. A name is the symbol, or its key where two sources have
    the same symbol.
    """

    interval: Interval
    timestamps: Milliseconds
    known_at: Milliseconds
    names: tuple[str, ...]
    frames: Mapping[str, pl.DataFrame]
    present: Flags
    missing: Mapping[str, int]
    dropped: int

    def __len__(self) -> int:
        return len(self.timestamps)

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        return {
            "rows": len(self),
            "interval": self.interval.name,
            "symbols": ", ".join(self.names),
            "missing": sum(self.missing.values()),
            "dropped": self.dropped,
        }


def align(bars: Sequence[Bars], policy: str = "error", span: str = "shared") -> Aligned:
    """Put bars of one interval on one clock: every moment at which a bar is due, of the period that the symbols share
    (`shared`) or from the first bar of any to the last of any (`union`).

    A market of `24/7` or `24/5` is due at every step of its hours; on an exchange calendar a bar is due when another
    symbol has one. Before its first bar and after its last nothing is due from a symbol: there its values are NaN. What
    is missing between is an error (`error`), or the price stands and the volume is zero (`forward_fill`), or the row
    goes for all symbols (`drop`), or its values are NaN (`mask`); it is counted in the result and said on standard
    error. Raises UserError also for mixed intervals and where no period is shared.
    """
    for what, name, known in (("policy for missing bars", policy, Policy), ("span", span, Span)):
        if name not in get_args(known):
            raise unknown_name(what, name, get_args(known))
    names = _names(bars)
    clock = _clock(bars, span)
    present = np.stack([_present(clock, one.timestamps) for one in bars], axis=1)
    absent = np.stack([_listed(clock, one) for one in bars], axis=1) & ~present
    missing = {name: int(count) for name, count in zip(names, absent.sum(axis=0), strict=True)}
    _report(missing, clock, absent, policy, bars[0].interval)
    kept = ~absent.any(axis=1) if policy == "drop" else np.ones(len(clock), dtype=bool)
    _refuse_emptied(names, present[kept])
    clock, dropped = clock[kept], int((~kept).sum())
    frames = {name: _on_clock(one, clock, policy) for name, one in zip(names, bars, strict=True)}
    interval = bars[0].interval
    return Aligned(interval, clock, interval.close_of(clock), names, frames, present[kept], missing, dropped)


def _refuse_emptied(names: Sequence[str], present: Flags) -> None:
    if not len(present):
        raise UserError("no moment has a bar of every symbol; align with forward_fill or mask")
    left = present.sum(axis=0)
    if not left.all():
        name = names[int(np.argmin(left))]
        raise UserError(f"no moment is left with a bar of {name}; align with forward_fill or mask")


def _names(bars: Sequence[Bars]) -> tuple[str, ...]:
    if not bars:
        raise UserError("there are no bars to align")
    intervals = {str(one.interval): one.symbol for one in bars}
    if len(intervals) > 1:
        listed = ", ".join(f"{symbol} has {interval}" for interval, symbol in intervals.items())
        raise UserError(f"bars of different intervals do not fit on one clock: {listed}")
    keys = Counter(one.instrument.key for one in bars)
    if repeated := [key for key, count in keys.items() if count > 1]:
        raise UserError(f"{repeated[0]} is given twice")
    symbols = Counter(one.symbol for one in bars)
    return tuple(one.symbol if symbols[one.symbol] == 1 else one.instrument.key for one in bars)


def _clock(bars: Sequence[Bars], span: str) -> Milliseconds:
    """Every moment of the span at which some bar is there or due."""
    for one in bars:
        if not len(one):
            raise UserError(f"{one.origin}: there are no bars")
    starts, ends = ([int(one.timestamps[edge]) for one in bars] for edge in (0, -1))
    low, high = (max(starts), min(ends)) if span == "shared" else (min(starts), max(ends))
    spans = "; ".join(f"{b.symbol} {iso(int(b.timestamps[0]))} to {iso(int(b.timestamps[-1]))}" for b in bars)
    if low > high:
        raise UserError(f"the symbols share no period: {spans}")
    due = [one.between(low, high + 1).timestamps for one in bars]
    clock = np.sort(np.concatenate([*due, *(_absent(one) for one in bars)]))
    clock = clock[np.diff(clock, prepend=clock[:1] - 1) > 0]
    clock = clock[(clock >= low) & (clock <= high)]
    if not len(clock):
        raise UserError(f"the symbols have no bar in the period they share: {spans}")
    return clock


def _absent(bars: Bars) -> Milliseconds:
    calendar = bars.instrument.calendar
    if calendar not in (ALWAYS_OPEN, WEEKDAYS_ONLY):
        return np.empty(0, dtype=np.int64)
    return gaps.missing_times(bars.timestamps, bars.interval, calendar)


def _present(clock: Milliseconds, times: Milliseconds) -> Flags:
    place = np.minimum(np.searchsorted(times, clock), len(times) - 1)
    return np.asarray(times[place] == clock)


def _listed(clock: Milliseconds, bars: Bars) -> Flags:
    """True from the first bar to the last [T]."""
    times = bars.timestamps
    return (clock >= times[0]) & (clock <= times[-1])


def _report(
    missing: Mapping[str, int], clock: Milliseconds, absent: Flags, policy: str, interval: Interval
) -> None:
    if not absent.any():
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in missing.items() if count)
    first, more = _first_gap(clock, absent)
    what = f"{interval} bars missing on the shared clock of {len(clock):,}: {counts} (first at {first}"
    if policy == "error":
        raise UserError(
            f"{what}{more}); get them (longtape data repair, or import what is missing), or choose what to do about"
            " them with missing: forward_fill, drop or mask"
        )
    say(f"{what}); {_DONE[policy]}")


def _first_gap(clock: Milliseconds, absent: Flags) -> tuple[str, str]:
    """Where bars are missing first, and how many in a row until when."""
    holes: Flags = np.asarray(absent.any(axis=1))
    start = int(np.argmax(holes))
    length = int(np.argmin(np.append(holes[start:], False)))
    first, last = iso(int(clock[start])), iso(int(clock[start + length - 1]))
    return first, f", {length:,} in a row to {last}" if length > 1 else ""


def _on_clock(bars: Bars, clock: Milliseconds, policy: str) -> pl.DataFrame:
    """The bars at the clock's moments, without the columns that their source does not have."""
    bars = bars.with_frame(bars.frame.drop(bars.absent))
    own = clock[_listed(clock, bars)]
    frame = _while_listed(bars, own, policy)
    return frame if len(own) == len(clock) else _with_nan(_spread(frame, clock))


def _while_listed(bars: Bars, clock: Milliseconds, policy: str) -> pl.DataFrame:
    own = bars.between(int(clock[0]), int(clock[-1]) + 1)
    if np.array_equal(own.timestamps, clock):
        return own.frame  # a view
    frame = _spread(bars.frame, clock)
    if policy == "mask":
        return _with_nan(frame)
    if policy == "forward_fill":
        return _filled(frame, _before(bars, clock))
    return frame


def _spread(frame: pl.DataFrame, clock: Milliseconds) -> pl.DataFrame:
    """The rows at the clock's moments, null where there is none."""
    times = pl.DataFrame({"timestamp": pl.Series(clock).cast(TIME_TYPE)})
    return times.join(frame, on="timestamp", how="left", maintain_order="left")


def _with_nan(frame: pl.DataFrame) -> pl.DataFrame:
    there = [name for name in COLUMNS[1:] if name in frame.columns]
    return frame.with_columns(pl.col(there).fill_null(float("nan")))


def _before(bars: Bars, clock: Milliseconds) -> float:
    """The close that holds at the first moment of the clock, should the symbol have no bar just there."""
    place = int(np.searchsorted(bars.timestamps, clock[0], side="right")) - 1
    return float(bars.frame["close"][place])


def _filled(frame: pl.DataFrame, before: float) -> pl.DataFrame:
    others = [name for name in frame.columns if name not in (*COLUMNS, *TRADED)]
    standing = pl.col("close").fill_null(strategy="forward").fill_null(before)
    return frame.with_columns(
        *(pl.col(name).fill_null(standing) for name in PRICES if name in frame.columns),
        *(pl.col(name).fill_null(0.0) for name in TRADED if name in frame.columns),
        *(pl.col(name).fill_null(strategy="forward") for name in others),
    )
