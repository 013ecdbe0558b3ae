"""Reformer's windows in tensor operations, for devices without compiled loops.

The G = B·H groups are independent; as many as fit in cache are worked on at a time. Every round sorts the
tokens of a group into chunks of C slots, with one blank chunk before the first, so that window t is chunks t − 1 and t
for every t; windows overlap and are views. The backward pass computes the weights again from the log-sum-exp over all
rounds (Dao et al. 2022, arXiv:2205.14135). Scores are in base 2: `exp2` is the fastest exponential on CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtape.attention.lsh_order import sort_tokens

_TOKENS = 1 << 14  # token rows of the groups worked on at a time
_SCORES = 1 << 19  # scores in flight
_HIDDEN = -1e30  # added to scores of keys that are not there or were met in an earlier round
_ITSELF = -131072.0  # a token's own key: beaten by any other, beats hidden ones


def lsh_in_tensors(q: Tensor, v: Tensor, bucket: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """softmax(q·(q/|q|)ᵀ/√D)v over the union of what the rounds show, in chunks of `size` tokens.

    q, v [B, H, N, D]; bucket int64 [B, H, rounds, N]; visible [B, N] → [B, H, N, D].
    """
    hidden = None if visible is None else (~visible)[:, None].expand(-1, q.shape[1], -1).flatten(0, 1)
    order = sort_tokens(bucket).flatten(0, 1)
    out: Tensor = _Lsh.apply(q.flatten(0, 1), v.flatten(0, 1), order, hidden, size)
    return out.unflatten(0, q.shape[:2])


class _Plan(NamedTuple):
    """Where the tokens of some groups stand in every round; token rows are numbered as in [groups, N]."""

    row: Tensor  # int64 [R, T·C] the token row in a slot; the group's first where the slot is blank
    hidden: Tensor  # [R, T·C] what to add to the scores of a slot's key
    slot: Tensor  # int64 [R, groups·N] the slot of a token row
    chunk: Tensor  # [groups·N, R] the chunk of a token row
    size: int  # C

    @classmethod
    def of(cls, order: Tensor, hidden: Tensor | None, size: int, dtype: torch.dtype) -> _Plan:
        """From order [groups, R, N] and hidden tokens [groups, N]."""
        groups, rounds, n = order.shape
        order = order.transpose(0, 1)  # [R, groups, N]
        slots = (-(-n // size) + 1) * size  # of a group, the blank chunk included
        group = torch.arange(groups, device=order.device)[:, None]
        row = (group * n).expand(rounds, groups, slots).clone()
        row[..., size : size + n] += order
        bias = torch.full(row.shape, _HIDDEN, dtype=dtype, device=order.device)
        bias[..., size : size + n] = 0.0
        if hidden is not None:
            away = hidden.expand(rounds, groups, n).gather(-1, order)
            bias[..., size : size + n].masked_fill_(away, _HIDDEN)
        place = torch.arange(size, size + n, device=order.device) + group * slots
        slot = (
            torch.empty_like(row[..., :n])
            .scatter_(-1, order, place.expand(rounds, groups, n))
            .view(rounds, -1)
        )
        return cls(row.view(rounds, -1), bias.view(rounds, -1), slot, (slot // size).T.to(dtype), size)

    @property
    def n_chunks(self) -> int:
        """T, chunks of all groups."""
        return self.row.shape[1] // self.size

    def windows(self) -> Iterator[slice]:
        """Windows of a round, some at a time; the first chunk is blank and starts none."""
        step = max(1, _SCORES // (2 * self.size * self.size))
        for start in range(1, self.n_chunks, step):
            yield slice(start, min(start + step, self.n_chunks))


class _Lsh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, order: Tensor, hidden: Tensor | None, size: int) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty_like(q)
        total = q.new_empty(q.shape[:2], dtype=wide)
        for groups in _parts(q):
            plan = _Plan.of(order[groups], None if hidden is None else hidden[groups], size, wide)
            found, log = _join_rounds(_Table.of(q[groups], v[groups], plan, wide), plan)
            out[groups] = found.view(q[groups].shape).to(q.dtype)
            total[groups] = log.view(total[groups].shape)
        ctx.save_for_backward(q, v, order, hidden, out, total)
        ctx.size = size
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In the precision of the forward, whatever autocast is on."""
        with torch.autocast(grads[0].device.type, enabled=False):
            return _Lsh.differentiate(ctx, *grads)

    @staticmethod
    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, v, order, hidden, out, total = ctx.saved_tensors
        d_q, d_v = torch.empty_like(q), torch.empty_like(v)
        for groups in _parts(q):
            plan = _Plan.of(order[groups], None if hidden is None else hidden[groups], ctx.size, total.dtype)
            d_out = grads[0][groups].to(total.dtype)
            pull = (d_out * out[groups]).sum(-1, keepdim=True)
            table = _Table.of(
                q[groups], v[groups], plan, total.dtype, d_out, pull, total[groups].unsqueeze(-1)
            )
            d_query, d_unit, d_value = _gather_gradients(table, plan).split(q.shape[-1], -1)
            d_q[groups] = (d_query + table.back_to_norm(d_unit)).view(d_out.shape).to(q.dtype)
            d_v[groups] = d_value.reshape(d_out.shape).to(v.dtype)
        return d_q, d_v, None, None, None


class _Table(NamedTuple):
    """One row for every token row, so that one gather brings all that a window needs."""

    rows: Tensor  # [groups·N, 2D + 1 + R + …]: q, v, 1/|q|, chunk in every round, then what the backward pass adds
    width: int  # D
    rounds: int  # R

    @classmethod
    def of(cls, q: Tensor, v: Tensor, plan: _Plan, dtype: torch.dtype, *more: Tensor) -> _Table:
        """q, v and `more` [groups, N, …]."""
        inverse = q.to(dtype).square().sum(-1, keepdim=True).sqrt_().clamp_(min=1e-12).reciprocal_()
        chunk = plan.chunk.view(*q.shape[:2], -1)
        rows = torch.cat([q.to(dtype), v.to(dtype), inverse, chunk, *more], -1)
        return cls(rows.flatten(0, 1), q.shape[-1], plan.chunk.shape[1])

    def back_to_norm(self, d_unit: Tensor) -> Tensor:
        """Gradient of q from that of q/|q|, [groups·N, D]."""
        inverse = self.rows[:, 2 * self.width, None]
        unit = self.rows[:, : self.width] * inverse
        return (d_unit - unit * (d_unit * unit).sum(-1, keepdim=True)).mul_(inverse)


class _Window(NamedTuple):
    """Some windows of one round: n of them, each C queries and 2C keys."""

    q: Tensor  # [n, C, D]
    unit: Tensor  # [n, 2C, D], overlapping
    v: Tensor  # [n, 2C, D], overlapping
    scores: Tensor  # [n, C, 2C], base 2
    more: Tensor  # [n, C, …] of the queries' rows

    @classmethod
    def of(cls, table: _Table, plan: _Plan, r: int, windows: slice) -> _Window:
        size, width = plan.size, table.width
        slots = slice((windows.start - 1) * size, windows.stop * size)
        rows = table.rows.index_select(0, plan.row[r, slots])
        unit = (rows[:, :width] * rows[:, 2 * width, None]).unfold(0, 2 * size, size)
        v = rows[:, width : 2 * width].unfold(0, 2 * size, size).transpose(1, 2)
        mine = rows[size:].unflatten(0, (-1, size))
        hidden = plan.hidden[r, slots].unfold(0, 2 * size, size)[:, None]
        scale = width**-0.5 / math.log(2)
        scores = torch.baddbmm(hidden, mine[..., :width], unit, alpha=scale)
        scores.diagonal(size, 1, 2).add_(_ITSELF)
        _hide_met(scores, rows[:, 2 * width + 1 : 2 * width + 1 + r], size)
        return cls(
            mine[..., :width], unit.transpose(1, 2), v, scores, mine[..., 2 * width + 1 + table.rounds :]
        )


def _hide_met(scores: Tensor, chunk: Tensor, size: int) -> None:
    """Hide the keys that an earlier round showed: those of the query's chunk there, or of the one before.

    chunk [(n+1)·C, earlier rounds]. (i − ½ − j)² is ¼ for chunks that see each other and at least 2¼ for others.
    """
    nearest = None
    for ids in chunk.T.contiguous():
        behind = (ids[size:].view(-1, size, 1) - 0.5) - ids.unfold(0, 2 * size, size)[:, None]
        behind.square_()
        nearest = behind if nearest is None else torch.minimum(nearest, behind)
    if nearest is not None:
        scores.add_(nearest.clamp_(max=1).sub_(1), alpha=-_HIDDEN)


def _join_rounds(table: _Table, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Outputs [groups·N, D] and log₂-sum-exp [groups·N] of all rounds."""
    by_slot = table.rows.new_empty(plan.n_chunks * plan.size, table.width)
    log_by_slot = table.rows.new_empty(plan.n_chunks * plan.size)
    out = total = log_by_slot
    for r in range(table.rounds):
        for windows in plan.windows():
            _look(_Window.of(table, plan, r, windows), by_slot, log_by_slot, windows)
        found, log = by_slot.index_select(0, plan.slot[r]), log_by_slot.index_select(0, plan.slot[r])
        if r == 0:
            out, total = found, log
        else:
            total = torch.logaddexp2(total, log)
            out.lerp_(found, torch.exp2(log - total)[:, None])
    return out, total


def _look(window: _Window, out: Tensor, log: Tensor, windows: slice) -> None:
    """Softmax within the windows: outputs and log₂-sum-exp by slot."""
    size = window.q.shape[1]
    slots = slice(windows.start * size, windows.stop * size)
    largest = window.scores.amax(-1, keepdim=True)
    weights = window.scores.sub_(largest).exp2_()
    total = weights.sum(-1, keepdim=True)
    out[slots] = torch.bmm(weights, window.v).div_(total).flatten(0, 1)
    log[slots] = total.log2_().add_(largest).flatten()


def _gather_gradients(table: _Table, plan: _Plan) -> Tensor:
    """Gradients of q as query, of q/|q| and of v, [groups·N, 3D], over all rounds."""
    by_slot = table.rows.new_empty(plan.n_chunks, plan.size, 3 * table.width)
    grads = table.rows.new_zeros(len(table.rows), 3 * table.width)
    for r in range(table.rounds):
        by_slot[0] = 0.0
        for windows in plan.windows():
            _look_back(_Window.of(table, plan, r, windows), plan.hidden[r], by_slot, windows)
        grads += by_slot.flatten(0, 1).index_select(0, plan.slot[r])
    grads[:, : 2 * table.width] *= table.width**-0.5
    return grads


def _look_back(window: _Window, hidden: Tensor, grads: Tensor, windows: slice) -> None:
    """Gradients of some windows: own chunks are written, those of the chunks before are added to."""
    size, width = window.q.shape[1:]
    own, before = grads[windows], grads[windows.start - 1 : windows.stop - 1]
    d_out, pull, total = window.more.split([width, 1, 1], -1)
    total = total - hidden.view(-1, size, 1)[windows]  # +∞, as it were: a blank query has no weights
    weights = window.scores.sub_(total).exp2_()
    d_scores = torch.bmm(d_out, window.v.transpose(1, 2)).sub_(pull).mul_(weights)
    by_query, by_unit, by_value = (slice(i * width, (i + 1) * width) for i in range(3))
    own[..., by_query].baddbmm_(d_scores, window.unit, beta=0)
    own[..., by_unit].baddbmm_(d_scores[..., size:].transpose(1, 2), window.q, beta=0)
    own[..., by_value].baddbmm_(weights[..., size:].transpose(1, 2), d_out, beta=0)
    before[..., by_unit].baddbmm_(d_scores[..., :size].transpose(1, 2), window.q)
    before[..., by_value].baddbmm_(weights[..., :size].transpose(1, 2), d_out)


def _parts(x: Tensor) -> Iterator[slice]:
    """Groups of x [G, N, D] worked on at a time."""
    step = max(1, _TOKENS // x.shape[1])
    for start in range(0, x.shape[0], step):
        yield slice(start, min(start + step, x.shape[0]))
