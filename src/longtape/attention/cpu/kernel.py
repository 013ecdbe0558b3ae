"""Block-sparse attention on CPU: brings tensors, masks and lists into the form that `flash_tiles.py` takes.

Queries, keys, values and gradients are used where they lie. Only what the loops cannot read is copied into a tensor of
its own: narrower dtypes (widened to float32), head widths that are no whole vectors (filled up with zeros), keys that a
layout reorders. Keys that padding hides become zero once, before all else, as do their gradients at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longtape.attention.base import mask_heads
from longtape.attention.cpu.flash_tiles import (
    Dropout,
    Gradients,
    Keys,
    Problem,
    TileSchedule,
    backward_tiles,
    forward_tiles,
)
from longtape.attention.cpu.layout import Layout, table_layout
from longtape.attention.cpu.schedule import Scheduled, schedule_dense, schedule_layout, schedule_pattern
from longtape.attention.cpu.simd import Operand, padded, parallel_for
from longtape.attention.operators.inputs import Inputs
from longtape.attention.pattern import Pattern, hash32

LN2 = log(2.0)
TASK_PRODUCTS = 1 << 24  # products of numbers in a task of the forward: some tenths of a millisecond


class InputGradients(NamedTuple):
    """What a backward gives, in the order of `Inputs`; of what was not there, an empty tensor."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra_k: Tensor
    extra_v: Tensor
    global_q: Tensor
    global_k: Tensor
    global_v: Tensor

    @classmethod
    def zeros(cls, x: Inputs) -> InputGradients:
        """Like the inputs; q's are written and not added to."""
        rest = (x.extra_k, x.extra_v, x.global_q, x.global_k, x.global_v)
        more = (x.q.new_zeros(0) if y is None else torch.zeros_like(y) for y in rest)
        return cls(torch.empty_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v), *more)


def forward(x: Inputs) -> tuple[Tensor, Tensor]:
    """Output like q [B, H, N, D] and log-sum-exp [B, H, N] in units of log 2."""
    x = _mask_keys(x)
    out, lse = torch.empty_like(x.q), x.q.new_empty(x.q.shape[:-1], dtype=compute_dtype(x))
    for part in parts(x):
        buffer = output_buffer(part.of(out), compute_dtype(x))
        for operands, schedules in projection_passes(part, x):
            _forward_pass(operands, schedules, operands.problem(buffer, part.of(lse)))
        copy_back(buffer, part.of(out))
    return out, lse


def _forward_pass(operands: PreparedOperands, schedules: list[TileSchedule], problem: Problem) -> None:
    for schedule in schedules:
        n_tiles, tile = schedule.rows.shape
        products = 2 * tile * int(schedule.sizes.sum()) * problem.width

        def run(start: int, stop: int, schedule: TileSchedule = schedule) -> None:
            forward_tiles(problem, schedule, start, stop)

        parallel_for(run, n_tiles * operands.n_slices, max(TASK_PRODUCTS // max(products, 1), 1))


def backward(x: Inputs, grad: Tensor, out: Tensor, lse: Tensor) -> InputGradients:
    """Gradients of all inputs."""
    total = InputGradients.zeros(x)
    x = _mask_keys(x)
    for part in parts(x):
        for operands, schedules in projection_passes(part, x):
            _backward_pass(operands, schedules, total, grad, operands.problem(part.of(out), part.of(lse)))
    if x.visible is not None:
        for d in (total.k, total.v, total.global_k, total.global_v):
            if d.numel():
                d.masked_fill_(~x.visible[:, None, :, None], 0.0)
    return total


def _backward_pass(
    operands: PreparedOperands,
    schedules: list[TileSchedule],
    total: InputGradients,
    grad: Tensor,
    problem: Problem,
) -> None:
    x, part = operands.x, operands.part
    through_global = operands.through_global
    dq, dk, dv = (
        part.of(d)
        for d in ((total.global_q, total.global_k, total.global_v) if through_global else total[:3])
    )
    buffer = output_buffer(dq, compute_dtype(x))
    keys = KeyGradients(operands, dk, dv)
    d = Gradients(
        Operand.of(kernel_ready(part.of(grad), compute_dtype(x))), Operand.of(buffer), keys.as_keys()
    )
    for schedule in schedules:

        def run(start: int, stop: int, schedule: TileSchedule = schedule) -> None:
            backward_tiles(problem, d, schedule, start, stop)

        parallel_for(run, operands.n_slices)
    copy_back(buffer, dq)
    if x.global_q is not None and not through_global:  # of these, nobody asked the ordinary query
        dq[:, :, part.layout.tokens[part.layout.dense]] = 0.0
    keys.copy_back(total)


# --- what is computed together ---


def compute_dtype(x: Inputs) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(x.q.dtype, torch.float32)


def _mask_keys(x: Inputs) -> Inputs:
    """Keys and values that padding hides become zero; without padding, no mask."""
    if x.visible is None or bool(x.visible.all()):
        return x._replace(visible=None)
    x = x._replace(k=mask_heads(x.k, x.visible), v=mask_heads(x.v, x.visible))
    if x.global_k is None or x.global_v is None:
        return x
    return x._replace(global_k=mask_heads(x.global_k, x.visible), global_v=mask_heads(x.global_v, x.visible))


@dataclass(frozen=True)
class Part:
    """The samples and heads of one layout; `number` tells the parts of a call apart."""

    number: int
    scheduled: Scheduled
    samples: slice
    heads: slice

    @property
    def layout(self) -> Layout:
        """Which keys its queries see."""
        return self.scheduled.layout

    def of(self, x: Tensor) -> Tensor:
        """Its part of x [B, H, …]."""
        return x[self.samples, self.heads]


def parts(x: Inputs) -> Iterator[Part]:
    """Cut [B, H]: one layout for all, one for each sample, or (by a table for each head) one for each of both."""
    found, per_head = _scheduled(x)
    batch, heads = x.q.shape[:2]
    b, h = (batch if len(found) == 1 else 1), (1 if per_head else heads)
    cells = [(s, t) for s in range(0, batch, b) for t in range(0, heads, h)]
    for number, (s, t) in enumerate(cells):
        yield Part(number, found[number % len(found)], slice(s, s + b), slice(t, t + h))


def _scheduled(x: Inputs) -> tuple[list[Scheduled], bool]:
    """The schedules of a call, and whether there is one for each head."""
    n, dtype = x.q.shape[2], compute_dtype(x)
    if not x.rules:
        return [schedule_dense(n, x.k.shape[2], dtype)], False
    if x.table is not None:
        pattern, dense = Pattern.from_ints(x.rules), list(x.dense)
        tables = x.table.cpu().flatten(0, -3) if x.table.dim() > 2 else x.table.cpu()[None]
        layouts = [table_layout(t, n, pattern.block_size, pattern.causal, dense) for t in tables]
        return [schedule_layout(layout, dtype) for layout in layouts], x.table.dim() > 2
    n_extra = 0 if x.extra_k is None else x.extra_k.shape[1]
    named = [()] if x.positions is None else [tuple(row) for row in x.positions.tolist()]
    own = x.global_q is not None
    return [schedule_pattern(tuple(x.rules), n, n_extra, row, own, dtype) for row in named], False


def projection_passes(part: Part, x: Inputs) -> Iterator[tuple[PreparedOperands, list[TileSchedule]]]:
    """What is computed through which projections: tiles and dense queries, together or each through their own."""
    _, tiled, dense = part.scheduled
    if x.global_q is None:
        yield PreparedOperands(part, x), tiled + dense
        return
    yield PreparedOperands(part, x), tiled
    if dense:
        yield PreparedOperands(part, x, through_global=True), dense


class PreparedOperands:
    """The operands of one part, with its own or (`through_global`) with the projections of the global queries."""

    def __init__(self, part: Part, x: Inputs, through_global: bool = False) -> None:
        self.part, self.x, self.through_global = part, x, through_global
        q, k, v = x.global_projections() if through_global else (x.q, x.k, x.v)
        extra = (None, None) if through_global else (x.extra_k, x.extra_v)
        self.q, self.k, self.v = kernel_ready(part.of(q), compute_dtype(x)), self.by_slot(k), self.by_slot(v)
        self.extra_k, self.extra_v = self.extra_slots(k, extra[0]), self.extra_slots(v, extra[1])
        self.n_slices = self.q.shape[0] * self.q.shape[1]

    def by_slot(self, source: Tensor) -> Tensor:
        """The part of keys or values by the layout's slots."""
        source, order = self.part.of(source), self.part.layout.order
        return kernel_ready(
            source if order is None else source[:, :, order.clamp(min=0)], compute_dtype(self.x)
        )

    def extra_slots(self, source: Tensor, learned: Tensor | None) -> Tensor:
        """Learned keys or values, then copies of single global tokens."""
        layout = self.part.layout
        both = self.part.of(source)[:, :, layout.tokens[layout.global_slots]]
        if learned is not None:
            both = torch.cat([learned[self.part.heads].expand(len(both), -1, -1, -1), both], 2)
        return kernel_ready(both, compute_dtype(self.x))

    def problem(self, out: Tensor, lse: Tensor) -> Problem:
        """In the form of the loops, with the part's output and log-sum-exp."""
        depth, dtype = self.x.q.shape[-1], compute_dtype(self.x)
        out = kernel_ready(out, dtype)
        return Problem(
            Operand.of(self.q), self.as_keys(self.k, self.v, self.extra_k, self.extra_v), Operand.of(out),
            Operand.of(lse[..., None]), self.q.shape[1], padded(depth, dtype),
            self.scalar(depth**-0.5 / LN2), self.scalar(depth**-0.5), self.dropout(),
        )  # fmt: skip

    def dropout(self) -> Dropout:
        """In the form of the loops."""
        rate, seed = self.x.dropout, 0
        if rate and self.x.seed is not None:
            seed = int(hash32(self.x.seed, self.part.number))
        return Dropout(int(rate * 2**32), seed, self.scalar(1 / (1 - rate)))

    def scalar(self, value: float) -> np.generic:
        """In the dtype of the loops, so that they need not widen."""
        return np.float64(value) if compute_dtype(self.x) == torch.float64 else np.float32(value)

    def as_keys(self, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Keys:
        """Keys and values by slot, or where their gradients go."""
        return Keys(
            Operand.of(k), Operand.of(v), Operand.of(extra_k), Operand.of(extra_v),
            k.shape[2], self.part.layout.n_padded, extra_k.shape[2], self._hidden(),
        )  # fmt: skip

    def _hidden(self) -> npt.NDArray[np.uint8]:
        """[B, slots] what padding hides, if it hides anything."""
        if self.x.visible is None:
            return np.empty((0, 0), np.uint8)
        layout = self.part.layout
        hidden = ~self.x.visible[self.part.samples]
        by_slot = hidden[:, layout.tokens.clamp(min=0)] & (layout.tokens >= 0)
        learned = by_slot.new_zeros(len(by_slot), layout.n_extra)
        return torch.cat([by_slot, learned, by_slot[:, layout.global_slots]], 1).to(torch.uint8).numpy()


class KeyGradients:
    """Where a pass sums the gradients of keys and values: in place, or by slot where the keys were copied."""

    def __init__(self, operands: PreparedOperands, dk: Tensor, dv: Tensor) -> None:
        self.operands, self.layout, self.targets = operands, operands.part.layout, (dk, dv)
        self.by_slot = [self._zeros(k, d) for k, d in zip((operands.k, operands.v), (dk, dv), strict=True)]
        self.extra = [torch.zeros_like(operands.extra_k), torch.zeros_like(operands.extra_v)]

    def _zeros(self, keys: Tensor, target: Tensor) -> Tensor:
        in_place = self.layout.order is None and is_kernel_ready(target, keys.dtype)
        return target if in_place else torch.zeros_like(keys)

    def as_keys(self) -> Keys:
        """In the form of the loops."""
        return self.operands.as_keys(*self.by_slot, *self.extra)

    def copy_back(self, total: InputGradients) -> None:
        """Gradients by slot and of extra slots → keys and learned tokens."""
        copies, n_extra = self.layout.global_slots, self.layout.n_extra
        learned, heads = (total.extra_k, total.extra_v), self.operands.part.heads
        for target, of_learned, d, extra in zip(self.targets, learned, self.by_slot, self.extra, strict=True):
            if len(copies):
                d.index_add_(2, copies, extra[:, :, -len(copies) :])
            if n_extra:
                of_learned[heads] += extra[:, :, :n_extra, : target.shape[-1]].sum(0)
            if d.data_ptr() != target.data_ptr():
                target.copy_(self.layout.unpermute(d[..., : target.shape[-1]]))


# --- tensors as the loops take them ---


def is_kernel_ready(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the loops can work on it where it lies."""
    return x.dtype == dtype and x.shape[-1] == padded(x.shape[-1], dtype) and x.stride(-1) == 1


def kernel_ready(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Itself, or a copy that the loops can read."""
    if is_kernel_ready(x, dtype):
        return x
    copy = output_buffer(x, dtype)
    copy[..., : x.shape[-1]] = x
    return copy


def output_buffer(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Where the loops write what belongs into `target`: itself, or a tensor beside it."""
    if is_kernel_ready(target, dtype):
        return target
    return torch.zeros(*target.shape[:-1], padded(target.shape[-1], dtype), dtype=dtype)


def copy_back(buffer: Tensor, target: Tensor) -> None:
    """What `output_buffer` gave → its place."""
    if buffer.data_ptr() != target.data_ptr():
        target.copy_(buffer[..., : target.shape[-1]])
