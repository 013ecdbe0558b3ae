"""Block-sparse attention as one differentiable operator, the shared kernel of the pattern mechanisms.

`pattern_attention` takes rules, `block_sparse_attention` an explicit table of blocks, which may differ by head.
As registered operators both pass through `torch.compile(fullgraph=True)` and `torch.export` unbroken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longtape.attention.cuda.flex import flex_pattern_attention, flex_table_attention
from longtape.attention.operators.inputs import Inputs
from longtape.attention.pattern import Pattern


def _attend(x: Inputs) -> Tensor:
    out: Tensor = _operator(*x._replace(seed=torch.randint(2**31, ()) if x.dropout else None))[0]
    return out


def pattern_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    visible: Tensor | None = None,
    positions: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    global_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention on the pairs that `pattern` shows. q, k, v [B, H, N, D] → [B, H, N, D].

    visible [B, N] bool; explicit global `positions` [1 or B, G] int64, −1 = none; keys and values of learned tokens
    that every query sees, [H, E, D]; `dropout` on the weights. The global tokens at `positions` see everything, through
    q [B, H, G, D], k and v [B, H, N, D] `global_qkv` where these are given. ValueError for a position outside the
    sequence.
    """
    if q.is_cuda:
        _refuse_dropout(dropout)
        return flex_pattern_attention(
            q, k, v, pattern,
            visible=visible, positions=positions, extra_k=extra_k, extra_v=extra_v, global_qkv=global_qkv,
        )  # fmt: skip
    global_q, global_k, global_v = global_qkv or (None, None, None)
    return _attend(
        Inputs(
            q, k, v, extra_k, extra_v, global_q, global_k, global_v, visible, positions,
            rules=pattern.to_ints(), dropout=dropout,
        )
    )  # fmt: skip


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    block_size: int,
    dense: Sequence[int] = (),
    visible: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each block of queries to the key blocks that a table names.

    q, k, v [B, H, N, D]; visible [B, N] bool; `table` int64 [blocks, W] for all, [H, blocks, W] for each head or
    [B, H, blocks, W] for each sample and head, −1 = none. A block named k times counts k times. Query blocks in `dense`
    see every key, whatever the table says. Causal: key ≤ query; the table must name each query block itself once.
    """
    n_blocks = -(-q.shape[2] // block_size)
    if table.dim() not in (2, 3, 4) or table.shape[-2] != n_blocks:
        raise ValueError(f"table must be [{n_blocks}, W], [H, {n_blocks}, W] or [B, H, {n_blocks}, W]")
    if table.dim() == 4:
        table = table.expand(q.shape[0], q.shape[1], -1, -1)
    if q.is_cuda:
        _refuse_dropout(dropout)
        return flex_table_attention(
            q, k, v, table, block_size=block_size, dense=dense, visible=visible, causal=causal
        )
    rules = Pattern(block_size=block_size, causal=causal).to_ints()
    return _attend(
        Inputs(q, k, v, visible=visible, table=table, rules=rules, dense=list(dense), dropout=dropout)
    )


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Exact attention of q [B, H, N, D] to all of k and v [B, H, M, D] through the kernel on CPU: [B, H, N, D].

    PyTorch's fused attention gives the same; where keys are few and queries many, this is faster in float32.
    """
    return _attend(Inputs(q, k, v, dropout=dropout))


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError("attention_dropout has no form in FlexAttention: on CUDA build the layer with 0")


_DIFFERENTIABLE, _TENSORS = 8, 12  # fields of `Inputs` that have gradients; that are tensors
_SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor? extra_k, Tensor? extra_v, Tensor? global_q, Tensor? global_k, "
    "Tensor? global_v, Tensor? visible, Tensor? positions, Tensor? table, Tensor? seed, int[] rules, int[] dense, "
    "float dropout"
)


@torch.library.custom_op("longtape::block_sparse", mutates_args=(), schema=f"({_SCHEMA}) -> (Tensor, Tensor)")
def _operator(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Output, and log-sum-exp [B, H, N] in units of log 2, of `Inputs`."""
    from longtape.attention.cpu.kernel import forward

    with torch.autocast("cpu", enabled=False):  # the kernel keeps its own precision
        return forward(Inputs(*inputs))


@_operator.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    q = inputs[0]
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op(
    "longtape::block_sparse_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {_SCHEMA}) -> ({', '.join(['Tensor'] * _DIFFERENTIABLE)})",
)
def _backward_operator(grad: Tensor, out: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of the first fields of `Inputs`, empty for those that are None."""
    from longtape.attention.cpu.kernel import backward

    with torch.autocast("cpu", enabled=False):
        return tuple(backward(Inputs(*inputs), grad, out, lse))


@_backward_operator.register_fake
def _(grad: Tensor, out: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if x is None else torch.empty_like(x) for x in inputs[:_DIFFERENTIABLE])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[_TENSORS:]
    ctx.save_for_backward(*output, *inputs[:_TENSORS])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, *inputs = ctx.saved_tensors
    found = _backward_operator(grad, out, lse, *inputs, *ctx.options)
    gradients = [None if x is None else d for x, d in zip(inputs, found, strict=False)]
    return (*gradients, *[None] * (len(inputs) + len(ctx.options) - len(gradients)))


_operator.register_autograd(_differentiate, setup_context=_save)
