"""The encoder forecaster: window → tokens → transformer → one vector → a head for each kind of target.

All features of all assets stand side by side in a token; the vector at the end has an output row for each asset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.features.target_kinds import TargetKind
from longtape.models.base import Array, Model, ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import InputScaling, PatchEmbedding, Positions
from longtape.models.har import HarDesign
from longtape.models.heads import HEADS, Head
from longtape.models.linear_baseline import Constant, LinearBaseline, LogHar, SpanRidge
from longtape.models.pooling import AttentionPooling, build_pooling
from longtape.models.prediction import Prediction
from longtape.models.transformer import Transformer, TransformerConfig


class EncoderConfig(TransformerConfig):
    """A transformer encoder over the window."""

    trains: ClassVar[bool] = True

    kind: Literal["encoder"] = "encoder"
    lookback: int = Field(512, ge=2, description="bars in a window")
    patch: int = Field(
        1, ge=1, description="bars joined into one token; the first is padded where it is short"
    )
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    pooling: Literal["last", "mean", "class", "attention"] = "last"
    window_norm: bool = Field(
        False, description="subtract each window's own mean and divide by its deviation"
    )
    clip: float = Field(8.0, gt=0, description="scaled inputs are limited to ± this many deviations")
    skip: bool = Field(
        True, description="begin at the closed-form baseline (ridge, log-HAR); false: at the training mean"
    )
    heads: dict[str, str] = Field(
        default_factory=dict, description="kind of target → head; the kind's usual head by default"
    )

    def refuse_targets(self, kinds: Mapping[str, TargetKind]) -> None:
        for name in self.heads:
            if name not in kinds:
                raise UserError(f"model.heads: no target is of kind '{name}'; there are {', '.join(kinds)}")
        for kind in kinds.values():
            head_name(self.heads, kind)

    def head_of(self, kind: TargetKind) -> str | None:
        return head_name(self.heads, kind)

    @property
    def summary(self) -> str:
        """Mechanism and lookback."""
        return f"{self.attention} attention over {self.lookback:,} bars"

    @property
    def n_tokens(self) -> int:
        """Tokens the transformer sees: ⌈lookback / patch⌉, and one more with class pooling."""
        return -(-self.lookback // self.patch) + (self.pooling == "class")


class EncoderForecaster(Model):
    """[B, L, C] raw features → predictions of all targets."""

    Config = EncoderConfig
    config: EncoderConfig

    def __init__(self, config: EncoderConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.scaling = InputScaling(inputs.mean, inputs.deviation, config.clip, config.window_norm)
        self.embedding = PatchEmbedding(len(inputs.columns), config.patch, config.d_model)
        self.class_token = (
            nn.Parameter(torch.zeros(1, 1, config.d_model)) if config.pooling == "class" else None
        )
        self.positions = Positions(config.positions, config.n_tokens, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.pooling = build_pooling(config.pooling, config.d_model)
        self.heads = nn.ModuleDict({kind: self._build_head(kind) for kind in inputs.kinds})
        self.baselines = nn.ModuleDict({kind: self._build_baseline(kind) for kind in inputs.kinds})

    def forward(self, batch: Batch) -> Prediction:
        """The prediction at the end of every window."""
        scaled, parts, at = self.scaling.standardise(batch.x), [], 0
        vector = self.pooling(self._encode(scaled, batch)[-1])
        for kind, baseline in self._baselines():
            base = baseline(scaled, batch.rows[:, at : at + baseline.n_rows])
            parts.append(self.heads[kind](vector, base))
            at += baseline.n_rows
        return Prediction(tuple(parts), self.kind_columns)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer [B, N, d_model], the last ones normalised as the head sees them."""
        return self._encode(self.scaling.standardise(batch.x), batch)

    def token_bars(self) -> Rows:
        own = np.arange(
            self.config.patch - 1,
            self.config.patch * -(-self.config.lookback // self.config.patch),
            self.config.patch,
        )
        bars = own - (-self.config.lookback % self.config.patch)
        return np.concatenate([[-1], bars]) if self.class_token is not None else bars

    def pooled_weights(self, batch: Batch) -> Tensor:
        n = self.config.n_tokens
        if isinstance(self.pooling, AttentionPooling):
            weights: Tensor = self.pooling.weights(self.hidden_states(batch)[-1])
            return weights
        if self.config.pooling == "mean":
            return torch.full((len(batch), n), 1 / n)
        one = torch.zeros(len(batch), n)
        one[:, 0 if self.class_token is not None else -1] = 1.0
        return one

    def _encode(self, scaled: Tensor, batch: Batch) -> list[Tensor]:
        if self.config.window_norm:
            scaled = self.scaling(batch.x)
        tokens = self.embedding(scaled)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        states: list[Tensor] = self.transformer(
            self.drop(self.positions(tokens)), self._token_of(batch.marks)
        )
        return states

    def fit(self, panel: Panel, train: Rows, validation: Rows) -> None:
        for kind, baseline in self._baselines():
            baseline.fit(panel, self.inputs.kinds[kind], train, validation, self.scaling.standardise)

    def row_inputs(self, panel: Panel) -> Array:
        parts = [baseline.row_inputs(panel) for _, baseline in self._baselines()]
        return torch.cat([torch.from_numpy(part) for part in parts], 1).numpy()

    @property
    def reach(self) -> int:
        """The window, or what a baseline reads beyond it."""
        return max(self.config.lookback, *(baseline.reach for _, baseline in self._baselines()))

    def _baselines(self) -> list[tuple[str, LinearBaseline]]:
        return [(kind, one) for kind, one in self.baselines.items() if isinstance(one, LinearBaseline)]

    def _token_of(self, bars: Tensor) -> Tensor | None:
        """Positions of bars in the window → positions of their tokens; −1 stays. None where nothing is marked."""
        if bars.shape[1] == 0:
            return None
        short = -self.config.lookback % self.config.patch
        tokens = (bars + short) // self.config.patch + (self.class_token is not None)
        return tokens.masked_fill(bars < 0, -1)

    def _build_head(self, kind: str) -> Head:
        of_kind = self.inputs.targets_of(kind)[0].of_kind
        head = HEADS.load(head_name(self.config.heads, of_kind))
        built: Head = head(self.config.d_model, self.scale_of(kind), n_classes=of_kind.classes)
        return built

    def _build_baseline(self, kind: str) -> LinearBaseline:
        head = cast(Head, self.heads[kind])
        n_assets, n_targets = self.inputs.kinds[kind].shape
        if self.config.skip and head.space == "log_variance":
            return LogHar(HarDesign.of(self.inputs.interval, self.inputs.calendar), n_assets, n_targets)
        if self.config.skip and head.space == "mean":
            return SpanRidge(len(self.inputs.columns), self.config.lookback, n_assets, n_targets)
        return Constant(head.space, n_assets, n_targets, head.n_classes)


def head_name(heads: Mapping[str, str], kind: TargetKind) -> str:
    """The head of a kind of target; UserError where it does not fit."""
    name = heads.get(kind.name, kind.heads[0])
    if name not in kind.heads:
        HEADS.find(name)
        raise UserError(
            f"model.heads: the head '{name}' does not go with targets of kind '{kind.name}';"
            f" {' or '.join(kind.heads)} does"
        )
    return name
