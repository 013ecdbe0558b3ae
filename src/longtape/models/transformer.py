"""A transformer encoder over any attention mechanism."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longtape.attention import Attention, build_attention, mechanism_class
from longtape.attention.dropout import Dropout, GeluDropout
from longtape.models.base import ModelConfig


class TransformerConfig(ModelConfig):
    """Layers over any attention mechanism: what every model that has them shares."""

    attention: str = Field("bigbird", description="mechanism, one of `longtape.attention.MECHANISMS`")
    attention_options: dict[str, Any] = Field(default_factory=dict, description="options of the mechanism")
    d_model: int = Field(64, ge=1, description="width of a token")
    n_heads: int = Field(4, ge=1, description="attention heads; d_model is a multiple of them")
    n_layers: int = Field(2, ge=1, description="layers of the transformer")
    d_ff: int | None = Field(
        None, ge=1, description="width of the feed-forward layer; 4 × d_model by default"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of features left out by chance in a training pass"
    )
    norm: Literal["pre", "post"] = Field(
        "pre", description="where the layer norms stand: before each part of a layer, or after its residual"
    )
    gradient_checkpointing: bool = Field(
        False, description="layers are computed again in the backward pass, which saves memory"
    )

    @property
    def n_tokens(self) -> int:
        """Tokens that the layers see."""
        return self.lookback

    @property
    def is_rotary(self) -> bool:
        """True where positions are told by turning queries and keys."""
        return False

    @property
    def is_causal(self) -> bool:
        """True where no token sees a later one."""
        return self.attention_options.get("causal") is True

    @model_validator(mode="after")
    def _widths(self) -> TransformerConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} must be a multiple of n_heads={self.n_heads}")
        return self

    @model_validator(mode="after")
    def _attention_can_be_built(self) -> TransformerConfig:
        """An unknown mechanism or option is refused here, before anything is read or written."""
        if "rotary" in self.attention_options:
            raise ValueError("attention_options: rotary positions are named by positions: rotary")
        with torch.random.fork_rng(devices=[]):
            self.build_attention()
        return self

    @property
    def has_dropout(self) -> bool:
        """True with dropout of features or of attention weights."""
        return self.dropout > 0 or self.attention_options.get("attention_dropout", 0) > 0

    @property
    def has_global_tokens(self) -> bool:
        """True where marks of market time can become global tokens."""
        return "global_positions" in mechanism_class(self.attention).inputs

    def build_attention(self, **more: Any) -> Attention:
        """One attention layer; `more` are options of this layer alone."""
        own = {
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "seq_len": self.n_tokens,
            "dropout": self.dropout,
            "rotary": self.is_rotary,
        }
        return build_attention(self.attention, **(own | self.attention_options | more))


def feed_forward(config: TransformerConfig) -> nn.Sequential:
    """Two linear maps with GELU between them, d_model → d_ff → d_model."""
    width = config.d_ff or 4 * config.d_model
    return nn.Sequential(
        nn.Linear(config.d_model, width),
        GeluDropout(config.dropout),
        nn.Linear(width, config.d_model),
        Dropout(config.dropout),
    )


_TOKENS_AT_A_TIME = 16_384  # of the feed-forward, where no gradients are kept


class EncoderLayer(nn.Module):
    """Attention and a GELU feed-forward, each with a residual and a layer norm (before or after)."""

    def __init__(self, config: TransformerConfig, **more: Any) -> None:
        super().__init__()
        d = config.d_model
        self.pre_norm = config.norm == "pre"
        self.attention = config.build_attention(**more)
        self.feed_forward = feed_forward(config)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(
        self, x: Tensor, marks: Tensor | None = None, visible: Tensor | None = None, newest: bool = False
    ) -> Tensor:
        """[B, N, d_model], global positions [B, G] and visible [B, N] (False: no token) → [B, N, d_model].

        newest: the last token alone, [B, 1, d_model].
        """
        kept = x[:, -1:] if newest else x
        if self.pre_norm:
            return self._with_feed_forward(kept + self._attend(self.norm1(x), marks, visible, newest))
        x = self.norm1(kept + self._attend(x, marks, visible, newest))
        return self.norm2(x + self.feed_forward(x))

    def _with_feed_forward(self, x: Tensor) -> Tensor:
        """x + FF(norm(x)); of long sequences without gradients a part at a time, so that what is wider stays small."""
        if torch.is_grad_enabled() or x.shape[1] <= _TOKENS_AT_A_TIME:
            return x + self.feed_forward(self.norm2(x))
        for part in x.split(_TOKENS_AT_A_TIME, 1):
            part += self.feed_forward(self.norm2(part))
        return x

    def _attend(self, x: Tensor, marks: Tensor | None, visible: Tensor | None, newest: bool) -> Tensor:
        """With `newest`, one query where the mechanism can ask with one, else the last of all."""
        extra = {} if marks is None else {"global_positions": marks}
        if not newest:
            out: Tensor = self.attention(x, visible, **extra)
            return out
        if self.attention.capabilities.newest:
            alone: Tensor = self.attention(x, visible, newest=True)
            return alone
        return self.attention(x, visible, **extra)[:, -1:]


class Transformer(nn.Module):
    """L layers; with pre-norm, one more norm at the end."""

    def __init__(self, config: TransformerConfig, **more: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.n_layers):
            layerwise = config.attention_options.get("sharing") == "layerwise" and len(self.layers) > 0
            shared = {"shared": self.layers[0].attention} if layerwise else {}
            self.layers.append(EncoderLayer(config, **shared, **more))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor, marks: Tensor | None = None, visible: Tensor | None = None) -> list[Tensor]:
        """Tokens, marks and visible as for a layer → tokens after each layer, [B, N, d_model] each."""
        states = []
        for layer in self.layers:
            x = saving(self.checkpointing, layer, x, marks, visible)
            states.append(x)
        return [*states[:-1], self.norm(states[-1])]

    def newest(self, x: Tensor, marks: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """The last token after all layers, [B, 1, d_model]: of the last layer nothing else is computed."""
        *before, last = self.layers
        for layer in before:
            x = layer(x, marks, visible)
        out: Tensor = self.norm(last(x, marks, visible, newest=True))
        return out


def saving(memory: bool, layer: nn.Module, *inputs: Any) -> Tensor:
    """`layer(*inputs)`; to save memory, what it keeps for the backward pass is computed again there."""
    if memory and layer.training and torch.is_grad_enabled():
        out: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
        return out
    return layer(*inputs)
