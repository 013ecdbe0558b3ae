"""What the block-sparse operators take: what they and their compiled loops agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """What the operators take, in their order: tensors first, those with gradients before the others."""

    q: Tensor  # [B, H, N, D]
    k: Tensor  # [B, H, M, D]
    v: Tensor
    extra_k: Tensor | None = None  # [H, E, D] of learned tokens
    extra_v: Tensor | None = None
    global_q: Tensor | None = (
        None  # [B, H, G, D] of the global queries, where these have projections of their own
    )
    global_k: Tensor | None = None  # [B, H, N, D], likewise
    global_v: Tensor | None = None
    visible: Tensor | None = None  # bool [B, M]
    positions: Tensor | None = None  # int64 [1 or B, G] explicit global tokens, −1 = none
    table: Tensor | None = None  # int64 [([B,] H,) blocks, W]
    seed: Tensor | None = None  # of the dropout
    rules: Sequence[int] = ()  # `Pattern.to_ints`; (): every query sees every key
    dense: Sequence[int] = ()  # blocks of the table whose queries see everything
    dropout: float = 0.0

    def global_projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the global queries."""
        if self.global_q is None or self.global_k is None or self.global_v is None:
            raise ValueError("global queries have q, k and v of their own, or none of them is given")
        return self.global_q, self.global_k, self.global_v
