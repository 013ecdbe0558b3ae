"""The encoder forecaster: window → tokens → transformer → one vector → a head for each kind of target.

All features of all assets stand side by side in a token; the vector at the end has an output row for each asset.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longtape.models.base import ModelInputs
from longtape.models.batch import Batch
from longtape.models.embedding import PatchEmbedding, Positions, WindowNorm
from longtape.models.network import Network, NetworkConfig
from longtape.models.pooling import build_pooling
from longtape.models.prediction import Prediction
from longtape.models.transformer import Transformer


class EncoderConfig(NetworkConfig):
    """A transformer encoder over the window."""

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

    @property
    def n_tokens(self) -> int:
        """Tokens the transformer sees: ⌈lookback / patch⌉, and one more with class pooling."""
        return -(-self.lookback // self.patch) + (self.pooling == "class")


class EncoderForecaster(Network):
    """[B, L, C] raw features → predictions of all targets."""

    Config = EncoderConfig
    config: EncoderConfig

    def __init__(self, config: EncoderConfig, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.window_norm = WindowNorm(config.clip) if config.window_norm else None
        self.embedding = PatchEmbedding(len(inputs.columns), config.patch, config.d_model)
        self.class_token = (
            nn.Parameter(torch.zeros(1, 1, config.d_model)) if config.pooling == "class" else None
        )
        self.positions = Positions(config.positions, config.n_tokens, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.pooling = build_pooling(config.pooling, config.d_model)
        self.build_heads(config.d_model)

    def forward(self, batch: Batch) -> Prediction:
        """The prediction at the end of every window."""
        vector = self.pooling(self._encode(batch)[-1])
        return self.predict(vector, self.scaling(batch.x), batch.rows)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """Tokens after each layer [B, N, d_model], the last ones normalised as the head sees them."""
        return self._encode(batch)

    def _encode(self, batch: Batch) -> list[Tensor]:
        if self.window_norm is None:
            scaled = self.scaling(batch.x)
        else:
            scaled, _ = self.window_norm(self.scaling.unlimited(batch.x))
        tokens = self.embedding(scaled)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        states: list[Tensor] = self.transformer(
            self.drop(self.positions(tokens)), self._token_of(batch.marks)
        )
        return states

    def _token_of(self, bars: Tensor) -> Tensor | None:
        """Positions of bars in the window → positions of their tokens; −1 stays. None where nothing is marked."""
        if bars.shape[1] == 0:
            return None
        short = -self.config.lookback % self.config.patch
        tokens = (bars + short) // self.config.patch + (self.class_token is not None)
        return tokens.masked_fill(bars < 0, -1)
