"""The portfolio model: a token for each asset and moment, whose order of assets does not matter.

`joint`: all tokens in one sequence, moment by moment. Patterns count in moments, so that a block holds all assets of
some bars and no asset stands nearer to another than to a third. `axial`: attention along time within each asset, then
exact attention across the assets of each moment. Positions tell moments apart, and nothing tells assets apart but what
they did, so permuted assets give permuted forecasts. What is absent is masked: nobody sees it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtape.attention import mechanism_class
from longtape.attention.dropout import Dropout
from longtape.core.calendars import CALENDAR_COLUMNS
from longtape.core.errors import UserError
from longtape.features.panel import Rows
from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import PatchEmbedding, Positions
from longtape.models.linear_baseline import LinearBaseline, SharedSpanRidge
from longtape.models.network import Network, NetworkConfig
from longtape.models.pooling import build_pooling
from longtape.models.prediction import Prediction
from longtape.models.transformer import EncoderLayer, Transformer, saving

# Why the order of assets would matter in one sequence of (moment, asset).
_ORDERED = {
    "longformer": "its windows count single tokens, and so would cut through the assets of a moment; local or bigbird"
    " take whole ones",
    "linformer": "its projections are learnt for single places of the sequence",
    "reformer": "tokens of a bucket are sorted by their place, and its chunks cut between assets",
    "probsparse": "its sample of keys is one of places, so that some assets would be in it and others not",
}


class PortfolioConfig(NetworkConfig):
    """Tokens (asset, time) over any mechanism that can be blind to the order of assets."""

    reads_presence: ClassVar[bool] = True
    cannot_pool = "it is one already in which all symbols share their weights and see each other"

    kind: Literal["portfolio"] = "portfolio"
    lookback: int = Field(256, ge=2, description="bars in a window")
    patch: int = Field(1, ge=1, description="bars of an asset joined into one token")
    layout: Literal["joint", "axial"] = Field(
        "joint",
        description="all tokens in one sequence, where block_size counts moments (1 by default), or time within each"
        " asset and then exact attention across the assets of each moment",
    )
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="how a moment is told its place"
    )
    calendar: bool = Field(False, description="add an embedding of the time at which each bar opens")
    pooling: Literal["last", "mean", "attention"] = Field(
        "last", description="of each asset: its newest token, the mean of its tokens, or a learnt mean"
    )

    @property
    def n_tokens(self) -> int:
        """Moments of a window: ⌈lookback / patch⌉ tokens of each asset."""
        return -(-self.lookback // self.patch)

    @property
    def reads_calendar(self) -> bool:
        return self.calendar

    @model_validator(mode="after")
    def _order_of_assets_does_not_matter(self) -> PortfolioConfig:
        if self.layout == "axial":
            return self
        if self.attention in _ORDERED:
            raise ValueError(
                f"layout: {self.attention} cannot be joint, because the order of assets would matter:"
                f" {_ORDERED[self.attention]}; name layout: axial"
            )
        if self.is_causal:
            raise ValueError(
                "layout: a causal sequence would put the assets of a moment in order; name axial"
            )
        if not isinstance(self.attention_options.get("global_tokens", ""), str):
            raise ValueError("layout: global tokens by number are single assets'; name a placement, or axial")
        return self

    def joint_options(self, n_assets: int) -> dict[str, Any]:
        """Options of the mechanism over `n_assets` tokens for each moment."""
        options: dict[str, Any] = {"seq_len": self.n_tokens * n_assets}
        if hasattr(mechanism_class(self.attention).Config, "block_size"):
            options["block_size"] = n_assets * self.attention_options.get("block_size", 1)
        return options


class JointLayers(nn.Module):
    """Tokens [B, N, A, d_model] as one sequence of N · A, moment by moment."""

    def __init__(self, config: PortfolioConfig, n_assets: int) -> None:
        super().__init__()
        self.transformer = Transformer(config, **config.joint_options(n_assets))

    def forward(self, tokens: Tensor, visible: Tensor | None, marks: Tensor | None) -> list[Tensor]:
        """Tokens [B, N, A, d_model], visible [B, N, A], marked moments [B, G] → tokens after each layer."""
        n_assets = tokens.shape[2]
        if marks is not None:
            each = marks[..., None] * n_assets + torch.arange(n_assets, device=marks.device)
            marks = each.masked_fill(marks[..., None] < 0, -1).flatten(1)
        seen = None if visible is None else visible.flatten(1)
        states: list[Tensor] = self.transformer(tokens.flatten(1, 2), marks, seen)
        return [state.unflatten(1, (-1, n_assets)) for state in states]


class AxialLayers(nn.Module):
    """Layers along time within each asset, each followed by one across the assets of each moment."""

    def __init__(self, config: PortfolioConfig) -> None:
        super().__init__()
        across = config.model_copy(update={"attention": "flash", "attention_options": {}})
        self.along_time = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.across_assets = nn.ModuleList(EncoderLayer(across) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.checkpointing = config.gradient_checkpointing

    def forward(self, tokens: Tensor, visible: Tensor | None, marks: Tensor | None) -> list[Tensor]:
        """Tokens [B, N, A, d_model], visible [B, N, A], marked moments [B, G] → tokens after each layer."""
        n_moments, n_assets = tokens.shape[1:3]
        marks = None if marks is None else marks.repeat_interleave(n_assets, 0)
        in_time = None if visible is None else visible.transpose(1, 2).flatten(0, 1)
        in_moment = None if visible is None else visible.flatten(0, 1)
        states = []
        for along, across in zip(self.along_time, self.across_assets, strict=True):
            rows = tokens.transpose(1, 2).flatten(0, 1)  # [B · A, N, d_model]
            rows = saving(self.checkpointing, along, rows, marks, in_time)
            rows = rows.unflatten(0, (-1, n_assets)).transpose(1, 2).flatten(0, 1)  # [B · N, A, d_model]
            rows = saving(self.checkpointing, across, rows, None, in_moment)
            tokens = rows.unflatten(0, (-1, n_moments))
            states.append(tokens)
        return [*states[:-1], self.norm(states[-1])]


class Portfolio(Network):
    """[B, L, C] raw features → predictions of every asset, by weights that all assets share."""

    Config = PortfolioConfig
    config: PortfolioConfig

    def __init__(self, config: PortfolioConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.n_assets = len(inputs.assets)
        self.n_shared = sum(column.asset is None for column in inputs.columns)
        self.n_own = (len(inputs.columns) - self.n_shared) // self.n_assets
        self.embedding = PatchEmbedding(self.n_own + self.n_shared, config.patch, config.d_model)
        self.calendar = (
            PatchEmbedding(len(CALENDAR_COLUMNS), config.patch, config.d_model) if config.calendar else None
        )
        self.positions = Positions(config.positions, config.n_tokens, config.d_model)
        self.drop = Dropout(config.dropout)
        joint = config.layout == "joint"
        self.layers = JointLayers(config, self.n_assets) if joint else AxialLayers(config)
        self.pooling = build_pooling(config.pooling, config.d_model)
        self.build_heads(config.d_model)

    def forward(self, batch: Batch) -> Prediction:
        """The prediction of every asset at the end of every window."""
        visible = self._visible(batch)
        tokens = self._encode(batch, visible)[-1].transpose(1, 2).flatten(0, 1)  # [B · A, N, d_model]
        of_asset = None if visible is None else visible.transpose(1, 2).flatten(0, 1)
        vectors = self.pooling(tokens, of_asset).unflatten(0, (-1, self.n_assets))
        return self.predict(vectors, self.scaling(batch.x), batch.rows)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer, [B, N · A, d_model], moment by moment."""
        return [state.flatten(1, 2) for state in self._encode(batch, self._visible(batch))]

    def token_bars(self) -> Rows:
        patch = self.config.patch
        newest = patch * np.arange(1, self.config.n_tokens + 1) - 1 - (-self.config.lookback % patch)
        return np.repeat(newest, self.n_assets)

    def token_assets(self, layer: nn.Module) -> Rows | None:
        if isinstance(self.layers, JointLayers):
            return np.tile(np.arange(self.n_assets), self.config.n_tokens)
        across = any(layer is one.attention for one in self.layers.across_assets)
        return np.arange(self.n_assets) if across else None

    def pooled_weights(self, batch: Batch) -> Tensor:
        """The same of every asset, whose heads each read their own tokens."""
        if self.config.pooling == "attention":
            raise UserError("rollout: each asset has a pooling of its own")
        weights = torch.zeros(self.config.n_tokens, self.n_assets)
        weights[-1 if self.config.pooling == "last" else slice(None)] = 1.0
        return (weights / weights.sum()).flatten().expand(len(batch), -1)

    def _encode(self, batch: Batch, visible: Tensor | None) -> list[Tensor]:
        """Tokens after each layer, [B, N, A, d_model]."""
        tokens = self.embedding(self._rows(batch)).unflatten(0, (-1, self.n_assets)).transpose(1, 2)
        moments = self.positions(tokens.new_zeros(len(tokens), self.config.n_tokens, self.config.d_model))
        if self.calendar is not None:
            moments = moments + self.calendar(batch.calendar)
        states: list[Tensor] = self.layers(
            self.drop(tokens + moments[:, :, None]), visible, self._marks(batch)
        )
        return states

    def _rows(self, batch: Batch) -> Tensor:
        """What each asset's tokens are made of, [B · A, L, F + G]: nothing where it is absent."""
        scaled = self.scaling(batch.x)
        own = scaled[..., : self.n_own * self.n_assets].unflatten(2, (self.n_assets, self.n_own))
        shared = scaled[..., self.n_own * self.n_assets :]
        joined = torch.cat([own, shared[:, :, None].expand(-1, -1, self.n_assets, -1)], 3)
        there = joined if batch.complete else joined * batch.present[..., None]
        return there.transpose(1, 2).flatten(0, 1)

    def _visible(self, batch: Batch) -> Tensor | None:
        """Tokens [B, N, A] of which some bar is there; None where all are."""
        if batch.complete or bool(batch.present.all()):
            return None
        short = -self.config.lookback % self.config.patch
        padded = nn.functional.pad(batch.present, (0, 0, short, 0))
        return padded.unflatten(1, (-1, self.config.patch)).any(2)

    def _marks(self, batch: Batch) -> Tensor | None:
        """Marked bars as moments."""
        if batch.marks.shape[1] == 0:
            return None
        moments = (batch.marks + -self.config.lookback % self.config.patch) // self.config.patch
        return moments.masked_fill(batch.marks < 0, -1)

    def head_form(self, kind: str) -> dict[str, Any]:
        """A vector for each asset."""
        return {"shared": True}

    def build_baseline(self, kind: str) -> LinearBaseline:
        """As every network's, but one ridge for all assets."""
        if self.config.skip and self.head(kind).space == "mean":
            return SharedSpanRidge(self.n_own, self.n_shared, self.config.lookback, self.scale_of(kind))
        return super().build_baseline(kind)
