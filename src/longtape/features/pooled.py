"""Pooled panels: the rows of many symbols one below the other, for a model that sees one symbol at a time.

A pooled panel has one asset, `any`, and a row for each (symbol, time). Labels that have a unit are given in that of the
symbol's own past: the root of the mean squared return of the bars before. So a model of it knows no symbol's level, and
forecasts one that it has never seen: `unit` says by how much its forecasts are to be multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Column, GlobalMarks, Panel, Rows, TargetColumn
from longtape.features.rolling import rolling_mean
from longtape.features.splits import Split

ANY = "any"  # the asset of a pooled panel
Array = npt.NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)
_PARTS: WeakKeyDictionary[Panel, dict[str, Panel]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False, repr=False)
class PooledPanel(Panel):
    """The rows of `parts` one after the other, labels in units of each row's own past."""

    parts: tuple[Panel, ...] = ()
    own_unit: Array = field(default_factory=lambda: np.empty(0))  # [T] volatility of one bar

    @property
    def series(self) -> tuple[Panel, ...]:
        """The symbols' own panels, in original units."""
        return self.parts

    @property
    def unit(self) -> Array:
        """The volatility of one bar, [T]."""
        return self.own_unit

    def units(self, origins: Rows) -> Array:
        """What forecasts at `origins` are to be multiplied by, [n, K]: 1 for targets without a unit."""
        return np.where(_with_unit(self.target_columns), self.own_unit[origins, None], 1.0)

    @cached_property
    def offsets(self) -> Rows:
        """The first row of each part."""
        return np.cumsum([0, *(len(part) for part in self.parts[:-1])])


@dataclass(frozen=True)
class _MarksOfParts:
    """Marks of the panel that the parts were taken from, at the rows where they stand there."""

    marks: GlobalMarks
    rows: Rows

    def positions(self, origins: Rows, lookback: int) -> Rows:
        """[B, G], as `GlobalMarks.positions`."""
        return self.marks.positions(self.rows[origins], lookback)


def part_of(panel: Panel, asset: str) -> Panel:
    """The rows in which an asset is listed, with its own columns and those that all share, in original units.

    Made once, so that what is fitted on it month by month is too.
    """
    made = _PARTS.setdefault(panel, {})
    if asset not in made:
        made[asset] = _part_of(panel, asset)
    return made[asset]


def _part_of(panel: Panel, asset: str) -> Panel:
    span, at = panel.span(asset), panel.assets.index(asset)
    rows = slice(span.start, span.stop)
    columns = [c for c, column in enumerate(panel.columns) if column.asset in (asset, None)]
    targets = [k for k, target in enumerate(panel.target_columns) if target.asset == asset]
    marks = None if panel.marks is None else _MarksOfParts(panel.marks, np.arange(span.start, span.stop))
    return replace(
        panel,
        timestamps=panel.timestamps[rows],
        known_at=panel.known_at[rows],
        ordinals=panel.ordinals[rows],
        values=np.ascontiguousarray(panel.values[rows, columns]),
        columns=tuple(panel.columns[c] for c in columns),
        assets=(asset,),
        present=panel.present[rows, at : at + 1],
        targets=panel.targets[rows, targets],
        target_columns=tuple(panel.target_columns[k] for k in targets),
        target_ends=panel.target_ends[rows, targets],
        warm_up=span.ready - span.start,
        closes=panel.closes[rows, at : at + 1],
        calendar_values=panel.calendar_values[span.start : span.stop + panel.ahead],
        ranges=None if panel.ranges is None else panel.ranges[rows, at : at + 1],
        turnover=None if panel.turnover is None else panel.turnover[rows, at : at + 1],
        marks=marks,
        spans=(),
    )


def pooled(panel: Panel, own_past: int, assets: Sequence[str] = ()) -> PooledPanel:
    """The symbols `assets` (all by default) one below the other, labels in units of `own_past` bars before each row."""
    parts = tuple(part_of(panel, asset) for asset in assets or panel.assets)
    first = parts[0]
    units = [own_volatility(part, own_past) for part in parts]
    with_unit = _with_unit(first.target_columns)
    labels = [
        part.targets / np.where(with_unit, u[:, None], 1.0) for part, u in zip(parts, units, strict=True)
    ]
    ahead = first.calendar_values[len(first) :]
    return PooledPanel(
        timestamps=_joined([part.timestamps for part in parts]),
        known_at=_joined([part.known_at for part in parts]),
        ordinals=_joined([part.ordinals for part in parts]),
        values=_joined([part.values for part in parts]),
        columns=tuple(Column(column.asset and ANY, column.name) for column in first.columns),
        assets=(ANY,),
        present=_joined([part.present for part in parts]),
        targets=_joined(labels),
        target_columns=tuple(replace(target, asset=ANY) for target in first.target_columns),
        target_ends=_joined([part.target_ends for part in parts]),
        interval=first.interval,
        calendar=first.calendar,
        warm_up=first.warm_up,
        closes=_joined([part.closes for part in parts]),
        calendar_values=_joined([*(part.calendar_values[: len(part)] for part in parts), ahead]),
        ranges=_joined_if_there([part.ranges for part in parts]),
        turnover=_joined_if_there([part.turnover for part in parts]),
        marks=_marks_of(parts),
        parts=parts,
        own_unit=_joined(units),
    )


def own_volatility(part: Panel, n: int) -> Array:
    """√(mean r² of the last n bars) of a one-symbol panel, [T], NaN before there are n; bars that are absent do not
    count.
    """
    with np.errstate(invalid="ignore"):
        squares = np.diff(np.log(part.closes[:, 0]), prepend=np.nan) ** 2
    there = (part.present[:, 0] & np.isfinite(squares)).astype(np.float64)
    counted = rolling_mean(there, n)
    counted[:n] = np.nan  # the first bar has no return
    mean = rolling_mean(np.where(there > 0, squares, 0.0), n) / np.where(counted > 0, counted, np.nan)
    return np.sqrt(np.maximum(mean, SMALLEST_VARIANCE))


def pooled_split(panel: Panel, rows: PooledPanel, split: Split, lookback: int) -> Split:
    """The same split of the pooled rows of `panel`: of each symbol the origins that are its own."""
    each = [split_of(panel, part.assets[0], split, lookback) for part in rows.parts]

    def below(name: str) -> Rows:
        parts = zip(each, rows.offsets, strict=True)
        return np.concatenate([at + getattr(one, name) for one, at in parts])

    names = ("train", "validation", "calibration", "test")
    return Split(**{name: below(name) for name in names}, periods=split.periods)


def split_of(panel: Panel, asset: str, split: Split, lookback: int) -> Split:
    """The same split of an asset's own rows: of each period the origins with a whole window and a known label."""

    def own(origins: Rows) -> Rows:
        return own_origins(panel, asset, origins, lookback, labelled=True)

    return Split(
        own(split.train), own(split.validation), own(split.calibration), own(split.test), split.periods
    )


def own_origins(panel: Panel, asset: str, origins: Rows, lookback: int, labelled: bool = False) -> Rows:
    """Rows of an asset's part at which a whole window of its own ends, of the panel's `origins`; `labelled`: and of
    which a label is known.
    """
    span = panel.span(asset)
    own = origins[(origins >= span.ready + lookback - 1) & (origins < span.stop)]
    if labelled:
        columns = [
            k for k, one in enumerate(panel.target_columns) if one.asset == asset and not one.auxiliary
        ]
        own = own[np.isfinite(panel.targets[own][:, columns]).any(axis=1)]
    return own - span.start


def _with_unit(targets: Sequence[TargetColumn]) -> npt.NDArray[np.bool_]:
    """Targets whose labels are moves of the price, [K]; a class has no unit."""
    return np.array([target.of_kind.error is not None for target in targets])


def _joined(parts: Sequence[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined_if_there(parts: Sequence[Array | None]) -> Array | None:
    there = [part for part in parts if part is not None]
    return _joined(there) if there else None


def _marks_of(parts: Sequence[Panel]) -> GlobalMarks | None:
    found = [part.marks for part in parts if isinstance(part.marks, _MarksOfParts)]
    if not found:
        return None
    return _MarksOfParts(found[0].marks, np.concatenate([one.rows for one in found]))
