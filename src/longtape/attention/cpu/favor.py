"""Runs the loops of `favor_tiles.py`: states of runs of keys, then the queries; backward in the other order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longtape.attention.cpu.favor_tiles import (
    NO_MAX,
    TASK_TOKENS,
    Features,
    Flags,
    State,
    keys_backward,
    keys_forward,
    queries_backward,
    queries_forward,
)
from longtape.attention.cpu.simd import ROWS, Operand, padded, parallel_for
from longtape.attention.operators.memory_layout import empty_by_tokens


class _StateTensors(NamedTuple):
    """A state, or its gradient: Σ φ(k_j) v_j, Σ φ(k_j), relative to 2^top."""

    kv: Tensor  # [G, m', D'], G = B·H
    k_sum: Tensor  # [G, m']
    maximum: Tensor  # [G]

    @property
    def state(self) -> State:
        return State(self.kv.numpy(), self.k_sum.numpy())


def forward(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the logs of the normalisers, and the state of the keys."""
    wide, n_heads = _compute_dtype(q), q.shape[1]
    features, key, value = _features(directions, wide), _kernel_ready(k), _kernel_ready(v)
    n_runs, groups = -(-k.shape[2] // TASK_TOKENS), q.shape[0] * n_heads
    runs = _zero_state(n_runs * groups, features, wide)
    maxima = torch.full((n_runs, groups), NO_MAX, dtype=wide)
    keys = (Operand.of(key), Operand.of(value), _padding_flags(visible), features, maxima.numpy(), runs.state)
    parallel_for(lambda *tasks: keys_forward(*keys, k.shape[2], n_heads, *tasks), n_runs * groups)
    kv = _merge_tasks(runs, maxima)
    out, norm = empty_by_tokens(q, wide), torch.empty(*q.shape[:3], 1, dtype=wide)
    queries = (Operand.of(_kernel_ready(q)), Operand.of(out), Operand.of(norm), features, kv.state)
    parallel_for(
        lambda *tasks: queries_forward(*queries, q.shape[2], n_heads, *tasks),
        -(-q.shape[2] // TASK_TOKENS) * groups,
    )
    return out.to(q.dtype), norm, *kv


def backward(
    grad: Tensor,
    norm: Tensor,
    kv: Tensor,
    k_sum: Tensor,
    maximum: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the queries with the state, then over the keys with the gradient of the state."""
    wide, n_heads, groups = _compute_dtype(q), q.shape[1], q.shape[0] * q.shape[1]
    features, n_runs = _features(directions, wide), -(-q.shape[2] // TASK_TOKENS)
    dq, dk, dv = (empty_by_tokens(x, wide) for x in (q, k, v))
    shares = _zero_state(n_runs * groups, features, wide)
    queries = (
        Operand.of(_kernel_ready(q)), Operand.of(norm), Operand.of(_kernel_ready(grad)), Operand.of(dq), features,
        _StateTensors(kv, k_sum, maximum).state, shares.state,
    )  # fmt: skip
    parallel_for(lambda *tasks: queries_backward(*queries, q.shape[2], n_heads, *tasks), n_runs * groups)
    d_state = _merge_tasks(shares, torch.zeros(n_runs, groups, dtype=wide))
    keys = (
        Operand.of(_kernel_ready(k)), Operand.of(_kernel_ready(v)), _padding_flags(visible), Operand.of(dk),
        Operand.of(dv), features, maximum.numpy(), d_state.state,
    )  # fmt: skip
    parallel_for(
        lambda *tasks: keys_backward(*keys, k.shape[2], n_heads, *tasks),
        -(-k.shape[2] // TASK_TOKENS) * groups,
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _merge_tasks(runs: _StateTensors, maxima: Tensor) -> _StateTensors:
    """The runs of each head [R·G, …] added up, relative to the largest of their maxima [R, G].

    By numpy: after a parallel operation torch's threads keep their cores busy for milliseconds, which ours then miss.
    """
    maximum = maxima.numpy().max(0)
    shrink = np.exp2(maxima.numpy() - maximum)[..., None]
    kv, k_sum = (x.unflatten(0, maxima.shape).numpy() for x in (runs.kv, runs.k_sum))
    merged = ((kv * shrink[..., None]).sum(0), (k_sum * shrink).sum(0), maximum)
    return _StateTensors(*(torch.from_numpy(x) for x in merged))


def _features(directions: Tensor, wide: torch.dtype) -> Features:
    (m, width), scalar = directions.shape, np.float64 if wide == torch.float64 else np.float32
    scaled = torch.zeros(padded_shape(directions, wide), dtype=wide)
    scaled[:m, :width] = directions.to(wide) * width**-0.25
    norm_gradient, tiny = width**-0.5, torch.finfo(wide).tiny
    weight = (scaled / math.log(2)).numpy()
    return Features(
        weight,
        scaled.numpy(),
        m,
        width,
        scalar(norm_gradient / math.log(2) / 2),
        scalar(norm_gradient),
        scalar(tiny),
    )


def padded_shape(directions: Tensor, wide: torch.dtype) -> tuple[int, int]:
    """m and D up to whole blocks of `gemm`."""
    m, width = directions.shape
    return -(-m // ROWS) * ROWS, padded(width, wide)


def _zero_state(count: int, features: Features, wide: torch.dtype) -> _StateTensors:
    m, width = features.weight.shape
    state = _StateTensors(
        *(torch.empty(shape, dtype=wide) for shape in ((count, m, width), (count, m), (count,)))
    )
    for x in state:
        x.numpy().fill(0)
    return state


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _kernel_ready(x: Tensor) -> Tensor:
    """x as the loops can read it: itself, unless it is narrow or its rows are no runs of numbers."""
    x = x.to(_compute_dtype(x))
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _padding_flags(visible: Tensor | None) -> Flags:
    return np.empty((0, 0), np.uint8) if visible is None else (~visible).to(torch.uint8).numpy()
