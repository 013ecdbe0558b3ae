"""An experiment as a pipeline: bars → panel → split → fitted forecaster → weights → fills.

This is what evaluation drives (`longtape.evaluation.protocol`): each step is a pure function of what it is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from longtape.backtest import BacktestResult, run_backtest
from longtape.backtest.signals import weights_from_forecast
from longtape.core.errors import UserError
from longtape.experiment import Experiment
from longtape.features.build import build
from longtape.features.marks import Events, build_marks, read_events
from longtape.features.panel import Panel
from longtape.features.scaling import Standardizer
from longtape.features.splits import Periods, Split, chronological
from longtape.features.windows import Windows
from longtape.forecasting.frame import to_frame
from longtape.forecasting.intervals import Calibration, calibrate
from longtape.forecasting.predict import model_inputs, predict
from longtape.market.bars import Bars
from longtape.models.forecaster import Forecaster, ModelInputs
from longtape.training.loop import Trainer

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FittedForecaster:
    """A trained model (its scaler is inside) and the calibration of its intervals."""

    model: Forecaster
    calibration: Calibration
    batch_size: int
    history: tuple[dict[str, float], ...] = ()

    def inputs(self, panel: Panel, origins: Rows) -> Mapping[str, npt.NDArray[Any]]:
        """What the network is given: scaled windows `x` [n, L, C], the time each is known, and its marks [n, G]."""
        return {
            "x": model_inputs(self.model, panel, origins),
            "when": panel.known_at[origins],
            "marks": panel.mark_positions(origins, self.model.config.lookback),
        }

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        """Forecast frame of the windows that end at `origins`."""
        if panel.columns != self.model.inputs.columns:
            raise UserError("these bars give other feature columns than the model was trained on")
        return to_frame(
            panel, origins, predict(self.model, panel, origins, self.batch_size), self.calibration
        )


@dataclass(frozen=True)
class ExperimentPipeline:
    """The steps that an experiment describes."""

    experiment: Experiment
    events: Events | None = None  # as they were known at some time; None: the experiment's file

    @property
    def lookback(self) -> int:
        """Bars in a window."""
        return self.experiment.model.lookback

    def panel(self, bars: Sequence[Bars]) -> Panel:
        """Features, targets and marks of `bars`."""
        panel, marks = build(bars, self.experiment.feature_config), self.experiment.marks
        return panel if marks is None else replace(panel, marks=build_marks(panel, marks, self.events))

    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        """Training, validation and test origins, as configured or at the borders of `periods`."""
        return chronological(panel, self.lookback, periods or self.experiment.split)

    def scaler(self, panel: Panel, train: Rows) -> Standardizer:
        """Mean and deviation of the rows that training windows see."""
        rows = Split(train, train[:0], train[:0]).training_rows(self.lookback)
        return Standardizer.fit(panel.values, rows, panel.columns)

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> FittedForecaster:
        """Train from the experiment's seed; nothing is kept on disk."""
        with tempfile.TemporaryDirectory(prefix="longtape-") as folder:
            return self.fit_with_checkpoint(
                panel, train, validation, Path(folder) / "checkpoint.safetensors", False
            )

    def fit_with_checkpoint(
        self, panel: Panel, train: Rows, validation: Rows, checkpoint: Path, resume: bool
    ) -> FittedForecaster:
        """Train, saving to `checkpoint`, or go on from it to the same numbers."""
        if not len(validation):
            raise UserError(
                "split: training stops early on validation windows, and there are none; name some"
            )
        torch.manual_seed(self.experiment.seed)
        model = Forecaster(self.experiment.model, self._model_inputs(panel, train))
        seen, checked = (Windows(panel, self.lookback, rows) for rows in (train, validation))
        trainer = Trainer(model, seen, checked, self.experiment.training, self.experiment.seed, checkpoint)
        history = trainer.fit(resume)
        calibration = self._calibrate(model, panel, validation)
        return FittedForecaster(model, calibration, self.experiment.forecast.batch_size, tuple(history))

    def rescaled(self, fitted: FittedForecaster, panel: Panel, train: Rows) -> FittedForecaster:
        """The same trained weights with the scaler fitted again."""
        model = Forecaster(self.experiment.model, fitted.model.inputs)
        model.load_state_dict(fitted.model.state_dict())
        scaler = self.scaler(panel, train)
        model.scaling.mean.copy_(torch.tensor(scaler.mean))
        model.scaling.deviation.copy_(torch.tensor(scaler.std))
        return replace(fitted, model=model.eval())

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        """Target weights decided at each origin's close."""
        return weights_from_forecast(forecast, self.experiment.backtest.signal)

    def backtest(self, weights: pl.DataFrame, bars: Sequence[Bars]) -> BacktestResult:
        """The account that follows `weights` through `bars`, with the experiment's costs."""
        config = self.experiment.backtest
        return run_backtest(
            weights, bars, costs=config.costs, fill=config.fill, initial_capital=config.initial_capital
        )

    def fills(self, weights: pl.DataFrame, bars: Sequence[Bars]) -> pl.DataFrame:
        """Trades that follow from `weights` on `bars`."""
        return self.backtest(weights, bars).fills

    def as_of(self, time: int) -> ExperimentPipeline:
        """The same with the events that had been announced by `time`."""
        marks = self.experiment.marks
        if marks is None or marks.events is None:
            return self
        return replace(self, events=(self.events or read_events(marks.events)).as_of(time))

    def _model_inputs(self, panel: Panel, train: Rows) -> ModelInputs:
        scaler = self.scaler(panel, train)
        deviation = np.nanstd(panel.targets[train], axis=0)
        deviation[deviation == 0] = 1.0  # a constant target has no unit of its own
        return ModelInputs(
            panel.columns, panel.target_columns, panel.interval, scaler.mean, scaler.std, deviation
        )

    def _calibrate(self, model: Forecaster, panel: Panel, validation: Rows) -> Calibration:
        batch_size = self.experiment.forecast.batch_size
        predicted = predict(model, panel, validation, batch_size, "calibrate")
        level, traded = self.experiment.forecast.level, self.experiment.backtest.traded
        return calibrate(panel.target_columns, predicted, panel.targets[validation], level, traded)
