"""Attention among tokens that hash alike, as one differentiable operator: the kernel of Reformer.

As a registered operator it passes through `torch.compile(fullgraph=True)` and `torch.export` unbroken. The loops are in
`cpu/lsh.py`; other devices than the CPU run tensor operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtape.attention.operators.memory_layout import wide_contiguous
from longtape.attention.tensors.lsh import lsh_in_tensors


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
    from longtape.attention.cpu import lsh

    return lsh.forward(q, v, bucket, visible, size)


@_operator.register_fake
def _(
    q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = wide_contiguous(q)
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
    from longtape.attention.cpu import lsh

    return lsh.backward(grad, q, v, out, lse, order, visible, size)


@_backward_operator.register_fake
def _(grad: Tensor, q: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(wide_contiguous(q), dtype=q.dtype), torch.empty_like(
        wide_contiguous(v), dtype=v.dtype
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, v, _, visible, ctx.size = inputs
    ctx.save_for_backward(q, v, *output, visible)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dq, dv = _backward_operator(grad, *ctx.saved_tensors, ctx.size)
    return dq, dv, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)
