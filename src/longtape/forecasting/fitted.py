"""A fitted model with the calibration of its intervals: what forecasts any panel that has its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.features.splits import Periods, Split
from longtape.forecasting.config import ForecastConfig
from longtape.forecasting.frame import to_frame
from longtape.forecasting.intervals import Calibration, calibrate
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
        """Forecast frame of the windows that end at `origins`. UserError where the panel has other columns."""
        if panel.columns != self.model.inputs.columns:
            raise UserError("these data give other feature columns than the model was trained on")
        levels = self.calibration.levels if needs_quantiles(self.calibration) else ()
        predicted = predict(self.model, panel, origins, self.config.batch_size, levels)
        return to_frame(panel, origins, predicted, self.calibration, self.periods)


def needs_quantiles(calibration: Calibration) -> bool:
    """True where an interval is made from the head's own quantiles."""
    return any(target.method in ("cqr", "quantile", "student_t") for target in calibration.targets)


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
    levels = config.levels if any(method not in (None, "conformal") for method in methods) else ()
    predicted = predict(model, panel, origins, config.batch_size, levels, "calibrate")
    actual = panel.targets[origins]
    return calibrate(model.inputs.targets, methods, predicted, actual, config.level, traded)


def _nothing_to_calibrate_on(
    model: Model, methods: Sequence[Any], config: ForecastConfig, traded: float | None
) -> Calibration:
    if traded is not None:
        raise UserError(
            "backtest.traded: the threshold is chosen on calibration windows, and there are none;"
            " name a validation period under split"
        )
    n = len(model.inputs.targets)
    nothing = np.empty((0, n))
    predicted = Predicted(nothing, dict.fromkeys(config.levels, nothing), None)
    return calibrate(model.inputs.targets, methods, predicted, nothing, config.level)
