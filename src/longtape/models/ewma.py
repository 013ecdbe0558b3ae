"""EWMA: the variance of the coming bars is an average of past squared returns whose weights fade.

J.P. Morgan/Reuters (1996), "RiskMetrics – Technical Document", 4th ed., section 5.2: σ² = (1 − λ) Σ λⁱ r²_{t−i}, with
λ = 0.94 at days, and h σ² over h bars. At other intervals λ is the one of least QLIKE over the training rows, of those
whose weights halve within 2, 4, 8, … bars. Weights below 10⁻⁵ of the whole are left out (its table 5.7), so that a
forecast is a function of a known number of rows. The hour of the week is not known to it.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longtape.core import scoring
from longtape.core.clock import DAY
from longtape.features.panel import Panel, Rows
from longtape.features.rolling import exponential, memory
from longtape.models.base import Array, ModelConfig, ModelInputs
from longtape.models.closed_forms import LastValue, VolatilityConfig
from longtape.models.har import squared_returns

FORGOTTEN = 1e-5  # of the weights, which are left out
OF_DAYS = 0.94
HALF_LIVES = tuple(2**k for k in range(1, 12))  # bars


class EwmaConfig(VolatilityConfig):
    """How fast the past fades."""

    decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="λ, the weight of a bar in that of the one after it; by default 0.94 for bars of a day, and fitted"
        " on the training rows for others",
    )


class Ewma(LastValue):
    """The exponentially weighted mean of squared returns, as many times as the horizon has bars."""

    Config = EwmaConfig
    title = "EWMA"
    config: EwmaConfig
    decay: Tensor

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.is_fitted = self.config.decay is None and inputs.interval.milliseconds != DAY
        named = OF_DAYS if self.config.decay is None else self.config.decay
        self.register_buffer("decay", torch.full((len(inputs.targets),), named, dtype=torch.float64))

    @property
    def rows_read(self) -> int:
        return max(rows_of(decay) for decay in self.decay.tolist())

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """λ of each target, where it is not named; of half-lives whose weights all lie in the training rows."""
        if not self.is_fitted:
            return
        choices = [0.5 ** (1 / life) for life in HALF_LIVES]
        choices = [one for one in choices if rows_of(one) <= len(train)] or choices[:1]
        for k, target in enumerate(self.inputs.targets):
            asset, labels = self.inputs.assets.index(target.asset), panel.targets[train, k]
            known = np.isfinite(labels)
            losses = []
            for decay in choices:
                forecast = np.sqrt(target.horizon * fading_variance(panel, asset, decay)[train])
                losses.append(scoring.qlike(labels[known], forecast[known]).mean())
            self.decay[k] = choices[int(np.argmin(losses))]

    def row_inputs(self, panel: Panel) -> Array:
        """[T, K]: the expected sum of squared returns over each horizon."""
        parts = [
            target.horizon * fading_variance(panel, self.inputs.assets.index(target.asset), decay)
            for target, decay in zip(self.inputs.targets, self.decay.tolist(), strict=True)
        ]
        return np.stack(parts, axis=1)


def rows_of(decay: float) -> int:
    """Bars whose weights count."""
    return memory(1 - decay, FORGOTTEN)


def fading_variance(panel: Panel, asset: int, decay: float) -> Array:
    """Mean of r² [T] with weights that fade by `decay` a bar; where the data begin, over what there is.

    A price that was carried over a missing bar did not stand still: such bars do not count.
    """
    squares, rows = squared_returns(panel, asset), rows_of(decay)
    there = (panel.present[:, asset] & np.isfinite(squares)).astype(np.float64)
    # Zeros in front of the data count in neither mean.
    padded = [np.concatenate([np.zeros(rows), x]) for x in (np.where(there > 0, squares, 0.0), there)]
    above, below = (exponential(x, 1 - decay, rows)[rows:] for x in padded)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)
