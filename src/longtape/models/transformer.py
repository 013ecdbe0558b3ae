"""A transformer encoder over any attention mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from longtape.models.encoder import EncoderConfig


class EncoderLayer(nn.Module):
    """Attention and a GELU feed-forward, each with a residual and a layer norm (before or after)."""

    def __init__(self, config: EncoderConfig, **shared: Any) -> None:
        super().__init__()
        d = config.d_model
        self.pre_norm = config.norm == "pre"
        self.attention = config.build_attention(**shared)
        width = config.d_ff or 4 * d
        self.feed_forward = nn.Sequential(
            nn.Linear(d, width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, d),
            nn.Dropout(config.dropout),
        )
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """[B, N, d_model] and global positions [B, G] → [B, N, d_model]."""
        extra = {} if marks is None else {"global_positions": marks}
        if self.pre_norm:
            x = x + self.attention(self.norm1(x), **extra)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attention(x, **extra))
        return self.norm2(x + self.feed_forward(x))


class Transformer(nn.Module):
    """L layers; with pre-norm, one more norm at the end."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.n_layers):
            layerwise = config.attention_options.get("sharing") == "layerwise" and len(self.layers) > 0
            shared = {"shared": self.layers[0].attention} if layerwise else {}
            self.layers.append(EncoderLayer(config, **shared))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor, marks: Tensor | None = None) -> list[Tensor]:
        """[B, N, d_model] and global positions [B, G] → tokens after each layer, [B, N, d_model] each."""
        states = []
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, marks, use_reentrant=False)
            else:
                x = layer(x, marks)
            states.append(x)
        return [*states[:-1], self.norm(states[-1])]
