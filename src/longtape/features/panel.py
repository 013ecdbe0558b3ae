"""Panel: what a model may see, as one matrix with its clock. Made by `features.build`, read by windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from longtape.core.clock import Interval, Milliseconds


@dataclass(frozen=True)
class TargetColumn:
    """One column of targets: what it is, of which symbol, how many bars ahead, and the unit it is in."""

    name: str  # as written in the experiment, e.g. `return(24)`
    kind: str  # return | volatility | direction | path | …
    symbol: str
    horizon: int  # bars after the origin at which the label is known
    options: tuple[tuple[str, float], ...] = ()


class GlobalMarks(Protocol):
    """Moments of market time that become global tokens (`longtape.features.marks.Marks`)."""

    def positions(self, origins: npt.NDArray[np.int64], lookback: int) -> npt.NDArray[np.int64]:
        """Positions [B, G] inside the windows that end at `origins`, 0 = oldest bar, −1 = none."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Features [T, C] float32 on one clock, with targets [T, K] whose labels know their end.

    Row t holds what is known at `known_at[t]`, the close of the bar that opened at `timestamps[t]`. A target not
    yet known is NaN and its end lies past the data. Rows before `warm_up` hold features that have not seen enough bars.
    """

    timestamps: Milliseconds  # [T] opens
    known_at: Milliseconds  # [T] closes
    values: npt.NDArray[np.float32]  # [T, C], NaN only before warm_up
    columns: tuple[str, ...]
    targets: npt.NDArray[np.float64]  # [T, K], original units
    target_columns: tuple[TargetColumn, ...]
    target_ends: Milliseconds  # [T, K] when each label is known
    symbols: tuple[str, ...]
    interval: Interval
    calendar: str
    warm_up: int
    closes: npt.NDArray[np.float64] = field(repr=False)  # [T, S], for baselines and original units
    marks: GlobalMarks | None = None

    def __len__(self) -> int:
        return len(self.timestamps)

    def mark_positions(self, origins: npt.NDArray[np.int64], lookback: int) -> npt.NDArray[np.int64]:
        """Global positions [B, G] of the windows that end at `origins`; G = 0 without marks."""
        if self.marks is None:
            return np.empty((len(origins), 0), np.int64)
        return self.marks.positions(origins, lookback)

    def columns_of(self, symbol: str) -> npt.NDArray[np.int64]:
        """Indices of the features that tell of `symbol`: its own, then those that all symbols share."""
        alone = len(self.symbols) == 1
        own = [c for c, name in enumerate(self.columns) if alone or name.startswith(f"{symbol}:")]
        others = tuple(f"{name}:" for name in self.symbols)
        shared = [c for c, name in enumerate(self.columns) if not alone and not name.startswith(others)]
        return np.array([*own, *shared], dtype=np.int64)
