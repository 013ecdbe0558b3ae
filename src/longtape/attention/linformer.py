"""Linformer (Wang et al. 2020, arXiv:2006.04768): keys and values projected along the sequence, N → k. O(N·k).

softmax(Q(EK)ᵀ/√D)(FV), where E and F [k, N] mix positions. Padding is blanked in K and V before they are mixed:
a mask on the k mixed columns would mean nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention.base import Attention, AttentionConfig, Capabilities, mask_heads, mask_padding
from longtape.attention.operators.block_sparse import dense_attention

SHARINGS = ("none", "headwise", "key_value", "layerwise")
PROJECTIONS = ("linear", "mean", "conv")


def default_k(seq_len: int) -> int:
    """The usual k: 64 under 512 tokens, 128 under 2,048, 256 above; never more than there are tokens."""
    return min(seq_len, 64 if seq_len < 512 else 128 if seq_len < 2048 else 256)


@dataclass(frozen=True)
class LinformerConfig(AttentionConfig):
    """`seq_len` is required: E and F have a column for every position."""

    k: int | None = None  # rows of E and F; `default_k` where None
    sharing: str = "headwise"  # none (E, F per head) | headwise | key_value (E = F) | layerwise
    projection: str = "linear"  # learned; mean of k windows; conv: one learned kernel strided over k windows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_len is None:
            raise ValueError("linformer is built for one length: give seq_len")
        if self.sharing not in SHARINGS:
            raise ValueError(f"sharing='{self.sharing}' must be one of {', '.join(SHARINGS)}")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection='{self.projection}' must be one of {', '.join(PROJECTIONS)}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        if self.projection != "linear" and self.columns > self.seq_len:
            raise ValueError(f"k={self.k} windows do not fit into seq_len={self.seq_len} tokens")

    @property
    def columns(self) -> int:
        """The k in use."""
        return default_k(self.seq_len or 1) if self.k is None else self.k


class SequenceProjection(nn.Module):
    """E of the definition: [k, seq_len], or [H, k, seq_len] with one per head.

    `linear` holds E itself as `weight`. `mean` and `conv` cut the sequence into k windows, window i holding the
    tokens t with ⌊t·k/seq_len⌋ = i: `mean` averages them, `conv` weighs them by one kernel `weight` [⌈seq_len/k⌉].
    """

    weight: Tensor | None

    def __init__(self, config: LinformerConfig) -> None:
        super().__init__()
        assert config.seq_len is not None  # noqa: S101 - the configuration has checked it
        self.n_tokens, self.k, self.kind = config.seq_len, config.columns, config.projection
        self.width = math.ceil(self.n_tokens / self.k)
        heads = (config.n_heads,) if config.sharing == "none" else ()
        shapes = {"linear": (self.k, self.n_tokens), "conv": (self.width,)}
        if self.kind == "mean":
            self.register_parameter("weight", None)
        else:
            self.weight = nn.Parameter(torch.empty(*heads, *shapes[self.kind]))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw so that a mixed key has about the variance of a key."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def matrix(self, n_tokens: int, like: Tensor) -> Tensor:
        """First n_tokens columns of E, [k, n_tokens] or [H, k, n_tokens], on the device and in the dtype of `like`."""
        if self.kind == "linear" and self.weight is not None:
            return self.weight[..., :n_tokens]
        position = torch.arange(n_tokens, device=like.device)
        window = position * self.k // self.n_tokens
        first = -(-window * self.n_tokens // self.k)  # ⌈window·seq_len/k⌉, the window's first token
        member = window == torch.arange(self.k, device=like.device)[:, None]  # [k, n_tokens]
        if self.weight is not None:
            return torch.where(member, self.weight[..., None, :][..., position - first], 0.0)
        size = -(-(window + 1) * self.n_tokens // self.k) - first
        return torch.where(member, 1 / size.to(like.dtype), 0.0)


class LinformerAttention(Attention):
    """Low-rank attention for one sequence length; shorter input is as if padded, longer input is refused.

    To load the weights of the package `linformer`: `E.weight` is its proj_k.T, `F.weight` its proj_v.T, and the biases
    of q, k and v are zero.
    """

    Config: ClassVar[type[AttentionConfig]] = LinformerConfig
    capabilities = Capabilities(cross=True, fixed_length=True, rotary=False)
    can_share: ClassVar[bool] = True
    config: LinformerConfig

    def __init__(self, config: LinformerConfig, shared: LinformerAttention | None = None) -> None:
        super().__init__(config)
        if shared is not None:
            # Held without registering: the layer that made E owns it, and a model saves it once.
            self._owner = (self._check_shared(shared),)
        else:
            self.E = SequenceProjection(config)
        if config.sharing in ("none", "headwise"):
            self.F = SequenceProjection(config)

    @classmethod
    def why_not_causal(cls) -> str:
        """The reason given when causal=True is refused."""
        return "each of its k columns mixes keys and values of the whole sequence, later ones included"

    @property
    def key_projection(self) -> SequenceProjection:
        """E; with layer-wise sharing the one of the first layer."""
        return self._owner[0].key_projection if hasattr(self, "_owner") else self.E

    @property
    def value_projection(self) -> SequenceProjection:
        """F, which is E where they are shared."""
        return self.F if hasattr(self, "F") else self.key_projection

    def forward(self, x: Tensor, visible: Tensor | None = None, **extra: Any) -> Tensor:
        """X [B, N, d_model], visible [B, N] → [B, N, d_model]; `context`, `context_visible` for cross-attention.

        Where E serves all heads it mixes the tokens before they are projected, E(XWᵀ + 1bᵀ) = (EX)Wᵀ + (E1)bᵀ:
        the projections of keys and values then cost k rows instead of N.
        """
        if self.config.sharing == "none":
            return super().forward(x, visible, **extra)
        context, context_visible = self._pop_context(x, visible, extra)
        x = mask_padding(x, visible)
        source = x if context is None else mask_padding(context, context_visible)
        k, v = self._mix_tokens(source, visible if context is None else context_visible)
        return self._project_output(self._attend_projected(self.split_heads(self.q_proj(x)), k, v), visible)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        """softmax(Q(EK)ᵀ/√D)(FV), [B, H, N, D]."""
        e, f = self._matrices(k)
        return self._attend_projected(q, e @ mask_heads(k, visible), f @ mask_heads(v, visible))

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any
    ) -> Tensor:
        """The equation, with all weights in memory."""
        e, f = self._matrices(k)
        k, v = e @ mask_heads(k, visible), f @ mask_heads(v, visible)
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v

    def attention_probs(
        self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any
    ) -> Tensor:
        """Weights over the k mixed keys, [B, H, len(rows), k]."""
        mixed = self._matrices(k)[0] @ mask_heads(k, visible)
        return (q[:, :, rows] @ mixed.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)

    def _attend_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.config.attention_dropout if self.training else 0.0
        if q.device.type == "cpu" and q.dtype == torch.float32 and not self.in_tensors:
            return dense_attention(q, k, v, dropout=dropout)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    def _mix_tokens(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        e, f = self._matrices(x)
        present = x.new_ones(x.shape[:2]) if visible is None else visible.to(x.dtype)
        return (
            self.split_heads(_project_mixed(e @ x, present @ e.T, self.k_proj)),
            self.split_heads(_project_mixed(f @ x, present @ f.T, self.v_proj)),
        )

    def _matrices(self, k: Tensor) -> tuple[Tensor, Tensor]:
        n_tokens, seq_len = k.shape[-2], self.key_projection.n_tokens
        if n_tokens > seq_len:
            raise ValueError(
                f"linformer was built for seq_len={seq_len} and has no projection for {n_tokens} tokens; "
                "build it for the longest input"
            )
        e = self.key_projection.matrix(n_tokens, k)
        shared = self.value_projection is self.key_projection
        return e, e if shared else self.value_projection.matrix(n_tokens, k)

    def _check_shared(self, other: LinformerAttention) -> LinformerAttention:
        if self.config.sharing != "layerwise" or other.config.sharing != "layerwise":
            raise ValueError("shared= is for sharing='layerwise', in both layers")
        for name in ("seq_len", "columns", "projection"):
            if getattr(self.config, name) != getattr(other.config, name):
                raise ValueError("layers that share E must agree in seq_len, k and projection")
        return other


def _project_mixed(mixed: Tensor, total: Tensor, linear: nn.Linear) -> Tensor:
    """(EX)Wᵀ + (E1)bᵀ. mixed [B, k, d_model], total [B, k] (the row sums of E over visible tokens)."""
    projected = F.linear(mixed, linear.weight)
    return projected if linear.bias is None else projected + total[..., None] * linear.bias
