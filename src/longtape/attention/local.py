"""Sliding-window attention: each query sees its neighbours only. O(N·window)."""

from __future__ import annotations

from dataclasses import dataclass

from longtape.attention.base import AttentionConfig
from longtape.attention.pattern import Pattern
from longtape.attention.patterned import PatternAttention


@dataclass(frozen=True)
class LocalConfig(AttentionConfig):
    """`window_size`: whole width, odd, in units of `block_size` tokens (1: ±(window_size − 1)/2 tokens)."""

    block_size: int = 1
    window_size: int = 129

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pattern()  # refuses what makes no pattern

    def pattern(self) -> Pattern:
        """The rules."""
        return Pattern(block_size=self.block_size, window_size=self.window_size, causal=bool(self.causal))


class LocalAttention(PatternAttention):
    """The window of BigBird and Longformer alone."""

    Config = LocalConfig

    def __init__(self, config: LocalConfig) -> None:
        super().__init__(config, config.pattern())
