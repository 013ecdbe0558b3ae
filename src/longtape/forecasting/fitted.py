"""A fitted model with the calibration of its intervals: what forecasts any panel that has its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from longtape.core.errors import UserError
from longtape.features.book_targets import classed_as
from longtape.features.panel import Panel, Rows
from longtape.features.pooled import PooledPanel, own_origins, pooled
from longtape.features.splits import Periods, Split, latest
from longtape.features.windows import first_origin
from longtape.forecasting.config import ForecastConfig, Method, bounds_of
from longtape.forecasting.conformal import RATE
from longtape.forecasting.dropout import PASSES, sample_windows
from longtape.forecasting.frame import to_frame
from longtape.forecasting.intervals import Array, Calibration, Course, calibrate, intervals
from longtape.forecasting.predict import Predicted, predict
from longtape.models.base import Model
from longtape.training.batches import BatchSource

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class FittedForecaster:
    """A trained model (its scaler is inside), the calibration of its intervals, and the borders it was fitted in."""

    model: Model
    calibration: Calibration
    config: ForecastConfig
    periods: Periods | None = None
    histories: tuple[History, ...] = ()  # losses per epoch of each seed

    @property
    def reach(self) -> int:
        """Rows up to the origin that a forecast may depend on, features aside."""
        return self.model.reach

    def inputs(self, panel: Panel, origins: Rows) -> Mapping[str, npt.NDArray[Any]]:
        """All that the network is given for the windows that end at `origins`, the windows scaled."""
        if self.model.config.pooled is None:
            return self._inputs(panel, origins)
        each = self._each(panel, origins)
        named = [(part.assets[0], self._inputs(rows, own)) for part, rows, own in each]
        return {f"{asset} {name}": values for asset, found in named for name, values in found.items()}

    def _inputs(self, panel: Panel, origins: Rows) -> Mapping[str, npt.NDArray[Any]]:
        batch = BatchSource(self.model, panel).batch(origins)
        scaling = getattr(self.model, "scaling", None)
        with torch.no_grad():
            x = batch.x if scaling is None else scaling(batch.x)
        named = {"x": x, "known_at": batch.known_at, "rows": batch.rows}
        named |= {
            "marks": batch.marks,
            "calendar": batch.calendar,
            "future": batch.future,
            "present": batch.present,
        }
        return {name: tensor.numpy() for name, tensor in named.items()}

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        """Forecast frame of the windows that end at `origins`. UserError where the panel has other columns.

        Adaptive intervals follow the misses since the calibration period, so all windows since are forecast with them.
        A pooled model forecasts each symbol at those of the origins where it has a whole window of its own.
        """
        if self.model.config.pooled is None:
            classed = classed_as(panel, self.model.inputs.targets)
            return self._frame(classed, classed, origins)
        frames = [self._frame(rows, part, own) for part, rows, own in self._each(panel, origins)]
        if not frames:
            raise UserError("no symbol has a whole window at these times; load more data")
        return pl.concat(frames)

    def newest(self, panel: Panel) -> Rows:
        """The newest origin, of a pooled model that of each symbol."""
        if self.model.config.pooled is None:
            return np.array([latest(panel, self.model.config.lookback)])
        return np.unique([panel.span(asset).stop - 1 for asset in panel.assets])

    def _each(self, panel: Panel, origins: Rows) -> Iterator[tuple[Panel, PooledPanel, Rows]]:
        """Of a pooled model: each symbol's rows, the same in units of its own past, and the origins among them."""
        config = self.model.config
        assert config.pooled is not None  # noqa: S101 (for the type alone)
        for asset in panel.assets:
            own = own_origins(panel, asset, origins, config.lookback)
            if len(own):
                rows = pooled(panel, config.pooled.own_past, [asset])
                yield rows.parts[0], rows, own

    def _frame(self, panel: Panel, shown: Panel, origins: Rows) -> pl.DataFrame:
        """Forecasts on a panel as the model is given it, shown with the labels and units of another with its rows."""
        if panel.columns != self.model.inputs.columns:
            raise UserError("these data give other feature columns than the model was trained on")
        rows = np.union1d(self._followed(panel, origins), origins)
        levels = self.calibration.quantiles if self.calibration.takes_quantiles else ()
        predicted = predict(self.model, panel, rows, self.windows_together, levels)
        bounds = intervals(
            self.model.inputs.targets, predicted, self.calibration, self._course(panel, rows),
            self._draws(panel, rows), self.config.rate or RATE,
        )  # fmt: skip
        wanted, unit = np.searchsorted(rows, origins), panel.units(origins)
        asked = {level: (low[wanted] * unit, high[wanted] * unit) for level, (low, high) in bounds.items()}
        made = predicted.at(wanted).times(unit)
        return to_frame(shown, origins, made, asked, self.calibration, self.periods, unit)

    @property
    def windows_together(self) -> int:
        """Windows in a batch: always as many, so that a forecast has the same bits in any company."""
        return self.config.windows_together(self.model.config.lookback)

    def first_followed(self, panel: Panel) -> int | None:
        """The first row that adaptive intervals follow; None where there are no such intervals."""
        if not self.calibration.uses("adaptive"):
            return None
        if self.periods is None:
            raise UserError("forecast.intervals: 'adaptive' needs periods that follow one another")
        after = int(np.searchsorted(panel.timestamps, self.periods.validation_until))
        return max(after, first_origin(panel, self.model.config.lookback))

    def _followed(self, panel: Panel, origins: Rows) -> Rows:
        first = self.first_followed(panel)
        return origins[:0] if first is None else np.arange(first, int(origins.max()) + 1)

    def _course(self, panel: Panel, rows: Rows) -> Course | None:
        first = self.first_followed(panel)
        if first is None:
            return None
        return Course(panel.known_at[rows], panel.targets_known[rows], panel.targets[rows], rows >= first)

    def _draws(self, panel: Panel, rows: Rows) -> Iterable[Array]:
        if not self.calibration.uses("mc_dropout"):
            return ()
        return sample_windows(self.model, panel, rows, self.config.samples or PASSES)


def calibrated(
    model: Model, panel: Panel, split: Split, config: ForecastConfig, traded: float | None
) -> Calibration:
    """Intervals and trading threshold from the calibration windows of `split`, and from nothing else."""
    methods = [
        config.method(model.config.head_of(target.of_kind)) if target.has_interval else None
        for target in model.inputs.targets
    ]
    origins = split.calibration
    if not len(origins):
        return _nothing_to_calibrate_on(model, methods, config, traded)
    quantiles = [p for level in config.every_level for p in bounds_of(level)] if "cqr" in methods else []
    together = config.windows_together(model.config.lookback)
    predicted = predict(model, panel, origins, together, quantiles, "calibrate")
    actual = panel.targets[origins]
    return calibrate(model.inputs.targets, methods, predicted, actual, config.every_level, traded)


def _nothing_to_calibrate_on(
    model: Model, methods: Sequence[Method | None], config: ForecastConfig, traded: float | None
) -> Calibration:
    if traded is not None:
        raise UserError(
            "backtest.traded: the threshold is chosen on calibration windows, and there are none;"
            " name a validation period under split"
        )
    nothing = np.empty((0, len(model.inputs.targets)))
    quantiles = {p: nothing for level in config.every_level for p in bounds_of(level)}
    return calibrate(
        model.inputs.targets, methods, Predicted(nothing, quantiles, None), nothing, config.every_level
    )
