"""Performer, FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794): attention through positive random features. O(N·m).

exp(q·k/√D) = E[φ(q)·φ(k)] with φ_m(x) = exp(w_m·x̃ − |x̃|²/2)/√M, x̃ = x/D^¼ and orthogonal Gaussian directions w_m.
Σ_j φ(q)·φ(k_j) v_j is then φ(q) times one [m, D] state. Exponents are taken relative to a maximum that cancels in the
quotient, so no ε is needed: each query's own, and over keys one per head, which the causal form carries along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtape.attention.base import Attention, AttentionConfig, Capabilities
from longtape.attention.operators.favor import favor, favor_causal
from longtape.attention.tensors.favor import favor_in_tensors


@dataclass(frozen=True)
class PerformerConfig(AttentionConfig):
    """`attention_dropout` is refused: the weights are never formed."""

    n_features: int | None = None  # m; by default int(D·ln D), at least 1
    seed: int = 0  # of the random directions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_features is not None and self.n_features < 1:
            raise ValueError(f"n_features={self.n_features} must be at least 1")
        if self.attention_dropout:
            raise ValueError(
                "performer never forms attention weights, so attention_dropout has nothing to drop"
            )

    @property
    def features(self) -> int:
        """The m in use."""
        return self.n_features or max(1, int(self.head_dim * math.log(self.head_dim)))


class PerformerAttention(Attention):
    """Attention whose softmax kernel is replaced by random features, the same for all heads."""

    Config: ClassVar[type[AttentionConfig]] = PerformerConfig
    capabilities = Capabilities(causal=True, cross=True)
    config: PerformerConfig
    features: Tensor

    def __init__(self, config: PerformerConfig) -> None:
        super().__init__(config)
        self.register_buffer("features", torch.empty(config.features, config.head_dim))
        self.redraw(config.seed)

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Draw other directions from now on."""
        self.features.copy_(orthogonal_directions(*self.features.shape, seed=seed))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        """φ(Q)(φ(K)ᵀV) normalised, in chunks; sums in at least float32."""
        if self.in_tensors and not self.config.causal:
            return favor_in_tensors(q, k, v, self.features, visible)
        with torch.autocast(q.device.type, enabled=False):
            function = favor_causal if self.config.causal else favor
            return function(q, k, v, self.features, visible)

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        """φ(q)·φ(k) over its sum along the keys, [B, H, len(rows), M]."""
        directions = self.features.to(q.dtype)
        phi_q = _log_features(q[:, :, rows], directions)
        phi_k = _log_features(k, directions)
        if visible is not None:
            phi_k = phi_k.masked_fill(~visible[:, None, :, None], float("-inf"))
        largest = phi_k.detach().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(q.dtype).min)
        phi_q = (phi_q - phi_q.detach().amax(-1, keepdim=True)).exp()
        products = phi_q @ (phi_k - largest).exp().transpose(-2, -1)
        if self.config.causal:
            past = torch.arange(k.shape[2], device=q.device) <= rows[:, None]
            products = products.masked_fill(~past, 0.0)
        return products / products.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)

    def _pop_context(
        self, x: Tensor, visible: Tensor | None, extra: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        context, context_visible = super()._pop_context(x, visible, extra)
        if context is not None and self.config.causal:
            raise ValueError("a causal performer is for self-attention: a context has no order relative to x")
        return context, context_visible


def orthogonal_directions(n_directions: int, width: int, *, seed: int) -> Tensor:
    """Gaussian directions [n, width], orthogonal within each block of `width`, with the lengths of Gaussian vectors."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-n_directions // width)):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        blocks.append((q * r.diagonal().sign()).T)  # the signs make q uniform over the orthogonal group
    lengths = torch.randn(n_directions, width, generator=generator, dtype=torch.float64).norm(dim=-1)
    return torch.cat(blocks)[:n_directions] * lengths[:, None]


def _log_features(x: Tensor, directions: Tensor) -> Tensor:
    """ln φ without the constant 1/√m, [..., m]."""
    scaled = x * x.shape[-1] ** -0.25
    return scaled @ directions.T - scaled.square().sum(-1, keepdim=True) / 2
