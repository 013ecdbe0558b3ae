"""Reformer's hash as an operator on a CPU, where compiled loops compute it; `reformer.py` has the tensor operations."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

# The hash belongs to the definition, which must run without numba too: by tensor operations, the same but for ties.
HAS_LOOPS = find_spec("numba") is not None
DIGIT_BITS = 6  # a hash digit tells at most 64 buckets apart,
AXES = 2 ** (DIGIT_BITS - 1)  # by as many rotations


def hash_tokens(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """Bucket of every token in every round, int64 [B, H, R, N]; hidden ones come after all buckets.

    q [B, H, N, D] on a CPU; rotations [H, R, columns, D]; `size` visible tokens at most are meant for each bucket.
    """
    return _operator(q, rotations, visible, size)


def digits_of(n_tokens: int, size: int) -> list[int]:
    """Bits of each digit of the buckets' numbers: as many buckets as chunks, to the next power of two."""
    bits = max(0, (-(-n_tokens // size) - 1).bit_length())
    n_digits = -(-bits // DIGIT_BITS)
    return [bits // n_digits + (digit < bits % n_digits) for digit in range(n_digits)]


@torch.library.custom_op("longtape::lsh_hash", mutates_args=())
def _operator(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    from longtape.attention.cpu import lsh_hash

    return lsh_hash.hash_tokens(q, rotations, visible, size)


@_operator.register_fake
def _(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    batch, heads, n, _ = q.shape
    return q.new_empty(batch, heads, rotations.shape[1], n, dtype=torch.int64)
