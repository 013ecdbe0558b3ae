"""A toy model: the mean of the last k returns. One file; a test adds its one line to `MODELS`."""

from typing import Literal

from pydantic import Field

from longtape.models.base import Model, ModelConfig
from longtape.models.batch import Batch
from longtape.models.prediction import Point, Prediction


class MeanOfLastConfig(ModelConfig):
    """How many returns are averaged; the first feature is the return of one bar."""

    kind: Literal["mean_of_last"] = "mean_of_last"
    lookback: int = Field(16, ge=1)
    k: int = Field(8, ge=1)


class MeanOfLast(Model):
    """The next return is the mean of the last k."""

    Config = MeanOfLastConfig
    config: MeanOfLastConfig

    def forward(self, batch: Batch) -> Prediction:
        mean = batch.x[:, -self.config.k :, :1].mean(1, keepdim=True)
        return Prediction((Point(mean, self.scale_of("return")),), self.kind_columns)
