"""Tokens of a round in the order of their buckets, and the chunks they are cut into."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_tokens(bucket: Tensor) -> Tensor:
    """Positions by rising bucket, then position. int64 [..., N]."""
    shift = bucket.shape[-1].bit_length()
    position = torch.arange(bucket.shape[-1], device=bucket.device)
    return ((bucket << shift) + position).sort(-1).values.bitwise_and_((1 << shift) - 1)


def chunks_of(order: Tensor, size: int) -> Tensor:
    """Chunk of every token, int64 [..., N]: its place in `order`, divided by `size`."""
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place) // size
