"""Runs a `Plan` on CPU: brings tensors, masks and lists into the form that the compiled loops of `tiles.py` take.

Queries, keys, values and gradients are used where they lie. Only what the loops cannot read is staged, that is copied
into a tensor of its own: narrower dtypes (widened to float32), head widths that are no whole vectors (filled up with
zeros), keys that a plan reorders, and keys that padding hides (their content becomes zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from longtape.attention.pattern import hash32
from longtape.attention.plan import Plan
from longtape.attention.simd import Operand, in_threads, padded
from longtape.attention.tiles import Dropout, Keys, Work, backward_tiles, forward_tiles
from longtape.attention.work import works_of

LN2 = log(2.0)
AT_ONCE = 1 << 26  # products of numbers in a task of the forward: some tenths of a millisecond


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

    @property
    def wide(self) -> torch.dtype:
        """What is computed in."""
        return torch.promote_types(self.q.dtype, torch.float32)


@dataclass(frozen=True)
class Part:
    """The samples and heads of one plan; `number` tells the parts of a call apart."""

    number: int
    plan: Plan
    samples: slice
    heads: slice


def parts(plans: Sequence[Plan], per_head: bool, x: Inputs) -> Iterator[Part]:
    """Cut [B, H] into parts. `plans`: one for all, one for each sample, or (per_head) one for each sample and head."""
    batch, heads = x.q.shape[:2]
    b, h = (batch if len(plans) == 1 else 1), (1 if per_head else heads)
    cells = [(s, t) for s in range(0, batch, b) for t in range(0, heads, h)]
    for number, (s, t) in enumerate(cells):
        yield Part(number, plans[number % len(plans)], slice(s, s + b), slice(t, t + h))


class Stage:
    """The operands of one part."""

    def __init__(self, part: Part, x: Inputs) -> None:
        self.part, self.plan, self.x = part, part.plan, x
        self.width = padded(x.q.shape[-1], x.wide)
        self.visible = None if x.visible is None else x.visible[part.samples]
        if self.visible is not None and bool(self.visible.all()):
            self.visible = None
        self.q = self.rows(x.q)
        self.n_slices = self.q.shape[0] * self.q.shape[1]
        self.k, self.v = self.slots(x.k), self.slots(x.v)
        self.keys = self._keys(self.k, self.v, self.behind(x.k, x.extra_k), self.behind(x.v, x.extra_v))

    def rows(self, source: Tensor) -> Tensor:
        """The part of a tensor by tokens [B, H, N, D]; itself where the loops can use it."""
        return self._readable(source[self.part.samples, self.part.heads])

    def slots(self, source: Tensor) -> Tensor:
        """The part of keys or values by the plan's slots; hidden content becomes zero."""
        source = source[self.part.samples, self.part.heads]
        if self.visible is not None:
            source = source.masked_fill(~self.visible[:, None, :, None], 0.0)
        if self.plan.order is not None:
            source = source[:, :, self.plan.order.clamp(min=0)]
        return self._readable(source)

    def behind(self, source: Tensor, learned: Tensor | None) -> Tensor:
        """Learned keys or values, then copies of single global tokens."""
        source = source[self.part.samples, self.part.heads]
        tokens = self.plan.tokens[self.plan.shared]
        both = source[:, :, tokens]
        if self.visible is not None:
            both = both.masked_fill(~self.visible[:, None, tokens, None], 0.0)
        if learned is not None:
            both = torch.cat([learned[self.part.heads].expand(len(both), -1, -1, -1), both], 2)
        return self._readable(both)

    def room(self, like: Tensor) -> Tensor:
        """Where the loops write what belongs into `like` [B, H, N, D]: this part of it, or a tensor beside it."""
        mine = like[self.part.samples, self.part.heads]
        return mine if self._is_readable(mine) else self._empty(mine)

    def bring_home(self, written: Tensor, target: Tensor) -> None:
        """What `room` gave → its place."""
        mine = target[self.part.samples, self.part.heads]
        if written.data_ptr() != mine.data_ptr():
            mine.copy_(written[..., : mine.shape[-1]])

    def dropout(self) -> Dropout:
        """In the form of the loops."""
        rate = self.x.dropout
        seed = int(hash32(self.x.seed, self.part.number))
        return Dropout(int(rate * 2**32), seed, self.scalar(1 / (1 - rate)))

    def scalar(self, value: float) -> np.generic:
        """In the dtype of the loops, so that they need not widen."""
        return np.float64(value) if self.x.wide == torch.float64 else np.float32(value)

    def gradient_keys(self, dk: Tensor, dv: Tensor, extra_k: Tensor, extra_v: Tensor) -> Keys:
        """Where the gradients of keys and values go."""
        return self._keys(dk, dv, extra_k, extra_v)

    def _keys(self, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Keys:
        return Keys(
            Operand.of(k), Operand.of(v), Operand.of(extra_k), Operand.of(extra_v),
            k.shape[2], self.plan.n_padded, extra_k.shape[2], self._hidden(),
        )  # fmt: skip

    def _hidden(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        if self.visible is None:
            return np.empty((0, 0), np.uint8)
        tokens = self.plan.tokens
        by_slot = (~self.visible[:, tokens.clamp(min=0)]) & (tokens >= 0)
        learned = by_slot.new_zeros(len(by_slot), self.plan.n_extra)
        hidden = torch.cat([by_slot, learned, by_slot[:, self.plan.shared]], 1)
        return hidden.to(torch.uint8).numpy()

    def _readable(self, x: Tensor) -> Tensor:
        if self._is_readable(x):
            return x
        staged = self._empty(x)
        staged[..., : x.shape[-1]] = x
        staged[..., x.shape[-1] :] = 0.0
        return staged

    def _is_readable(self, x: Tensor) -> bool:
        return x.dtype == self.x.wide and x.shape[-1] == self.width and x.stride(-1) == 1

    def _empty(self, x: Tensor) -> Tensor:
        return torch.empty(*x.shape[:-1], self.width, dtype=self.x.wide)


def forward(plans: Sequence[Plan], per_head: bool, x: Inputs) -> tuple[Tensor, Tensor]:
    """Output like q [B, H, N, D] and log-sum-exp [B, H, N] in units of log 2."""
    out, lse = torch.empty_like(x.q), x.q.new_empty(x.q.shape[:-1], dtype=x.wide)
    for part in parts(plans, per_head, x):
        stage = Stage(part, x)
        written = stage.room(out)
        _forward_part(stage, written, lse[part.samples, part.heads, :, None])
        stage.bring_home(written, out)
    return out, lse


def _forward_part(stage: Stage, out: Tensor, lse: Tensor) -> None:
    operands = (Operand.of(stage.q), stage.keys, Operand.of(out), Operand.of(lse))
    scale = stage.scalar(stage.x.q.shape[-1] ** -0.5 / LN2)
    dropout, n_heads = stage.dropout(), stage.q.shape[1]
    for work in works_of(stage.plan, stage.x.wide):
        n_tiles, tile = work.rows.shape
        products = 2 * tile * int(work.sizes.sum()) * stage.width

        def run(start: int, stop: int, work: Work = work) -> None:
            forward_tiles(*operands, work, dropout, n_heads, stage.width, scale, start, stop)

        in_threads(run, n_tiles * stage.n_slices, max(AT_ONCE // max(products, 1), 1))


def backward(
    plans: Sequence[Plan], per_head: bool, x: Inputs, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the learned keys and values (empty where there are none)."""
    dq, dk, dv = torch.empty_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v)
    dek, dev = (x.q.new_zeros(0) if e is None else torch.zeros_like(e) for e in (x.extra_k, x.extra_v))
    for part in parts(plans, per_head, x):
        stage = Stage(part, x)
        written = stage.room(dq)
        sums = [_zeros_for(stage, staged, whole) for staged, whole in ((stage.k, dk), (stage.v, dv))]
        extra = [
            torch.zeros(*stage.q.shape[:2], e, stage.width, dtype=x.wide) for e in [stage.keys.n_extra] * 2
        ]
        d_keys = stage.gradient_keys(*sums, *extra)
        _backward_part(stage, grad, out, lse, written, d_keys)
        stage.bring_home(written, dq)
        for target, learned, staged, more in zip((dk, dv), (dek, dev), sums, extra, strict=True):
            _bring_keys_home(stage, target, learned, staged, more)
    return dq, dk, dv, dek, dev


def _zeros_for(stage: Stage, staged: Tensor, whole: Tensor) -> Tensor:
    """Where gradients of keys are summed: their place, or zeros where the keys were staged."""
    in_place = stage.visible is None and stage.plan.order is None
    mine = whole[stage.part.samples, stage.part.heads]
    return mine if in_place and stage._is_readable(mine) else torch.zeros_like(staged)


def _backward_part(stage: Stage, grad: Tensor, out: Tensor, lse: Tensor, dq: Tensor, d_keys: Keys) -> None:
    part, width = stage.part, stage.width
    log = lse[part.samples, part.heads, :, None]
    operands = (
        Operand.of(stage.q), stage.keys, Operand.of(stage.rows(out)), Operand.of(log),
        Operand.of(stage.rows(grad)), Operand.of(dq), d_keys,
    )  # fmt: skip
    natural = stage.x.q.shape[-1] ** -0.5
    scales, dropout = (stage.scalar(natural / LN2), stage.scalar(natural)), stage.dropout()
    for work in works_of(stage.plan, stage.x.wide):

        def run(start: int, stop: int, work: Work = work) -> None:
            backward_tiles(*operands, work, dropout, stage.q.shape[1], width, *scales, start, stop)

        in_threads(run, stage.n_slices)


def _bring_keys_home(stage: Stage, target: Tensor, learned: Tensor, staged: Tensor, more: Tensor) -> None:
    """Gradients of keys by slot and those of the extra ones → keys and learned tokens."""
    plan, part = stage.plan, stage.part
    if len(plan.shared):
        staged.index_add_(2, plan.shared, more[:, :, plan.n_extra :])
    width = target.shape[-1]
    if plan.n_extra:
        learned[part.heads] += more[:, :, : plan.n_extra, :width].sum(0)
    mine = target[part.samples, part.heads]
    if staged.data_ptr() == mine.data_ptr():
        return
    staged = plan.take_home(staged[..., :width])
    if stage.visible is not None:
        staged = staged.masked_fill(~stage.visible[:, None, :, None], 0.0)
    mine.copy_(staged)
