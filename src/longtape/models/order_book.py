"""The order-book model: snapshots of a book → tokens → transformer → down, flat or up.

A token is a snapshot, or one level of one side of one snapshot. Levels stand as on a price ladder, from the deepest bid
up to the deepest ask, snapshot by snapshot, so that neighbours in price and in time are near each other. What else the
experiment names as features is told to every token of its snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from longtape.attention.dropout import Dropout
from longtape.core.errors import UserError
from longtape.features.book_features import SIDES
from longtape.features.panel import Rows
from longtape.features.target_kinds import TargetKind
from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.book_baselines import BookLogit
from longtape.models.embedding import Positions
from longtape.models.linear_baseline import LinearBaseline
from longtape.models.network import Network, NetworkConfig
from longtape.models.pooling import AttentionPooling, build_pooling
from longtape.models.prediction import Prediction
from longtape.models.transformer import Transformer


class OrderBookConfig(NetworkConfig):
    """A transformer over the snapshots of a book, or over their levels."""

    cannot_pool = "its rows are events of one symbol"

    kind: Literal["order_book"] = "order_book"
    lookback: int = Field(100, ge=1, description="snapshots in a window")
    tokens: Literal["snapshot", "level"] = Field(
        "snapshot", description="a token for each snapshot, or for each level of each side of each snapshot"
    )
    levels: int = Field(5, ge=1, description="levels of each side, as many as the feature book(…) gives")
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="how a snapshot is told its place"
    )
    pooling: Literal["last", "mean", "attention"] = Field(
        "last", description="the newest snapshot, the mean of all tokens, or a learnt mean"
    )
    skip: bool = Field(
        True,
        description="begin at the logistic regression on imbalance and micro-price; false: at the classes' frequencies",
    )

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        for name, kind in kinds.items():
            if not kind.classes:
                raise UserError(
                    f"model.kind: 'order_book' forecasts classes such as smoothed_direction(10), not '{name}';"
                    " the encoder forecasts it"
                )
        super().refuse_targets(kinds)

    @property
    def per_snapshot(self) -> int:
        """Tokens of one snapshot."""
        return 1 if self.tokens == "snapshot" else len(SIDES) * self.levels

    @property
    def n_tokens(self) -> int:
        """Tokens the transformer sees."""
        return self.lookback * self.per_snapshot

    @property
    def has_global_tokens(self) -> bool:
        """No: marks are those of bars."""
        return False

    @property
    def summary(self) -> str:
        """Mechanism, lookback and what a token is."""
        return f"{self.attention} attention over {self.lookback:,} snapshots of a book, a token per {self.tokens}"


class SnapshotTokens(nn.Module):
    """A token for each snapshot, of all its columns."""

    def __init__(self, config: OrderBookConfig, n_columns: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_columns, config.d_model)
        self.positions = Positions(config.positions, config.lookback, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled snapshots [B, L, C] → [B, L, d_model]."""
        tokens: Tensor = self.positions(self.project(x))
        return tokens


class LevelTokens(nn.Module):
    """A token for each level of each side of each snapshot: distance and size, place on the ladder, time."""

    ladder: Tensor
    others: Tensor

    def __init__(self, config: OrderBookConfig, columns: list[str]) -> None:
        super().__init__()
        d, ladder = config.d_model, _ladder(columns, config.levels)
        beside = sorted(set(range(len(columns))) - {c for pair in ladder for c in pair})
        self.register_buffer("ladder", torch.tensor(ladder), persistent=False)
        self.register_buffer("others", torch.tensor(beside, dtype=torch.int64), persistent=False)
        self.project = nn.Linear(2, d)
        self.beside = nn.Linear(len(beside), d, bias=False) if beside else None
        self.place = nn.Parameter(torch.randn(len(ladder), d) * 0.02)
        self.positions = Positions(config.positions, config.lookback, d)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled snapshots [B, L, C] → [B, L · 2 · levels, d_model]."""
        snapshots = self.positions(x.new_zeros(1, x.shape[1], self.place.shape[1]))
        if self.beside is not None:
            snapshots = snapshots + self.beside(x[:, :, self.others])
        return (self.project(x[:, :, self.ladder]) + self.place + snapshots[:, :, None]).flatten(1, 2)


def _places(levels: int) -> list[tuple[str, int]]:
    """Sides and levels up the price ladder."""
    return [("bid", i) for i in range(levels, 0, -1)] + [("ask", i) for i in range(1, levels + 1)]


def _ladder(columns: list[str], levels: int) -> list[tuple[int, int]]:
    """Columns of (ticks, log size) of each level, deepest bid first, deepest ask last. UserError where they lack."""
    at = {name.rpartition(".")[2]: c for c, name in enumerate(columns) if name.startswith("book")}
    try:
        return [(at[f"{side}_ticks_{i}"], at[f"{side}_log_size_{i}"]) for side, i in _places(levels)]
    except KeyError:
        raise UserError(
            f"model.levels: {levels} levels of each side are read; name the feature book({levels}, tick, lot)"
        ) from None


class OrderBook(Network):
    """[B, L, C] features of snapshots → classes."""

    Config = OrderBookConfig
    config: OrderBookConfig

    def __init__(self, config: OrderBookConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        columns = [column.name for column in inputs.columns]
        _ladder(columns, config.levels)
        self.embedding = (
            SnapshotTokens(config, len(columns))
            if config.tokens == "snapshot"
            else LevelTokens(config, columns)
        )
        self.drop = Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.pooling = build_pooling("mean" if config.pooling == "last" else config.pooling, config.d_model)
        self.build_heads(config.d_model)

    def forward(self, batch: Batch) -> Prediction:
        """The probabilities of the classes at the end of every window."""
        scaled = self.scaling(batch.x)
        return self.predict(self._pool(self._encode(scaled)[-1]), scaled, batch.rows)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer [B, N, d_model]."""
        return self._encode(self.scaling(batch.x))

    def token_bars(self) -> Rows:
        """The snapshot that each token is of."""
        return np.repeat(np.arange(self.config.lookback), self.config.per_snapshot)

    def token_levels(self) -> list[str]:
        if self.config.tokens == "snapshot":
            raise UserError("model.tokens: a token is a whole snapshot, and no level of it")
        return [f"{side} {i}" for side, i in _places(self.config.levels)]

    def pooled_weights(self, batch: Batch) -> Tensor:
        """The share of each token in what the output reads, [B, N]."""
        if isinstance(self.pooling, AttentionPooling):
            return self.pooling.weights(self.hidden_states(batch)[-1])
        n, read = self.config.n_tokens, self.config.n_tokens
        if self.config.pooling == "last":
            read = self.config.per_snapshot
        shares = torch.zeros(len(batch), n)
        shares[:, n - read :] = 1 / read
        return shares

    def build_baseline(self, kind: str) -> LinearBaseline:
        if self.config.skip:
            n_assets, n_targets = self.inputs.kinds[kind].shape
            return BookLogit(n_assets, n_targets, self.head(kind).n_classes)
        return super().build_baseline(kind)

    def _encode(self, scaled: Tensor) -> list[Tensor]:
        states: list[Tensor] = self.transformer(self.drop(self.embedding(scaled)))
        return states

    def _pool(self, tokens: Tensor) -> Tensor:
        newest = tokens[:, -self.config.per_snapshot :] if self.config.pooling == "last" else tokens
        vector: Tensor = self.pooling(newest)
        return vector
