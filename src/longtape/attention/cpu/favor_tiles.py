"""The compiled loops of Performer: tiles of 64 tokens whose features never leave the cache.

The tokens of a tile stand in the lanes: features are [m, tokens], so that maxima, exponentials and normalisers are one
operation on every lane. Exponents are in units of log 2. A state is kv = Σ_j φ(k_j) v_j [m, D] and k_sum = Σ_j φ(k_j)
[m], relative to a maximum. Features are computed again in the backward pass, normalised at once by the kept `norm`:
the log of the largest feature of a query times its normaliser.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, compiled_sum, exp2, gemm, prefetch

TILE = 64  # tokens, one a lane
TASK_TOKENS = 2048  # tokens of a task; sums over tokens are taken by task, whichever thread does it
NO_MAX = -1e30  # the maximum over no keys
MASKED_SHIFT = 1e38  # less this, every exponent is below any maximum
_ZERO = np.float32(0.0)

Flags = npt.NDArray[np.uint8]


class Features(NamedTuple):
    """φ(x) = 2^(weight·x − norm_scale·|x|²); ∇ ln φ = scaled_directions − norm_gradient·x."""

    weight: Array  # [m', D'], zeros behind m and D, up to whole blocks of `gemm`
    scaled_directions: Array  # the same
    m: int
    width: int  # D
    norm_scale: Any  # a scalar of the array's type, as are the others
    norm_gradient: Any
    tiny: Any  # the least normaliser


class State(NamedTuple):
    """Sums over tokens, or their gradients, of G heads or runs of heads."""

    kv: Array  # [G, m', D']
    k_sum: Array  # [G, m']


class Tile(NamedTuple):
    """Up to 64 tokens of a head."""

    b: int
    h: int
    first: int
    size: int


@compiled
def keys_forward(
    k: Operand, v: Operand, hidden: Flags, features: Features, maxima: Array, state: State, n: int, n_heads: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """States of runs relative to their largest exponents `maxima` [R, B·H], which come in as NO_MAX, the states as 0.

    Here and below a task is a run of one head, task = run·B·H + sample·H + head.
    """
    rows, transposed, f = _tile_buffers(features)
    shift, row_max = _lane_buffer(features), _lane_buffer(features)
    for task in range(start, stop):
        run, head_index = task // maxima.shape[1], task % maxima.shape[1]
        kv, k_sum, maximum = state.kv[task], state.k_sum[task], maxima[run, head_index]
        for first in range(run * TASK_TOKENS, min(run * TASK_TOKENS + TASK_TOKENS, n), TILE):
            tile = Tile(head_index // n_heads, head_index % n_heads, first, min(TILE, n - first))
            _project(k, hidden, features, tile, rows, transposed, f)
            _key_shift(features, transposed, hidden, tile, shift)
            _max_exponent(f, features.m, shift, row_max)
            new_maximum = max(maximum, row_max.max())
            if new_maximum > maximum:
                kv *= exp2(maximum - new_maximum)
                k_sum *= exp2(maximum - new_maximum)
                maximum = new_maximum
            shift += maximum
            _exponentiate(f, features.m, shift)
            _load_rows(v, hidden, tile, features.width, rows)
            _matmul(f, rows, kv, TILE, True)
            _add_feature_sums(f, features.m, k_sum)
        maxima[run, head_index] = maximum


@compiled
def queries_forward(
    q: Operand, out: Operand, norm: Operand, features: Features, state: State, n: int, n_heads: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Outputs φ(q)·kv over φ(q)·k_sum, and the log of the queries' normalisers."""
    rows, transposed, f = _tile_buffers(features)
    row_max, total, no_padding = _lane_buffer(features), _lane_buffer(features), np.empty((0, 0), np.uint8)
    for task in range(start, stop):
        run, head_index = task // len(state.kv), task % len(state.kv)
        for first in range(run * TASK_TOKENS, min(run * TASK_TOKENS + TASK_TOKENS, n), TILE):
            tile = Tile(head_index // n_heads, head_index % n_heads, first, min(TILE, n - first))
            _project(q, no_padding, features, tile, rows, transposed, f)
            total[:] = 0.0
            _max_exponent(f, features.m, total, row_max)
            _exponentiate(f, features.m, row_max)
            _add_normalizers(f, state.k_sum[head_index], features.m, total)
            _matmul_transposed(f, state.kv[head_index], rows, False)
            _normalize_and_store(out, norm, features, tile, rows, row_max, total)


@compiled
def queries_backward(
    q: Operand, norm: Operand, grad: Operand, dq: Operand, features: Features, state: State,
    d_state: State, n: int, n_heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dq, and for each run its share of the gradient of the state (which comes in as 0).

    With φ normalised: d_kv = φᵀdO, d ln φ = φ∘(dO·kvᵀ − (dO·O)·k_sum).
    """
    rows, transposed, f = _tile_buffers(features)
    _, _, df = _tile_buffers(features)
    shift, delta, no_padding = _lane_buffer(features), _lane_buffer(features), np.empty((0, 0), np.uint8)
    for task in range(start, stop):
        run, head_index = task // len(state.kv), task % len(state.kv)
        kv, k_sum = state.kv[head_index], state.k_sum[head_index]
        for first in range(run * TASK_TOKENS, min(run * TASK_TOKENS + TASK_TOKENS, n), TILE):
            tile = Tile(head_index // n_heads, head_index % n_heads, first, min(TILE, n - first))
            _project(q, no_padding, features, tile, rows, transposed, f)
            _load_norm(norm, tile, shift)
            _exponentiate(f, features.m, shift)
            _load_rows(grad, no_padding, tile, features.width, rows)
            _transpose(rows, features.width, transposed)
            _matmul(kv, transposed, df, features.width, False)
            _row_delta(f, df, features.m, delta)
            _matmul(f, rows, d_state.kv[task], TILE, True)
            _add_weighted_feature_sums(f, delta, features.m, d_state.k_sum[task])
            _query_feature_gradients(f, df, k_sum, delta, features.m)
            _matmul_transposed(df, features.scaled_directions, rows, False)
            _store_rows(dq, tile, features.width, rows)


@compiled
def keys_backward(
    k: Operand, v: Operand, hidden: Flags, dk: Operand, dv: Operand, features: Features, maxima: Array, d_state: State,
    n: int, n_heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dk and dv from the gradient of the state (`maxima` [B·H]): dV = φ·d_kv, d ln φ = φ∘(V·d_kvᵀ + d_k_sum)."""
    rows, transposed, f = _tile_buffers(features)
    keys, _, df = _tile_buffers(features)
    shift, total = _lane_buffer(features), _lane_buffer(features)
    for task in range(start, stop):
        run, head_index = task // len(maxima), task % len(maxima)
        for first in range(run * TASK_TOKENS, min(run * TASK_TOKENS + TASK_TOKENS, n), TILE):
            tile = Tile(head_index // n_heads, head_index % n_heads, first, min(TILE, n - first))
            _project(k, hidden, features, tile, keys, transposed, f)
            _key_shift(features, transposed, hidden, tile, shift)
            shift += maxima[head_index]
            _exponentiate(f, features.m, shift)
            _load_rows(v, hidden, tile, features.width, rows)
            _transpose(rows, features.width, transposed)
            _matmul(d_state.kv[head_index], transposed, df, features.width, False)
            _matmul_transposed(f, d_state.kv[head_index], rows, False)
            _store_rows(dv, tile, features.width, rows)
            _key_feature_gradients(f, df, d_state.k_sum[head_index], features.m, total)
            _store_key_gradients(dk, features, tile, df, keys, rows, total)


# --- tiles of tokens ---


@compiled
def _tile_buffers(features: Features) -> tuple[Array, Array, Array]:
    """Buffers of a tile: rows [TILE, D'], transposed [D', TILE] and features [m', TILE]."""
    m, width = features.weight.shape
    kind = features.weight.dtype
    return np.zeros((TILE, width), kind), np.empty((width, TILE), kind), np.empty((m, TILE), kind)


@compiled
def _lane_buffer(features: Features) -> Array:
    return np.empty(TILE, features.weight.dtype)


@compiled
def _load_rows(x: Operand, hidden: Flags, tile: Tile, width: int, rows: Array) -> None:
    """The tile's rows of x, zeros for tokens that are hidden or behind the end."""
    at = tile.b * x.sample + tile.h * x.head + tile.first * x.token
    _prefetch_tile(x, at + TILE * x.token, width)
    for i in range(TILE):
        if i >= tile.size or (hidden.size and hidden[tile.b, tile.first + i]):
            rows[i, :] = 0.0
        else:
            source = x.data[at + i * x.token :]
            for d in range(width):
                rows[i, d] = source[d]


@compiled
def _prefetch_tile(x: Operand, at: int, width: int) -> None:
    """Ask for the next tile: rows of one head lie too far apart to be foreseen. Behind the end it does nothing."""
    line = 64 // x.data.itemsize
    for i in range(TILE):
        for d in range(0, width, line):
            prefetch(x.data, at + i * x.token + d)


@compiled
def _store_rows(x: Operand, tile: Tile, width: int, rows: Array) -> None:
    at = tile.b * x.sample + tile.h * x.head + tile.first * x.token
    _prefetch_tile(x, at + TILE * x.token, width)
    for i in range(tile.size):
        place = x.data[at + i * x.token :]
        for d in range(width):
            place[d] = rows[i, d]


@compiled
def _transpose(rows: Array, width: int, transposed: Array) -> None:
    for d in range(width):
        for i in range(TILE):
            transposed[d, i] = rows[i, d]


@compiled
def _matmul(a: Array, b: Array, c: Array, depth: int, add: bool) -> None:
    """C = A[:, :depth]·B[:depth], added to C where `add`."""
    gemm(a, 0, a.shape[1], 1, b, 0, b.shape[1], c, 0, c.shape[1], c.shape[0], c.shape[1], depth, add)


@compiled
def _matmul_transposed(a: Array, b: Array, c: Array, add: bool) -> None:
    """C = Aᵀ·B, added to C where `add`."""
    gemm(a, 0, 1, a.shape[1], b, 0, b.shape[1], c, 0, c.shape[1], c.shape[0], c.shape[1], a.shape[0], add)


# --- features ---


@compiled
def _project(
    x: Operand, hidden: Flags, features: Features, tile: Tile, rows: Array, transposed: Array, f: Array
) -> None:
    """Rows of x, the same transposed, and f = weight·x."""
    _load_rows(x, hidden, tile, features.width, rows)
    _transpose(rows, features.width, transposed)
    _matmul(features.weight, transposed, f, features.width, False)


@compiled
def _key_shift(features: Features, transposed: Array, hidden: Flags, tile: Tile, shift: Array) -> None:
    """What to subtract from the exponents of keys: norm_scale·|k|²."""
    shift[:] = 0.0
    for d in range(features.width):
        for i in range(TILE):
            shift[i] += transposed[d, i] * transposed[d, i]
    for i in range(TILE):
        shift[i] *= features.norm_scale
        if i >= tile.size or (hidden.size and hidden[tile.b, tile.first + i]):
            shift[i] = MASKED_SHIFT


@compiled
def _max_exponent(f: Array, m: int, shift: Array, row_max: Array) -> None:
    """The largest exponent of each token. Adding 0 keeps LLVM from masked stores, for which the next load waits."""
    row_max[:] = -MASKED_SHIFT
    for j in range(m):
        for i in range(TILE):
            exponent = f[j, i]
            row_max[i] = (exponent if exponent > row_max[i] else row_max[i]) + _ZERO
    for i in range(TILE):
        row_max[i] -= shift[i]


@compiled
def _exponentiate(f: Array, m: int, shift: Array) -> None:
    """Exponents → features. Rows behind m stay 0, what the zeros of the weight made them."""
    for j in range(m):
        for i in range(TILE):
            f[j, i] = exp2(f[j, i] - shift[i])


@compiled
def _add_normalizers(f: Array, k_sum: Array, m: int, total: Array) -> None:
    """Add φ·k_sum to the normaliser of each token."""
    for j in range(m):
        for i in range(TILE):
            total[i] += f[j, i] * k_sum[j]


@compiled_sum
def _add_feature_sums(f: Array, m: int, k_sum: Array) -> None:
    """Add the sums of features over the tile."""
    for j in range(m):
        for i in range(TILE):
            k_sum[j] += f[j, i]


@compiled_sum
def _add_weighted_feature_sums(f: Array, weights: Array, m: int, k_sum: Array) -> None:
    for j in range(m):
        for i in range(TILE):
            k_sum[j] += f[j, i] * weights[i]


# --- results ---


@compiled
def _normalize_and_store(
    out: Operand, norm: Operand, features: Features, tile: Tile, rows: Array, row_max: Array, total: Array
) -> None:
    """Divide by the normalisers and write. One that underflows gives the gradient nothing: its norm is MASKED_SHIFT."""
    at = tile.b * out.sample + tile.h * out.head + tile.first * out.token
    _prefetch_tile(out, at + TILE * out.token, features.width)
    norm_at = tile.b * norm.sample + tile.h * norm.head + tile.first * norm.token
    for i in range(tile.size):
        seen = total[i] >= features.tiny
        norm.data[norm_at + i * norm.token] = row_max[i] + np.log2(total[i]) if seen else MASKED_SHIFT
        total[i] = total[i] if seen else features.tiny
        place = out.data[at + i * out.token :]
        for d in range(features.width):
            place[d] = rows[i, d] / total[i]


@compiled
def _load_norm(norm: Operand, tile: Tile, shift: Array) -> None:
    at = tile.b * norm.sample + tile.h * norm.head + tile.first * norm.token
    for i in range(TILE):
        shift[i] = norm.data[at + i * norm.token] if i < tile.size else MASKED_SHIFT


@compiled
def _row_delta(f: Array, df: Array, m: int, delta: Array) -> None:
    """−Σ dO∘O of each token, O being φ·kv."""
    delta[:] = 0.0
    for j in range(m):
        for i in range(TILE):
            delta[i] -= f[j, i] * df[j, i]


@compiled
def _query_feature_gradients(f: Array, df: Array, k_sum: Array, delta: Array, m: int) -> None:
    """Gradient of ln φ from that of the features' sums."""
    for j in range(m):
        for i in range(TILE):
            df[j, i] = (df[j, i] + k_sum[j] * delta[i]) * f[j, i]


@compiled
def _key_feature_gradients(f: Array, df: Array, d_counts: Array, m: int, total: Array) -> None:
    """The same, and its sum over the features of each token."""
    total[:] = 0.0
    for j in range(m):
        for i in range(TILE):
            df[j, i] = (df[j, i] + d_counts[j]) * f[j, i]
            total[i] += df[j, i]


@compiled
def _store_key_gradients(
    dk: Operand, features: Features, tile: Tile, df: Array, keys: Array, rows: Array, total: Array
) -> None:
    """dk = d ln φ·scaled_directions − (Σ d ln φ)·norm_gradient·k."""
    _matmul_transposed(df, features.scaled_directions, rows, False)
    for i in range(tile.size):
        delta = features.norm_gradient * total[i]
        for d in range(features.width):
            rows[i, d] -= delta * keys[i, d]
    _store_rows(dk, tile, features.width, rows)
