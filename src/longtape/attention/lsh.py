"""Kernel of Reformer: attention within sorted chunks and one chunk back, rounds joined, forward and backward.

Every round sorts the tokens of each of the G = B·H groups into chunks of C slots, with one blank chunk before the
first, so that window t is chunks t − 1 and t for every t. Windows overlap: they are views, some at a time to stay in
cache.
The backward pass computes the weights again from the log-sum-exp over all rounds (Dao et al. 2022, arXiv:2205.14135).
Scores are in base 2: `exp2` is the fastest exponential on CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SCORES = 1 << 20  # scores in flight
_HIDDEN = -1e30  # added to scores of keys that are not there or were met in an earlier round
_ITSELF = -131072.0  # a token's own key: beaten by any other, beats hidden ones


class Sorted(NamedTuple):
    """Where the tokens stand in every round. Token rows are numbered as in [B, N, H]."""

    row: Tensor  # int64 [R, T·C] the token row in a slot; some row of the same group where the slot is blank
    blank: Tensor  # bool [R, T·C] slots that are blank or padding
    slot: Tensor  # int64 [R, B·N·H] the slot of a token row
    chunk: Tensor  # int64 [B·N·H, R] the chunk of a token row, within its group
    size: int  # C

    @classmethod
    def by(cls, bucket: Tensor, visible: Tensor | None, size: int) -> Sorted:
        """From buckets [B, H, R, N]: by bucket, then position, in chunks of `size`."""
        b, h, r, n = bucket.shape
        position = torch.arange(n, device=bucket.device)
        order = (bucket.permute(2, 0, 1, 3) * n + position).sort(-1).values.remainder_(n)  # [R, B, H, N]
        per_group = (-(-n // size) + 1) * size  # slots, the blank chunk included
        group = torch.arange(b * h, device=bucket.device).view(b, h, 1)
        first = group // h * (n * h) + group % h  # row of the group's first token
        row = (first + torch.zeros(r, 1, 1, per_group, dtype=torch.int64, device=bucket.device)).contiguous()
        row[..., size : size + n] += order * h
        blank = torch.ones_like(row, dtype=torch.bool)
        if visible is None:
            blank[..., size : size + n] = False
        else:
            blank[..., size : size + n] = (~visible)[None, :, None].expand(r, b, h, n).gather(-1, order)
        slot = torch.empty_like(order).scatter_(-1, order, (position + size).expand_as(order))
        chunk = slot // size
        slot = slot + group * per_group
        return cls(
            row=row.view(r, -1),
            blank=blank.view(r, -1),
            slot=slot.transpose(2, 3).reshape(r, -1),
            chunk=chunk.permute(1, 3, 2, 0).reshape(-1, r),
            size=size,
        )

    def windows(self) -> Iterator[slice]:
        """Windows t of a round, some at a time; window 0 would be the first blank chunk."""
        step = max(1, _SCORES // (2 * self.size * self.size))
        count = self.row.shape[1] // self.size
        for start in range(1, count, step):
            yield slice(start, min(start + step, count))


def lsh_attention(q: Tensor, v: Tensor, order: Sorted) -> Tensor:
    """softmax(q·(q/|q|)ᵀ/√D) v over the union of what the rounds show. q, v [B, H, N, D] → [B, H, N, D]."""
    out: Tensor = _Lsh.apply(q, v, *order)
    return out


class _Lsh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, *order: Any) -> Tensor:
        plan = Sorted(*order)
        table = _table(q, v, plan.chunk)
        out = total = table.new_empty(0)
        for r in range(len(plan.row)):
            found, log = _look(table, plan, r)
            found, log = found.index_select(0, plan.slot[r]), log.index_select(0, plan.slot[r])
            if r == 0:
                out, total = found, log
            else:
                total = torch.logaddexp2(total, log)
                out.lerp_(found, torch.exp2(log - total)[:, None])
        ctx.save_for_backward(q, v, out, total, *order[:-1])
        ctx.size = plan.size
        return _by_heads(out, q).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, v, out, total, *order = ctx.saved_tensors
        plan, width = Sorted(*order, ctx.size), q.shape[-1]
        d_out = _by_rows(grads[0]).to(out.dtype)
        pull = (d_out * out).sum(-1, keepdim=True)
        table = torch.cat([_table(q, v, plan.chunk), d_out, pull, total[:, None]], -1)
        d_q, d_v = torch.zeros_like(out), torch.zeros_like(out)
        for r in range(len(plan.row)):
            found = _look_backward(table, plan, r, width).index_select(0, plan.slot[r])
            d_q += found[:, :width]
            d_v += found[:, width:]
        return _by_heads(d_q, q).to(q.dtype), _by_heads(d_v, v).to(v.dtype), *[None] * 5


class _Window(NamedTuple):
    """Some windows of one round: n of them, each C queries and 2C keys."""

    q: Tensor  # [n, C, D], scaled
    unit: Tensor  # [(n+1)·C, D] keys
    inverse: Tensor  # [(n+1)·C, 1] 1/|q|
    v: Tensor  # [n, 2C, D], overlapping
    scores: Tensor  # [n, C, 2C], base 2
    rest: Tensor  # [n, C, …] what else stands in the rows of the queries

    @classmethod
    def of(cls, table: Tensor, plan: Sorted, r: int, windows: slice, width: int) -> _Window:
        size, rounds = plan.size, len(plan.row)
        slots = slice((windows.start - 1) * size, windows.stop * size)
        rows = table.index_select(0, plan.row[r, slots])
        raw = rows[:, :width]
        inverse = raw.square().sum(-1, keepdim=True).sqrt_().clamp_(min=1e-12).reciprocal_()
        unit, per_chunk = raw * inverse, rows[size:].unflatten(0, (-1, size))
        q = per_chunk[..., :width] * (width**-0.5 / math.log(2))
        scores = torch.bmm(q, unit.unfold(0, 2 * size, size))
        scores += (plan.blank[r, slots] * _HIDDEN).to(q.dtype).unfold(0, 2 * size, size)[:, None]
        scores.diagonal(size, 1, 2).add_(_ITSELF)
        _hide_met(scores, rows[:, 2 * width : 2 * width + r], size)
        v = rows[:, width : 2 * width].unfold(0, 2 * size, size).transpose(1, 2)
        return cls(q, unit, inverse, v, scores, per_chunk[..., 2 * width + rounds :])


def _hide_met(scores: Tensor, chunk: Tensor, size: int) -> None:
    """Hide the keys that an earlier round showed: those of the query's chunk there, or of the one before.

    chunk [(n+1)·C, earlier rounds]. (i − ½ − j)² is ¼ for chunks that see each other and at least 2¼ for others.
    """
    nearest = None
    for ids in chunk.unbind(-1):
        behind = (ids[size:].view(-1, size, 1) - 0.5) - ids.unfold(0, 2 * size, size)[:, None]
        behind.square_()
        nearest = behind if nearest is None else torch.minimum(nearest, behind, out=nearest)
    if nearest is not None:
        scores.add_(nearest.clamp_(max=1).sub_(1), alpha=-_HIDDEN)


def _look(table: Tensor, plan: Sorted, r: int) -> tuple[Tensor, Tensor]:
    """One round: outputs [T·C, D] and log₂-sum-exp [T·C], by slot."""
    width = (table.shape[1] - len(plan.row)) // 2
    out = table.new_empty(plan.row.shape[1], width)
    log = table.new_empty(plan.row.shape[1])
    for windows in plan.windows():
        window = _Window.of(table, plan, r, windows, width)
        slots = slice(windows.start * plan.size, windows.stop * plan.size)
        largest = window.scores.amax(-1, keepdim=True)
        weights = window.scores.sub_(largest).exp2_()
        total = weights.sum(-1, keepdim=True)
        torch.div(torch.bmm(weights, window.v), total, out=out[slots].view_as(window.q))
        torch.add(largest, total.log2_(), out=log[slots].view_as(total))
    return out, log


def _look_backward(table: Tensor, plan: Sorted, r: int, width: int) -> Tensor:
    """Gradients [T·C, 2D] of q and v in one round, by slot."""
    size = plan.size
    grads = table.new_zeros(plan.row.shape[1] // size, size, 2 * width)
    for windows in plan.windows():
        window = _Window.of(table, plan, r, windows, width)
        own, before = grads[windows], grads[windows.start - 1 : windows.stop - 1]
        d_out, pull, total = window.rest.split([width, 1, 1], -1)
        blank = plan.blank[r].view(-1, size, 1)[windows]
        weights = window.scores.sub_(total.masked_fill(blank, float("inf"))).exp2_()
        d_scores = torch.bmm(d_out, window.v.transpose(1, 2)).sub_(pull).mul_(weights)
        d_v = torch.bmm(weights.transpose(1, 2), d_out)
        d_unit = torch.bmm(d_scores.transpose(1, 2), window.q).mul_(math.log(2))
        unit = window.unit.unfold(0, 2 * size, size).transpose(1, 2)
        inverse = window.inverse.unfold(0, 2 * size, size).transpose(1, 2)
        d_k = (d_unit - unit * (d_unit * unit).sum(-1, keepdim=True)).mul_(inverse)
        own[..., :width] = d_k[:, size:]
        own[..., :width].add_(torch.bmm(d_scores, unit), alpha=width**-0.5)
        own[..., width:] = d_v[:, size:]
        before[..., :width] += d_k[:, :size]
        before[..., width:] += d_v[:, :size]
    return grads.flatten(0, 1)


def _table(q: Tensor, v: Tensor, chunk: Tensor) -> Tensor:
    """[q, v, chunk of every round] of every token row, at least float32: one gather brings what a window needs."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.cat([_by_rows(q).to(wide), _by_rows(v).to(wide), chunk.to(wide)], -1)


def _by_rows(x: Tensor) -> Tensor:
    """[B, H, N, D] → [B·N·H, D]."""
    return x.transpose(1, 2).flatten(0, 2)


def _by_heads(rows: Tensor, like: Tensor) -> Tensor:
    """[B·N·H, D] → [B, H, N, D]."""
    b, h, n, d = like.shape
    return rows.view(b, n, h, d).transpose(1, 2)
