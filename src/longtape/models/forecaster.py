"""The forecaster: window → tokens → encoder → pooled vector → one head per kind of target, on top of the skip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from longtape.core.clock import Interval
from longtape.core.errors import UserError
from longtape.features.panel import TargetColumn
from longtape.models.config import ModelConfig
from longtape.models.embedding import InputScaling, PatchEmbedding, Positions
from longtape.models.encoder import Encoder
from longtape.models.heads import HEADS, USUAL_HEAD, Head
from longtape.models.pooling import build_pooling
from longtape.models.skip import Skip, build_skip


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What a model must know of its data: columns, targets, clock, and the statistics of the training rows."""

    columns: tuple[str, ...]
    targets: tuple[TargetColumn, ...]
    interval: Interval
    mean: npt.NDArray[np.float64]  # [C]
    deviation: npt.NDArray[np.float64]  # [C]
    target_deviation: npt.NDArray[np.float64]  # [K]


class TargetGroup(nn.Module):
    """Targets of one kind and symbol: where they stand among the columns, the skip they start from and their head."""

    def __init__(self, kind: str, members: list[int], head: Head, skip: Skip) -> None:
        super().__init__()
        self.kind, self.members, self.head, self.skip = kind, members, head, skip


class Forecaster(nn.Module):
    """[B, L, C] raw features and the time each window is known → predictions of K targets in original units."""

    def __init__(self, config: ModelConfig, inputs: ModelInputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.scaling = InputScaling(inputs.mean, inputs.deviation, config.clip, config.window_norm)
        self.embedding = PatchEmbedding(len(inputs.columns), config.patch, config.d_model)
        self.class_token = (
            nn.Parameter(torch.zeros(1, 1, config.d_model)) if config.pooling == "class" else None
        )
        self.positions = Positions(config.positions, config.n_tokens, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.pooling = build_pooling(config.pooling, config.d_model)
        self.groups = nn.ModuleList(_build_groups(config, inputs))

    def encode(self, scaled: Tensor, marks: Tensor) -> Tensor:
        """Scaled windows [B, L, C] and marked bars [B, G] → tokens after the last layer [B, N, d_model]."""
        tokens = self.embedding(scaled)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        encoded: Tensor = self.encoder(self.drop(self.positions(tokens)), self._token_of(marks))
        return encoded

    def _token_of(self, bars: Tensor) -> Tensor | None:
        """Positions of bars in the window → positions of their tokens; −1 stays. None where nothing is marked."""
        if bars.shape[1] == 0:
            return None
        short = -self.config.lookback % self.config.patch
        tokens = (bars + short) // self.config.patch + (self.class_token is not None)
        return tokens.masked_fill(bars < 0, -1)

    def forward(self, x: Tensor, when: Tensor, marks: Tensor) -> list[Tensor]:
        """x [B, L, C], when [B] int64 ms, marks [B, G] → the parameters of each group's prediction, [B, n, P]."""
        scaled = self.scaling(x)
        vector = self.pooling(self.encode(scaled, marks))
        return [g.head(vector, g.skip(x, scaled, when)) for g in self._groups()]

    def loss(self, parameters: list[Tensor], y: Tensor) -> Tensor:
        """Mean loss over targets and windows; y [B, K] in original units."""
        losses = [
            g.head.loss(p, y[:, g.members]).mean(0) for g, p in zip(self._groups(), parameters, strict=True)
        ]
        return torch.cat(losses).mean()

    def predict(self, x: Tensor, when: Tensor, marks: Tensor) -> Tensor:
        """Point predictions [B, K] in original units."""
        parameters = self(x, when, marks)
        return self._gather(x, [g.head.mean(p) for g, p in zip(self._groups(), parameters, strict=True)])

    def _gather(self, x: Tensor, parts: list[Tensor]) -> Tensor:
        out = x.new_empty(len(x), len(self.inputs.targets))
        for group, part in zip(self._groups(), parts, strict=True):
            out[:, group.members] = part
        return out

    def _groups(self) -> Iterable[TargetGroup]:
        return (group for group in self.groups if isinstance(group, TargetGroup))

    @torch.no_grad()
    def fit_skips(self, train: Iterable[Batch], validation: Iterable[Batch]) -> None:
        """Fit every skip in closed form on the training windows (float64)."""
        fitted, checked = self._skip_rows(train), self._skip_rows(validation)
        for group, (x, y), (x_valid, y_valid) in zip(self._groups(), fitted, checked, strict=True):
            group.skip.solve(x, y, x_valid, y_valid)

    def _skip_rows(self, batches: Iterable[Batch]) -> list[tuple[Tensor, Tensor]]:
        rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.groups]
        for x, when, _, y in batches:
            scaled = self.scaling(x)
            for into, group in zip(rows, self._groups(), strict=True):
                target = group.skip.target(y[:, group.members].double())
                into.append((group.skip.features(x, scaled, when), target))
        return [(torch.cat([f for f, _ in part]), torch.cat([t for _, t in part])) for part in rows]


Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # x [B, L, C], when [B], marks [B, G], y [B, K]


def _build_groups(config: ModelConfig, inputs: ModelInputs) -> list[TargetGroup]:
    groups = []
    order = sorted(range(len(inputs.targets)), key=lambda i: _family(inputs.targets[i]))
    for (kind, symbol), found in groupby(order, key=lambda i: _family(inputs.targets[i])):
        members = list(found)
        head = HEADS.load(_head_name(config, kind))
        scale = torch.tensor(inputs.target_deviation[members])
        skip = build_skip(kind, config, inputs.columns, inputs.interval, symbol, len(members))
        groups.append(TargetGroup(kind, members, head(config.d_model, scale), skip))
    return groups


def _family(target: TargetColumn) -> tuple[str, str]:
    return target.kind, target.symbol


def _head_name(config: ModelConfig, kind: str) -> str:
    name = config.heads.get(kind) or USUAL_HEAD.get(kind)
    if name is None:
        raise UserError(
            f"model.heads: no head is made for targets of kind '{kind}'; known: {', '.join(USUAL_HEAD)}"
        )
    if (name == "volatility") != (kind == "volatility"):
        raise UserError(f"model.heads: the head '{name}' does not go with targets of kind '{kind}'")
    return name
