"""Sliding windows and global tokens of transformers' Longformer through longtape's kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.longformer import modeling_longformer as library

from longtape.attention.longformer import window_attention
from longtape.attention.pattern import Pattern


class WindowAndGlobal(library.LongformerSelfAttention):
    """The library's module with another forward; its weights and names are kept."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor]:
        """Hidden states [B, N, width] → [B, N, width]; masks bool [B, N]: padded tokens, global tokens."""
        if output_attentions:
            raise ValueError(
                "an accelerated Longformer makes no attention maps; ask an unaccelerated copy of the model for them"
            )
        visible = None if is_index_masked is None else ~is_index_masked
        positions = positions_of(is_index_global_attn if is_global_attn else None, hidden_states)
        dropout = self.dropout if self.training else 0.0
        pattern = Pattern(window_size=2 * self.one_sided_attn_window_size + 1)
        q, k, v = self.heads(hidden_states, self.query, self.key, self.value)
        global_qkv = None
        if positions.shape[1]:
            chosen = positions.clamp(min=0)[..., None].expand(-1, -1, hidden_states.shape[-1])
            (global_q,) = self.heads(hidden_states.gather(1, chosen), self.query_global)
            global_k, global_v = self.heads(hidden_states, self.key_global, self.value_global)
            global_qkv = (global_q, global_k, global_v)
        y = window_attention(q, k, v, [pattern] * self.num_heads, positions, global_qkv, visible, dropout)
        y = y.transpose(1, 2).flatten(2)
        return (y if visible is None else y.masked_fill(~visible[..., None], 0.0),)

    def heads(self, x: Tensor, *projections: nn.Module) -> list[Tensor]:
        """Each projection of x as [B, H, N, D]."""
        size = (self.num_heads, self.head_dim)
        return [projection(x).unflatten(-1, size).transpose(1, 2) for projection in projections]


def positions_of(is_global: Tensor | None, x: Tensor) -> Tensor:
    """Mask [B, N] → positions [B, G] with −1 behind those of samples that have fewer."""
    if is_global is None:
        return torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    first = is_global.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    count = is_global.sum(1, keepdim=True)
    most = int(count.max())
    place = torch.arange(most, device=x.device)
    return torch.where(place < count, first[:, :most], -1)


def replace(model: nn.Module) -> int:
    """Accelerate every Longformer layer; how many there are. Each stays the same object with another class."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, library.LongformerSelfAttention)]
    for layer in layers:
        layer.__class__ = WindowAndGlobal
    return len(layers)
