"""Exact attention in tiles: O(N) memory by an online softmax, and a backward that recomputes what it needs.

The algorithm of FlashAttention (Dao et al. 2022, algorithms 1 and 4) in plain tensor operations. The fused kernels are
faster; this one can be read, works for every dtype, and carries dropout on the attention weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longtape.attention.pattern import hash32

TILE = 512  # queries and keys per tile: a tile of scores for 8 heads is 8 MiB in float32


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ/√D)V and the log-sum-exp of each row's scaled scores.

    q [B, H, N, D], k and v [B, H, M, D], visible [B, M] bool → [B, H, N, D], [B, H, N]. Causal: key j ≤ query i.
    A row that sees nothing is zero with log-sum-exp −∞. `dropout` acts on the weights, scaled by 1/(1 − dropout).
    """
    seed = int(torch.randint(2**31, ())) if dropout else 0
    out, lse = _Tiled.apply(q, k, v, visible, causal, dropout, seed, tile)
    return out, lse


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, *options: Any) -> Any:
        out, lse = forward_tiles(q, k, v, visible, *options)
        ctx.save_for_backward(q, k, v, visible, out, lse)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (*backward_tiles(grads[0], *ctx.saved_tensors, *ctx.options), None, None, None, None, None)


def forward_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    dropout: float,
    seed: int,
    tile: int,
) -> tuple[Tensor, Tensor]:
    """For each tile of queries: running maximum m, running sum l and unnormalised output a over the key tiles."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=wide)
    for rows in _spans(q.shape[2], tile):
        m = torch.full((*q.shape[:2], rows.stop - rows.start, 1), float("-inf"), dtype=wide, device=q.device)
        l, a = torch.zeros_like(m), torch.zeros_like(out[:, :, rows], dtype=wide)  # noqa: E741 (the paper's name)
        for keys in _spans(rows.stop if causal else k.shape[2], tile, k.shape[2]):
            s = _scores(q, k, visible, rows, keys, causal)
            new_m = torch.maximum(m, s.amax(-1, keepdim=True))
            shift = new_m.masked_fill(new_m == float("-inf"), 0.0)  # −∞ − −∞ would be NaN
            p, decay = (s - shift).exp(), (m - shift).exp()
            l = l * decay + p.sum(-1, keepdim=True)  # noqa: E741
            a = a * decay + _drop(p, dropout, seed, rows, keys) @ v[:, :, keys].to(wide)
            m = new_m
        out[:, :, rows] = (a / l.masked_fill(l == 0, 1.0)).to(out.dtype)
        lse[:, :, rows] = (m + l.log()).squeeze(-1)
    return out, lse


def backward_tiles(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    dropout: float,
    seed: int,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """P = exp(S − LSE) again, tile by tile; dV = PᵀdO, dS = P∘(dOVᵀ − Σ dO∘O), dQ = dS·K/√D, dK = dSᵀ·Q/√D."""
    wide, scale = lse.dtype, q.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
    shift = lse.masked_fill(lse == float("-inf"), 0.0)[..., None]
    for rows in _spans(q.shape[2], tile):
        g = grad[:, :, rows].to(wide)
        delta = (g * out[:, :, rows].to(wide)).sum(-1, keepdim=True)
        for keys in _spans(rows.stop if causal else k.shape[2], tile, k.shape[2]):
            p = (_scores(q, k, visible, rows, keys, causal) - shift[:, :, rows]).exp()
            dv[:, :, keys] += _drop(p, dropout, seed, rows, keys).transpose(-2, -1) @ g
            dp = _drop(g @ v[:, :, keys].to(wide).transpose(-2, -1), dropout, seed, rows, keys)
            ds = p * (dp - delta) * scale
            dq[:, :, rows] += ds @ k[:, :, keys].to(wide)
            dk[:, :, keys] += ds.transpose(-2, -1) @ q[:, :, rows].to(wide)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _spans(stop: int, tile: int, limit: int | None = None) -> Iterator[slice]:
    stop = stop if limit is None else min(stop, limit)
    for start in range(0, stop, tile):
        yield slice(start, min(start + tile, stop))


def _scores(q: Tensor, k: Tensor, visible: Tensor | None, rows: slice, keys: slice, causal: bool) -> Tensor:
    s = (q[:, :, rows] @ k[:, :, keys].transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32))
    s = s * q.shape[-1] ** -0.5
    if visible is not None:
        s = s.masked_fill(~visible[:, None, None, keys], float("-inf"))
    if causal and keys.stop > rows.start + 1:
        i = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
        s = s.masked_fill(torch.arange(keys.start, keys.stop, device=q.device) > i, float("-inf"))
    return s


def _drop(p: Tensor, dropout: float, seed: int, rows: slice, keys: slice) -> Tensor:
    """Inverted dropout whose mask depends on (seed, tile) alone, so that the backward meets the same one."""
    if not dropout:
        return p
    generator = torch.Generator(p.device).manual_seed(int(hash32(seed, rows.start, keys.start)))
    kept = torch.rand(p.shape, generator=generator, device=p.device) >= dropout
    return p * kept / (1.0 - dropout)
