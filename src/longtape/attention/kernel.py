"""Runs a `Plan` on CPU: softmax over gathered keys, a few tiles at a time, in buffers that stay in cache.

Heads are staged one or a few at a time: copied together, scaled, filled up to whole tiles, widened to float32 where
they are narrower. The backward stages and gathers again and recomputes the probabilities from the log-sum-exp, so that
nothing of the size of the scores is kept. Scores and log-sum-exp are in units of log 2: exp2 is the faster function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from longtape.attention.pattern import hash32
from longtape.attention.plan import LOW, Group, Plan

LN2 = log(2.0)
STAGED = 1 << 19  # elements of keys staged at once
SCORES = 1 << 20  # scores computed at once: fewer, longer parallel regions bear a busy machine better
DENSE_SCORES = 1 << 21  # scores of global queries at once
_NEVER = 1e30  # log-sum-exp of a row that has no share in a sum: exp2(score − it) is 0


class Workspace:
    """Named buffers that grow on demand: fresh memory costs page faults each time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A buffer of this shape with any content; the same memory for the same name."""
        size = prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype)
        return self._buffers[name][:size].view(shape)


@dataclass(frozen=True)
class Inputs:
    """One call. q, k, v [B, H, N, D]; learned keys and values [H, E, D]; visible [B, N] bool or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra_k: Tensor | None
    extra_v: Tensor | None
    visible: Tensor | None
    dropout: float
    seed: int


@dataclass(frozen=True)
class Part:
    """The samples and heads staged together, all of one plan; `number` tells the parts of a call apart."""

    number: int
    plan: Plan
    samples: slice
    heads: slice


def parts(plans: Sequence[Plan], per_head: bool, x: Inputs) -> Iterator[Part]:
    """Cut [B, H] into parts. `plans`: one for all, one for each sample, or (per_head) one for each sample and head."""
    batch, heads, n, width = x.q.shape
    room = max(STAGED // max(n * width, 1), 1)
    h = 1 if per_head else min(heads, room)
    b = 1 if len(plans) > 1 else min(batch, max(room // heads, 1))
    number = 0
    for s in range(0, batch, b):
        for t in range(0, heads, h):
            plan = plans[(s * heads + t if per_head else s) % len(plans)]
            yield Part(number, plan, slice(s, min(s + b, batch)), slice(t, min(t + h, heads)))
            number += 1


class Staged:
    """Queries, keys and values of one part as [slices, tokens, D], slices = samples × heads."""

    def __init__(self, part: Part, x: Inputs, space: Workspace) -> None:
        self.part, self.plan, self.x, self.space = part, part.plan, x, space
        self.shape = x.q[part.samples, part.heads].shape
        self.n_slices, self.width = self.shape[0] * self.shape[1], self.shape[-1]
        self.hidden = self._hidden()
        self.q = self.queries("q", x.q).mul_(self.width**-0.5 / LN2)
        self.k = self._keys("k", x.k, x.extra_k)
        self.v = self._keys("v", x.v, x.extra_v)

    def queries(self, name: str, source: Tensor) -> Tensor:
        """Stage a tensor like q, zeros behind the end: [slices, padded tokens, D]."""
        staged = self.space.take(name, *self.shape[:2], self.plan.n_padded, self.width)
        self.plan.bring(source[self.part.samples, self.part.heads], staged)
        return staged.flatten(0, 1)

    def _keys(self, name: str, source: Tensor, extra: Tensor | None) -> Tensor:
        """Stage keys or values with the extra units behind them: [slices, n_keys, D]. Hidden content becomes zero."""
        plan = self.plan
        staged = self.space.take(name, *self.shape[:2], plan.n_keys, self.width)
        plan.bring(source[self.part.samples, self.part.heads], staged)
        if self.hidden is not None:
            staged.masked_fill_(self.hidden.view(self.shape[0], -1, plan.n_keys, 1) < 0, 0.0)
        if extra is not None:
            staged[:, :, plan.n_padded : plan.n_padded + plan.n_extra] = extra[self.part.heads]
        at = plan.n_padded + plan.n_extra
        staged[:, :, at : at + len(plan.shared)] = staged[:, :, plan.shared]
        return staged.flatten(0, 1)

    def _hidden(self) -> Tensor | None:
        """[slices, n_keys]: LOW for keys that padding hides."""
        if self.x.visible is None or bool(self.x.visible[self.part.samples].all()):
            return None
        plan, visible = self.plan, self.x.visible[self.part.samples]
        hidden = torch.empty(len(visible), plan.n_keys, dtype=self.space.dtype)
        plan.bring(
            torch.zeros(visible.shape).masked_fill_(~visible, LOW)[:, None, :, None], hidden[:, None, :, None]
        )
        at = plan.n_padded + plan.n_extra
        hidden[:, at : at + len(plan.shared)] = hidden[:, plan.shared]
        return hidden.repeat_interleave(self.shape[1], 0)

    def chunks(self) -> Iterator[Chunk]:
        """Tiles of all slices, group by group, as many at a time as the buffers take."""
        plan, counter = self.plan, 0
        for group in plan.groups:
            rows, units = self._for_slices(group)
            keys = units.shape[1] * plan.unit
            step = max(SCORES // (keys * max(plan.tile, self.width)), 1)
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                yield Chunk(self, group, counter, start, rows[start:stop], units[start:stop])
                counter += 1

    def _for_slices(self, group: Group) -> tuple[Tensor, Tensor]:
        plan, slices = self.plan, torch.arange(self.n_slices)[:, None]
        rows = (slices * (plan.n_padded // plan.tile) + group.tiles).flatten()
        units = (slices[..., None] * (plan.n_keys // plan.unit) + group.units).flatten(0, 1)
        return rows, units


class Chunk:
    """A few tiles [C] with their gathered keys and values."""

    def __init__(
        self, stage: Staged, group: Group, number: int, start: int, rows: Tensor, units: Tensor
    ) -> None:
        self.stage, self.group, self.start = stage, group, start
        self.rows, self.units = _slice_if_run(rows), units.flatten()
        self.count, self.n_keys = len(rows), units.shape[1] * stage.plan.unit
        self.number, self.row_numbers = number, rows
        self.k, self.v = self._gather("k_gathered", stage.k), self._gather("v_gathered", stage.v)
        self.q = self.tiles(stage.q)

    def tiles(self, staged: Tensor) -> Tensor:
        """The chunk's tiles of a tensor staged like q: [C, tile, …]; a view where they follow each other."""
        return staged.view(-1, self.stage.plan.tile, *staged.shape[2:])[self.rows]

    def put(self, staged: Tensor, values: Tensor) -> None:
        """The inverse of `tiles`."""
        staged.view(-1, self.stage.plan.tile, *staged.shape[2:])[self.rows] = values

    def add_keys(self, staged: Tensor, values: Tensor) -> None:
        """Add [C, keys, D] to the rows of a tensor staged like k that they were gathered from."""
        size = self.stage.plan.unit * self.stage.width
        staged.view(-1, size).index_add_(0, self.units, values.view(-1, size))

    def _gather(self, name: str, staged: Tensor) -> Tensor:
        size = self.stage.plan.unit * self.stage.width
        room = self.stage.space.take(name, len(self.units), size)
        torch.index_select(staged.view(-1, size), 0, self.units, out=room)
        return room.view(self.count, self.n_keys, self.stage.width)

    def scores(self) -> Tensor:
        """[C, tile, keys], masked."""
        room = self.stage.space.take("scores", self.count, self.stage.plan.tile, self.n_keys)
        s = torch.bmm(self.q, self.k.transpose(1, 2), out=room)
        if self.group.bias is not None:
            s += self._bias(self.group.bias)
        if self.stage.hidden is not None:
            hidden = self.stage.hidden.view(-1, self.stage.plan.unit)[self.units]
            s += hidden.view(self.count, 1, self.n_keys)
        return s

    def _bias(self, bias: Tensor) -> Tensor:
        if bias.shape[0] == 1:
            return bias
        tiles = torch.arange(self.start, self.start + self.count) % len(self.group.tiles)
        return bias[tiles]

    def kept(self, weights: Tensor, what: str) -> Tensor | None:
        """The dropout mask of these weights, scaled; the same in forward and backward."""
        return dropout_mask(self.stage.x, weights, self.stage.part.number, self.number, what == "scattered")

    def scattered(self) -> Scattered | None:
        """The keys of single queries, where the plan has such."""
        table = self.stage.plan.scattered
        if table is None:
            return None
        per_slice = self.stage.plan.n_padded // self.stage.plan.tile
        tokens = table.view(per_slice, self.stage.plan.tile, -1)[self.row_numbers % per_slice]
        return Scattered(self, tokens, (self.row_numbers // per_slice) * self.stage.plan.n_keys)


def _slice_if_run(index: Tensor) -> Tensor | slice:
    """Consecutive numbers as a slice: a view instead of a copy."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first == len(index) - 1 else index


class Scattered:
    """Keys that each query of a chunk sees on its own: [C, tile, r]."""

    def __init__(self, chunk: Chunk, tokens: Tensor, offset: Tensor) -> None:
        self.chunk, self.shape, self.width = chunk, tokens.shape, chunk.stage.width
        self.missing = tokens < 0
        self.index = (tokens.clamp(min=0) + offset[:, None, None]).flatten()
        self.k = self._gather("k_scattered", chunk.stage.k)
        self.v = self._gather("v_scattered", chunk.stage.v)

    def _gather(self, name: str, staged: Tensor) -> Tensor:
        room = self.chunk.stage.space.take(name, len(self.index), self.width)
        torch.index_select(staged.view(-1, self.width), 0, self.index, out=room)
        return room.view(*self.shape, self.width)

    def scores(self) -> Tensor:
        """[C, tile, r], masked."""
        s = self.against(self.chunk.q, self.k).masked_fill_(self.missing, LOW)
        if self.chunk.stage.hidden is not None:
            s += self.chunk.stage.hidden.flatten()[self.index].view(self.shape)
        return s

    def against(self, x: Tensor, keys: Tensor) -> Tensor:
        """Product of each query's x [C, tile, D] with each of its keys: [C, tile, r]."""
        return (keys @ x[..., None]).squeeze(-1)

    def weighted(self, weights: Tensor, keys: Tensor) -> Tensor:
        """Sum of each query's keys by weight: [C, tile, D]."""
        return (weights[..., None, :] @ keys).squeeze(-2)

    def add_keys(self, staged: Tensor, weights: Tensor, x: Tensor) -> None:
        """Add weight·x to the keys each query gathered."""
        values = (weights[..., None] * x[:, :, None]).view(-1, self.width)
        index = self.index[:, None].expand(-1, self.width)
        staged.view(-1, self.width).scatter_add_(0, index, values)


def dropout_mask(x: Inputs, weights: Tensor, *words: int) -> Tensor | None:
    """0 where a weight is dropped, 1/(1 − dropout) elsewhere, from (seed, words) alone; None without dropout."""
    if not x.dropout:
        return None
    generator = torch.Generator().manual_seed(int(hash32(x.seed, *(int(word) for word in words))))
    kept = torch.rand(weights.shape, generator=generator) >= x.dropout
    return kept.to(weights.dtype) / (1.0 - x.dropout)


def forward_part(stage: Staged) -> tuple[Tensor, Tensor]:
    """Output [slices, padded tokens, D] and log-sum-exp [slices, padded tokens] of one part."""
    out = stage.space.take("out", *stage.q.shape)
    lse = stage.space.take("lse", *stage.q.shape[:2])
    for chunk in stage.chunks():
        o, l = _forward_chunk(chunk)  # noqa: E741
        chunk.put(out, o)
        chunk.put(lse, l)
    for rows in dense_rows(stage):
        out[:, rows.index], lse[:, rows.index] = rows.forward()
    return out, lse


def _forward_chunk(chunk: Chunk) -> tuple[Tensor, Tensor]:
    s, scattered = chunk.scores(), chunk.scattered()
    top = s.amax(-1, keepdim=True)
    if scattered is not None:
        s2 = scattered.scores()
        top = torch.maximum(top, s2.amax(-1, keepdim=True))
        p2 = s2.sub_(top).exp2_()
    p = s.sub_(top).exp2_()
    total = p.sum(-1, keepdim=True)
    kept = chunk.kept(p, "gathered")
    o = torch.bmm(p if kept is None else p.mul_(kept), chunk.v)
    if scattered is not None:
        total += p2.sum(-1, keepdim=True)
        kept = chunk.kept(p2, "scattered")
        o += scattered.weighted(p2 if kept is None else p2 * kept, scattered.v)
    return o.div_(total), (top + total.log2()).squeeze(-1)


@dataclass(frozen=True)
class Gradients:
    """Accumulators of one part, staged like q and k."""

    q: Tensor
    k: Tensor
    v: Tensor


def backward_part(stage: Staged, grad: Tensor, out: Tensor, lse: Tensor) -> Gradients:
    """Gradients of one part: dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O), dQ = dS·K, dK = dSᵀ·Q; scales are the caller's."""
    part = stage.part
    g = stage.queries("grad", grad)
    o = stage.queries("out", out)
    delta = o.mul_(g).sum(-1, keepdim=True)
    log_sum = stage.space.take("lse", *stage.shape[:2], stage.plan.n_padded, 1)
    stage.plan.bring(lse[part.samples, part.heads, :, None], log_sum, filling=_NEVER)
    log_sum = log_sum.flatten(0, 1)
    total = Gradients(
        stage.space.take("dq", *stage.q.shape).zero_(),
        stage.space.take("dk", *stage.k.shape).zero_(),
        stage.space.take("dv", *stage.v.shape).zero_(),
    )
    tiled = log_sum.clone()
    tiled[:, stage.plan.dense] = _NEVER  # these rows are dense: their tiles have no share
    for chunk in stage.chunks():
        _backward_chunk(chunk, chunk.tiles(g), chunk.tiles(tiled), chunk.tiles(delta), total)
    for rows in dense_rows(stage):
        rows.backward(g, log_sum, delta, total)
    return total


def _backward_chunk(chunk: Chunk, g: Tensor, lse: Tensor, delta: Tensor, total: Gradients) -> None:
    space = chunk.stage.space
    p = chunk.scores().sub_(lse).exp2_()
    dp = torch.bmm(g, chunk.v.transpose(1, 2), out=space.take("dp", *p.shape))
    gathered = space.take("dk_gathered", *chunk.k.shape)
    kept = chunk.kept(p, "gathered")
    if kept is not None:
        dp *= kept
    ds = dp.sub_(delta).mul_(p)
    chunk.add_keys(total.v, torch.bmm((p if kept is None else p.mul_(kept)).transpose(1, 2), g, out=gathered))
    dq = torch.bmm(ds, chunk.k)
    chunk.add_keys(total.k, torch.bmm(ds.transpose(1, 2), chunk.q, out=gathered))
    scattered = chunk.scattered()
    if scattered is not None:
        dq += _backward_scattered(chunk, scattered, g, lse, delta, total)
    chunk.put(total.q, dq)


def _backward_scattered(
    chunk: Chunk, scattered: Scattered, g: Tensor, lse: Tensor, delta: Tensor, total: Gradients
) -> Tensor:
    p = scattered.scores().sub_(lse).exp2_()
    dp = scattered.against(g, scattered.v)
    kept = chunk.kept(p, "scattered")
    if kept is not None:
        dp *= kept
    ds = dp.sub_(delta).mul_(p)
    scattered.add_keys(total.v, p if kept is None else p * kept, g)
    scattered.add_keys(total.k, ds, chunk.q)
    return scattered.weighted(ds, scattered.k)


@dataclass(frozen=True)
class Rows:
    """Global queries, some at a time, against every key."""

    stage: Staged
    index: Tensor  # tokens
    number: int
    bias: Tensor | None  # [1 or slices, 1 or rows, n_keys]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output [slices, rows, D] and log-sum-exp [slices, rows]."""
        s = self._scores()
        top = s.amax(-1, keepdim=True)
        p = s.sub_(top).exp2_()
        total = p.sum(-1, keepdim=True)
        kept = self._kept(p)
        o = torch.bmm(p if kept is None else p.mul_(kept), self.stage.v)
        return o.div_(total), (top + total.log2()).squeeze(-1)

    def backward(self, grad: Tensor, lse: Tensor, delta: Tensor, total: Gradients) -> None:
        """Add this part's share to the gradients."""
        q, g = self.stage.q[:, self.index], grad[:, self.index]
        p = self._scores().sub_(lse[:, self.index]).exp2_()
        dp = torch.bmm(g, self.stage.v.transpose(1, 2), out=self.stage.space.take("dense_dp", *p.shape))
        kept = self._kept(p)
        if kept is not None:
            dp *= kept
        ds = dp.sub_(delta[:, self.index]).mul_(p)
        total.v.baddbmm_((p if kept is None else p.mul_(kept)).transpose(1, 2), g)
        total.q[:, self.index] = torch.bmm(ds, self.stage.k)
        total.k.baddbmm_(ds.transpose(1, 2), q)

    def _scores(self) -> Tensor:
        q, k = self.stage.q[:, self.index], self.stage.k
        room = self.stage.space.take("dense_scores", *q.shape[:2], k.shape[1])
        s = torch.bmm(q, k.transpose(1, 2), out=room)
        if self.bias is not None:
            s += self.bias
        if self.stage.hidden is not None:
            s += self.stage.hidden[:, None]
        return s

    def _kept(self, weights: Tensor) -> Tensor | None:
        return dropout_mask(self.stage.x, weights, self.stage.part.number, self.number, 2)


def dense_rows(stage: Staged) -> Iterator[Rows]:
    """Global queries in runs short enough for their scores."""
    plan = stage.plan
    step = max(DENSE_SCORES // (plan.n_keys * stage.n_slices), 1)
    tokens = F.pad(plan.tokens, (0, plan.n_keys - plan.n_padded), value=-1)
    real = tokens >= 0
    real[plan.n_padded : plan.n_padded + plan.n_extra] = True
    for number, index in enumerate(plan.dense.split(step)):
        seen = real[None]
        if plan.causal:
            seen = seen & (tokens <= tokens[index, None])
        bias = None
        if not bool(seen.all()):
            bias = torch.zeros(seen.shape, dtype=stage.space.dtype).masked_fill_(~seen, LOW)[None]
        yield Rows(stage, index, number, bias)


def forward(plans: Sequence[Plan], per_head: bool, x: Inputs) -> tuple[Tensor, Tensor]:
    """Output like q [B, H, N, D] and log-sum-exp [B, H, N] in units of log 2."""
    space = Workspace(torch.promote_types(x.q.dtype, torch.float32))
    out, lse = torch.empty_like(x.q), x.q.new_empty(x.q.shape[:-1], dtype=space.dtype)
    for part in parts(plans, per_head, x):
        stage = Staged(part, x, space)
        at = (part.samples, part.heads)
        o, l = forward_part(stage)  # noqa: E741
        out[at] = part.plan.take_home(o.unflatten(0, stage.shape[:2]))
        lse[at] = part.plan.take_home(l.unflatten(0, stage.shape[:2]))
    return out, lse


def backward(
    plans: Sequence[Plan], per_head: bool, x: Inputs, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the learned keys and values (empty where there are none)."""
    space = Workspace(torch.promote_types(x.q.dtype, torch.float32))
    dq, dk, dv = torch.empty_like(x.q), torch.empty_like(x.k), torch.empty_like(x.v)
    dek, dev = (x.q.new_zeros(0) if e is None else torch.zeros_like(e) for e in (x.extra_k, x.extra_v))
    for part in parts(plans, per_head, x):
        stage = Staged(part, x, space)
        total = backward_part(stage, grad, out, lse)
        total.q.mul_(stage.width**-0.5)
        total.k.mul_(LN2)
        dq[part.samples, part.heads] = part.plan.take_home(total.q.unflatten(0, stage.shape[:2]))
        for target, extra, staged in ((dk, dek, total.k), (dv, dev, total.v)):
            _unstage(stage, target, extra, staged.unflatten(0, stage.shape[:2]))
    return dq, dk, dv, dek, dev


def _unstage(stage: Staged, target: Tensor, extra: Tensor, staged: Tensor) -> None:
    """Bring the gradient of staged keys [samples, heads, n_keys, D] home, copies in extra units included."""
    plan, part = stage.plan, stage.part
    at = plan.n_padded + plan.n_extra
    if len(plan.shared):
        staged.index_add_(2, plan.shared, staged[:, :, at : at + len(plan.shared)].clone())
    if plan.n_extra:
        extra[part.heads] += staged[:, :, plan.n_padded : at].sum(0)
    if stage.hidden is not None:
        staged.masked_fill_(stage.hidden.view(len(staged), -1, plan.n_keys, 1) < 0, 0.0)
    target[part.samples, part.heads] = plan.take_home(staged)
