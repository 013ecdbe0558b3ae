"""Panel: what a model may see, as one matrix with its clock and an axis of assets. Made by `features.build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.core.calendars import calendar_features, future_opens, is_due
from longtape.core.clock import Interval, Milliseconds
from longtape.core.errors import UserError
from longtape.core.shown import Shown
from longtape.features.target_kinds import WEIGHT, TargetKind, target_kind
from longtape.market.frames import to_pandas

Rows = npt.NDArray[np.int64]
UNKNOWN_END = 2**62  # of a label that ends with an event to come, which nobody can date


@dataclass(frozen=True)
class Column:
    """One feature: of an asset, or (`asset` None) the same for all."""

    asset: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.asset is None else f"{self.asset} {self.name}"


@dataclass(frozen=True)
class TargetColumn:
    """One column of targets: what it is, of which asset, and how many rows ahead its label is known."""

    name: str  # as written in the experiment, e.g. `return(24)`
    kind: str  # a name of `target_kinds.KINDS`
    asset: str
    horizon: int
    options: tuple[tuple[str, float], ...] = ()
    at_open: bool = False  # the label ends with the open of a bar, not with a close
    as_weight: bool = False  # a share of the equity is forecast, which earns the label
    auxiliary: bool = False  # learnt beside the others, and not forecast

    @property
    def is_traded(self) -> bool:
        """True for an expected log return, or a share of the equity."""
        return self.of_kind.traded

    @property
    def has_interval(self) -> bool:
        """True where an interval is made around the forecast."""
        return self.of_kind.error is not None and not self.auxiliary

    @property
    def of_kind(self) -> TargetKind:
        """Everything that depends on the kind of what is forecast."""
        return WEIGHT if self.as_weight else target_kind(self.kind)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from all others in a forecast frame: asset, name, horizon."""
        return self.asset, self.name, self.horizon


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of a panel in which an asset is listed; its features are whole from row `ready` on."""

    start: int
    ready: int
    stop: int


class GlobalMarks(Protocol):
    """Moments of market time that become global tokens (`longtape.features.marks.Marks`)."""

    def positions(self, origins: Rows, lookback: int) -> Rows:
        """Positions [B, G] inside the windows that end at `origins`, 0 = oldest bar, −1 = none."""


@dataclass(frozen=True, eq=False, repr=False)
class Panel(Shown):
    """T moments × C features float32, with K targets whose labels know their end.

    Row t is a bar's close or an event of a book or a tape; it holds what is known at `known_at[t]` (a bar opened at
    `timestamps[t]`). Columns stand asset by asset, F for each, then the G that all share. A target that is not yet
    known is NaN, and its end lies past the data. Rows before `warm_up` hold features that have not seen enough.
    """

    timestamps: Milliseconds  # [T] opens of bars, times of events
    known_at: Milliseconds  # [T]
    ordinals: Milliseconds  # [T] a row's number that does not depend on where the data begin
    values: npt.NDArray[np.float32]  # [T, C], NaN before warm_up and where an asset is absent
    columns: tuple[Column, ...]
    assets: tuple[str, ...]
    present: npt.NDArray[np.bool_]  # [T, A]
    targets: npt.NDArray[np.float64]  # [T, K], original units
    target_columns: tuple[TargetColumn, ...]
    target_ends: Milliseconds  # [T, K]
    interval: Interval
    calendar: str
    warm_up: int
    closes: npt.NDArray[np.float64] = field(repr=False)  # [T, A], for closed-form models and original units
    calendar_values: npt.NDArray[np.float32] = field(repr=False)  # [T + ahead, D]: rows to come included
    ranges: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    """[T, A] variance of each bar from its high and low (Parkinson 1980); None where a source has none"""
    turnover: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    """[T, A] volume at the close's price; None where a source reports none"""
    marks: GlobalMarks | None = None
    quotes: npt.NDArray[np.float64] | None = field(
        default=None, repr=False
    )  # [T, 2] of books: imbalance, micro-price
    tape: npt.NDArray[np.float64] | None = field(
        default=None, repr=False
    )  # [T, 2] of trades: taker, their imbalance
    spans: tuple[Span, ...] = field(default=(), repr=False)
    """of each asset, where each has its own; without them all are there from the first row to the last"""

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def title(self) -> str:
        """The assets."""
        return ", ".join(self.assets[:5]) + (" …" if len(self.assets) > 5 else "")

    def facts(self) -> dict[str, Any]:
        """What a reader of its repr sees."""
        return {
            "rows": len(self),
            "interval": self.interval.name,
            "features": len(self.columns),
            "targets": ", ".join(dict.fromkeys(target.name for target in self.target_columns)),
            "warm-up": self.warm_up,
        }

    def to_frame(self) -> pl.DataFrame:
        """`timestamp`, the features and the targets as columns named `BTCUSDT rsi(14)`."""
        times = pl.Series("timestamp", self.timestamps).cast(pl.Datetime("ms", "UTC"))
        named: dict[str, npt.NDArray[np.generic]] = {}
        for i, column in enumerate(self.columns):
            named[str(column)] = self.values[:, i]
        for k, target in enumerate(self.target_columns):
            named[f"{target.asset} {target.name} in {target.horizon}"] = self.targets[:, k]
        return pl.DataFrame({"timestamp": times, **named})

    def to_pandas(self) -> Any:
        """The same as a pandas frame, times (UTC) as its index."""
        return to_pandas(self.to_frame())

    @property
    def series(self) -> tuple[Panel, ...]:
        """The panels, one after the other, whose rows these are: of which none reads another's rows."""
        return (self,)

    @property
    def unit(self) -> npt.NDArray[np.float64] | None:
        """In which labels that have a unit are given, [T]; None: as they are."""
        return None

    def units(self, origins: Rows) -> npt.NDArray[np.float64]:
        """What forecasts at `origins` are to be multiplied by, [n, K]: 1 where labels are in original units."""
        return np.ones((len(origins), len(self.target_columns)))

    @cached_property
    def row_in_series(self) -> Rows:
        """How many rows of its own series stand before each row, [T]."""
        return np.concatenate([np.arange(len(one)) for one in self.series])

    def span(self, asset: str) -> Span:
        """The rows in which an asset is listed."""
        whole = Span(0, self.warm_up, len(self))
        return self.spans[self.assets.index(asset)] if self.spans else whole

    @property
    def ready_rows(self) -> int:
        """The fewest rows past its warm-up that an asset has."""
        return min(one.stop - one.ready for one in map(self.span, self.assets))

    @property
    def n_shared(self) -> int:
        """G, the number of columns that all assets share."""
        return sum(column.asset is None for column in self.columns)

    @property
    def by_asset(self) -> npt.NDArray[np.float32]:
        """View [T, A, F] of the assets' own features."""
        own = self.values.shape[1] - self.n_shared
        return self.values[:, :own].reshape(len(self), len(self.assets), -1)

    @property
    def shared(self) -> npt.NDArray[np.float32]:
        """View [T, G] of the features that all assets share."""
        return self.values[:, self.values.shape[1] - self.n_shared :]

    @property
    def targets_known(self) -> Milliseconds:
        """[T, K] from when on a label can be used: its end, or right after it where that is an open.

        At the close of a bar the open that follows at the same moment is not known yet.
        """
        known: Milliseconds = self.target_ends + np.array([target.at_open for target in self.target_columns])
        return known

    @property
    def ahead(self) -> int:
        """Rows after the last whose calendar is known."""
        return len(self.calendar_values) - len(self)

    def future(self, origins: Rows, steps: int) -> npt.NDArray[np.float32]:
        """Calendar [B, steps, D] of the bars that are due after each origin: known ahead, whatever the market does.

        Those are the next rows, but where bars are missing or come when the market is closed, which nobody could know.
        """
        if steps > self.ahead:
            what = "events come at no fixed time" if self.ahead == 0 else f"{self.ahead} rows are known ahead"
            raise UserError(f"panel: the calendar of {steps} rows to come was asked for; {what}")
        if steps == 0:
            return np.empty((len(origins), 0, self.calendar_values.shape[1]), np.float32)
        found = self.calendar_values[origins[:, None] + np.arange(1, steps + 1)]
        if steps == 0:
            return found
        surprises = self._surprises[np.minimum(origins + steps, len(self) - 1)] - self._surprises[origins]
        for at in np.flatnonzero(surprises):
            opens = future_opens(int(self.timestamps[origins[at]]), steps, self.interval, self.calendar)
            found[at] = calendar_features(opens, self.interval, self.calendar)
        return found

    @cached_property
    def _surprises(self) -> Rows:
        """How many rows up to each, [T], are not the bar that was due after the one before."""
        surprise = ~is_due(self.timestamps, self.interval, self.calendar)
        apart = np.diff(self.timestamps, prepend=self.timestamps[0] - self.interval.milliseconds)
        for row in np.flatnonzero(apart != self.interval.milliseconds):
            due = future_opens(int(self.timestamps[row - 1]), 1, self.interval, self.calendar)
            surprise[row] |= bool(self.timestamps[row] != due[0])
        return np.cumsum(surprise)

    def calendar_of(self, origins: Rows, lookback: int) -> npt.NDArray[np.float32]:
        """Calendar [B, lookback, D] of the rows of the windows that end at `origins`."""
        return self.calendar_values[origins[:, None] + np.arange(1 - lookback, 1)]

    def mark_positions(self, origins: Rows, lookback: int) -> Rows:
        """Global positions [B, G] of the windows that end at `origins`; G = 0 without marks."""
        if self.marks is None:
            return np.empty((len(origins), 0), np.int64)
        return self.marks.positions(origins, lookback)
