"""Heads: from a window's vector to a prediction in original units, and the loss that trains it.

A head starts at zero, so that before training it predicts exactly what the skip connection gives. Adding a head is one
class here and one line in `HEADS`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.core.registry import Registry

HEADS = Registry(
    "head",
    {
        "regression": "longtape.models.heads:RegressionHead",
        "huber": "longtape.models.heads:HuberHead",
        "student_t": "longtape.models.heads:StudentTHead",
        "quantile": "longtape.models.heads:QuantileHead",
        "volatility": "longtape.models.heads:VolatilityHead",
    },
)
USUAL_HEAD = {"return": "regression", "path": "regression", "volatility": "volatility"}
SMALLEST_VARIANCE = 1e-12  # a window without any move still has a finite logarithm


class Head(nn.Module):
    """n targets of one kind. `scale` [n] is the deviation of the training targets, in original units."""

    n_outputs = 1
    scale: Tensor

    def __init__(self, d_model: int, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.linear = nn.Linear(d_model, len(scale) * self.n_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor, base: Tensor) -> Tensor:
        """vector [B, d_model], base [B, n] (what the skip gives) → parameters [B, n, n_outputs]."""
        raw = self.linear(vector).unflatten(-1, (-1, self.n_outputs)).float()
        return self.parameters_of(raw, base)

    def parameters_of(self, raw: Tensor, base: Tensor) -> Tensor:
        """Raw outputs and the skip's value → the parameters of the prediction."""
        return base[..., None] + self.scale[:, None] * raw

    def mean(self, parameters: Tensor) -> Tensor:
        """Point prediction [B, n], original units."""
        return parameters[..., 0]

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Loss [B, n] of `target` [B, n] in original units; free of the unit."""
        raise NotImplementedError

    def quantile(self, parameters: Tensor, level: float) -> Tensor | None:
        """The head's own quantile [B, n], or None where it predicts a point only."""
        return None


class RegressionHead(Head):
    """Mean squared error, in units of the training deviation."""

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        return ((self.mean(parameters) - target) / self.scale).square()


class HuberHead(Head):
    """Huber's loss with its knee at one training deviation (Huber 1964)."""

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        return 2 * F.huber_loss(self.mean(parameters) / self.scale, target / self.scale, reduction="none")


class StudentTHead(Head):
    """Location, scale and degrees of freedom (> 2); negative log-likelihood."""

    n_outputs = 3

    def parameters_of(self, raw: Tensor, base: Tensor) -> Tensor:
        location = base + self.scale * raw[..., 0]
        spread = self.scale * F.softplus(raw[..., 1] + math.log(math.e - 1)) + 1e-9
        freedom = 2.0 + F.softplus(raw[..., 2] + 2.0)
        return torch.stack([location, spread, freedom], -1)

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        law = torch.distributions.StudentT(parameters[..., 2], parameters[..., 0], parameters[..., 1])
        return -law.log_prob(target) - self.scale.log()


class QuantileHead(Head):
    """Quantiles that cannot cross: softplus steps away from the median; pinball loss (Koenker & Bassett 1978)."""

    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    n_outputs = len(levels)

    def parameters_of(self, raw: Tensor, base: Tensor) -> Tensor:
        middle = self.n_outputs // 2
        median = base + self.scale * raw[..., middle]
        step = self.scale[:, None] * F.softplus(raw)
        below = median[..., None] - step[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = median[..., None] + step[..., middle + 1 :].cumsum(-1)
        return torch.cat([below, median[..., None], above], -1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters[..., self.n_outputs // 2]

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=target.device)
        miss = (target[..., None] - parameters) / self.scale[:, None]
        return torch.maximum(levels * miss, (levels - 1) * miss).sum(-1)

    def quantile(self, parameters: Tensor, level: float) -> Tensor | None:
        return parameters[..., self.levels.index(level)] if level in self.levels else None


class VolatilityHead(Head):
    """Positive by construction: the logarithm of the variance, trained with QLIKE (Patton 2011).

    `base` is a log variance; the prediction is the root of the expected variance.
    """

    def parameters_of(self, raw: Tensor, base: Tensor) -> Tensor:
        return base[..., None] + raw

    def mean(self, parameters: Tensor) -> Tensor:
        return (0.5 * parameters[..., 0]).exp()

    def loss(self, parameters: Tensor, target: Tensor) -> Tensor:
        surprise = target.square().clamp_min(SMALLEST_VARIANCE).log() - parameters[..., 0]
        return surprise.exp() - surprise - 1
