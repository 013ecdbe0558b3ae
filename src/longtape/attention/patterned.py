"""What the mechanisms with a pattern share: fast path, definition and weights, all read from one set of rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention.base import Attention, AttentionConfig, Capabilities, masked_softmax
from longtape.attention.full import full_attention
from longtape.attention.operators.block_sparse import pattern_attention
from longtape.attention.pattern import Pattern
from longtape.attention.tensors.block_sparse import TiledPattern


class PatternAttention(Attention):
    """Attention on the pairs that a `Pattern` shows.

    `global_tokens` are explicit positions of the configuration; those of a call, `global_positions` [B, G] with −1 for
    none, add to them.
    `n_extra` learned tokens (ETC, Ainslie et al. 2020) stand in front: every query sees their keys and values.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(causal=True, fixed_pattern=True)

    def __init__(
        self,
        config: AttentionConfig,
        pattern: Pattern,
        global_tokens: Sequence[int] = (),
        n_extra: int = 0,
    ) -> None:
        super().__init__(config)
        self.pattern = pattern
        self.global_tokens = tuple(global_tokens)
        self.extra_tokens = nn.Parameter(torch.randn(n_extra, config.d_model)) if n_extra else None

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        global_positions: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        extra_k, extra_v = self.extra_keys()
        if self.in_tensors:
            return self.tiles(q, k, v, extra_k, extra_v)
        return pattern_attention(
            q, k, v, self.pattern,
            visible=visible, positions=self.positions(global_positions), extra_k=extra_k, extra_v=extra_v,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )  # fmt: skip

    def attend_reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        global_positions: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        rows = torch.arange(q.shape[2])
        k, v = (_prepend(e, x) for e, x in zip(self.extra_keys(), (k, v), strict=True))
        return full_attention(q, k, v, self.attention_mask(rows, q, visible, global_positions))

    def attention_probs(
        self,
        q: Tensor,
        k: Tensor,
        visible: Tensor | None,
        rows: Tensor,
        global_positions: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        """Columns: the learned tokens, if any, then the sequence."""
        attention_mask = self.attention_mask(rows.cpu(), q, visible, global_positions)
        k = _prepend(self.extra_keys()[0], k)
        return masked_softmax(
            q[:, :, rows] @ k.transpose(-2, -1) * self.config.head_dim**-0.5, attention_mask
        )

    def visible_pairs(self, n_tokens: int) -> Tensor:
        return self.pattern.rows(n_tokens, torch.arange(n_tokens), self.positions(None))[0]

    def global_flags(self, n_tokens: int, global_positions: Tensor | None = None) -> Tensor | None:
        flags = self.pattern.global_flags(n_tokens, self.positions(global_positions))
        return flags if global_positions is not None or flags.any() else None

    def positions(self, global_positions: Tensor | None) -> Tensor | None:
        """Explicit global tokens of the configuration and of the call, [1 or B, G]; None where there are none."""
        if global_positions is None:
            return torch.tensor([self.global_tokens], dtype=torch.int64) if self.global_tokens else None
        fixed = global_positions.new_tensor([self.global_tokens], dtype=torch.int64)
        return torch.cat([fixed.expand(len(global_positions), -1), global_positions], 1)

    def to_tensors(self, n_tokens: int) -> None:
        super().to_tensors(n_tokens)
        n_extra = 0 if self.extra_tokens is None else len(self.extra_tokens)
        self.tiles = TiledPattern(self.pattern, n_tokens, self.positions(None), n_extra)

    def extra_keys(self) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values of the learned tokens, [H, E, D]."""
        if self.extra_tokens is None:
            return None, None
        tokens = self.extra_tokens[None]
        return self.split_heads(self.k_proj(tokens))[0], self.split_heads(self.v_proj(tokens))[0]

    def attention_mask(
        self, rows: Tensor, q: Tensor, visible: Tensor | None, global_positions: Tensor | None
    ) -> Tensor:
        """Bool [1 or B, 1, rows, learned + N], by definition."""
        attention_mask = self.pattern.rows(q.shape[2], rows, self.positions(global_positions)).to(q.device)
        if visible is not None:
            attention_mask = attention_mask & visible[:, None]
        return F.pad(
            attention_mask, (0 if self.extra_tokens is None else len(self.extra_tokens), 0), value=True
        )[:, None]


def _prepend(extra: Tensor | None, x: Tensor) -> Tensor:
    return x if extra is None else torch.cat([extra.expand(len(x), -1, -1, -1), x], 2)


def explicit_tokens(global_tokens: str | Sequence[int]) -> tuple[int, ...]:
    """The positions, where `global_tokens` is a list of them and not the name of a placement."""
    return () if isinstance(global_tokens, str) else tuple(int(position) for position in global_tokens)
