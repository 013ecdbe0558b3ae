"""Reformer's attention within sorted chunks: on CPU an operator over compiled loops, elsewhere tensor operations.

Kept for the backward pass: the inputs, the outputs, the order of every round and one number for each token.
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

    q, v [B, H, N, D]; bucket int64 [B, H, rounds, N], that of hidden tokens above all others; visible [B, N]
    → [B, H, N, D], zeros for hidden tokens.
    """
    if q.device.type != "cpu":
        return lsh_in_tensors(q, v, bucket, visible, size)
    out: Tensor = _operator(q, v, bucket, visible, size)[0]
    return out


@torch.library.custom_op("longtape::lsh", mutates_args=())
def _operator(
    q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp [B·H, N] and order of tokens [B·H, rounds, N]."""
    out, lse, order = _empty(q, v, bucket)
    written = torch.empty_like(out, dtype=lse.dtype)
    operands = (Operand.of(_wide(q)), Operand.of(_wide(v)))
    buckets, setting = bucket.flatten(0, 1).contiguous().numpy(), _setting(q, visible, size)

    def run(start: int, stop: int) -> None:
        forward_heads(
            *operands, buckets, Operand.of(written), lse.numpy(), order.numpy(), setting, start, stop
        )

    in_threads(run, len(lse))
    return out.copy_(written), lse, order


@_operator.register_fake
def _(q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int) -> Any:
    return _empty(q, v, bucket)


@torch.library.custom_op("longtape::lsh_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    q: Tensor,
    v: Tensor,
    visible: Tensor | None,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    given = [Operand.of(_wide(x)) for x in (q, v, out, grad)]
    found = [torch.empty_like(x, dtype=lse.dtype) for x in (q, v)]
    into = [Operand.of(x) for x in found]
    setting = _setting(q, visible, size)

    def run(start: int, stop: int) -> None:
        backward_heads(*given, lse.numpy(), order.numpy(), *into, setting, start, stop)

    in_threads(run, len(lse))
    return found[0].to(q.dtype), found[1].to(v.dtype)


@_backward_operator.register_fake
def _(grad: Tensor, q: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, v, _, visible, ctx.size = inputs
    ctx.save_for_backward(q, v, visible, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dq, dv = _backward_operator(grad, *ctx.saved_tensors, ctx.size)
    return dq, dv, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)


def _empty(q: Tensor, v: Tensor, bucket: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    b, h, rounds, n = bucket.shape
    order = torch.empty(b * h, rounds, n, dtype=torch.int32, device=q.device)
    return torch.empty_like(v), q.new_empty(b * h, n, dtype=wide), order


def _wide(x: Tensor) -> Tensor:
    """In at least float32, rows contiguous; itself where it is so."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if x.stride(-1) == 1 else x.contiguous()


def _setting(q: Tensor, visible: Tensor | None, size: int) -> Setting:
    batch, heads, n, width = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    kind = np.float64 if wide == torch.float64 else np.float32
    counts = torch.full((batch,), n) if visible is None else visible.sum(-1)
    natural = width**-0.5
    return Setting(
        heads, size, width, padded(width, wide), kind(natural / math.log(2)), kind(natural), counts.numpy()
    )
