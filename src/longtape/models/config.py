"""What describes a model: one typed, frozen document, unknown keys refused."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtape.attention import Attention, build_attention


class ModelConfig(BaseModel):
    """An encoder forecaster: lookback bars in, one prediction per target out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lookback: int = Field(512, ge=2, description="bars in a window")
    attention: str = Field("bigbird", description="mechanism, one of `longtape.attention.MECHANISMS`")
    attention_options: dict[str, Any] = Field(default_factory=dict, description="options of the mechanism")
    d_model: int = Field(64, ge=1)
    n_heads: int = Field(4, ge=1)
    n_layers: int = Field(2, ge=1)
    d_ff: int | None = Field(
        None, ge=1, description="width of the feed-forward layer; 4 × d_model by default"
    )
    dropout: float = Field(0.1, ge=0, lt=1)
    norm: Literal["pre", "post"] = "pre"
    patch: int = Field(
        1, ge=1, description="bars joined into one token; the first is padded where it is short"
    )
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    pooling: Literal["last", "mean", "class", "attention"] = "last"
    window_norm: bool = Field(
        False, description="subtract each window's own mean and divide by its deviation"
    )
    clip: float = Field(8.0, gt=0, description="scaled inputs are limited to ± this many deviations")
    skip: bool = Field(True, description="start from the closed-form baseline (ridge, log-HAR)")
    heads: dict[str, str] = Field(
        default_factory=dict, description="kind of target → head; the kind's usual head by default"
    )
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _widths(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} must be a multiple of n_heads={self.n_heads}")
        return self

    @model_validator(mode="after")
    def _attention_can_be_built(self) -> ModelConfig:
        """An unknown mechanism or option is refused here, before anything is read or written."""
        with torch.random.fork_rng(devices=[]):
            self.build_attention()
        return self

    def build_attention(self, **shared: Any) -> Attention:
        """One attention layer of this model."""
        own = {
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "seq_len": self.n_tokens,
            "dropout": self.dropout,
        }
        return build_attention(self.attention, **(own | self.attention_options), **shared)

    @property
    def n_tokens(self) -> int:
        """Tokens the encoder sees: ⌈lookback / patch⌉, and one more with class pooling."""
        return -(-self.lookback // self.patch) + (self.pooling == "class")
