"""Full attention, softmax(QKᵀ/√D)V, with explicit weights: for looking and for checking. O(N²) memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.base import Attention, Capabilities, masked_softmax


def full_mask(
    n_queries: int, n_keys: int, visible: Tensor | None, causal: bool, device: torch.device
) -> Tensor | None:
    """bool, broadcastable to [B, H, N, M]: True where a query may look. None when it may look everywhere."""
    mask = visible[:, None, None, :] if visible is not None else None
    if causal:
        past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril()
        mask = past if mask is None else mask & past
    return mask


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√D)V. q [B, H, N, D]; k, v [B, H, M, D]; mask bool, True = visible."""
    return masked_softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, mask) @ v


def full_probs(q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, causal: bool) -> Tensor:
    """Weights of the query rows alone, [B, H, len(rows), M]; visible [B, M]."""
    mask = visible[:, None, None, :] if visible is not None else None
    if causal:
        past = torch.arange(k.shape[2], device=q.device) <= rows[:, None]
        mask = past if mask is None else mask & past
    return masked_softmax(q[:, :, rows] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, mask)


class FullAttention(Attention):
    """Exact attention with every weight in memory (Vaswani et al. 2017, equation 1)."""

    capabilities = Capabilities(exact=True, causal=True, cross=True, fixed_pattern=True, newest=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        weights = self._weights(q, k, visible)
        return F.dropout(weights, self.config.attention_dropout, self.training) @ v

    def attend_newest(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        weights = full_probs(
            q, k, visible, torch.tensor([0]), causal=False
        )  # the last query sees all, causal or not
        return F.dropout(weights, self.config.attention_dropout, self.training) @ v

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any
    ) -> Tensor:
        mask = full_mask(q.shape[2], k.shape[2], visible, self.config.causal, q.device)
        return full_attention(q, k, v, mask)

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        return full_probs(q, k, visible, rows, bool(self.config.causal))

    def visible_pairs(self, n_tokens: int) -> Tensor:
        every = torch.ones(n_tokens, n_tokens, dtype=torch.bool)
        return every.tril() if self.config.causal else every

    def _weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        mask = full_mask(q.shape[2], k.shape[2], visible, self.config.causal, q.device)
        return masked_softmax(q @ k.transpose(-2, -1) * self.config.head_dim**-0.5, mask)
