"""BigBird: window + random + global keys, O(N) (Zaheer et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """Each query sees a window, random and global keys; a global token sees, and is seen by, all."""

    Config = BigBirdConfig
    capabilities = Capabilities(causal=True, fixed_pattern=True)

    def __init__(self, config: BigBirdConfig) -> None:
        super().__init__(config)
        self.pattern = config.pattern()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any) -> Tensor:
        return pattern_attention(q, k, v, self.pattern, visible)

    def attend_reference(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, **extra: Any
    ) -> Tensor:
        seen = self.visible_pairs(q.shape[2]).to(q.device)
        return full_attention(q, k, v, seen if visible is None else seen & visible[:, None, None, :])

    def weigh(self, q: Tensor, k: Tensor, visible: Tensor | None, rows: Tensor, **extra: Any) -> Tensor:
        seen = self.pattern.rows(k.shape[2], rows.cpu())[:, None].to(q.device)
        if visible is not None:
            seen = seen & visible[:, None, None, :]
        return masked_softmax(q[:, :, rows] @ k.transpose(-2, -1) * self.config.head_dim**-0.5, seen)

    def visible_pairs(self, n_tokens: int) -> Tensor:
        return self.pattern.rows(n_tokens, torch.arange(n_tokens))[0]
