"""DLinear: a moving average of the window and what it leaves, each by a linear map to what is forecast.

Zeng, Chen, Zhang & Xu (2023), "Are Transformers Effective for Time Series Forecasting?", AAAI. The average is over
`kernel` bars, the window's ends repeated so that it is as long as the window. As there, all series share the maps: an
asset is forecast from its own columns and those that all share, with the same weights for every asset. There each
series is forecast from itself alone; here the maps of an asset's features are added up.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.network import Network, TrainedConfig
from longtape.models.prediction import Prediction


class DLinearConfig(TrainedConfig):
    """Trend and remainder of the window, by linear maps."""

    kind: Literal["dlinear"] = "dlinear"
    lookback: int = Field(336, ge=2, description="bars in a window")
    kernel: int = Field(25, ge=3, description="bars of the moving average, an odd number")
    skip: bool = Field(
        False, description="begin at the closed-form baseline (ridge, log-HAR); false: at the training mean"
    )

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> DLinearConfig:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: an average of {self.kernel} bars has no middle; name an odd number")
        return self

    @property
    def summary(self) -> str:
        """The model and its lookback."""
        return f"DLinear over {self.lookback:,} bars"


class DLinear(Network):
    """The heads, which are linear, are the maps."""

    Config = DLinearConfig
    title = "DLinear"
    config: DLinearConfig

    def __init__(self, config: DLinearConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.n_shared = sum(column.asset is None for column in inputs.columns)
        n_own = (len(inputs.columns) - self.n_shared) // len(inputs.assets)
        self.build_heads(2 * config.lookback * (n_own + self.n_shared))

    def forward(self, batch: Batch) -> Prediction:
        scaled = self.scaling(batch.x)
        trend = moving_average(scaled, self.config.kernel)
        vectors = torch.cat([self._of_assets(trend), self._of_assets(scaled - trend)], 2)
        return self.predict(vectors, scaled, batch.rows)

    def _of_assets(self, series: Tensor) -> Tensor:
        """[B, L, C] → [B, A, L·(F + G)]: each asset's own columns, then those that all share."""
        n_own = series.shape[2] - self.n_shared
        own = series[..., :n_own].unflatten(2, (len(self.inputs.assets), -1)).transpose(1, 2)
        shared = series[:, None, :, n_own:].expand(-1, own.shape[1], -1, -1)
        return torch.cat([own, shared], 3).flatten(2)

    def head_form(self, kind: str) -> dict[str, Any]:
        """A vector for each asset."""
        return {"shared": True}


def moving_average(series: Tensor, kernel: int) -> Tensor:
    """Centred means [B, L, C] of `kernel` rows of series [B, L, C], whose ends are repeated beyond them."""
    half = kernel // 2
    first, last = series[:, :1].expand(-1, half, -1), series[:, -1:].expand(-1, half, -1)
    padded = torch.cat([first, series, last], 1)
    return F.avg_pool1d(padded.transpose(1, 2), kernel, 1).transpose(1, 2)
