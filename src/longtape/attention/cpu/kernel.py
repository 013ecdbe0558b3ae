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

from longtape.attention.cpu.plan import Plan, plan_cached, plan_dense, plan_table
from longtape.attention.cpu.simd import Operand, in_threads, padded
from longtape.attention.cpu.tiles import Dropout, Keys, Work, backward_tiles, forward_tiles
from longtape.attention.cpu.work import works_of
from longtape.attention.pattern import Pattern, hash32

LN2 = log(2.0)
AT_ONCE = 1 << 24  # products of numbers in a run of tiles: some tenths of a millisecond


@dataclass(frozen=True)
class Inputs:
    """One call. q, k, v [B, H, N, D]; learned keys and values [H, E, D]; visible [B, N] bool or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra_k: Tensor | None
    extra_v: Tensor | None
    global_q: Tensor | None  # [B, H, G, D] of the global queries, where these have projections of their own
    global_k: Tensor | None  # [B, H, N, D], likewise
    global_v: Tensor | None
    visible: Tensor | None
    dropout: float
    seed: int

    @property
    def wide(self) -> torch.dtype:
        """What is computed in."""
        return torch.promote_types(self.q.dtype, torch.float32)

    def projections(self, through_global: bool) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of all or of the global queries."""
        if not through_global:
            return self.q, self.k, self.v
        if self.global_q is None or self.global_k is None or self.global_v is None:
            raise ValueError("global queries look through q, k and v of their own, or none of them is given")
        return self.global_q, self.global_k, self.global_v


def plans_of(
    x: Inputs, positions: Tensor | None, table: Tensor | None, rules: list[int], dense: list[int]
) -> tuple[list[Plan], bool]:
    """One plan for all, for each sample, or for each head; and whether it is for each head."""
    n = x.q.shape[2]
    if not rules:
        return [plan_dense(n, x.k.shape[2])], False
    n_extra = 0 if x.extra_k is None else x.extra_k.shape[1]
    if table is not None:
        pattern = Pattern.from_ints(rules)
        tables = table.cpu().flatten(0, -3) if table.dim() > 2 else table.cpu()[None]
        plans = [plan_table(t, n, pattern.block_size, pattern.causal, dense) for t in tables]
        return plans, table.dim() > 2
    named = [()] if positions is None else [tuple(row) for row in positions.tolist()]
    own = x.global_q is not None
    return [plan_cached(tuple(rules), n, n_extra, row, own) for row in named], False


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
    """The operands of one part, with its own or (`through_global`) with the projections of the global queries."""

    def __init__(self, part: Part, x: Inputs, through_global: bool = False) -> None:
        self.part, self.plan, self.x = part, part.plan, x
        self.width = padded(x.q.shape[-1], x.wide)
        self.visible = None if x.visible is None else x.visible[part.samples]
        if self.visible is not None and bool(self.visible.all()):
            self.visible = None
        q, k, v = x.projections(through_global)
        extra = (None, None) if through_global else (x.extra_k, x.extra_v)
        self.q, self.k, self.v = self.rows(q), self.slots(k), self.slots(v)
        self.n_heads, self.n_slices = self.q.shape[1], self.q.shape[0] * self.q.shape[1]
        self.keys = self.as_keys(self.k, self.v, self.behind(k, extra[0]), self.behind(v, extra[1]))

    def rows(self, source: Tensor) -> Tensor:
        """The part of a tensor by tokens [B, H, N, D]; itself where the loops can use it."""
        return readable(source[self.part.samples, self.part.heads], self.x.wide)

    def slots(self, source: Tensor) -> Tensor:
        """The part of keys or values by the plan's slots; hidden content becomes zero."""
        source = source[self.part.samples, self.part.heads]
        if self.visible is not None:
            source = source.masked_fill(~self.visible[:, None, :, None], 0.0)
        if self.plan.order is not None:
            source = source[:, :, self.plan.order.clamp(min=0)]
        return readable(source, self.x.wide)

    def behind(self, source: Tensor, learned: Tensor | None) -> Tensor:
        """Learned keys or values, then copies of single global tokens."""
        source = source[self.part.samples, self.part.heads]
        tokens = self.plan.tokens[self.plan.shared]
        both = source[:, :, tokens]
        if self.visible is not None:
            both = both.masked_fill(~self.visible[:, None, tokens, None], 0.0)
        if learned is not None:
            both = torch.cat([learned[self.part.heads].expand(len(both), -1, -1, -1), both], 2)
        return readable(both, self.x.wide)

    def dropout(self) -> Dropout:
        """In the form of the loops."""
        rate = self.x.dropout
        seed = int(hash32(self.x.seed, self.part.number)) if rate else 0
        return Dropout(int(rate * 2**32), seed, self.scalar(1 / (1 - rate)))

    def scalar(self, value: float) -> np.generic:
        """In the dtype of the loops, so that they need not widen."""
        return np.float64(value) if self.x.wide == torch.float64 else np.float32(value)

    def as_keys(self, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Keys:
        """Keys and values by slot, or where their gradients go."""
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


def is_readable(x: Tensor, wide: torch.dtype) -> bool:
    """Whether the loops can work on it where it lies."""
    return x.dtype == wide and x.shape[-1] == padded(x.shape[-1], wide) and x.stride(-1) == 1


def readable(x: Tensor, wide: torch.dtype) -> Tensor:
    """Itself, or a copy that the loops can read."""
    if is_readable(x, wide):
        return x
    staged = room(x, wide)
    staged[..., : x.shape[-1]] = x
    return staged


def room(target: Tensor, wide: torch.dtype) -> Tensor:
    """Where the loops write what belongs into `target`: itself, or a tensor beside it."""
    if is_readable(target, wide):
        return target
    return torch.zeros(*target.shape[:-1], padded(target.shape[-1], wide), dtype=wide)


def bring_home(written: Tensor, target: Tensor) -> None:
    """What `room` gave → its place."""
    if written.data_ptr() != target.data_ptr():
        target.copy_(written[..., : target.shape[-1]])


def looks(part: Part, x: Inputs) -> Iterator[tuple[Stage, list[Work], bool]]:
    """What is computed through which projections: tiles and dense queries, together or each through their own."""
    tiled, dense = works_of(part.plan, x.wide)
    if x.global_q is None:
        yield Stage(part, x), tiled + dense, False
        return
    yield Stage(part, x), tiled, False
    if dense:
        yield Stage(part, x, through_global=True), dense, True


def forward(plans: Sequence[Plan], per_head: bool, x: Inputs) -> tuple[Tensor, Tensor]:
    """Output like q [B, H, N, D] and log-sum-exp [B, H, N] in units of log 2."""
    out, lse = torch.empty_like(x.q), x.q.new_empty(x.q.shape[:-1], dtype=x.wide)
    for part in parts(plans, per_head, x):
        written = room(out[part.samples, part.heads], x.wide)
        for stage, works, _ in looks(part, x):
            _forward_part(stage, works, written, lse[part.samples, part.heads, :, None])
        bring_home(written, out[part.samples, part.heads])
    return out, lse


def _forward_part(stage: Stage, works: list[Work], out: Tensor, lse: Tensor) -> None:
    operands = (Operand.of(stage.q), stage.keys, Operand.of(out), Operand.of(lse))
    scale, dropout = stage.scalar(stage.x.q.shape[-1] ** -0.5 / LN2), stage.dropout()
    for work in works:
        n_tiles, tile = work.rows.shape
        products = 2 * tile * int(work.sizes.sum()) * stage.width

        def run(start: int, stop: int, work: Work = work) -> None:
            forward_tiles(*operands, work, dropout, stage.n_heads, stage.width, scale, start, stop)

        in_threads(run, n_tiles * stage.n_slices, max(AT_ONCE // max(products, 1), 1))


@dataclass(frozen=True)
class Gradients:
    """What a backward gives; of what was not there, an empty tensor."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra_k: Tensor
    extra_v: Tensor
    global_q: Tensor
    global_k: Tensor
    global_v: Tensor

    @classmethod
    def zeros(cls, x: Inputs) -> Gradients:
        """Like the inputs; q's are written and not added to."""
        rest = (x.extra_k, x.extra_v, x.global_q, x.global_k, x.global_v)
        more = (x.q.new_zeros(0) if y is None else torch.zeros_like(y) for y in rest)
        return cls(torch.empty_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v), *more)

    def projections(self, through_global: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Those of `Inputs.projections`."""
        return (self.global_q, self.global_k, self.global_v) if through_global else (self.q, self.k, self.v)


def backward(
    plans: Sequence[Plan], per_head: bool, x: Inputs, grad: Tensor, out: Tensor, lse: Tensor
) -> Gradients:
    """Gradients of all inputs."""
    total = Gradients.zeros(x)
    for part in parts(plans, per_head, x):
        for stage, works, through_global in looks(part, x):
            dq, dk, dv = total.projections(through_global)
            target = dq[part.samples, part.heads]
            written = room(target, x.wide)
            staged = [_zeros_for(stage, *pair) for pair in ((stage.k, dk), (stage.v, dv))]
            shape = (*stage.q.shape[:2], stage.keys.n_extra, stage.width)
            behind = [torch.zeros(shape, dtype=x.wide) for _ in staged]
            _backward_part(stage, works, grad, out, lse, written, stage.as_keys(*staged, *behind))
            bring_home(written, target)
            if x.global_q is not None and not through_global:  # of these, nobody asked the ordinary query
                target[:, :, part.plan.tokens[part.plan.dense]] = 0.0
            learned = (total.extra_k, total.extra_v)
            for into in zip((dk, dv), learned, staged, behind, strict=True):
                _bring_keys_home(stage, *into)
    return total


def _zeros_for(stage: Stage, staged: Tensor, whole: Tensor) -> Tensor:
    """Where gradients of keys are summed: their place, or zeros where the keys were staged."""
    in_place = stage.visible is None and stage.plan.order is None
    mine = whole[stage.part.samples, stage.part.heads]
    return mine if in_place and is_readable(mine, stage.x.wide) else torch.zeros_like(staged)


def _backward_part(
    stage: Stage, works: list[Work], grad: Tensor, out: Tensor, lse: Tensor, dq: Tensor, d_keys: Keys
) -> None:
    log = lse[stage.part.samples, stage.part.heads, :, None]
    operands = (
        Operand.of(stage.q), stage.keys, Operand.of(stage.rows(out)), Operand.of(log),
        Operand.of(stage.rows(grad)), Operand.of(dq), d_keys,
    )  # fmt: skip
    natural = stage.x.q.shape[-1] ** -0.5
    scales, dropout = (stage.scalar(natural / LN2), stage.scalar(natural)), stage.dropout()
    for work in works:

        def run(start: int, stop: int, work: Work = work) -> None:
            backward_tiles(*operands, work, dropout, stage.n_heads, stage.width, *scales, start, stop)

        in_threads(run, stage.n_slices)


def _bring_keys_home(stage: Stage, target: Tensor, learned: Tensor, staged: Tensor, behind: Tensor) -> None:
    """Gradients of keys by slot and of those behind them → keys and learned tokens."""
    plan, part = stage.plan, stage.part
    if len(plan.shared):
        staged.index_add_(2, plan.shared, behind[:, :, -len(plan.shared) :])
    width = target.shape[-1]
    if plan.n_extra:
        learned[part.heads] += behind[:, :, : plan.n_extra, :width].sum(0)
    mine = target[part.samples, part.heads]
    if staged.data_ptr() == mine.data_ptr():
        return
    staged = plan.take_home(staged[..., :width])
    if stage.visible is not None:
        staged = staged.masked_fill(~stage.visible[:, None, :, None], 0.0)
    mine.copy_(staged)
