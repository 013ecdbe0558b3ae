"""Runs the loops of `lsh_chunks.py`: tensors are read and written where they lie, only narrower dtypes are widened."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from longtape.attention.cpu.lsh_chunks import LshParams, backward_heads, forward_heads
from longtape.attention.cpu.simd import Operand, padded, parallel_for
from longtape.attention.operators.memory_layout import wide_contiguous


def forward(
    q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp [B, H, N] in units of log 2, and the tokens of every round sorted, int32 like bucket."""
    wide_q, wide_v = wide_contiguous(q), wide_contiguous(v)
    out = _output_buffer(wide_q, visible)
    lse, order = wide_q.new_empty(q.shape[:3]), bucket.new_empty(bucket.shape, dtype=torch.int32)
    operands = (
        Operand.of(wide_q), Operand.of(wide_v), bucket.flatten(0, 1).contiguous().numpy(),
        Operand.of(out), lse.flatten(0, 1).numpy(), order.flatten(0, 1).numpy(), _params(wide_q, visible, size),
    )  # fmt: skip
    parallel_for(lambda start, stop: forward_heads(*operands, start, stop), *_heads_and_grain(q))
    return out.to(q.dtype), lse, order


def backward(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    visible: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of q and v, from what `forward` gave."""
    wide_q, wide_v = wide_contiguous(q), wide_contiguous(v)
    dq, dv = _output_buffer(wide_q, visible), _output_buffer(wide_v, visible)
    operands = (
        Operand.of(wide_q), Operand.of(wide_v), Operand.of(wide_contiguous(out)), Operand.of(wide_contiguous(grad)),
        lse.flatten(0, 1).numpy(), order.flatten(0, 1).numpy(), Operand.of(dq), Operand.of(dv),
        _params(wide_q, visible, size),
    )  # fmt: skip
    parallel_for(lambda start, stop: backward_heads(*operands, start, stop), *_heads_and_grain(q))
    return dq.to(q.dtype), dv.to(v.dtype)


def _output_buffer(x: Tensor, visible: Tensor | None) -> Tensor:
    """Zeros only where the loops leave out tokens: torch's threads fill them, and stay on the cores for a while."""
    return torch.empty_like(x) if visible is None else torch.zeros_like(x)


def _params(q: Tensor, visible: Tensor | None, size: int) -> LshParams:
    batch, n_heads, n, depth = q.shape
    counts = np.full(batch, n) if visible is None else visible.sum(-1).numpy()
    kind = np.float64 if q.dtype == torch.float64 else np.float32
    softmax_scale = depth**-0.5
    return LshParams(
        counts,
        n_heads,
        min(size, n),
        depth,
        padded(depth, q.dtype),
        kind(softmax_scale / math.log(2)),
        kind(softmax_scale),
    )


def _heads_and_grain(q: Tensor) -> tuple[int, int]:
    """How many heads there are, and how many a thread takes at a time: all its share, for it makes room only once."""
    heads = q.shape[0] * q.shape[1]
    return heads, max(1, -(-heads // torch.get_num_threads()))
