"""The shipped networks on levels, and the closed form that their forecasts are averaged with.

What differs from the shipped ones is the level that a forecast begins at, and which horizons the loss counts; tokens,
attention, heads and trainer are as shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longtape.evaluation.ett import least_on_validation
from longtape.features.panel import Panel, Rows
from longtape.models.base import Array, ModelInputs
from longtape.models.dlinear import DLinear, DLinearConfig
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.models.gram import Gram, chunks
from longtape.models.linear_baseline import LinearBaseline, Scale
from longtape.models.network import Network


class LastValueRidge(LinearBaseline):
    """y − l = (x − l) W + b of a window x with the last value l, for one series at a time: [B, L, 1] → [B, 1, n].

    The penalty is the one of least validation error, averaged over the horizons. A step is fitted on all windows whose
    labels are known up to the first horizon that holds it.
    """

    weights: Tensor
    intercept: Tensor

    def __init__(self, lookback: int, horizons: Sequence[int]) -> None:
        super().__init__()
        self.lookback, self.horizons = lookback, sorted(horizons)
        self.register_buffer("weights", torch.zeros(lookback, self.horizons[-1]))
        self.register_buffer("intercept", torch.zeros(self.horizons[-1]))

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        last = scaled[:, -1]
        out: Tensor = last + (scaled[..., 0] - last) @ self.weights + self.intercept
        return out[:, None]

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        steps = [slice(*ends) for ends in zip([0, *self.horizons], self.horizons, strict=False)]
        fitted, checked = (
            [self._gram(panel, columns[0, own], part) for own in steps] for part in (train, validation)
        )
        counted = steps_counted(np.arange(1, self.horizons[-1] + 1), self.horizons)
        _, weights = least_on_validation(fitted, checked, [counted[own] for own in steps])
        for own, found in zip(steps, weights, strict=True):
            self.intercept[own] = torch.from_numpy(found[0])
            self.weights[:, own] = torch.from_numpy(found[1:])

    def _gram(self, panel: Panel, columns: Rows, origins: Rows) -> Gram:
        """Sums over the origins at which all labels of `columns` are known."""
        gram = Gram(1 + self.lookback, len(columns))
        series = panel.values[:, 0].astype(np.float64)
        for part in chunks(origins, 4_096):
            labels: Array = panel.targets[part][:, columns]
            known = np.isfinite(labels).all(axis=1)
            windows = series[part[known, None] + np.arange(1 - self.lookback, 1)]
            last = windows[:, -1:]
            gram.add(np.concatenate([np.ones_like(last), windows - last], axis=1), labels[known] - last)
        return gram


def steps_counted(steps: Rows, horizons: Sequence[int]) -> Array:
    """What the error of each step counts in the sum over the horizons of the mean error over their steps."""
    return np.sum([(steps <= horizon) / horizon for horizon in horizons], axis=0)


class WindowMean(LinearBaseline):
    """The mean of the window at every step: with outputs in units of the window's deviation, what reversible instance
    normalisation forecasts (Kim et al. 2022).
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def fit(self, panel: Panel, columns: Rows, train: Rows, validation: Rows, scale: Scale) -> None:
        pass

    def forward(self, scaled: Tensor, rows: Tensor) -> Tensor:
        return scaled.mean(1)[:, None].expand(-1, 1, self.steps)


class LevelEncoderConfig(EncoderConfig):
    """An encoder over one series of levels."""

    skip: bool = False
    horizons: tuple[int, ...] = Field(
        (96, 192, 336, 720), description="horizons whose mean errors the loss averages; the last is all steps"
    )


class LevelDLinearConfig(DLinearConfig):
    """DLinear over one series of levels."""

    skip: bool = False
    horizons: tuple[int, ...] = Field((96, 192, 336, 720), description="as for the encoder")


class _OfLevels(Network):
    """The loss is the mean over the horizons of the mean error over their steps."""

    step_weights: Tensor

    def __init__(self, config: Any, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        steps = np.array([target.horizon for target in inputs.targets])
        weights = torch.from_numpy(steps_counted(steps, config.horizons)).float()
        self.register_buffer("step_weights", weights, persistent=False)

    @property
    def loss_weights(self) -> Tensor:
        return self.step_weights


class LevelEncoder(_OfLevels, EncoderForecaster):
    """The encoder; with `reversible` it begins at the mean of the window, else at that of the training rows."""

    Config = LevelEncoderConfig

    def build_baseline(self, kind: str) -> LinearBaseline:
        return (
            WindowMean(len(self.inputs.targets)) if self.config.reversible else super().build_baseline(kind)
        )


class LevelDLinear(_OfLevels, DLinear):
    """DLinear."""

    Config = LevelDLinearConfig
