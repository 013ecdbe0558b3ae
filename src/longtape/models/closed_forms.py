"""Closed-form models: what a network must beat. They fit instead of training, and read rows instead of windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from longtape.core.calendars import bars_per_day
from longtape.core.clock import ALWAYS_OPEN, DAY, Interval
from longtape.core.errors import UserError
from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows, TargetColumn
from longtape.features.target_kinds import TargetKind
from longtape.models.base import Array, Model, ModelConfig, ModelInputs, only_kinds
from longtape.models.batch import Batch
from longtape.models.har import HarDesign, trailing_mean
from longtape.models.heads import HEADS, Head
from longtape.models.linear_baseline import Constant, LinearBaseline, LogHar, MonthlyHar
from longtape.models.prediction import (
    Categorical,
    Distribution,
    LogVariance,
    Point,
    Prediction,
    Weights,
)

MOVES = ("return", "path")


class ClosedFormConfig(ModelConfig):
    """A model without options."""


class MovesConfig(ModelConfig):
    """A model of returns without options."""

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, MOVES)


class VolatilityConfig(ModelConfig):
    """A model of volatility without options."""

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, ("volatility",))


class MovesOrVolatilityConfig(ModelConfig):
    """A model of returns and volatility without options."""

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        only_kinds(self, kinds, (*MOVES, "volatility"))


class ClosedForm(Model):
    """A distribution for each kind of target from values in the space of its usual head."""

    def point(self, kind: str, value: Tensor) -> Distribution:
        """Values [B, A, n]: units of the target, log variances, or logits [B, A, n, M]."""
        space = space_of(self.inputs, kind)
        if space == "log_variance":
            return LogVariance(value)
        return Categorical(value) if space == "logits" else Point(value, self.scale_of(kind).to(value.device))


def space_of(inputs: ModelInputs, kind: str) -> str:
    """In what the usual head of a kind of target counts: mean, log_variance or logits."""
    head: type[Head] = HEADS.load(inputs.targets_of(kind)[0].of_kind.heads[0])
    return head.space


class Zero(ClosedForm):
    """Nothing moves."""

    Config = MovesConfig
    title = "zero"
    titles: ClassVar[Mapping[str, str]] = {"weight": "flat"}

    def forward(self, batch: Batch) -> Prediction:
        shapes = self.inputs.kinds.values()
        zeros = [batch.rows.new_zeros(len(batch), *columns.shape).float() for columns in shapes]
        parts = [self.point(kind, zero) for kind, zero in zip(self.inputs.kinds, zeros, strict=True)]
        return Prediction(tuple(parts), self.kind_columns)


class EqualWeightConfig(MovesConfig):
    """Weights for returns, without options."""

    def gives_weights(self, kind: TargetKind) -> bool:
        return True


class EqualWeight(ClosedForm):
    """The same share of the equity in every asset."""

    Config = EqualWeightConfig
    title = "equal weight"

    def forward(self, batch: Batch) -> Prediction:
        parts = []
        for kind, columns in self.inputs.kinds.items():
            shares = torch.full((len(batch), *columns.shape), 1 / len(self.inputs.assets))
            scale = self.scale_of(kind).to(batch.x.device)
            parts.append(Weights(shares.to(batch.x.device), scale))
        return Prediction(tuple(parts), self.kind_columns)


class FromBaselines(ClosedForm):
    """A model that is nothing but the closed-form part of a network."""

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.baselines = torch.nn.ModuleDict({kind: self.build(kind) for kind in inputs.kinds})

    def build(self, kind: str) -> LinearBaseline:
        """The baseline of a kind of target."""
        raise NotImplementedError

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        for kind, baseline in self.each():
            baseline.fit(panel, self.inputs.kinds[kind], train, validation, lambda rows: rows)

    def row_inputs(self, panel: Panel) -> Array:
        return np.concatenate([baseline.row_inputs(panel) for _, baseline in self.each()], axis=1)

    @property
    def reach(self) -> int:
        """The window, or what a baseline reads beyond it."""
        return max(self.config.lookback, *(baseline.reach for _, baseline in self.each()))

    def forward(self, batch: Batch) -> Prediction:
        parts, at = [], 0
        for kind, baseline in self.each():
            parts.append(self.point(kind, baseline(batch.x, batch.rows[:, at : at + baseline.n_rows])))
            at += baseline.n_rows
        return Prediction(tuple(parts), self.kind_columns)

    def each(self) -> list[tuple[str, LinearBaseline]]:
        """Every kind of target and its baseline."""
        return [(kind, one) for kind, one in self.baselines.items() if isinstance(one, LinearBaseline)]


class Mean(FromBaselines):
    """The mean of the training labels (volatility: the root mean square; classes: their frequencies)."""

    Config = ClosedFormConfig
    title = "training mean"
    titles: ClassVar[Mapping[str, str]] = dict.fromkeys(MOVES, "always long (training mean)")

    def build(self, kind: str) -> LinearBaseline:
        n_assets, n_targets = self.inputs.kinds[kind].shape
        classes = self.inputs.targets_of(kind)[0].of_kind.classes
        return Constant(space_of(self.inputs, kind), n_assets, n_targets, classes)


class LogHarModel(FromBaselines):
    """Log-HAR with a level for every hour of the week (`longtape.models.har`)."""

    Config = VolatilityConfig
    title = "log-HAR"
    refits_monthly = True

    def build(self, kind: str) -> LinearBaseline:
        return LogHar(
            HarDesign.of(self.inputs.interval, self.inputs.calendar), *self.inputs.kinds[kind].shape
        )


class LogHarMean(FromBaselines):
    """The mean of eight log-HARs, fitted anew each month (`longtape.models.har_mean`)."""

    Config = VolatilityConfig
    title = "mean of log-HARs"

    def build(self, kind: str) -> LinearBaseline:
        design = HarDesign.of(self.inputs.interval, self.inputs.calendar)
        return MonthlyHar(design, self.inputs.kinds[kind])


class LastValue(ClosedForm):
    """The target's own value over the `horizon` rows that end at the origin."""

    Config: ClassVar[type[ModelConfig]] = MovesOrVolatilityConfig
    title = "last value"

    @property
    def rows_read(self) -> int:
        """Bars up to the origin whose moves are read."""
        return max(target.horizon for target in self.inputs.targets)

    @property
    def reach(self) -> int:
        """The window, or those bars and the close before them."""
        return max(self.config.lookback, 1 + self.rows_read)

    def row_inputs(self, panel: Panel) -> Array:
        """[T, K]: the last return over each horizon; of a volatility, the sum of its squared returns."""
        targets = self.inputs.targets
        return np.stack([self.trailing(panel, target, target.horizon) for target in targets], axis=1)

    def trailing(self, panel: Panel, target: TargetColumn, width: int) -> Array:
        """Return over the last `width` rows [T], or of a volatility the sum of their squared returns."""
        closes = panel.closes[:, self.inputs.assets.index(target.asset)]
        with np.errstate(invalid="ignore"):
            moves = np.nan_to_num(np.diff(np.log(closes), prepend=np.nan))
        own = moves**2 if space_of(self.inputs, target.kind) == "log_variance" else moves
        return trailing_mean(own, width) * width

    def forward(self, batch: Batch) -> Prediction:
        parts = []
        for kind, columns in zip(self.inputs.kinds, self.kind_columns, strict=True):
            value = self.forecast(kind, batch.rows[:, columns], columns)
            if space_of(self.inputs, kind) == "log_variance":
                value = value.clamp_min(SMALLEST_VARIANCE).log()
            parts.append(self.point(kind, value.float()))
        return Prediction(tuple(parts), self.kind_columns)

    def forecast(self, kind: str, last: Tensor, columns: Tensor) -> Tensor:
        """The forecast [B, A, n] from the last values."""
        return last


class SeasonConfig(MovesOrVolatilityConfig):
    """How long a season is."""

    season: Literal["day", "week"] | int | None = Field(
        None,
        description="day, week, or a number of rows; by default a day of bars shorter than a day, and a week of others",
    )

    @field_validator("season")
    @classmethod
    def _is_one(cls, season: str | int | None) -> str | int | None:
        if isinstance(season, int) and season < 2:
            raise ValueError(
                f"season: {season} rows are no season; the newest value is the model 'last_value'"
            )
        return season


class SeasonalNaive(LastValue):
    """The target's own value one season ago, or the fewest seasons ago after which it was known.

    A season is a number of rows: bars that are missing, or a change of the market's clock, move it.
    """

    Config = SeasonConfig
    title = "seasonal naive"
    config: SeasonConfig

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.season = season_rows(self.config.season, inputs.interval, inputs.calendar)

    @property
    def rows_read(self) -> int:
        return max(self._rows_back(target) for target in self.inputs.targets)

    def refuse_rows(self, panel: Panel, train: Rows) -> None:
        """UserError where what follows the training rows has no season before it."""
        if int(train[-1]) + 1 < self.reach:
            raise UserError(
                f"model.season: forecasts read {self.reach} rows back, and {int(train[-1]) + 1} stand before the end of"
                " training; name a shorter season or load more data"
            )

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        """There is nothing to fit."""
        self.refuse_rows(panel, train)

    def row_inputs(self, panel: Panel) -> Array:
        """[T, K]: as `LastValue`, of the bars that a season ago were to come; 0 where the data begin later."""
        out = np.zeros((len(panel), len(self.inputs.targets)))
        for k, target in enumerate(self.inputs.targets):
            width = target.horizon - target.at_open  # an open is the close before it
            since = self._rows_back(target) - width
            out[since:, k] = self.trailing(panel, target, width)[: max(len(panel) - since, 0)]
        return out

    def _rows_back(self, target: TargetColumn) -> int:
        width = target.horizon - target.at_open
        return self.season * -(-width // self.season)


def season_rows(season: str | int | None, interval: Interval, calendar: str) -> int:
    """Rows of a season. UserError where bars are too long for it, and for events, which have no clock."""
    if isinstance(season, int):
        return season
    step = interval.milliseconds
    named = season or ("day" if step < DAY else "week")
    days = {"day": 1, "week": 7 if calendar == ALWAYS_OPEN else 5}[named]
    rows = round(days * bars_per_day(interval, calendar)) if step else 0
    if rows < 2:
        what = "events" if step == 0 else f"bars of {interval.name}"
        raise UserError(f"model.season: {what} make no {named}; name a number of rows")
    return rows


class Ar1(LastValue):
    """Regression of the return on the return over the `horizon` rows before, by least squares."""

    Config = MovesConfig
    title = "AR(1)"
    slope: Tensor
    level: Tensor

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        for name in ("slope", "level"):
            self.register_buffer(name, torch.zeros(len(inputs.targets), dtype=torch.float64))

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        last = self.row_inputs(panel)[train]
        for k in range(len(self.inputs.targets)):
            labels = panel.targets[train, k]
            known = np.isfinite(labels)
            slope, level = np.polyfit(last[known, k], labels[known], 1)
            self.slope[k], self.level[k] = float(slope), float(level)

    def forecast(self, kind: str, last: Tensor, columns: Tensor) -> Tensor:
        return self.level[columns] + self.slope[columns] * last
