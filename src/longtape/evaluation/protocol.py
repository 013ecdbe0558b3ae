"""What evaluation drives: anything that can fit on some rows and forecast others. The experiment hands it such a thing.

Every method is a pure function of what it is given (and of the configuration and seeds that the object holds): called
again with the same arguments it returns the same bits. Nothing is cached between calls under another key than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy.typing as npt
import polars as pl

from longtape.features.panel import Panel, Rows
from longtape.features.splits import Periods, Split, WalkForwardConfig
from longtape.market.rows import Rows as MarketRows


class Fitted(Protocol):
    """A model with its scaler, ready to forecast any panel that has the columns it was fitted on."""

    @property
    def reach(self) -> int:
        """Rows up to the origin that a forecast may depend on, the warm-up of features aside; at least the lookback."""

    def inputs(self, panel: Panel, origins: Rows) -> Mapping[str, npt.NDArray[Any]]:
        """All that the network is given for the windows that end at `origins`, by name; first axis: one per origin.

        At least `x` [n, lookback, C], scaled; `marks` [n, G] where there are global positions; calendar columns, …
        """

    def forecast(self, panel: Panel, origins: Rows) -> pl.DataFrame:
        """Forecast frame (`longtape.forecasting.frame`) of the windows that end at `origins`, in their order.

        Every batch goes through the model at one size, the last one padded, so that a window's forecast has the same
        bits whatever stands beside it.
        """


class Pipeline(Protocol):
    """Bars in; panel, model, weights and fills out."""

    @property
    def lookback(self) -> int:
        """Bars in a window."""

    def panel(self, bars: Sequence[MarketRows]) -> Panel:
        """Features and targets of `bars`."""

    def split(self, panel: Panel, periods: Periods | None = None) -> Split:
        """Origins to train on, stop early on and test on: as configured, or at the borders of `periods`.

        Borders given by fractions move with the end of the data; `periods` (from an earlier split's `.periods`) holds
        them still. An empty test part is no error here when `periods` is given.
        """

    def folds(self, panel: Panel, config: WalkForwardConfig) -> list[Split]:
        """The test period as configured, in blocks that are each forecast by a model fitted on what came before."""

    def fit(self, panel: Panel, split: Split) -> Fitted:
        """Fit scaler and model on the training origins, stop early on the validation origins, take intervals and
        thresholds from the calibration origins.
        """

    def rescaled(self, fitted: Any, panel: Panel, train: Rows) -> Fitted:
        """The same trained weights and thresholds, with the scaler fitted again on `panel` and `train`.

        `fitted` is what this pipeline's `fit` gave. Whatever else the model takes from the pipeline (events for its
        marks) comes from this one.
        """

    def weights(self, forecast: pl.DataFrame) -> pl.DataFrame:
        """Target weights decided at each origin's close: `timestamp` and one column per symbol, a row per origin."""

    def fills(self, weights: pl.DataFrame, bars: Sequence[MarketRows]) -> pl.DataFrame:
        """Trades that follow from `weights` on `bars`: `timestamp` = open of the bar in which each takes place, then
        symbol, units, price, …. What is held at the end stays open: `bars` may end anywhere.
        """

    def as_of(self, time: int) -> Self:
        """The same pipeline with all that it holds beside bars (events) as it was known at `time`, UTC milliseconds.

        Itself where it holds nothing of the kind.
        """
