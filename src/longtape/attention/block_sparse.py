"""Block-sparse attention as one differentiable operator, the shared kernel of the pattern mechanisms.

`pattern_attention` takes rules, `block_sparse_attention` an explicit table of blocks, which may differ by head.
As registered operators both pass through `torch.compile(fullgraph=True)` and `torch.export` unbroken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longtape.attention.flex import flex_pattern_attention, flex_table_attention
from longtape.attention.kernel import Inputs, backward, forward
from longtape.attention.pattern import Pattern
from longtape.attention.plan import Plan, plan_pattern, plan_table


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
    global_rows: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """Attention on the pairs that `pattern` shows. q, k, v [B, H, N, D] → [B, H, N, D].

    visible [B, N] bool; explicit global `positions` [1 or B, G] int64, −1 = none; keys and values of learned tokens
    that every query sees, [H, E, D]; `dropout` on the weights. Without `global_rows` the global tokens are seen by all
    but see no more than others. ValueError for a position outside the sequence.
    """
    if q.is_cuda:
        _refuse_dropout(dropout)
        return flex_pattern_attention(
            q, k, v, pattern,
            visible=visible, positions=positions, extra_k=extra_k, extra_v=extra_v, global_rows=global_rows,
        )  # fmt: skip
    seed = torch.randint(2**31, ()) if dropout else None
    return _operator(
        q, k, v, extra_k, extra_v, visible, positions, None, seed, pattern.to_ints(), [], global_rows, dropout
    )[0]


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
    seed = torch.randint(2**31, ()) if dropout else None
    return _operator(q, k, v, None, None, visible, None, table, seed, rules, list(dense), True, dropout)[0]


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError("attention_dropout has no form in FlexAttention: on CUDA build the layer with 0")


@torch.library.custom_op("longtape::block_sparse", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    visible: Tensor | None,
    positions: Tensor | None,
    table: Tensor | None,
    seed: Tensor | None,
    rules: list[int],
    dense: list[int],
    global_rows: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    x = Inputs(q, k, v, extra_k, extra_v, visible, dropout, 0 if seed is None else int(seed))
    with torch.autocast(q.device.type, enabled=False):  # the kernel keeps its own precision
        return forward(*_plans(x, positions, table, rules, dense, global_rows), x)


@_operator.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("longtape::block_sparse_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    visible: Tensor | None,
    positions: Tensor | None,
    table: Tensor | None,
    seed: Tensor | None,
    rules: list[int],
    dense: list[int],
    global_rows: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = Inputs(q, k, v, extra_k, extra_v, visible, dropout, 0 if seed is None else int(seed))
    with torch.autocast(q.device.type, enabled=False):
        return backward(*_plans(x, positions, table, rules, dense, global_rows), x, grad, out, lse)


@_backward_operator.register_fake
def _(grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    extra = [q.new_empty(0) if e is None else torch.empty_like(e) for e in rest[:2]]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), *extra


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[9:]
    ctx.save_for_backward(*output, *inputs[:9])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    dq, dk, dv, dek, dev = _backward_operator(grad, *saved, *ctx.options)
    extra = (None, None) if saved[5] is None else (dek, dev)
    return (dq, dk, dv, *extra, *[None] * 8)


_operator.register_autograd(_differentiate, setup_context=_save)


def _plans(
    x: Inputs,
    positions: Tensor | None,
    table: Tensor | None,
    rules: list[int],
    dense: list[int],
    global_rows: bool,
) -> tuple[list[Plan], bool]:
    """One plan for all, for each sample, or for each head; and whether it is for each head."""
    n = x.q.shape[2]
    n_extra = 0 if x.extra_k is None else x.extra_k.shape[1]
    if table is not None:
        pattern = Pattern.from_ints(rules)
        tables = table.cpu().flatten(0, -3) if table.dim() > 2 else table.cpu()[None]
        plans = [plan_table(t, n, pattern.block_size, pattern.causal, dense) for t in tables]
        return plans, table.dim() > 2
    named = [()] if positions is None else [tuple(row) for row in positions.tolist()]
    return [_plan_cached(tuple(rules), n, n_extra, row, global_rows) for row in named], False


@lru_cache(maxsize=256)
def _plan_cached(
    rules: tuple[int, ...], n_tokens: int, n_extra: int, positions: tuple[int, ...], global_rows: bool
) -> Plan:
    named = torch.tensor(positions, dtype=torch.int64) if positions else None
    plan = plan_pattern(Pattern.from_ints(rules), n_tokens, named, n_extra)
    return plan if global_rows else replace(plan, dense=plan.dense[:0])
