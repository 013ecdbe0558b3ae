"""What evaluation drives: anything that can fit on some rows and forecast others. The experiment hands it such a thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from longtape.features.panel import Panel
from longtape.market.bars import Bars

Rows = npt.NDArray[np.int64]


class Fitted(Protocol):
    """A model with its scaler, ready to forecast."""

    def inputs(self, panel: Panel, origins: Rows) -> npt.NDArray[np.float32]:
        """What the network is given for the windows that end at `origins`: [n, lookback, C], scaled."""

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        """Forecast frame of the windows that end at `origins` (see `longtape.forecasting.frame`)."""


class Pipeline(Protocol):
    """Bars in, panel, model, weights out; every step a pure function of what it is given."""

    lookback: int

    def panel(self, bars: Sequence[Bars]) -> Panel:
        """Features and targets of `bars`."""

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> Fitted:
        """Fit scaler, threshold and model on the training origins; stop early on the validation origins."""

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        """Target weights decided at each origin's close: `timestamp` and one column per symbol."""
