"""Reformer's hash on a CPU: 64 tokens stand in the lanes, and their rotated coordinates never leave the first cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longtape.attention.cpu.simd import Array, Operand, compiled, gemm, parallel_for, prefetch
from longtape.attention.operators.lsh_buckets import AXES, digits_of

TILE = 64  # in the lanes
TASK_TOKENS = 1024  # tokens of a task


def hash_tokens(q: Tensor, rotations: Tensor, visible: Tensor | None, size: int) -> Tensor:
    """The buckets of `lsh_hash.hash_tokens`."""
    batch, heads, n, _ = q.shape
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    wide = wide if wide.stride(-1) == 1 else wide.contiguous()
    bucket = torch.empty(batch, heads, rotations.shape[1], n, dtype=torch.int64)
    whole = np.empty(0, np.int64 if wide.dtype == torch.float64 else np.int32)
    operands = (
        Operand.of(wide),
        rotations.to(wide.dtype).contiguous().numpy(),
        _digit_widths(visible, batch, n, size),
    )
    parallel_for(
        lambda start, stop: _hash_runs(*operands, bucket.numpy(), whole, start, stop),
        batch * heads * -(-n // TASK_TOKENS),
    )
    if visible is not None:
        bucket.masked_fill_(~visible[:, None, None], 2 ** sum(digits_of(n, size)))
    return bucket


def _digit_widths(visible: Tensor | None, batch: int, n: int, size: int) -> npt.NDArray[np.int64]:
    """Bits of each sample's digits, [B, digits]; 0 = no such digit."""
    counts = [n] * batch if visible is None else visible.sum(-1).tolist()
    widths = np.zeros((batch, len(digits_of(n, size))), np.int64)
    for b, count in enumerate(counts):
        mine = digits_of(count, size)
        widths[b, : len(mine)] = mine
    return widths


@compiled
def _hash_runs(
    q: Operand, rotations: Array, widths: npt.NDArray[np.int64], bucket: npt.NDArray[np.int64],
    whole: npt.NDArray[Any], start: int, stop: int,
) -> None:  # fmt: skip
    """Buckets of runs start … stop − 1 of all samples and heads; `whole` has integers as wide as the floats."""
    heads, n_rounds, columns, depth = rotations.shape
    n = bucket.shape[3]
    transposed, rotated = np.empty((depth, TILE), q.data.dtype), np.empty((AXES, TILE), q.data.dtype)
    nearest = np.empty(TILE, whole.dtype)
    runs = -(-n // TASK_TOKENS)
    for task in range(start, stop):
        group, run = task // runs, task % runs
        b, h = group // heads, group % heads
        for first in range(run * TASK_TOKENS, min((run + 1) * TASK_TOKENS, n), TILE):
            count = min(TILE, n - first)
            _transpose(q, b * q.sample + h * q.head + first * q.token, count, transposed)
            for r in range(n_rounds):
                codes = bucket[b, h, r, first : first + count]
                codes[:] = 0
                for digit, width in enumerate(widths[b]):
                    if width == 0:
                        break
                    half, at = 1 << (width - 1), ((h * n_rounds + r) * columns + digit * AXES) * depth
                    gemm(
                        rotations, at, depth, 1, transposed, 0, TILE,
                        rotated, 0, TILE, half, TILE, depth, False,
                    )  # fmt: skip
                    _nearest_axis(rotated.view(whole.dtype), half, nearest)
                    for i in range(count):
                        codes[i] = (codes[i] << width) | nearest[i]


@compiled
def _transpose(q: Operand, at: int, count: int, transposed: Array) -> None:
    """Rows of q → [D, TOKENS], zeros in idle lanes; asks for the rows behind them."""
    depth, line = len(transposed), 64 // transposed.itemsize
    if count < TILE:
        transposed[:, :] = 0.0
    for i in range(count):
        for d in range(0, depth, line):
            prefetch(q.data, at + (i + TILE) * q.token + d)
        row = q.data[at + i * q.token :]
        for d in range(depth):
            transposed[d, i] = row[d]


@compiled
def _nearest_axis(bits: npt.NDArray[Any], half: int, nearest: npt.NDArray[Any]) -> None:
    """`reformer.nearest_axis` over the first `half` rows."""
    kind = nearest.dtype.type
    low = 2 * half - 1
    magnitude, negative, none = kind(np.iinfo(nearest.dtype).max - low), kind(half), kind(0)
    nearest[:] = none
    for a in range(half):
        row, axis = bits[a], kind(a)
        for i in range(TILE):
            signed = (row[i] & magnitude) | axis | (negative if row[i] < none else none)
            nearest[i] = max(nearest[i], signed)
    for i in range(TILE):
        nearest[i] &= kind(low)
