"""A multilayer perceptron on aggregated inputs: the newest row and means over growing spans of the window.

It learns what its closed-form start leaves over from the same inputs and from what the start says. With `wide` a linear
map stands beside the layers (Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems").
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from longtape.attention.dropout import GeluDropout
from longtape.features.panel import Panel, Rows
from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.gram import chunks
from longtape.models.linear_baseline import spans_of
from longtape.models.network import Network, TrainedConfig
from longtape.models.prediction import Prediction


class MlpConfig(TrainedConfig):
    """Layers without attention."""

    kind: Literal["mlp"] = "mlp"
    lookback: int = Field(
        1,
        ge=1,
        description="bars in a window: its last row is read, and means over its last 4, 16, 64, … bars",
    )
    hidden: list[int] = Field([64, 32], min_length=1, description="width of each layer")
    wide: bool = Field(True, description="a linear map of the inputs beside the layers")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of units left out in training, behind each layer"
    )

    @field_validator("hidden")
    @classmethod
    def _widths_are_positive(cls, hidden: list[int]) -> list[int]:
        if min(hidden) < 1:
            raise ValueError(f"a layer has at least one unit, not {min(hidden)}")
        return hidden

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0

    @property
    def summary(self) -> str:
        """Widths and lookback."""
        return f"mlp {'–'.join(map(str, self.hidden))} over {self.lookback:,} bars"


class Mlp(Network):
    """[B, L, C] raw features → predictions of all targets."""

    Config = MlpConfig
    config: MlpConfig
    start_mean: Tensor
    start_deviation: Tensor

    def __init__(self, config: MlpConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.spans = spans_of(config.lookback)
        n_starts = sum(columns.size for columns in self._started().values())
        n_inputs = len(inputs.columns) * len(self.spans) + n_starts
        widths = [n_inputs, *config.hidden]
        layers = [nn.Sequential(nn.Linear(a, b), GeluDropout(config.dropout)) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("start_mean", torch.zeros(n_starts))
        self.register_buffer("start_deviation", torch.ones(n_starts))
        self.build_heads(widths[-1] + (n_inputs if config.wide else 0))

    def forward(self, batch: Batch) -> Prediction:
        """The prediction at the end of every window."""
        scaled = self.scaling(batch.x)
        means = [scaled[:, -span:].mean(1) for span in self.spans]
        starts = (self._start_values(scaled, batch.rows) - self.start_mean) / self.start_deviation
        inputs = torch.cat([*means, starts.clamp(-self.config.clip, self.config.clip)], 1)
        deep = self.layers(inputs)
        vector = torch.cat([deep, inputs], 1) if self.config.wide else deep
        return self.predict(vector, scaled, batch.rows)

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """The starts, and the scale of what they say on the training rows."""
        super().fit(panel, train, validation)
        if not self._started():
            return
        rows = torch.from_numpy(self.row_inputs(panel))
        parts = []
        for origins in chunks(train[:: max(1, len(train) // _ROWS)]):
            windows = panel.values[origins[:, None] + np.arange(1 - self.config.lookback, 1)]
            parts.append(self._start_values(self.scaling(torch.from_numpy(windows)), rows[origins]))
        values = torch.cat(parts).double()
        self.start_mean.copy_(values.mean(0))
        deviation = values.std(0, correction=0)
        self.start_deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def _start_values(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """What the starts of the kinds that have one say, side by side [B, n]."""
        wanted = self._started()
        found = [value.flatten(1) for kind, value in self.starts(scaled, rows) if kind in wanted]
        return torch.cat(found, 1) if found else scaled.new_zeros(len(scaled), 0)

    def _started(self) -> dict[str, Rows]:
        """The kinds whose start differs from window to window: all but classes, where it is not left out."""
        moves = ("return", "path", "volatility")
        return {kind: at for kind, at in self.inputs.kinds.items() if self.config.skip and kind in moves}


_ROWS = 16_384  # training rows that tell the scale of the starts
