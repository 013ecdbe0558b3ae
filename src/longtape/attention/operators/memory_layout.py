"""How operands lie in memory: what operators and their compiled loops agree on."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_by_tokens(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Like x [B, H, N, D], laid out by tokens, as the projections are."""
    b, h, n, d = x.shape
    return x.new_empty(b, n, h, d, dtype=dtype).transpose(1, 2)


def wide_contiguous(x: Tensor) -> Tensor:
    """X in at least float32, its last dimension contiguous."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide if wide.stride(-1) == 1 else wide.contiguous()
