"""Block-sparse attention on CPU: brings tensors, masks and lists into the form that `flash_tiles.py` takes.

Queries, keys, values and gradients are used where they lie. Only what the loops cannot read is copied
into a tensor of its own: narrower dtypes (widened to float32), head widths that are no whole vectors (filled up with
zeros), keys that a layout reorders, and keys that padding hides (their content becomes zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from longtape.attention.cpu.flash_tiles import Dropout, Keys, TileSchedule, backward_tiles, forward_tiles
from longtape.attention.cpu.layout import Layout, cached_layout, dense_layout, table_layout
from longtape.attention.cpu.schedule import tile_schedules
from longtape.attention.cpu.simd import Operand, padded, parallel_for
from longtape.attention.pattern import Pattern, hash32

LN2 = log(2.0)
TASK_PRODUCTS = 1 << 24  # products of numbers in a run of tiles: some tenths of a millisecond


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
    def compute_dtype(self) -> torch.dtype:
        """What is computed in."""
        return torch.promote_types(self.q.dtype, torch.float32)

    def projections(self, through_global: bool) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of all or of the global queries."""
        if not through_global:
            return self.q, self.k, self.v
        if self.global_q is None or self.global_k is None or self.global_v is None:
            raise ValueError("global queries look through q, k and v of their own, or none of them is given")
        return self.global_q, self.global_k, self.global_v


def layouts_of(
    x: Inputs, positions: Tensor | None, table: Tensor | None, rules: list[int], dense: list[int]
) -> tuple[list[Layout], bool]:
    """One layout for all, for each sample, or for each head; and whether it is for each head."""
    n = x.q.shape[2]
    if not rules:
        return [dense_layout(n, x.k.shape[2])], False
    n_extra = 0 if x.extra_k is None else x.extra_k.shape[1]
    if table is not None:
        pattern = Pattern.from_ints(rules)
        tables = table.cpu().flatten(0, -3) if table.dim() > 2 else table.cpu()[None]
        layouts = [table_layout(t, n, pattern.block_size, pattern.causal, dense) for t in tables]
        return layouts, table.dim() > 2
    named = [()] if positions is None else [tuple(row) for row in positions.tolist()]
    own = x.global_q is not None
    return [cached_layout(tuple(rules), n, n_extra, row, own) for row in named], False


@dataclass(frozen=True)
class Part:
    """The samples and heads of one layout; `number` tells the parts of a call apart."""

    number: int
    layout: Layout
    samples: slice
    heads: slice


def parts(layouts: Sequence[Layout], per_head: bool, x: Inputs) -> Iterator[Part]:
    """Cut [B, H] into parts. `layouts`: one, one a sample, or (per_head) one for each sample and head."""
    batch, heads = x.q.shape[:2]
    b, h = (batch if len(layouts) == 1 else 1), (1 if per_head else heads)
    cells = [(s, t) for s in range(0, batch, b) for t in range(0, heads, h)]
    for number, (s, t) in enumerate(cells):
        yield Part(number, layouts[number % len(layouts)], slice(s, s + b), slice(t, t + h))


class PreparedOperands:
    """The operands of one part, with its own or (`through_global`) with the projections of the global queries."""

    def __init__(self, part: Part, x: Inputs, through_global: bool = False) -> None:
        self.part, self.layout, self.x = part, part.layout, x
        self.width = padded(x.q.shape[-1], x.compute_dtype)
        self.visible = None if x.visible is None else x.visible[part.samples]
        if self.visible is not None and bool(self.visible.all()):
            self.visible = None
        q, k, v = x.projections(through_global)
        extra = (None, None) if through_global else (x.extra_k, x.extra_v)
        self.q, self.k, self.v = self.by_token(q), self.by_slot(k), self.by_slot(v)
        self.n_heads, self.n_slices = self.q.shape[1], self.q.shape[0] * self.q.shape[1]
        self.keys = self.as_keys(self.k, self.v, self.extra_slots(k, extra[0]), self.extra_slots(v, extra[1]))

    def by_token(self, source: Tensor) -> Tensor:
        """The part of a tensor by tokens [B, H, N, D]; itself where the loops can use it."""
        return kernel_ready(source[self.part.samples, self.part.heads], self.x.compute_dtype)

    def by_slot(self, source: Tensor) -> Tensor:
        """The part of keys or values by the layout's slots; hidden content becomes zero."""
        source = source[self.part.samples, self.part.heads]
        if self.visible is not None:
            source = source.masked_fill(~self.visible[:, None, :, None], 0.0)
        if self.layout.order is not None:
            source = source[:, :, self.layout.order.clamp(min=0)]
        return kernel_ready(source, self.x.compute_dtype)

    def extra_slots(self, source: Tensor, learned: Tensor | None) -> Tensor:
        """Learned keys or values, then copies of single global tokens."""
        source = source[self.part.samples, self.part.heads]
        tokens = self.layout.tokens[self.layout.global_slots]
        both = source[:, :, tokens]
        if self.visible is not None:
            both = both.masked_fill(~self.visible[:, None, tokens, None], 0.0)
        if learned is not None:
            both = torch.cat([learned[self.part.heads].expand(len(both), -1, -1, -1), both], 2)
        return kernel_ready(both, self.x.compute_dtype)

    def dropout(self) -> Dropout:
        """In the form of the loops."""
        rate = self.x.dropout
        seed = int(hash32(self.x.seed, self.part.number)) if rate else 0
        return Dropout(int(rate * 2**32), seed, self.scalar(1 / (1 - rate)))

    def scalar(self, value: float) -> np.generic:
        """In the dtype of the loops, so that they need not widen."""
        return np.float64(value) if self.x.compute_dtype == torch.float64 else np.float32(value)

    def as_keys(self, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Keys:
        """Keys and values by slot, or where their gradients go."""
        return Keys(
            Operand.of(k), Operand.of(v), Operand.of(extra_k), Operand.of(extra_v),
            k.shape[2], self.layout.n_padded, extra_k.shape[2], self._hidden(),
        )  # fmt: skip

    def _hidden(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        if self.visible is None:
            return np.empty((0, 0), np.uint8)
        tokens = self.layout.tokens
        by_slot = (~self.visible[:, tokens.clamp(min=0)]) & (tokens >= 0)
        learned = by_slot.new_zeros(len(by_slot), self.layout.n_extra)
        hidden = torch.cat([by_slot, learned, by_slot[:, self.layout.global_slots]], 1)
        return hidden.to(torch.uint8).numpy()


def is_kernel_ready(x: Tensor, compute_dtype: torch.dtype) -> bool:
    """Whether the loops can work on it where it lies."""
    return (
        x.dtype == compute_dtype and x.shape[-1] == padded(x.shape[-1], compute_dtype) and x.stride(-1) == 1
    )


def kernel_ready(x: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Itself, or a copy that the loops can read."""
    if is_kernel_ready(x, compute_dtype):
        return x
    prepared_keys = output_buffer(x, compute_dtype)
    prepared_keys[..., : x.shape[-1]] = x
    return prepared_keys


def output_buffer(target: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Where the loops write what belongs into `target`: itself, or a tensor beside it."""
    if is_kernel_ready(target, compute_dtype):
        return target
    return torch.zeros(*target.shape[:-1], padded(target.shape[-1], compute_dtype), dtype=compute_dtype)


def copy_back(written: Tensor, target: Tensor) -> None:
    """What `output_buffer` gave → its place."""
    if written.data_ptr() != target.data_ptr():
        target.copy_(written[..., : target.shape[-1]])


def projection_passes(part: Part, x: Inputs) -> Iterator[tuple[PreparedOperands, list[TileSchedule], bool]]:
    """What is computed through which projections: tiles and dense queries, together or each through their own."""
    tiled, dense = tile_schedules(part.layout, x.compute_dtype)
    if x.global_q is None:
        yield PreparedOperands(part, x), tiled + dense, False
        return
    yield PreparedOperands(part, x), tiled, False
    if dense:
        yield PreparedOperands(part, x, through_global=True), dense, True


def forward(layouts: Sequence[Layout], per_head: bool, x: Inputs) -> tuple[Tensor, Tensor]:
    """Output like q [B, H, N, D] and log-sum-exp [B, H, N] in units of log 2."""
    out, lse = torch.empty_like(x.q), x.q.new_empty(x.q.shape[:-1], dtype=x.compute_dtype)
    for part in parts(layouts, per_head, x):
        written = output_buffer(out[part.samples, part.heads], x.compute_dtype)
        for prepared, schedules, _ in projection_passes(part, x):
            _forward_part(prepared, schedules, written, lse[part.samples, part.heads, :, None])
        copy_back(written, out[part.samples, part.heads])
    return out, lse


def _forward_part(
    prepared: PreparedOperands, schedules: list[TileSchedule], out: Tensor, lse: Tensor
) -> None:
    operands = (Operand.of(prepared.q), prepared.keys, Operand.of(out), Operand.of(lse))
    scale, dropout = prepared.scalar(prepared.x.q.shape[-1] ** -0.5 / LN2), prepared.dropout()
    for schedule in schedules:
        n_tiles, tile = schedule.rows.shape
        products = 2 * tile * int(schedule.sizes.sum()) * prepared.width

        def run(start: int, stop: int, schedule: TileSchedule = schedule) -> None:
            forward_tiles(*operands, schedule, dropout, prepared.n_heads, prepared.width, scale, start, stop)

        parallel_for(run, n_tiles * prepared.n_slices, max(TASK_PRODUCTS // max(products, 1), 1))


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
    layouts: Sequence[Layout], per_head: bool, x: Inputs, grad: Tensor, out: Tensor, lse: Tensor
) -> Gradients:
    """Gradients of all inputs."""
    total = Gradients.zeros(x)
    for part in parts(layouts, per_head, x):
        for prepared, schedules, through_global in projection_passes(part, x):
            dq, dk, dv = total.projections(through_global)
            target = dq[part.samples, part.heads]
            written = output_buffer(target, x.compute_dtype)
            prepared_keys = [_zeros_for(prepared, *pair) for pair in ((prepared.k, dk), (prepared.v, dv))]
            shape = (*prepared.q.shape[:2], prepared.keys.n_extra, prepared.width)
            extra_slots = [torch.zeros(shape, dtype=x.compute_dtype) for _ in prepared_keys]
            _backward_part(
                prepared, schedules, grad, out, lse, written, prepared.as_keys(*prepared_keys, *extra_slots)
            )
            copy_back(written, target)
            if x.global_q is not None and not through_global:  # of these, nobody asked the ordinary query
                target[:, :, part.layout.tokens[part.layout.dense]] = 0.0
            learned = (total.extra_k, total.extra_v)
            for into in zip((dk, dv), learned, prepared_keys, extra_slots, strict=True):
                _copy_back_keys(prepared, *into)
    return total


def _zeros_for(prepared: PreparedOperands, prepared_keys: Tensor, whole: Tensor) -> Tensor:
    """Where gradients of keys are summed: their place, or zeros where the keys were staged."""
    in_place = prepared.visible is None and prepared.layout.order is None
    mine = whole[prepared.part.samples, prepared.part.heads]
    return (
        mine
        if in_place and is_kernel_ready(mine, prepared.x.compute_dtype)
        else torch.zeros_like(prepared_keys)
    )


def _backward_part(
    prepared: PreparedOperands,
    schedules: list[TileSchedule],
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    d_keys: Keys,
) -> None:
    log = lse[prepared.part.samples, prepared.part.heads, :, None]
    operands = (
        Operand.of(prepared.q), prepared.keys, Operand.of(prepared.by_token(out)), Operand.of(log),
        Operand.of(prepared.by_token(grad)), Operand.of(dq), d_keys,
    )  # fmt: skip
    softmax_scale = prepared.x.q.shape[-1] ** -0.5
    scales, dropout = (
        (prepared.scalar(softmax_scale / LN2), prepared.scalar(softmax_scale)),
        prepared.dropout(),
    )
    for schedule in schedules:

        def run(start: int, stop: int, schedule: TileSchedule = schedule) -> None:
            backward_tiles(
                *operands, schedule, dropout, prepared.n_heads, prepared.width, *scales, start, stop
            )

        parallel_for(run, prepared.n_slices)


def _copy_back_keys(
    prepared: PreparedOperands, target: Tensor, learned: Tensor, prepared_keys: Tensor, extra_slots: Tensor
) -> None:
    """Gradients of keys by slot and of those behind them → keys and learned tokens."""
    layout, part = prepared.layout, prepared.part
    if len(layout.global_slots):
        prepared_keys.index_add_(2, layout.global_slots, extra_slots[:, :, -len(layout.global_slots) :])
    width = target.shape[-1]
    if layout.n_extra:
        learned[part.heads] += extra_slots[:, :, : layout.n_extra, :width].sum(0)
    mine = target[part.samples, part.heads]
    if prepared_keys.data_ptr() == mine.data_ptr():
        return
    prepared_keys = layout.unpermute(prepared_keys[..., :width])
    if prepared.visible is not None:
        prepared_keys = prepared_keys.masked_fill(~prepared.visible[:, None, :, None], 0.0)
    mine.copy_(prepared_keys)
