"""Runs the loops of `favor_loops.py`: sums over the keys by run, then the queries; the same way back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longtape.attention.cpu.favor_loops import (
    NOTHING,
    RUN,
    Features,
    Flags,
    State,
    ask_queries,
    keys_backward,
    queries_backward,
    sum_keys,
)
from longtape.attention.cpu.simd import ROWS, Operand, in_threads, padded
from longtape.attention.memory_layout import empty_by_tokens


class _Sums(NamedTuple):
    """A state, or its gradient: Σ φ(k_j) v_j, Σ φ(k_j), relative to 2^top."""

    sums: Tensor  # [G, m', D'], G = B·H
    counts: Tensor  # [G, m']
    top: Tensor  # [G]

    @property
    def state(self) -> State:
        return State(self.sums.numpy(), self.counts.numpy())


def forward(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the logs of the normalisers, and the state of the keys."""
    wide, n_heads = _wide(q), q.shape[1]
    features, key, value = _features(directions, wide), _readable(k), _readable(v)
    n_runs, groups = -(-k.shape[2] // RUN), q.shape[0] * n_heads
    runs = _zeros(n_runs * groups, features, wide)
    tops = torch.full((n_runs, groups), NOTHING, dtype=wide)
    keys = (Operand.of(key), Operand.of(value), _hidden(visible), features, tops.numpy(), runs.state)
    in_threads(lambda *tasks: sum_keys(*keys, k.shape[2], n_heads, *tasks), n_runs * groups)
    sums = _merge(runs, tops)
    out, norm = empty_by_tokens(q, wide), torch.empty(*q.shape[:3], 1, dtype=wide)
    asked = (Operand.of(_readable(q)), Operand.of(out), Operand.of(norm), features, sums.state)
    in_threads(
        lambda *tasks: ask_queries(*asked, q.shape[2], n_heads, *tasks), -(-q.shape[2] // RUN) * groups
    )
    return out.to(q.dtype), norm, *sums


def backward(
    grad: Tensor,
    norm: Tensor,
    sums: Tensor,
    counts: Tensor,
    top: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the queries with the state, then over the keys with the gradient of the state."""
    wide, n_heads, groups = _wide(q), q.shape[1], q.shape[0] * q.shape[1]
    features, n_runs = _features(directions, wide), -(-q.shape[2] // RUN)
    dq, dk, dv = (empty_by_tokens(x, wide) for x in (q, k, v))
    shares = _zeros(n_runs * groups, features, wide)
    queries = (
        Operand.of(_readable(q)), Operand.of(norm), Operand.of(_readable(grad)), Operand.of(dq), features,
        _Sums(sums, counts, top).state, shares.state,
    )  # fmt: skip
    in_threads(lambda *tasks: queries_backward(*queries, q.shape[2], n_heads, *tasks), n_runs * groups)
    d_sums = _merge(shares, torch.zeros(n_runs, groups, dtype=wide))
    keys = (
        Operand.of(_readable(k)), Operand.of(_readable(v)), _hidden(visible), Operand.of(dk), Operand.of(dv), features,
        top.numpy(), d_sums.state,
    )  # fmt: skip
    in_threads(
        lambda *tasks: keys_backward(*keys, k.shape[2], n_heads, *tasks), -(-k.shape[2] // RUN) * groups
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _merge(runs: _Sums, tops: Tensor) -> _Sums:
    """The runs of each head [R·G, …] added up, relative to the largest of their tops [R, G].

    By numpy: after a parallel operation torch's threads keep their cores busy for milliseconds, which ours then miss.
    """
    top = tops.numpy().max(0)
    shrink = np.exp2(tops.numpy() - top)[..., None]
    sums, counts = (x.unflatten(0, tops.shape).numpy() for x in (runs.sums, runs.counts))
    merged = ((sums * shrink[..., None]).sum(0), (counts * shrink).sum(0), top)
    return _Sums(*(torch.from_numpy(x) for x in merged))


def _features(directions: Tensor, wide: torch.dtype) -> Features:
    (m, width), scalar = directions.shape, np.float64 if wide == torch.float64 else np.float32
    back = torch.zeros(filled(directions, wide), dtype=wide)
    back[:m, :width] = directions.to(wide) * width**-0.25
    pull, tiny = width**-0.5, torch.finfo(wide).tiny
    weight = (back / math.log(2)).numpy()
    return Features(
        weight, back.numpy(), m, width, scalar(pull / math.log(2) / 2), scalar(pull), scalar(tiny)
    )


def filled(directions: Tensor, wide: torch.dtype) -> tuple[int, int]:
    """m and D up to whole blocks of `product`."""
    m, width = directions.shape
    return -(-m // ROWS) * ROWS, padded(width, wide)


def _zeros(count: int, features: Features, wide: torch.dtype) -> _Sums:
    m, width = features.weight.shape
    room = _Sums(*(torch.empty(shape, dtype=wide) for shape in ((count, m, width), (count, m), (count,))))
    for x in room:
        x.numpy().fill(0)
    return room


def _wide(x: Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _readable(x: Tensor) -> Tensor:
    """x as the loops can read it: itself, unless it is narrow or its rows are no runs of numbers."""
    x = x.to(_wide(x))
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _hidden(visible: Tensor | None) -> Flags:
    return np.empty((0, 0), np.uint8) if visible is None else (~visible).to(torch.uint8).numpy()
