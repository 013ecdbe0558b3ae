"""Bars that end earlier, begin later, or tell another story from a moment on: what an audit feeds a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.clock import Milliseconds
from longtape.market.bars import PRICES, Bars

_SPREAD = 0.2  # deviation of the log factors by which changed prices leave the real ones


def cut_after(bars: Sequence[Bars], time: int) -> list[Bars]:
    """The bars that are known at `time`, UTC milliseconds."""
    return [_take(one, one.known_at <= time) for one in bars]


def cut_before(bars: Sequence[Bars], time: int) -> list[Bars]:
    """The bars that open at or after `time`."""
    return [one.between(since=time) for one in bars]


def change_after(bars: Sequence[Bars], time: int, seed: int) -> list[Bars]:
    """The same clock, but every value of every bar that is not yet known at `time` is another one."""
    return [_changed(one, one.known_at > time, seed + number) for number, one in enumerate(bars)]


def change_before(bars: Sequence[Bars], time: int, seed: int) -> list[Bars]:
    """The same clock, but every value of every bar that opens before `time` is another one."""
    return [_changed(one, one.timestamps < time, seed + number) for number, one in enumerate(bars)]


def _take(bars: Bars, rows: npt.NDArray[np.bool_]) -> Bars:
    return replace(bars, frame=bars.frame.filter(pl.Series(rows)))


def _changed(bars: Bars, rows: npt.NDArray[np.bool_], seed: int) -> Bars:
    """Prices, volume and every further number of the marked rows replaced; high and low stay outermost."""
    draw = np.random.default_rng(seed)
    values = {
        name: bars.column(name).copy() for name, dtype in bars.frame.schema.items() if dtype.is_numeric()
    }
    for column in values.values():
        column[rows] *= np.exp(draw.normal(0, _SPREAD, int(rows.sum())))
    others = [name for name in values if name not in PRICES]
    for name in others:  # what was zero must become something too
        column = values[name]
        column[rows] += np.abs(draw.normal(0, 1, int(rows.sum()))) * (np.abs(column).mean() + 1e-9)
    prices = np.stack([values[name][rows] for name in PRICES])
    values["high"][rows], values["low"][rows] = prices.max(axis=0) * 1.01, prices.min(axis=0) * 0.99
    dtypes = bars.frame.schema
    return replace(
        bars, frame=bars.frame.with_columns(pl.Series(n, v).cast(dtypes[n]) for n, v in values.items())
    )


def telling_rows(panel_times: Milliseconds, bars: Sequence[Bars], limit: int) -> list[int]:
    """Panel rows after which data resume: the last row of holes in a clock and of runs without volume.

    Filling backwards shows there and nowhere else. At most `limit`, spread evenly.
    """
    resume: set[int] = set()
    for one in bars:
        times, silent = one.timestamps, one.column("volume") == 0
        after_hole = times[1:][np.diff(times) > one.interval.milliseconds]
        after_silence = times[1:][silent[:-1] & ~silent[1:]]
        for some in (after_hole, after_silence):
            spread = some[np.linspace(0, len(some) - 1, min(limit, len(some))).astype(int)]
            resume.update((np.searchsorted(panel_times, spread) - 1).tolist())
    rows = sorted(row for row in resume if 0 <= row < len(panel_times) - 1)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]
