"""Series of levels as panels, so that the shipped models and the shipped trainer run on benchmark files.

The labels of a row are the scaled values of the rows after it. Training, validation and test are laid one below the
other, each with the rows before its border that its first window reads, and with empty rows behind its end: no label of
one part can lie in the next. Where the series are `pooled` each has blocks of its own, for one model that sees one of
them at a time (channel-independent); otherwise they stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from longtape.core.arrays import Floats
from longtape.core.calendars import calendar_features, future_opens
from longtape.core.clock import ALWAYS_OPEN, Milliseconds
from longtape.evaluation.ett import Ett, Part
from longtape.features.panel import Column, Panel, Rows, TargetColumn
from longtape.features.pooled import ANY
from longtape.models.base import ModelInputs

LEVEL = "level"  # the one feature of a series
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Levels:
    """A benchmark file as a panel of all steps up to the longest horizon. UserError where a part has no window."""

    data: Ett
    lookback: int
    horizons: tuple[int, ...]
    pooled: bool

    def __post_init__(self) -> None:
        for part in PARTS:
            self.data.windows(part, self.lookback, self.steps)

    @property
    def steps(self) -> int:
        """K, the longest horizon."""
        return max(self.horizons)

    @property
    def assets(self) -> tuple[str, ...]:
        """What the model takes for assets."""
        return (ANY,) if self.pooled else self.data.columns

    def origins(self, part: Part, horizon: int | None = None) -> Rows:
        """Rows of the panel at which the windows of a part end, block by block, all labels up to `horizon` known.

        By default those of the shortest horizon: of the other labels what is not known is NaN.
        """
        starts = self.data.windows(part, self.lookback, horizon or min(self.horizons)).starts
        first = starts.start - 1 - self._rows(part).start
        blocks = np.array([at for one, at in self._blocks() if one == part])
        return (blocks[:, None] + first + np.arange(len(starts))).ravel()

    def labels(self, part: Part, horizon: int) -> Floats:
        """Labels [n, horizon] (side by side: [n, C · K]) of the windows of a part, in the order of `origins`."""
        found: Floats = self.panel.targets[self.origins(part, horizon)]
        return found[:, :horizon] if self.pooled else found

    def _rows(self, part: Part) -> range:
        """Rows of the file that a part reads."""
        begin, end = self.data.borders[part]
        return range(begin if part == "train" else begin - self.lookback, end)

    def _blocks(self) -> Iterator[tuple[Part, int]]:
        """The part of each block and its first row in the panel."""
        at = 0
        for part in PARTS:
            for _ in self.data.columns if self.pooled else (None,):
                yield part, at
                at += len(self._rows(part)) + self.steps

    @cached_property
    def panel(self) -> Panel:
        """What a model sees."""
        blocks = [self._padded(self._scaled(part)) for part in PARTS]
        if self.pooled:
            values = np.concatenate([block.T.reshape(-1, 1) for block in blocks])
        else:
            values = np.concatenate(blocks)
        opens = np.concatenate([self._opens(part) for part, _ in self._blocks()])
        known_at = self.data.interval.close_of(opens)
        ahead = [_ahead(series, self.steps) for series in values.T]
        targets = ahead[0] if self.pooled else np.concatenate(ahead, axis=1)  # one alone stays a view
        coming = future_opens(int(opens[-1]), self.steps, self.data.interval, ALWAYS_OPEN)
        calendar = calendar_features(np.concatenate([opens, coming]), self.data.interval, ALWAYS_OPEN)
        return Panel(
            timestamps=opens,
            known_at=known_at,
            ordinals=np.arange(len(opens)),
            values=values.astype(np.float32),
            columns=self._columns,
            assets=self.assets,
            present=np.ones((len(opens), len(self.assets)), bool),
            targets=targets,
            target_columns=self._target_columns,
            target_ends=np.broadcast_to(known_at[:, None], targets.shape),
            interval=self.data.interval,
            calendar=ALWAYS_OPEN,
            warm_up=0,
            closes=values,
            calendar_values=calendar,
        )

    def inputs(self) -> ModelInputs:
        """What a model must know of the data: values and labels are scaled already."""
        zeros, ones = np.zeros(len(self.assets)), np.ones(len(self.assets))
        unit = np.ones(len(self._target_columns))
        targets, interval = self._target_columns, self.data.interval
        return ModelInputs(self._columns, self.assets, targets, interval, ALWAYS_OPEN, zeros, ones, unit)

    @property
    def _columns(self) -> tuple[Column, ...]:
        return tuple(Column(asset, LEVEL) for asset in self.assets)

    @property
    def _target_columns(self) -> tuple[TargetColumn, ...]:
        """Every step of every series, of the kind whose heads forecast many steps of one thing."""
        steps = range(1, self.steps + 1)
        name = f"{LEVEL}({self.steps})"
        return tuple(TargetColumn(name, "path", asset, step) for asset in self.assets for step in steps)

    def _scaled(self, part: Part) -> Floats:
        rows = self._rows(part)
        return self.data.scaled[rows.start : rows.stop]

    def _padded(self, rows: Floats) -> Floats:
        return np.concatenate([rows, np.full((self.steps, rows.shape[1]), np.nan)])

    def _opens(self, part: Part) -> Milliseconds:
        """When the rows of a block open, the empty ones included."""
        rows, known = self._rows(part), self.data.timestamps
        missing = max(0, rows.stop + self.steps - len(known))
        more = future_opens(int(known[-1]), missing, self.data.interval, ALWAYS_OPEN)
        return np.concatenate([known, more])[rows.start : rows.stop + self.steps]


def _ahead(series: Floats, steps: int) -> Floats:
    """View [T, steps] of the values after each row of a series [T], NaN behind its end."""
    return sliding_window_view(np.append(series, np.full(steps, np.nan)), steps)[1:]
