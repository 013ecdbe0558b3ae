"""Bars of many symbols on one clock, with a stated policy for those that are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl

from longtape.core.clock import ALWAYS_OPEN, WEEKDAYS_ONLY, Interval, Milliseconds, iso
from longtape.core.errors import UserError, unknown_name
from longtape.core.progress import say
from longtape.market import gaps
from longtape.market.bars import COLUMNS, PRICES, TIME_TYPE, Bars
from longtape.market.gaps import Flags

Policy = Literal["error", "forward_fill", "drop", "mask"]
TRADED = ("volume", "turnover")  # nothing was traded in a bar that is not there
_DONE = {"forward_fill": "filled forward with no volume", "drop": "dropped for all symbols", "mask": "masked"}


@dataclass(frozen=True, eq=False)
class Aligned:
    """Bars on one clock of T rows. `frames[name]` [T rows] has that clock as its `timestamp`; `present` [T, S] is False
    where a symbol had no bar, `missing[name]` counts these before the policy was applied, and `dropped` counts rows
    that the policy took out. A name is the symbol, or its key where two sources have the same symbol.
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


def align(bars: Sequence[Bars], policy: str = "error") -> Aligned:
    """Put bars of one interval on one clock: the period they share, every moment at which a bar is due.

    A market of `24/7` or `24/5` is due at every step of its hours; on an exchange calendar a bar is due when another
    symbol has one. What is missing is an error (`error`), or the price stands and the volume is zero
    (`forward_fill`), or the row goes for all symbols (`drop`), or its values are NaN (`mask`); it is counted in the
    result and said on standard error. Raises UserError also for mixed intervals and where no period is shared.
    """
    if policy not in get_args(Policy):
        raise unknown_name("policy for missing bars", policy, get_args(Policy))
    names = _names(bars)
    clock = _clock(bars)
    present = np.stack([_present(clock, one.timestamps) for one in bars], axis=1)
    missing = {name: int(count) for name, count in zip(names, (~present).sum(axis=0), strict=True)}
    _report(missing, clock, present, policy, bars[0].interval)
    kept = present.all(axis=1) if policy == "drop" else np.ones(len(clock), dtype=bool)
    if not kept.any():
        raise UserError("no moment has a bar of every symbol; align with forward_fill or mask")
    clock, dropped = clock[kept], int((~kept).sum())
    frames = {name: _on_clock(one, clock, policy) for name, one in zip(names, bars, strict=True)}
    interval = bars[0].interval
    return Aligned(interval, clock, interval.close_of(clock), names, frames, present[kept], missing, dropped)


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


def _clock(bars: Sequence[Bars]) -> Milliseconds:
    """Every moment of the shared period at which some bar is there or due."""
    for one in bars:
        if not len(one):
            raise UserError(f"{one.origin}: there are no bars")
    low, high = max(int(one.timestamps[0]) for one in bars), min(int(one.timestamps[-1]) for one in bars)
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


def _report(
    missing: Mapping[str, int], clock: Milliseconds, present: Flags, policy: str, interval: Interval
) -> None:
    if present.all():
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in missing.items() if count)
    first = iso(int(clock[np.argmin(present.all(axis=1))]))
    what = f"{interval} bars missing on the shared clock of {len(clock):,}: {counts} (first at {first})"
    if policy == "error":
        raise UserError(f"{what}; choose what to do about them: forward_fill, drop or mask")
    say(f"{what}; {_DONE[policy]}")


def _on_clock(bars: Bars, clock: Milliseconds, policy: str) -> pl.DataFrame:
    if np.array_equal(clock, bars.timestamps):
        return bars.frame
    own = bars.between(int(clock[0]), int(clock[-1]) + 1)
    if np.array_equal(own.timestamps, clock):
        return own.frame  # a view
    times = pl.DataFrame({"timestamp": pl.Series(clock).cast(TIME_TYPE)})
    frame = times.join(bars.frame, on="timestamp", how="left", maintain_order="left")
    if policy == "mask":
        return frame.with_columns(pl.col(COLUMNS[1:]).fill_null(float("nan")))
    if policy == "forward_fill":
        return _filled(frame, _before(bars, clock))
    return frame


def _before(bars: Bars, clock: Milliseconds) -> float:
    """The close that holds at the first moment of the clock, should the symbol have no bar just there."""
    place = int(np.searchsorted(bars.timestamps, clock[0], side="right")) - 1
    return float(bars.frame["close"][place])


def _filled(frame: pl.DataFrame, before: float) -> pl.DataFrame:
    others = [name for name in frame.columns if name not in (*COLUMNS, *TRADED)]
    standing = pl.col("close").fill_null(strategy="forward").fill_null(before)
    return frame.with_columns(
        *(pl.col(name).fill_null(standing) for name in PRICES),
        *(pl.col(name).fill_null(0.0) for name in TRADED if name in frame.columns),
        *(pl.col(name).fill_null(strategy="forward") for name in others),
    )
