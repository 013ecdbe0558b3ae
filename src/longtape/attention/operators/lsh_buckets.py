"""Reformer's buckets: how they are numbered, tokens in their order, and the chunks these are cut into."""

from __future__ import annotations

import torch
from torch import Tensor

DIGIT_BITS = 6  # a hash digit tells at most 64 buckets apart,
AXES = 2 ** (DIGIT_BITS - 1)  # by as many rotations


def digits_of(n_tokens: int, size: int) -> list[int]:
    """Bits of each digit of the buckets' numbers: as many buckets as chunks, to the next power of two."""
    bits = max(0, (-(-n_tokens // size) - 1).bit_length())
    n_digits = -(-bits // DIGIT_BITS)
    return [bits // n_digits + (digit < bits % n_digits) for digit in range(n_digits)]


def sort_tokens(bucket: Tensor) -> Tensor:
    """Positions by rising bucket, then position. int64 [..., N]."""
    shift = bucket.shape[-1].bit_length()
    position = torch.arange(bucket.shape[-1], device=bucket.device)
    return ((bucket << shift) + position).sort(-1).values.bitwise_and_((1 << shift) - 1)


def chunks_of(order: Tensor, size: int) -> Tensor:
    """Chunk of every token, int64 [..., N]: its place in `order`, divided by `size`."""
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place) // size
