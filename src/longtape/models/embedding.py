"""From a window of raw features to tokens: scaling, patches, positions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InputScaling(nn.Module):
    """(x − mean) / deviation of the training rows, limited to ±clip; a NaN (a masked bar) becomes 0, the mean.

    Scaling lives in the model, so that no scaled copy of the feature matrix exists and a run carries its own scaler.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        mean: npt.NDArray[np.float64],
        deviation: npt.NDArray[np.float64],
        clip: float,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., C] raw → scaled."""
        return self.unlimited(x).clamp(-self.clip, self.clip)

    def unlimited(self, x: Tensor) -> Tensor:
        """The same without limits."""
        return ((x - self.mean) / self.deviation).nan_to_num(0.0)


class WindowNorm(nn.Module):
    """Each window's columns less their own mean and over their own deviation, limited to ±clip.

    Kim et al. (2022), "Reversible Instance Normalization". Their learnt slope and offset are those of the embedding
    that follows.
    """

    def __init__(self, clip: float) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled windows [B, L, C] → normalised, and the deviation [B, C] of each."""
        centre = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return ((x - centre) / deviation).clamp(-self.clip, self.clip), deviation[:, 0]


class PatchEmbedding(nn.Module):
    """Linear map of `patch` bars × C features to one token; the front is padded with zeros to a whole patch."""

    def __init__(self, n_columns: int, patch: int, d_model: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(n_columns * patch, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C] → [B, ⌈L/patch⌉, d_model]."""
        short = -x.shape[1] % self.patch
        if short:
            x = F.pad(x, (0, 0, short, 0))
        return self.project(x.unflatten(1, (-1, self.patch)).flatten(2))


def sinusoidal_positions(n_tokens: int, d_model: int) -> Tensor:
    """[N, d_model], sin and cos of geometric wavelengths from 2π to 10,000·2π (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(n_tokens, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10_000.0) / d_model))
    table = torch.zeros(n_tokens, d_model, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : d_model // 2]
    return table.float()


class Positions(nn.Module):
    """Adds a position to every token: fixed sinusoids, a learned table, or nothing (rotary ones are no sum)."""

    table: Tensor

    def __init__(self, kind: str, n_tokens: int, d_model: int) -> None:
        super().__init__()
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(n_tokens, d_model) * 0.02)
        else:
            fixed = sinusoidal_positions(n_tokens, d_model) if kind == "sinusoidal" else torch.zeros(1, 1)
            self.register_buffer("table", fixed, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, d_model] → the same, with positions."""
        return tokens + self.table
