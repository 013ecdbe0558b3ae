"""Closed-form models: what a network must beat. They fit instead of training, and read rows instead of windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from longtape.core.scoring import SMALLEST_VARIANCE
from longtape.features.panel import Panel, Rows
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
        space = _space(self.inputs, kind)
        if space == "log_variance":
            return LogVariance(value)
        return Categorical(value) if space == "logits" else Point(value, self.scale_of(kind).to(value.device))


def _space(inputs: ModelInputs, kind: str) -> str:
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
        for kind, baseline in self._each():
            baseline.fit(panel, self.inputs.kinds[kind], train, validation, lambda rows: rows)

    def row_inputs(self, panel: Panel) -> Array:
        return np.concatenate([baseline.row_inputs(panel) for _, baseline in self._each()], axis=1)

    @property
    def reach(self) -> int:
        """The window, or what a baseline reads beyond it."""
        return max(self.config.lookback, *(baseline.reach for _, baseline in self._each()))

    def forward(self, batch: Batch) -> Prediction:
        parts, at = [], 0
        for kind, baseline in self._each():
            parts.append(self.point(kind, baseline(batch.x, batch.rows[:, at : at + baseline.n_rows])))
            at += baseline.n_rows
        return Prediction(tuple(parts), self.kind_columns)

    def _each(self) -> list[tuple[str, LinearBaseline]]:
        return [(kind, one) for kind, one in self.baselines.items() if isinstance(one, LinearBaseline)]


class Mean(FromBaselines):
    """The mean of the training labels (volatility: the root mean square; classes: their frequencies)."""

    Config = ClosedFormConfig
    title = "training mean"
    titles: ClassVar[Mapping[str, str]] = dict.fromkeys(MOVES, "always long (training mean)")

    def build(self, kind: str) -> LinearBaseline:
        n_assets, n_targets = self.inputs.kinds[kind].shape
        classes = self.inputs.targets_of(kind)[0].of_kind.classes
        return Constant(_space(self.inputs, kind), n_assets, n_targets, classes)


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

    def row_inputs(self, panel: Panel) -> Array:
        """[T, K]: the last return over each horizon; of a volatility, the sum of its squared returns."""
        assets = self.inputs.assets
        with np.errstate(invalid="ignore"):
            moves = np.nan_to_num(np.diff(np.log(panel.closes), axis=0, prepend=np.nan))
        out = np.empty((len(panel), len(self.inputs.targets)))
        for k, target in enumerate(self.inputs.targets):
            own = moves[:, assets.index(target.asset)]
            own = own**2 if _space(self.inputs, target.kind) == "log_variance" else own
            out[:, k] = trailing_mean(own, target.horizon) * target.horizon
        return out

    def forward(self, batch: Batch) -> Prediction:
        parts = []
        for kind, columns in zip(self.inputs.kinds, self.kind_columns, strict=True):
            value = self.forecast(kind, batch.rows[:, columns], columns)
            if _space(self.inputs, kind) == "log_variance":
                value = value.clamp_min(SMALLEST_VARIANCE).log()
            parts.append(self.point(kind, value.float()))
        return Prediction(tuple(parts), self.kind_columns)

    def forecast(self, kind: str, last: Tensor, columns: Tensor) -> Tensor:
        """The forecast [B, A, n] from the last values."""
        return last


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
