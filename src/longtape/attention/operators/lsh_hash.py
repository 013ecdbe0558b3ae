"""Reformer's hash as an operator on a CPU, where compiled loops compute it; `reformer.py` has the tensor operations."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

# The hash belongs to the definition, which must run without numba too: by tensor operations, the same but for ties.
HAS_LOOPS = find_spec("numba") is not None


def hash_tokens(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """Bucket of every token in every round, int64 [B, H, R, N]; hidden ones come after all buckets.

    q [B, H, N, D] on a CPU; rotations [H, R, columns, D]; `size` visible tokens at most are meant for each bucket.
    """
    return _operator(q, rotations, visible, size)


@torch.library.custom_op("longtape::lsh_hash", mutates_args=())
def _operator(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    from longtape.attention.cpu import lsh_hash

    return lsh_hash.hash_tokens(q, rotations, visible, size)


@_operator.register_fake
def _(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    batch, heads, n, _ = q.shape
    return q.new_empty(batch, heads, rotations.shape[1], n, dtype=torch.int64)
