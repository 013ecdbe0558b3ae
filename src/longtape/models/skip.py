"""The linear skip: a closed-form baseline fitted on the training windows, from which the network starts.

Returns and paths start from a ridge on averages of the scaled inputs over growing spans; volatility starts from log-HAR
(Corsi 2009, in logarithms) with a level for every hour of the week; `skip: false` starts from the training mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtape.core.clock import DAY, HOUR, Interval
from longtape.core.errors import UserError
from longtape.models.config import ModelConfig
from longtape.models.heads import SMALLEST_VARIANCE

RIDGE_GRID = (0.01, 0.1, 1.0, 10.0, 100.0, float("inf"))
HAR_HOURS = (3, 6, 12, 24, 72, 168, 720)
HAR_DAYS = (1, 2, 5, 10, 22, 66, 252)


class Skip(nn.Module):
    """base = features(window) · weights. `fit` fills `weights` [F, n] and `bias` [n]."""

    weights: Tensor
    bias: Tensor

    def __init__(self, n_features: int, n_targets: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(n_features, n_targets, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(n_targets, dtype=torch.float64))

    def features(self, raw: Tensor, scaled: Tensor, when: Tensor) -> Tensor:
        """raw and scaled windows [B, L, C], `when` [B] (ms at which the window is known) → [B, F] float64."""
        return raw.new_zeros(len(raw), len(self.weights), dtype=torch.float64)

    def target(self, y: Tensor) -> Tensor:
        """What the skip is fitted to, from targets [B, n] in original units."""
        return y

    def forward(self, raw: Tensor, scaled: Tensor, when: Tensor) -> Tensor:
        """Base of the prediction [B, n], in the head's space."""
        return (self.features(raw, scaled, when) @ self.weights + self.bias).float()

    def solve(self, x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> None:
        """Fit on training features and targets; the validation rows choose the penalty."""
        self.bias.copy_(y.mean(0))


class MeanSkip(Skip):
    """The mean of the training targets."""

    def __init__(self, n_targets: int) -> None:
        super().__init__(0, n_targets)


class MeanLogVariance(MeanSkip):
    """The logarithm of the mean training variance."""

    def target(self, y: Tensor) -> Tensor:
        return y.square()

    def solve(self, x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> None:
        self.bias.copy_(y.mean(0).clamp_min(SMALLEST_VARIANCE).log())


class RidgeSkip(Skip):
    """Ridge on the means of every scaled column over the last 1, 4, 16, … bars of the window."""

    def __init__(self, n_columns: int, lookback: int, n_targets: int) -> None:
        self.spans = tuple(span for span in (4**i for i in range(12)) if span <= lookback)
        super().__init__(n_columns * len(self.spans), n_targets)

    def features(self, raw: Tensor, scaled: Tensor, when: Tensor) -> Tensor:
        return torch.cat([scaled[:, -span:].mean(1) for span in self.spans], 1).double()

    def solve(self, x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> None:
        """Each target takes the penalty with the least validation error; ∞ leaves the training mean."""
        centre, level = x.mean(0), y.mean(0)
        x0, y0 = x - centre, y - level
        gram, cross = x0.T @ x0 / len(x), x0.T @ y0 / len(x)
        best = torch.full_like(level, float("inf"))
        for penalty in RIDGE_GRID:
            weights = ridge(gram, cross, penalty)
            error = ((x_valid - centre) @ weights + level - y_valid).square().mean(0)
            better = error < best
            best = torch.where(better, error, best)
            self.weights[:, better] = weights[:, better]
        self.bias.copy_(level - centre @ self.weights)


class LogHarSkip(Skip):
    """ln σ² = a(hour of week) + Σ bᵢ ln(mean r² over lag i), by least squares; then + s²/2, the mean of a lognormal.

    Daily and longer bars take a level for every weekday instead. `return_column` is the column of log returns.
    """

    def __init__(self, return_column: int, interval: Interval, lookback: int, n_targets: int) -> None:
        daily = interval.milliseconds >= DAY
        spans = HAR_DAYS if daily else (hours * HOUR // interval.milliseconds for hours in HAR_HOURS)
        self.lags = tuple(span for span in spans if 1 <= span <= lookback)
        self.cell, self.n_cells = (DAY, 7) if daily else (HOUR, 168)
        self.return_column = return_column
        super().__init__(len(self.lags) + self.n_cells, n_targets)

    def features(self, raw: Tensor, scaled: Tensor, when: Tensor) -> Tensor:
        squares = raw[:, :, self.return_column].double().nan_to_num(0.0).square()
        lagged = torch.stack([squares[:, -lag:].mean(1) for lag in self.lags], 1)
        cell = nn.functional.one_hot(when // self.cell % self.n_cells, self.n_cells)
        return torch.cat([lagged.clamp_min(SMALLEST_VARIANCE).log(), cell.double()], 1)

    def target(self, y: Tensor) -> Tensor:
        return y.square().clamp_min(SMALLEST_VARIANCE).log()

    def solve(self, x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> None:
        weights = ridge(x.T @ x / len(x), x.T @ y / len(x), 1e-8)
        residual = y - x @ weights
        self.weights.copy_(weights)
        self.bias.copy_(residual.square().mean(0) / 2)


def ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """(XᵀX/n + λI)⁻¹ Xᵀy/n, [F, n]; λ = ∞ gives zeros."""
    if penalty == float("inf"):
        return torch.zeros_like(cross)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), cross)


def build_skip(
    kind: str, config: ModelConfig, columns: tuple[str, ...], interval: Interval, symbol: str, n_targets: int
) -> Skip:
    """The skip of a group of targets of one kind and symbol."""
    if kind == "volatility":
        if not config.skip:
            return MeanLogVariance(n_targets)
        return LogHarSkip(_return_column(columns, symbol), interval, config.lookback, n_targets)
    return RidgeSkip(len(columns), config.lookback, n_targets) if config.skip else MeanSkip(n_targets)


def _return_column(columns: tuple[str, ...], symbol: str) -> int:
    for name in ("log_return", f"{symbol}:log_return"):
        if name in columns:
            return columns.index(name)
    raise UserError(
        "model.skip: a volatility target starts from log-HAR, which needs the feature 'log_return';"
        " add it to features or set skip: false"
    )
