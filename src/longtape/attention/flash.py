"""Exact attention in O(N) memory through PyTorch's fused kernels; the same function as `full`.

On CUDA the fastest exact backend that takes the inputs is used (cuDNN, then FlashAttention, then memory-efficient).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longtape.attention.base import Attention, Capabilities
from longtape.attention.full import full_attention, full_mask, full_probs
from longtape.attention.operators.block_sparse import dense_attention
from longtape.attention.tiled import tiled_attention

CUDA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_LONG = 512  # tokens; PyTorch's backward takes 1.4 times as long there with heads of 16, 1.1 times with heads of 64
_WIDENED = 8  # columns added to carry a key mask; fused CUDA kernels want multiples of 8


class FlashAttention(Attention):
    """softmax(QKᵀ/√D)V with fused kernels (Dao et al. 2022); `tiled.py` shows the algorithm."""

    capabilities = Capabilities(exact=True, causal=True, cross=True, fixed_pattern=True, newest=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        dropout = self.config.attention_dropout if self.training else 0.0
        if visible is None and not self.config.causal and _suits_loops(q, k):
            return dense_attention(q, k, v, dropout=dropout)
        if dropout and q.device.type == "cpu":  # SDPA leaves its fused path there: O(N²) memory
            return tiled_attention(q, k, v, visible, causal=self.config.causal, dropout=dropout)[0]
        return flash_attention(q, k, v, visible, causal=self.config.causal, dropout=dropout)

    def attend_newest(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        dropout = self.config.attention_dropout if self.training else 0.0
        return flash_attention(q, k, v, visible, dropout=dropout)  # the last query sees all, causal or not

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any
    ) -> Tensor:
        return full_attention(
            q, k, v, full_mask(q.shape[2], k.shape[2], visible, self.config.causal, q.device)
        )

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        return full_probs(q, k, visible, rows, bool(self.config.causal))

    def visible_pairs(self, n_tokens: int) -> Tensor:
        every = torch.ones(n_tokens, n_tokens, dtype=torch.bool)
        return every.tril() if self.config.causal else every


def _suits_loops(q: Tensor, k: Tensor) -> bool:
    """Where gradients are wanted on a CPU, the compiled loops give the same in less time, if there are many keys."""
    if torch.compiler.is_compiling() or q.is_cuda or q.dtype != torch.float32:
        return False
    return torch.is_grad_enabled() and q.requires_grad and min(q.shape[2], k.shape[2]) >= _LONG


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """q [B, H, N, D]; k, v [B, H, M, D]; visible [B, M] bool → [B, H, N, D]. A row that sees nothing is zero."""
    scale = q.shape[-1] ** -0.5
    with sdpa_kernel(CUDA_BACKENDS, set_priority=True) if q.is_cuda else nullcontext():
        if visible is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout, scale=scale)
        hidden = ~visible
        if causal:
            out = _causal_with_hidden_keys(q, k, v, hidden, dropout)
        else:
            bias = q.new_zeros(hidden.shape).masked_fill(hidden, torch.finfo(q.dtype).min)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias[:, None, None, :], dropout_p=dropout, scale=scale
            )
    sees_nothing = (
        hidden.int().cummin(-1).values.bool()[:, _last_key(q, k)] if causal else hidden.all(-1, keepdim=True)
    )
    return out.masked_fill(sees_nothing[:, None, :, None], 0.0)


def _causal_with_hidden_keys(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, dropout: float) -> Tensor:
    """Hidden keys beside a causal mask without an N×N tensor: columns are added, 1 to q and 0 or low to k."""
    scale = q.shape[-1] ** -0.5
    low = -(2.0**14) if q.dtype == torch.float16 else -(2.0**100)
    ones = F.pad(q.new_ones(()).expand(*q.shape[:-1], 1), (0, _WIDENED - 1))
    mask = q.new_zeros(hidden.shape).masked_fill(hidden, low)[:, None, :, None].expand(*k.shape[:-1], 1)
    wide_k = torch.cat([k, F.pad(mask, (0, _WIDENED - 1))], -1)
    wide_v = F.pad(v, (0, _WIDENED))
    out = F.scaled_dot_product_attention(
        torch.cat([q, ones], -1), wide_k, wide_v, is_causal=True, dropout_p=dropout, scale=scale
    )
    return out[..., : v.shape[-1]]


def _last_key(q: Tensor, k: Tensor) -> Tensor:
    """[N]: the last key that each causal query may see."""
    return torch.arange(q.shape[2], device=q.device).clamp(max=k.shape[2] - 1)
