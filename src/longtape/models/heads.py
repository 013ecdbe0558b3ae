"""Heads: from vectors to the distribution of one kind of target, in original units.

A head starts at zero, so that before training it predicts exactly what the closed-form baseline gives. Adding a head is
one class here and one line in `HEADS`, and its name in the kinds of target that it fits (`features.target_kinds`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.core.registry import Registry
from longtape.models.prediction import (
    Categorical,
    Distribution,
    LogVariance,
    Point,
    Quantiles,
    StudentT,
    Weights,
)

HEADS = Registry(
    "head",
    {
        "regression": "longtape.models.heads:RegressionHead",
        "huber": "longtape.models.heads:HuberHead",
        "student_t": "longtape.models.heads:StudentTHead",
        "quantile": "longtape.models.heads:QuantileHead",
        "volatility": "longtape.models.heads:VolatilityHead",
        "classes": "longtape.models.heads:ClassesHead",
        "allocation": "longtape.models.heads:AllocationHead",
    },
)


def _normal_steps(levels: tuple[float, ...]) -> list[float]:
    """What softplus turns into the steps between a normal distribution's quantiles, outwards from the median."""
    z = [NormalDist().inv_cdf(level) for level in levels]
    middle = len(z) // 2
    steps = [abs(z[i] - z[i + (1 if i < middle else -1)]) for i in range(len(z))]
    return [math.log(math.expm1(step)) if i != middle else 0.0 for i, step in enumerate(steps)]


class Head(nn.Module):
    """n targets of one kind for each of A assets. `scale` [A, n] is the deviation of the training targets.

    A vector for each window [B, d_model] has an output row for each asset; a vector for each asset [B, A, d_model] has
    rows that all assets share (`shared`), so that the size of the head does not grow with their number.
    """

    n_outputs = 1  # for each target
    space: ClassVar[str] = "mean"  # in which the baseline is given: mean, log_variance, logits, or none
    scale: Tensor

    def __init__(self, d_model: int, scale: Tensor, *, shared: bool = False, n_classes: int = 0) -> None:
        super().__init__()
        self.shared, self.n_classes = shared, n_classes
        self.n_outputs = n_classes or self.n_outputs
        self.register_buffer("scale", scale.float())
        n_rows = 1 if shared else len(scale)
        self.linear = nn.Linear(d_model, n_rows * scale.shape[1] * self.n_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor, base: Tensor) -> Distribution:
        """Vectors [B, d_model] or, shared, [B, A, d_model], and the baseline [B, A, n] → distribution [B, A, n]."""
        n_rows = vector.shape[1] if self.shared else len(self.scale)
        raw = self.linear(vector).view(len(vector), n_rows, self.scale.shape[1], self.n_outputs)
        return self.distribution(raw.float(), base)

    @abstractmethod
    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        """Raw outputs [B, A, n, n_outputs] and the baseline → the distribution."""


class RegressionHead(Head):
    """The mean, by squared error in units of the training deviation."""

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        return Point(base + self.scale * raw[..., 0], self.scale)


class HuberHead(Head):
    """The mean, by Huber's loss with its knee at one training deviation (Huber 1964)."""

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        return Point(base + self.scale * raw[..., 0], self.scale, "huber")


class StudentTHead(Head):
    """Location, spread and degrees of freedom (> 2), by likelihood."""

    n_outputs = 3

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        location = base + self.scale * raw[..., 0]
        spread = self.scale * F.softplus(raw[..., 1] + math.log(math.e - 1)) + 1e-9
        freedom = 2.0 + F.softplus(raw[..., 2] + 2.0) + 1e-3
        return StudentT(location, spread, freedom, self.scale)


class QuantileHead(Head):
    """Quantiles that cannot cross: softplus steps away from the median; pinball loss.

    Untrained they are those of a normal distribution with the training deviation.
    """

    levels = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
    n_outputs = len(levels)

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        middle = self.n_outputs // 2
        median = base + self.scale * raw[..., middle]
        step = self.scale[..., None] * F.softplus(raw + raw.new_tensor(_NORMAL_STEPS))
        below = median[..., None] - step[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = median[..., None] + step[..., middle + 1 :].cumsum(-1)
        return Quantiles(torch.cat([below, median[..., None], above], -1), self.levels, self.scale)


_NORMAL_STEPS = _normal_steps(QuantileHead.levels)


class VolatilityHead(Head):
    """The logarithm of the variance, trained with QLIKE; positive by construction."""

    space = "log_variance"

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        return LogVariance(base + raw[..., 0])


class ClassesHead(Head):
    """Logits of ordered classes, by cross-entropy."""

    space = "logits"

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        return Categorical(base + raw)


class AllocationHead(Head):
    """A share of the equity in [−1, 1], by the return that it earns."""

    space = "none"

    def distribution(self, raw: Tensor, base: Tensor) -> Distribution:
        return Weights(torch.tanh(base + raw[..., 0]), self.scale)
