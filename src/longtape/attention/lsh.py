"""Attention among tokens that hash alike, as one differentiable operator: the kernel of Reformer.

As a registered operator it passes through `torch.compile(fullgraph=True)` and `torch.export` unbroken. The loops are in
`lsh_loops.py`; tensors are read and written where they lie, only narrower dtypes are widened to float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtape.attention.lsh_loops import Setting, backward_heads, forward_heads
from longtape.attention.lsh_tensors import lsh_in_tensors
from longtape.attention.simd import Operand, in_threads, padded


def lsh_attention(q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """softmax(q·(q/|q|)ᵀ/√D)v over the union of what the rounds show, in chunks of `size` tokens.

    q, v [B, H, N, D]; bucket int64 [B, H, rounds, N] ≥ 0, that of hidden tokens above all others; visible [B, N]
    → [B, H, N, D], zero for hidden tokens.
    """
    if q.device.type != "cpu":
        return lsh_in_tensors(q, v, bucket, visible, size)
    out: Tensor = _operator(q, v, bucket, visible, size)[0]
    return out


@torch.library.custom_op("longtape::lsh", mutates_args=())
def _operator(
    q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp [B, H, N] in units of log 2, and the tokens of every round sorted, int32 like bucket."""
    wide_q, wide_v = _readable(q), _readable(v)
    out = _room_like(wide_q, visible)
    lse, order = wide_q.new_empty(q.shape[:3]), bucket.new_empty(bucket.shape, dtype=torch.int32)
    operands = (
        Operand.of(wide_q), Operand.of(wide_v), bucket.flatten(0, 1).contiguous().numpy(),
        Operand.of(out), lse.flatten(0, 1).numpy(), order.flatten(0, 1).numpy(), _setting(wide_q, visible, size),
    )  # fmt: skip
    in_threads(lambda start, stop: forward_heads(*operands, start, stop), *_heads(q))
    return out.to(q.dtype), lse, order


@_operator.register_fake
def _(
    q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _readable(q)
    lse, order = wide.new_empty(q.shape[:3]), bucket.new_empty(bucket.shape, dtype=torch.int32)
    return torch.empty_like(wide, dtype=q.dtype), lse, order


@torch.library.custom_op("longtape::lsh_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    visible: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    wide_q, wide_v = _readable(q), _readable(v)
    dq, dv = _room_like(wide_q, visible), _room_like(wide_v, visible)
    operands = (
        Operand.of(wide_q), Operand.of(wide_v), Operand.of(_readable(out)), Operand.of(_readable(grad)),
        lse.flatten(0, 1).numpy(), order.flatten(0, 1).numpy(), Operand.of(dq), Operand.of(dv),
        _setting(wide_q, visible, size),
    )  # fmt: skip
    in_threads(lambda start, stop: backward_heads(*operands, start, stop), *_heads(q))
    return dq.to(q.dtype), dv.to(v.dtype)


@_backward_operator.register_fake
def _(grad: Tensor, q: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_readable(q), dtype=q.dtype), torch.empty_like(_readable(v), dtype=v.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, v, _, visible, ctx.size = inputs
    ctx.save_for_backward(q, v, *output, visible)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dq, dv = _backward_operator(grad, *ctx.saved_tensors, ctx.size)
    return dq, dv, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)


def _readable(x: Tensor) -> Tensor:
    """X in what is computed in, its last dimension contiguous."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide if wide.stride(-1) == 1 else wide.contiguous()


def _room_like(x: Tensor, visible: Tensor | None) -> Tensor:
    """Zeros only where the loops leave out tokens: torch's threads fill them, and stay on the cores for a while."""
    return torch.empty_like(x) if visible is None else torch.zeros_like(x)


def _setting(q: Tensor, visible: Tensor | None, size: int) -> Setting:
    batch, n_heads, n, depth = q.shape
    counts = np.full(batch, n) if visible is None else visible.sum(-1).numpy()
    kind = np.float64 if q.dtype == torch.float64 else np.float32
    slope = depth**-0.5
    return Setting(
        counts, n_heads, min(size, n), depth, padded(depth, q.dtype), kind(slope / math.log(2)), kind(slope)
    )


def _heads(q: Tensor) -> tuple[int, int]:
    """How many heads there are, and how many a thread takes at a time: all its share, for it makes room only once."""
    heads = q.shape[0] * q.shape[1]
    return heads, max(1, -(-heads // torch.get_num_threads()))
