"""BigBird: window + random + global keys, O(N) (Zaheer et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtape.attention.base import Attention, AttentionConfig, Capabilities, masked_softmax
from longtape.attention.block_sparse import pattern_attention
from longtape.attention.full import full_attention
from longtape.attention.pattern import Pattern


@dataclass(frozen=True)
class BigBirdConfig(AttentionConfig):
    """Window, random and global sizes count units of `block_size` tokens; explicit `global_tokens` are token positions.

    `global_tokens`: "first", "last", "both" (⌈g/2⌉ first, ⌊g/2⌋ last), "random", "spaced", or a list of positions.
    """

    block_size: int = 64
    window_size: int = 3
    n_random: int = 3
    n_global: int = 2
    global_tokens: str | Sequence[int] = "both"
    symmetric: bool = False
    n_extra_global: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_extra_global < 0:
            raise ValueError(f"n_extra_global={self.n_extra_global} must be at least 0")
        if not isinstance(self.global_tokens, str):
            object.__setattr__(self, "global_tokens", tuple(int(p) for p in self.global_tokens))
        self.pattern()  # refuses what makes no pattern

    def pattern(self) -> Pattern:
        """The rules without the explicit positions."""
        named = isinstance(self.global_tokens, str)
        return Pattern(
            block_size=self.block_size,
            window_size=self.window_size,
            n_random=self.n_random,
            n_global=self.n_global if named else 0,
            placement=str(self.global_tokens) if named else "first",
            symmetric=self.symmetric,
            causal=self.causal,
            seed=self.seed,
        )


class BigBirdAttention(Attention):
    """Each query sees a window, random and global keys; a global token sees, and is seen by, all.

    `layer(x, global_positions=…)` [B, G] names further global tokens for each sample (−1 = none). The `n_extra_global`
    learned tokens (ETC, Ainslie et al. 2020) stand in front of the sequence: every query sees their keys and values.
    """

    Config = BigBirdConfig
    capabilities = Capabilities(causal=True, fixed_pattern=True)

    def __init__(self, config: BigBirdConfig) -> None:
        super().__init__(config)
        self.pattern = config.pattern()
        self.explicit = () if isinstance(config.global_tokens, str) else tuple(config.global_tokens)
        self.extra_tokens: nn.Parameter | None = None
        if config.n_extra_global:
            self.extra_tokens = nn.Parameter(torch.randn(config.n_extra_global, config.d_model))

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
        seen = self._seen(torch.arange(q.shape[2]), q, visible, global_positions)
        extra_k, extra_v = self.extra_keys()
        if extra_k is not None and extra_v is not None:
            k, v = (torch.cat([e.expand(len(q), -1, -1, -1), x], 2) for e, x in ((extra_k, k), (extra_v, v)))
        return full_attention(q, k, v, seen)

    def weigh(
        self,
        q: Tensor,
        k: Tensor,
        visible: Tensor | None,
        rows: Tensor,
        global_positions: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        """Columns: the learned tokens, if any, then the sequence."""
        seen = self._seen(rows.cpu(), q, visible, global_positions)
        extra_k, _ = self.extra_keys()
        if extra_k is not None:
            k = torch.cat([extra_k.expand(len(q), -1, -1, -1), k], 2)
        return masked_softmax(q[:, :, rows] @ k.transpose(-2, -1) * self.config.head_dim**-0.5, seen)

    def visible_pairs(self, n_tokens: int) -> Tensor:
        return self.pattern.rows(n_tokens, torch.arange(n_tokens), self.positions(None))[0]

    def positions(self, global_positions: Tensor | None) -> Tensor | None:
        """Explicit global tokens of the configuration and of the call, [1 or B, G]; None where there are none."""
        fixed = torch.tensor([self.explicit], dtype=torch.int64)
        if global_positions is None:
            return fixed if self.explicit else None
        return torch.cat(
            [fixed.to(global_positions.device).expand(len(global_positions), -1), global_positions], 1
        )

    def extra_keys(self) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values of the learned tokens, [H, E, D]."""
        if self.extra_tokens is None:
            return None, None
        tokens = self.extra_tokens[None]
        return self.split_heads(self.k_proj(tokens))[0], self.split_heads(self.v_proj(tokens))[0]

    def _seen(
        self, rows: Tensor, q: Tensor, visible: Tensor | None, global_positions: Tensor | None
    ) -> Tensor:
        """Bool [1 or B, 1, rows, learned + N]."""
        seen = self.pattern.rows(q.shape[2], rows, self.positions(global_positions)).to(q.device)
        if visible is not None:
            seen = seen & visible[:, None]
        return F.pad(seen, (0 if self.extra_tokens is None else len(self.extra_tokens), 0), value=True)[
            :, None
        ]
