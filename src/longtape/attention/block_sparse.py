"""The kernel of the pattern mechanisms: each block of queries meets a short list of key blocks.

On CPU the key blocks of a few query blocks at a time are gathered into a reused buffer and given to PyTorch's fused
attention; the backward gathers again and adds into dK and dV. Time and memory follow the number of visible blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.pattern import Pattern

LOW = -1e30  # added to a hidden score: finite, so that a row without keys stays finite
CHUNK_BYTES = (
    4 << 20
)  # gathered keys of one chunk; with values and scores it fits the caches of a core or two
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Group:
    """Query blocks that see equally many key blocks, so that none of them needs a mask for the missing ones."""

    queries: Tensor  # [T] block numbers, flat over P·blocks
    keys: Tensor  # [T, w] block numbers, ascending, flat likewise
    missing: int  # tokens by which the last key block falls short


@dataclass(frozen=True)
class Plan:
    """What each query block of a sequence of one length sees. Made by `plan_blocks`."""

    n_tokens: int
    block_size: int
    causal: bool
    groups: tuple[Group, ...]
    dense: tuple[int, ...]  # query blocks that see every key
    n_tables: int  # P: 1 or the batch

    @property
    def n_blocks(self) -> int:
        """Blocks of a sequence; the last may be shorter."""
        return -(-self.n_tokens // self.block_size)


def plan_blocks(
    table: Tensor, n_tokens: int, block_size: int, *, causal: bool = False, dense: tuple[int, ...] = ()
) -> Plan:
    """Sort query blocks into groups. `table` [P, blocks, W]: key blocks of each query block, −1 = none.

    A block named k times counts k times. Query blocks in `dense` see everything, whatever the table says of them.
    Causal: key blocks after the query block are dropped, and the last one kept must be the query block itself.
    """
    n_tables, n_blocks, _ = table.shape
    far = n_blocks  # sorts last
    own = torch.arange(n_blocks)[:, None]
    none = (table < 0) | (table > own) if causal else table < 0
    keys = table.masked_fill(none, far).sort(-1).values
    count = (keys < far).sum(-1)
    missing = -n_tokens % block_size
    ragged = (keys == n_blocks - 1).any(-1) if missing else torch.zeros_like(count, dtype=torch.bool)
    offset = torch.arange(n_tables)[:, None, None] * n_blocks
    flat_keys = (keys + offset).flatten(0, 1)
    kind = (count * 2 + ragged).masked_fill(torch.isin(own[:, 0], torch.tensor(dense, dtype=torch.int64)), 0)
    groups = []
    for value in kind.unique().tolist():
        w = value // 2
        if w:
            queries = (kind.flatten() == value).nonzero()[:, 0]
            groups.append(Group(queries, flat_keys[queries, :w], missing if value % 2 else 0))
    return Plan(n_tokens, block_size, causal, tuple(groups), dense, n_tables)


@dataclass(frozen=True)
class Blocks:
    """Tensors of one call as [B·blocks, block_size, H, D]; the last block of a sample is filled up with zeros."""

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None  # bool [B·blocks, block_size]


def _as_blocks(x: Tensor, block_size: int) -> Tensor:
    """[B, H, N, D] → [B·blocks, block_size, H, D]; a view where N is whole blocks of a [B, N, H, D] tensor."""
    x = x.transpose(1, 2)
    missing = -x.shape[1] % block_size
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x.contiguous()
    return x.view(-1, block_size, *x.shape[2:])


def _from_blocks(x: Tensor, batch: int, n_tokens: int) -> Tensor:
    """The inverse of `_as_blocks`, a view."""
    return x.view(batch, -1, *x.shape[2:])[:, :n_tokens].transpose(1, 2)


@dataclass(frozen=True)
class Chunk:
    """A few query blocks with their gathered keys and values; q [C, H, b, D], k and v [C, H, w·b, D]."""

    queries: Tensor | slice
    index: Tensor  # [C·w] key blocks
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None  # added to the scores


def _chunks(plan: Plan, x: Blocks) -> Iterator[Chunk]:
    """Walk over the query blocks of all samples; every chunk reuses the same two buffers."""
    b, (heads, width) = plan.block_size, x.q.shape[2:]
    row = b * heads * width
    n_samples = x.q.shape[0] // plan.n_blocks
    room = max(
        CHUNK_BYTES // (row * x.q.element_size()), max((g.keys.shape[1] for g in plan.groups), default=0)
    )
    k_room, v_room = x.k.new_empty(room, row), x.v.new_empty(room, row)
    for group in plan.groups:
        queries, keys = _for_samples(group, plan, n_samples)
        w = keys.shape[1]
        for start in range(0, len(queries), room // w):
            index = keys[start : start + room // w].flatten()
            c = len(index) // w
            k, v = k_room[: c * w], v_room[: c * w]
            torch.index_select(x.k.view(-1, row), 0, index, out=k)
            torch.index_select(x.v.view(-1, row), 0, index, out=v)
            chosen = _slice_if_run(queries[start : start + c])
            size = w * b - group.missing
            k, v = (y.view(c, w * b, heads, width)[:, :size].transpose(1, 2) for y in (k, v))
            bias = _bias(plan, x.hidden, index, c, size, x.q)
            yield Chunk(chosen, index, x.q[chosen].transpose(1, 2), k, v, bias)


def _for_samples(group: Group, plan: Plan, n_samples: int) -> tuple[Tensor, Tensor]:
    if plan.n_tables == n_samples:
        return group.queries, group.keys
    offset = torch.arange(n_samples) * plan.n_blocks
    queries = (group.queries + offset[:, None]).flatten()
    return queries, (group.keys + offset[:, None, None]).flatten(0, 1)


def _slice_if_run(index: Tensor) -> Tensor | slice:
    """A run of consecutive numbers as a slice: a view instead of a copy."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first == len(index) - 1 else index


def _bias(plan: Plan, hidden: Tensor | None, index: Tensor, c: int, size: int, q: Tensor) -> Tensor | None:
    """[C, 1, 1 or b, size] to add to the scores; None where every score counts."""
    bias = None
    if hidden is not None:
        covered = hidden[index].view(c, -1)[:, :size]
        if bool(covered.any()):
            bias = torch.zeros(c, 1, 1, size).masked_fill(covered[:, None, None], LOW)
    if plan.causal:  # the last key block is the query's own
        own = size - (size - 1) // plan.block_size * plan.block_size
        later = torch.ones(plan.block_size, own).triu(1) * LOW
        later = F.pad(later, (size - own, 0))
        bias = later[None, None] if bias is None else bias + later
    return bias if bias is None else bias.to(q.dtype if q.dtype == torch.float64 else torch.float32)


def _forward(plan: Plan, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, D] and log-sum-exp [B, H, N]."""
    batch, heads, n, width = q.shape
    x = _take(plan, q, k, v, visible)
    out = torch.empty_like(x.q)
    lse = q.new_empty(x.q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for chunk in _chunks(plan, x):
        o, l = _fused(chunk.q, chunk.k, chunk.v, attn_mask=chunk.bias, scale=width**-0.5)  # noqa: E741
        out[chunk.queries] = o.transpose(1, 2)
        lse[chunk.queries] = l.transpose(1, 2)
    out, lse = _from_blocks(out, batch, n), lse.view(batch, -1, heads)[:, :n].transpose(1, 2)
    for rows, keys, bias in _dense_rows(plan, visible, q):
        out[:, :, rows], lse[:, :, rows] = _fused(
            q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=bias, scale=width**-0.5
        )
    return out, lse


def _backward(
    plan: Plan,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, n, width = q.shape
    x = _take(plan, q, k, v, visible)
    grads, outs = _as_blocks(grad, plan.block_size), _as_blocks(out, plan.block_size)
    lses = _as_blocks(lse[..., None], plan.block_size)[..., 0]
    dq, dk, dv = torch.zeros_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v)
    for chunk in _chunks(plan, x):
        c = chunk.queries
        g, o, l = grads[c].transpose(1, 2), outs[c].transpose(1, 2), lses[c].transpose(1, 2)  # noqa: E741
        dq_c, dk_c, dv_c = _fused_backward(
            g, chunk.q, chunk.k, chunk.v, o, l, 0.0, False, attn_mask=chunk.bias, scale=width**-0.5
        )
        dq[c] = dq_c.transpose(1, 2)
        _add_blocks(dk, chunk.index, dk_c)
        _add_blocks(dv, chunk.index, dv_c)
    dq, dk, dv = (_from_blocks(y, batch, n) for y in (dq, dk, dv))
    for rows, keys, bias in _dense_rows(plan, visible, q):
        dq[:, :, rows], dk_r, dv_r = _fused_backward(
            grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows],
            0.0, False, attn_mask=bias, scale=width**-0.5,
        )  # fmt: skip
        dk[:, :, keys] += dk_r
        dv[:, :, keys] += dv_r
    return dq, dk, dv


def _take(plan: Plan, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Blocks:
    hidden = None
    if visible is not None and not bool(visible.all()):
        k, v = (x.masked_fill(~visible[:, None, :, None], 0.0) for x in (k, v))
        hidden = F.pad(~visible, (0, -visible.shape[1] % plan.block_size)).view(-1, plan.block_size)
    b = plan.block_size
    return Blocks(_as_blocks(q, b), _as_blocks(k, b), _as_blocks(v, b), hidden)


def _add_blocks(total: Tensor, index: Tensor, part: Tensor) -> None:
    """Add gradients [C, H, tokens, D] of gathered blocks to the blocks they came from."""
    c, _, tokens, _ = part.shape
    b = total.shape[1]
    part = part.transpose(1, 2)
    missing = len(index) // c * b - tokens
    part = F.pad(part, (0, 0, 0, 0, 0, missing)) if missing else part
    total.view(len(total), -1).index_add_(0, index, part.reshape(len(index), -1))


def _dense_rows(
    plan: Plan, visible: Tensor | None, q: Tensor
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Query blocks that see all (causal: all before them): their tokens, their keys and what is added to the scores."""
    dtype = q.dtype if q.dtype == torch.float64 else torch.float32
    for block in plan.dense:
        start, stop = block * plan.block_size, min((block + 1) * plan.block_size, plan.n_tokens)
        keys = slice(0, stop if plan.causal else plan.n_tokens)
        bias = None
        if visible is not None:
            bias = torch.zeros(visible[:, keys].shape, dtype=dtype).masked_fill(~visible[:, keys], LOW)[
                :, None, None
            ]
        if plan.causal:
            later = torch.full((stop - start, stop), LOW, dtype=dtype).triu(start + 1)
            bias = later[None, None] if bias is None else bias + later
        yield slice(start, stop), keys, bias


@lru_cache(maxsize=64)
def plan_pattern(rules: tuple[int, ...], n_tokens: int) -> Plan:
    """The plan of a `Pattern` (as integers) for one length."""
    pattern = Pattern.from_ints(rules)
    n, dense = pattern.n_units(n_tokens), pattern.global_units(n_tokens)
    own = torch.arange(n)[:, None]
    window = own + torch.arange(-pattern.reach, pattern.reach + 1) * pattern.dilation
    window = window.masked_fill((window < 0) | (window >= n), -1)
    placed = torch.tensor(dense, dtype=torch.int64).expand(n, -1)
    given = (placed[..., None] == window[:, None]).any(-1)
    links = pattern.links(n_tokens)[0]
    linked = (links[..., None] == placed[:, None]).any(-1)  # a mirrored link may come from a global unit
    table = torch.cat([window, placed.masked_fill(given, -1), links.masked_fill(linked, -1)], -1)
    return plan_blocks(table[None], n_tokens, pattern.block_size, causal=pattern.causal, dense=tuple(dense))


@torch.library.custom_op("longtape::block_sparse", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    table: Tensor | None,
    rules: list[int],
    dense: list[int],
) -> tuple[Tensor, Tensor]:
    return _forward(_plan_of(q, table, rules, dense), q, k, v, visible)


@_operator.register_fake
def _(q, k, v, visible, table, rules, dense):  # type: ignore[no-untyped-def]
    lse_type = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=lse_type)


@torch.library.custom_op("longtape::block_sparse_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    lse: Tensor,
    rules: list[int],
    dense: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(_plan_of(q, table, rules, dense), grad, q, k, v, visible, out, lse)


@_backward_operator.register_fake
def _(grad, q, k, v, visible, table, out, lse, rules, dense):  # type: ignore[no-untyped-def]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _plan_of(q: Tensor, table: Tensor | None, rules: list[int], dense: list[int]) -> Plan:
    if table is None:
        return plan_pattern(tuple(rules), q.shape[2])
    pattern = Pattern.from_ints(rules)
    return plan_blocks(table, q.shape[2], pattern.block_size, causal=pattern.causal, dense=tuple(dense))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, visible, table, ctx.rules, ctx.dense = inputs
    ctx.save_for_backward(q, k, v, visible, table, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward_operator(grad, *ctx.saved_tensors, ctx.rules, ctx.dense)
    return (*grads, None, None, None, None)


_operator.register_autograd(_differentiate, setup_context=_save)


def pattern_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, visible: Tensor | None = None
) -> Tensor:
    """Attention on the pairs of a block `pattern`. q, k, v [B, H, N, D], visible [B, N] bool → [B, H, N, D]."""
    return _operator(q, k, v, visible, None, pattern.to_ints(), [])[0]


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
) -> Tensor:
    """Attention of each block of queries to the key blocks that a table names.

    q, k, v [B, H, N, D]; visible [B, N] bool; `table` int64 [blocks, W] for all, [H, blocks, W] for each head or
    [B, H, blocks, W] for each sample and head, −1 = none. A block named k times counts k times. Query blocks in `dense`
    see every key, whatever the table says. Causal: key ≤ query; the table must name each query block itself once.
    """
    rules = Pattern(block_size=block_size, causal=causal).to_ints()
    if table.dim() == 2:
        return _operator(q, k, v, visible, table[None], rules, list(dense))[0]
    heads = q.shape[1]
    table = table.expand(q.shape[0], *table.shape[-3:]).flatten(0, 1)
    q, k, v = (x.reshape(-1, 1, *x.shape[2:]) for x in (q, k, v))
    visible = None if visible is None else visible.repeat_interleave(heads, 0)
    return _operator(q, k, v, visible, table, rules, list(dense))[0].unflatten(0, (-1, heads)).squeeze(2)
