"""Data that end earlier, begin later, or tell another story from a moment on: what an audit feeds a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.clock import Milliseconds
from longtape.market.bars import PRICES, Bars
from longtape.market.rows import Rows

IDENTITY = ("update_id", "received_ns")  # numbers that are names
_SPREAD = 0.2  # deviation of the log factors by which changed prices leave the real ones


def cut_after(series: Sequence[Rows], time: int) -> list[Rows]:
    """The rows that are known at `time`, UTC milliseconds."""
    return [one.with_frame(one.frame.filter(pl.Series(one.known_at <= time))) for one in series]


def cut_before(series: Sequence[Rows], time: int) -> list[Rows]:
    """The rows that begin at or after `time`."""
    return [one.between(since=time) for one in series]


def change_after(series: Sequence[Rows], time: int, seed: int) -> list[Rows]:
    """The same clock, but every value of every row that is not yet known at `time` is another one."""
    return [_changed(one, one.known_at > time, seed + number) for number, one in enumerate(series)]


def change_before(series: Sequence[Rows], time: int, seed: int) -> list[Rows]:
    """The same clock, but every value of every row that begins before `time` is another one."""
    return [_changed(one, one.timestamps < time, seed + number) for number, one in enumerate(series)]


def _changed(one: Rows, rows: npt.NDArray[np.bool_], seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    values = {name: one.column(name).copy() for name, kind in one.frame.schema.items() if kind.is_numeric()}
    there = {column.name for column in one.frame.iter_columns() if column.null_count() < len(column)}
    values = {name: column for name, column in values.items() if name not in IDENTITY and name in there}
    change = _change_bars if isinstance(one, Bars) else _change_events
    change(values, rows, draw)
    dtypes = one.frame.schema
    return one.with_frame(one.frame.with_columns(pl.Series(n, v).cast(dtypes[n]) for n, v in values.items()))


def _change_bars(
    values: dict[str, npt.NDArray[np.float64]], rows: npt.NDArray[np.bool_], draw: np.random.Generator
) -> None:
    """Prices, volume and every further number of the marked rows replaced; high and low stay outermost."""
    for column in values.values():
        column[rows] *= np.exp(draw.normal(0, _SPREAD, int(rows.sum())))
    others = [name for name in values if name not in PRICES]
    for name in others:  # what was zero must become something too
        column = values[name]
        column[rows] += np.abs(draw.normal(0, 1, int(rows.sum()))) * (np.abs(column).mean() + 1e-9)
    prices = np.stack([values[name][rows] for name in PRICES if name in values])
    for name, outermost in (("high", prices.max(axis=0) * 1.01), ("low", prices.min(axis=0) * 0.99)):
        if name in values:
            values[name][rows] = outermost


def _change_events(
    values: dict[str, npt.NDArray[np.float64]], rows: npt.NDArray[np.bool_], draw: np.random.Generator
) -> None:
    """All prices of an event by one factor, so that levels keep their order; each size by its own."""
    together = np.exp(draw.normal(0, _SPREAD, int(rows.sum())))
    for name, column in values.items():
        own = np.exp(draw.normal(0, _SPREAD, int(rows.sum())))
        column[rows] *= together if "price" in name else own


def resume_rows(panel_times: Milliseconds, series: Sequence[Rows], limit: int) -> list[int]:
    """Panel rows after which data resume: the last row of holes in a clock and of runs without volume.

    Filling backwards shows there and nowhere else. At most `limit`, spread evenly.
    """
    resume: set[int] = set()
    for one in (each for each in series if isinstance(each, Bars)):
        times, silent = one.timestamps, one.column("volume") == 0
        after_hole = times[1:][np.diff(times) > one.interval.milliseconds]
        after_silence = times[1:][silent[:-1] & ~silent[1:]]
        for some in (after_hole, after_silence):
            spread = some[np.linspace(0, len(some) - 1, min(limit, len(some))).astype(int)]
            resume.update((np.searchsorted(panel_times, spread) - 1).tolist())
    rows = sorted(row for row in resume if 0 <= row < len(panel_times) - 1)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]
