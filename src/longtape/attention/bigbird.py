"""BigBird: window + random + global keys, O(N) (Zaheer et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from longtape.attention.base import AttentionConfig
from longtape.attention.pattern import Pattern
from longtape.attention.patterned import PatternAttention, explicit_tokens


@dataclass(frozen=True)
class BigBirdConfig(AttentionConfig):
    """Window, random and global sizes count units of `block_size` tokens.

    `global_tokens`: "first", "last", "both" (⌈g/2⌉ first, ⌊g/2⌋ last), "random" or "spaced" units, or a list of token
    positions, which then are the global tokens in place of the `n_global` units.
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
            object.__setattr__(self, "global_tokens", explicit_tokens(self.global_tokens))
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
            causal=bool(self.causal),
            seed=self.seed,
        )


class BigBirdAttention(PatternAttention):
    """Each query sees a window, random and global keys; a global token sees, and is seen by, all."""

    Config = BigBirdConfig
    inputs: ClassVar[tuple[str, ...]] = ("global_positions",)

    def __init__(self, config: BigBirdConfig) -> None:
        super().__init__(
            config, config.pattern(), explicit_tokens(config.global_tokens), config.n_extra_global
        )
