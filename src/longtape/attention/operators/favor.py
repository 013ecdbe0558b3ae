"""Performer's attention φ(Q)(φ(K)ᵀV), normalised: on CPU an operator over compiled loops, elsewhere tensor operations.

What the operator keeps for its backward pass grows with N·D: its inputs, and one number for each query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtape.attention.operators.memory_layout import empty_by_tokens
from longtape.attention.tensors.favor import favor_causal_in_tensors, favor_in_tensors


def favor(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None) -> Tensor:
    """FAVOR+ of q [B, H, N, D], k and v [B, H, M, D] with directions [m, D]; visible [B, M] → [B, H, N, D]."""
    if q.device.type != "cpu":
        return favor_in_tensors(q, k, v, directions, visible)
    out: Tensor = _operator(q, k, v, directions, visible)[0]
    return out


def favor_causal(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None
) -> Tensor:
    """The same over keys j ≤ i."""
    return favor_causal_in_tensors(q, k, v, directions, visible)


@torch.library.custom_op("longtape::favor", mutates_args=())
def _operator(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the logs of the normalisers, and the state of the keys."""
    from longtape.attention.cpu import favor

    return favor.forward(q, k, v, directions, visible)


@_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from longtape.attention.cpu.favor import padded_shape

    wide = torch.promote_types(q.dtype, torch.float32)
    (m, width), groups = padded_shape(directions, wide), q.shape[0] * q.shape[1]
    shapes = [(*q.shape[:3], 1), (groups, m, width), (groups, m), (groups,)]
    norm, kv, k_sum, maximum = (q.new_empty(shape, dtype=wide) for shape in shapes)
    return empty_by_tokens(q, q.dtype), norm, kv, k_sum, maximum


@torch.library.custom_op("longtape::favor_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    norm: Tensor,
    kv: Tensor,
    k_sum: Tensor,
    maximum: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from longtape.attention.cpu import favor

    return favor.backward(grad, norm, kv, k_sum, maximum, q, k, v, directions, visible)


@_backward_operator.register_fake
def _(
    grad: Tensor,
    norm: Tensor,
    kv: Tensor,
    k_sum: Tensor,
    maximum: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_by_tokens(q, q.dtype), empty_by_tokens(k, k.dtype), empty_by_tokens(v, v.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:], *inputs)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors), None, None


_operator.register_autograd(_differentiate, setup_context=_save)
