"""Table: what expressions are computed on, named columns of one symbol on one clock; and its coarser time frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from longtape.core.clock import DAY, FIRST_MONDAY, WEEK, Interval, Milliseconds, iso
from longtape.core.errors import UserError

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SUMMED = frozenset(
    {
        "volume",
        "turnover",
        "quote_volume",
        "buy_volume",
        "sell_volume",
        "buy_turnover",
        "sell_turnover",
        "trades",
    }
)


@dataclass(frozen=True, eq=False)
class Table:
    """Columns [T] of one symbol. Row t opens at `timestamps[t]` and is known at `known_at[t]`."""

    symbol: str
    interval: Interval
    calendar: str
    timestamps: Milliseconds
    known_at: Milliseconds
    columns: Mapping[str, Array]
    origin: str = "data"
    ids: Milliseconds | None = None  # of events, where they have numbers
    cache: dict[str, Array] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.timestamps)

    def __getitem__(self, name: str) -> Array:
        if name not in self.columns:
            raise UserError(f"{self.origin}: no column '{name}'; there are {', '.join(self.columns)}")
        return self.cached(name, lambda: _finite(self, name))

    def cached(self, name: str, compute: Callable[[], Array]) -> Array:
        """What `compute` gives, computed once per table."""
        if name not in self.cache:
            self.cache[name] = compute()
        return self.cache[name]


def _finite(table: Table, name: str) -> Array:
    values = np.require(
        table.columns[name], np.float64, ["C", "W"]
    )  # kernels are compiled for writable arrays
    if np.isfinite(values.sum()):  # one pass without a copy; a value that is not finite makes the sum so
        return values
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"{table.origin}: row {row + 1} ({iso(int(table.timestamps[row]))}), column '{name}': {values[row]} is"
            f" not a number; mend or remove the row ({int(bad.sum())} such)"
        )
    return values


def period_starts(timestamps: Milliseconds, period: Interval) -> Milliseconds:
    """When the period that holds each time began, on the UTC clock: weeks on Monday, months by the calendar."""
    if period.is_month:
        months = timestamps.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        count = int(period.name[:-1])
        return (months // count * count).astype("datetime64[M]").astype("datetime64[ms]").astype(np.int64)
    offset = FIRST_MONDAY if period.milliseconds % WEEK == 0 else 0
    return (timestamps - offset) // period.milliseconds * period.milliseconds + offset


def resample(table: Table, interval: Interval) -> Table:
    """Bars of a longer interval. The first one is left out unless the data begin exactly where it opens.

    Open is the first, high the largest, low the least, volumes are sums, everything else is the last value.
    UserError where the interval is not a whole number of bars.
    """
    short, long = table.interval.milliseconds, interval.milliseconds
    if not short or long <= short or (not interval.is_month and long % short):
        raise UserError(
            f'{table.origin}: resample("{interval}") is not a whole number of bars of {table.interval}'
        )
    starts = period_starts(table.timestamps, interval)
    first = np.flatnonzero(np.diff(starts, prepend=starts[:1] - 1))
    if len(first) and table.timestamps[0] != starts[0]:
        first = first[1:]
    columns = {name: _gather(name, values, first) for name, values in table.columns.items()}
    opens = starts[first]
    return Table(
        table.symbol, interval, table.calendar, opens, interval.close_of(opens), columns, table.origin
    )


def _gather(name: str, values: Array, first: Rows) -> Array:
    if not len(first):
        return np.empty(0)
    if name == "open":
        return np.ascontiguousarray(values[first])
    if name == "high":
        return np.maximum.reduceat(values, first)
    if name == "low":
        return np.minimum.reduceat(values, first)
    if name in SUMMED:
        return np.add.reduceat(values, first)
    return np.ascontiguousarray(values[np.append(first[1:], len(values)) - 1])


def longest(period: Interval, bar: Interval) -> int:
    """The most bars that a period can hold, on a clock that never stops."""
    length = _longest_months(int(period.name[:-1])) if period.is_month else period.milliseconds
    return -(-length // bar.milliseconds)


def _longest_months(count: int) -> int:
    starts = np.arange(-count, count + 48).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return int((starts[count:] - starts[:-count]).max()) * DAY


def newest_known(coarse: Table, fine: Table) -> Rows:
    """For each row of `fine`, the newest row of `coarse` that has closed by then; −1 where there is none."""
    return np.searchsorted(coarse.known_at, fine.known_at, side="right") - 1
