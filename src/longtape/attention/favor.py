"""Performer's attention φ(Q)(φ(K)ᵀV), normalised: on CPU an operator over compiled loops, elsewhere tensor operations.

What the operator keeps for its backward pass grows with N·D: its inputs, and one number for each query.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longtape.attention.favor_loops import (
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
from longtape.attention.favor_tensors import favor_causal_in_tensors, favor_in_tensors
from longtape.attention.simd import ROWS, Operand, in_threads, padded


def favor(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None) -> Tensor:
    """FAVOR+ of q [B, H, N, D], k and v [B, H, M, D] with directions [m, D]; visible [B, M] → [B, H, N, D]."""
    if q.device.type != "cpu":
        return favor_in_tensors(q, k, v, directions, visible)
    out: Tensor = _operator(q, k, v, directions, visible)[0]
    return out


def favor_causal(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None = None
) -> Tensor:
    """The same over keys j ≤ i."""
    return favor_causal_in_tensors(q, k, v, directions, visible)


class _Sums(NamedTuple):
    """A state, or its gradient: Σ φ(k_j) v_j, Σ φ(k_j), relative to 2^top."""

    sums: Tensor  # [G, m', D'], G = B·H
    counts: Tensor  # [G, m']
    top: Tensor  # [G]

    @property
    def state(self) -> State:
        return State(self.sums.numpy(), self.counts.numpy())


@torch.library.custom_op("longtape::favor", mutates_args=())
def _operator(
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
    out, norm = _empty_like(q, wide), torch.empty(*q.shape[:3], 1, dtype=wide)
    asked = (Operand.of(_readable(q)), Operand.of(out), Operand.of(norm), features, sums.state)
    in_threads(
        lambda *tasks: ask_queries(*asked, q.shape[2], n_heads, *tasks), -(-q.shape[2] // RUN) * groups
    )
    return out.to(q.dtype), norm, *sums


@_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide, (m, width), groups = _wide(q), _filled(directions, _wide(q)), q.shape[0] * q.shape[1]
    shapes = [(*q.shape[:3], 1), (groups, m, width), (groups, m), (groups,)]
    norm, sums, counts, top = (q.new_empty(shape, dtype=wide) for shape in shapes)
    return _empty_like(q, q.dtype), norm, sums, counts, top


@torch.library.custom_op("longtape::favor_backward", mutates_args=())
def _backward_operator(
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
    dq, dk, dv = (_empty_like(x, wide) for x in (q, k, v))
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


@_backward_operator.register_fake
def _(
    grad: Tensor,
    norm: Tensor,
    sums: Tensor,
    counts: Tensor,
    top: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q, q.dtype), _empty_like(k, k.dtype), _empty_like(v, v.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:], *inputs)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors), None, None


_operator.register_autograd(_differentiate, setup_context=_save)


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
    back = torch.zeros(_filled(directions, wide), dtype=wide)
    back[:m, :width] = directions.to(wide) * width**-0.25
    pull, tiny = width**-0.5, torch.finfo(wide).tiny
    weight = (back / math.log(2)).numpy()
    return Features(
        weight, back.numpy(), m, width, scalar(pull / math.log(2) / 2), scalar(pull), scalar(tiny)
    )


def _filled(directions: Tensor, wide: torch.dtype) -> tuple[int, int]:
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


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, N, D] laid out by tokens, as the projections are."""
    b, h, n, d = x.shape
    return x.new_empty(b, n, h, d, dtype=dtype).transpose(1, 2)


def _hidden(visible: Tensor | None) -> Flags:
    return np.empty((0, 0), np.uint8) if visible is None else (~visible).to(torch.uint8).numpy()
