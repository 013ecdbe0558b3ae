"""The compiled loops of Performer: tiles of 64 tokens whose features never leave the cache.

The tokens of a tile stand in the lanes: features are [m, tokens], so that maxima, exponentials and normalisers are one
operation on every lane. Exponents are in units of log 2. A state is Σ_j φ(k_j) v_j [m, D] and its count Σ_j φ(k_j) [m],
relative to a maximum. Features are computed again in the backward pass, normalised at once by the kept `norm`: the log
of the largest feature of a query times its normaliser.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, exp2, prefetch, product, summing

TOKENS = 64  # of a tile
RUN = 2048  # tokens of a task; sums over tokens are taken by run, whichever thread works on it
NOTHING = -1e30  # the maximum over no keys
FAR = 1e38  # less this, every exponent is below any maximum
_ZERO = np.float32(0.0)

Flags = npt.NDArray[np.uint8]


class Features(NamedTuple):
    """φ(x) = 2^(weight·x − half·|x|²), and the derivative of its natural logarithm: back − pull·x."""

    weight: Array  # [m', D'], zeros behind m and D, up to whole blocks of `product`
    back: Array  # the same
    m: int
    width: int  # D
    half: Any  # a scalar of the array's type, as are the others
    pull: Any
    tiny: Any  # the least normaliser


class State(NamedTuple):
    """Sums over tokens, or their gradients, of G heads or runs of heads."""

    sums: Array  # [G, m', D']
    counts: Array  # [G, m']


class Tile(NamedTuple):
    """Up to 64 tokens of a head."""

    b: int
    h: int
    first: int
    size: int


@compiled
def sum_keys(
    k: Operand, v: Operand, hidden: Flags, features: Features, tops: Array, state: State, n: int, n_heads: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """States of runs relative to their largest exponents `tops` [R, B·H], which come in as NOTHING, the states as 0.

    Here and below a task is a run of one head, task = run·B·H + sample·H + head.
    """
    rows, turned, f = _room(features)
    shift, largest = _lanes(features), _lanes(features)
    for task in range(start, stop):
        run, piece = task // tops.shape[1], task % tops.shape[1]
        sums, counts, top = state.sums[task], state.counts[task], tops[run, piece]
        for first in range(run * RUN, min(run * RUN + RUN, n), TOKENS):
            tile = Tile(piece // n_heads, piece % n_heads, first, min(TOKENS, n - first))
            _project(k, hidden, features, tile, rows, turned, f)
            _lower_keys(features, turned, hidden, tile, shift)
            _find_largest(f, features.m, shift, largest)
            higher = max(top, largest.max())
            if higher > top:
                sums *= exp2(top - higher)
                counts *= exp2(top - higher)
                top = higher
            shift += top
            _raise(f, features.m, shift)
            _take(v, hidden, tile, features.width, rows)
            _times(f, rows, sums, TOKENS, True)
            _count(f, features.m, counts)
        tops[run, piece] = top


@compiled
def ask_queries(
    q: Operand, out: Operand, norm: Operand, features: Features, state: State, n: int, n_heads: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Outputs φ(q)·S over φ(q)·count, and the log of the queries' normalisers."""
    rows, turned, f = _room(features)
    largest, total, nobody = _lanes(features), _lanes(features), np.empty((0, 0), np.uint8)
    for task in range(start, stop):
        run, piece = task // len(state.sums), task % len(state.sums)
        for first in range(run * RUN, min(run * RUN + RUN, n), TOKENS):
            tile = Tile(piece // n_heads, piece % n_heads, first, min(TOKENS, n - first))
            _project(q, nobody, features, tile, rows, turned, f)
            total[:] = 0.0
            _find_largest(f, features.m, total, largest)
            _raise(f, features.m, largest)
            _meet(f, state.counts[piece], features.m, total)
            _turned_times(f, state.sums[piece], rows, False)
            _finish(out, norm, features, tile, rows, largest, total)


@compiled
def queries_backward(
    q: Operand, norm: Operand, grad: Operand, dq: Operand, features: Features, state: State,
    d_state: State, n: int, n_heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dq, and for each run its share of the gradient of the state (which comes in as 0).

    With φ normalised: dS = φᵀdO, d ln φ = φ∘(dO·Sᵀ − (dO·O)·count).
    """
    rows, turned, f = _room(features)
    _, _, df = _room(features)
    shift, pull, nobody = _lanes(features), _lanes(features), np.empty((0, 0), np.uint8)
    for task in range(start, stop):
        run, piece = task // len(state.sums), task % len(state.sums)
        sums, counts = state.sums[piece], state.counts[piece]
        for first in range(run * RUN, min(run * RUN + RUN, n), TOKENS):
            tile = Tile(piece // n_heads, piece % n_heads, first, min(TOKENS, n - first))
            _project(q, nobody, features, tile, rows, turned, f)
            _take_norm(norm, tile, shift)
            _raise(f, features.m, shift)
            _take(grad, nobody, tile, features.width, rows)
            _turn(rows, features.width, turned)
            _times(sums, turned, df, features.width, False)
            _pull(f, df, features.m, pull)
            _times(f, rows, d_state.sums[task], TOKENS, True)
            _count_times(f, pull, features.m, d_state.counts[task])
            _differentiate_queries(f, df, counts, pull, features.m)
            _turned_times(df, features.back, rows, False)
            _put(dq, tile, features.width, rows)


@compiled
def keys_backward(
    k: Operand, v: Operand, hidden: Flags, dk: Operand, dv: Operand, features: Features, tops: Array, d_state: State,
    n: int, n_heads: int, start: int, stop: int,
) -> None:  # fmt: skip
    """dk and dv from the gradient of the state relative to `tops` [B·H]: dV = φ·dS, d ln φ = φ∘(V·dSᵀ + d_count)."""
    rows, turned, f = _room(features)
    keys, _, df = _room(features)
    shift, total = _lanes(features), _lanes(features)
    for task in range(start, stop):
        run, piece = task // len(tops), task % len(tops)
        for first in range(run * RUN, min(run * RUN + RUN, n), TOKENS):
            tile = Tile(piece // n_heads, piece % n_heads, first, min(TOKENS, n - first))
            _project(k, hidden, features, tile, keys, turned, f)
            _lower_keys(features, turned, hidden, tile, shift)
            shift += tops[piece]
            _raise(f, features.m, shift)
            _take(v, hidden, tile, features.width, rows)
            _turn(rows, features.width, turned)
            _times(d_state.sums[piece], turned, df, features.width, False)
            _turned_times(f, d_state.sums[piece], rows, False)
            _put(dv, tile, features.width, rows)
            _differentiate_keys(f, df, d_state.counts[piece], features.m, total)
            _finish_keys(dk, features, tile, df, keys, rows, total)


# --- tiles of tokens ---


@compiled
def _room(features: Features) -> tuple[Array, Array, Array]:
    """Room for a tile: rows [TOKENS, D'], turned [D', TOKENS] and features [m', TOKENS]."""
    m, width = features.weight.shape
    kind = features.weight.dtype
    return np.zeros((TOKENS, width), kind), np.empty((width, TOKENS), kind), np.empty((m, TOKENS), kind)


@compiled
def _lanes(features: Features) -> Array:
    return np.empty(TOKENS, features.weight.dtype)


@compiled
def _take(x: Operand, hidden: Flags, tile: Tile, width: int, rows: Array) -> None:
    """The tile's rows of x, zeros for tokens that are hidden or behind the end."""
    at = tile.b * x.sample + tile.h * x.head + tile.first * x.token
    _fetch(x, at + TOKENS * x.token, width)
    for i in range(TOKENS):
        if i >= tile.size or (hidden.size and hidden[tile.b, tile.first + i]):
            rows[i, :] = 0.0
        else:
            source = x.data[at + i * x.token :]
            for d in range(width):
                rows[i, d] = source[d]


@compiled
def _fetch(x: Operand, at: int, width: int) -> None:
    """Ask for the next tile: rows of one head lie too far apart to be foreseen. Behind the end it does nothing."""
    line = 64 // x.data.itemsize
    for i in range(TOKENS):
        for d in range(0, width, line):
            prefetch(x.data, at + i * x.token + d)


@compiled
def _put(x: Operand, tile: Tile, width: int, rows: Array) -> None:
    at = tile.b * x.sample + tile.h * x.head + tile.first * x.token
    _fetch(x, at + TOKENS * x.token, width)
    for i in range(tile.size):
        place = x.data[at + i * x.token :]
        for d in range(width):
            place[d] = rows[i, d]


@compiled
def _turn(rows: Array, width: int, turned: Array) -> None:
    for d in range(width):
        for i in range(TOKENS):
            turned[d, i] = rows[i, d]


@compiled
def _times(a: Array, b: Array, c: Array, depth: int, add: bool) -> None:
    """C = A[:, :depth]·B[:depth], added to C where `add`."""
    product(a, 0, a.shape[1], 1, b, 0, b.shape[1], c, 0, c.shape[1], c.shape[0], c.shape[1], depth, add)


@compiled
def _turned_times(a: Array, b: Array, c: Array, add: bool) -> None:
    """C = Aᵀ·B, added to C where `add`."""
    product(a, 0, 1, a.shape[1], b, 0, b.shape[1], c, 0, c.shape[1], c.shape[0], c.shape[1], a.shape[0], add)


# --- features ---


@compiled
def _project(
    x: Operand, hidden: Flags, features: Features, tile: Tile, rows: Array, turned: Array, f: Array
) -> None:
    """Rows of x, the same turned, and f = weight·x."""
    _take(x, hidden, tile, features.width, rows)
    _turn(rows, features.width, turned)
    _times(features.weight, turned, f, features.width, False)


@compiled
def _lower_keys(features: Features, turned: Array, hidden: Flags, tile: Tile, shift: Array) -> None:
    """What to subtract from the exponents of keys: half·|k|²."""
    shift[:] = 0.0
    for d in range(features.width):
        for i in range(TOKENS):
            shift[i] += turned[d, i] * turned[d, i]
    for i in range(TOKENS):
        shift[i] *= features.half
        if i >= tile.size or (hidden.size and hidden[tile.b, tile.first + i]):
            shift[i] = FAR


@compiled
def _find_largest(f: Array, m: int, shift: Array, largest: Array) -> None:
    """The largest exponent of each token. Adding 0 keeps LLVM from masked stores, for which the next load waits."""
    largest[:] = -FAR
    for j in range(m):
        for i in range(TOKENS):
            exponent = f[j, i]
            largest[i] = (exponent if exponent > largest[i] else largest[i]) + _ZERO
    for i in range(TOKENS):
        largest[i] -= shift[i]


@compiled
def _raise(f: Array, m: int, shift: Array) -> None:
    """Exponents → features. Rows behind m stay 0, what the zeros of the weight made them."""
    for j in range(m):
        for i in range(TOKENS):
            f[j, i] = exp2(f[j, i] - shift[i])


@compiled
def _meet(f: Array, counts: Array, m: int, total: Array) -> None:
    """Add φ·count to the total of each token."""
    for j in range(m):
        for i in range(TOKENS):
            total[i] += f[j, i] * counts[j]


@summing
def _count(f: Array, m: int, counts: Array) -> None:
    """Add the sums of features over the tile."""
    for j in range(m):
        for i in range(TOKENS):
            counts[j] += f[j, i]


@summing
def _count_times(f: Array, weights: Array, m: int, counts: Array) -> None:
    for j in range(m):
        for i in range(TOKENS):
            counts[j] += f[j, i] * weights[i]


# --- results ---


@compiled
def _finish(
    out: Operand, norm: Operand, features: Features, tile: Tile, rows: Array, largest: Array, total: Array
) -> None:
    """Divide by the normalisers and write. One that underflows gives the gradient nothing: its norm is FAR."""
    at = tile.b * out.sample + tile.h * out.head + tile.first * out.token
    _fetch(out, at + TOKENS * out.token, features.width)
    norm_at = tile.b * norm.sample + tile.h * norm.head + tile.first * norm.token
    for i in range(tile.size):
        seen = total[i] >= features.tiny
        norm.data[norm_at + i * norm.token] = largest[i] + np.log2(total[i]) if seen else FAR
        total[i] = total[i] if seen else features.tiny
        place = out.data[at + i * out.token :]
        for d in range(features.width):
            place[d] = rows[i, d] / total[i]


@compiled
def _take_norm(norm: Operand, tile: Tile, shift: Array) -> None:
    at = tile.b * norm.sample + tile.h * norm.head + tile.first * norm.token
    for i in range(TOKENS):
        shift[i] = norm.data[at + i * norm.token] if i < tile.size else FAR


@compiled
def _pull(f: Array, df: Array, m: int, pull: Array) -> None:
    """−dO·O of each token, O being φ·S."""
    pull[:] = 0.0
    for j in range(m):
        for i in range(TOKENS):
            pull[i] -= f[j, i] * df[j, i]


@compiled
def _differentiate_queries(f: Array, df: Array, counts: Array, pull: Array, m: int) -> None:
    """Gradient of ln φ from that of the features' sums."""
    for j in range(m):
        for i in range(TOKENS):
            df[j, i] = (df[j, i] + counts[j] * pull[i]) * f[j, i]


@compiled
def _differentiate_keys(f: Array, df: Array, d_counts: Array, m: int, total: Array) -> None:
    """The same, and its sum over the features of each token."""
    total[:] = 0.0
    for j in range(m):
        for i in range(TOKENS):
            df[j, i] = (df[j, i] + d_counts[j]) * f[j, i]
            total[i] += df[j, i]


@compiled
def _finish_keys(
    dk: Operand, features: Features, tile: Tile, df: Array, keys: Array, rows: Array, total: Array
) -> None:
    """dk = d ln φ·back − (Σ d ln φ)·pull·k."""
    _turned_times(df, features.back, rows, False)
    for i in range(tile.size):
        pull = features.pull * total[i]
        for d in range(features.width):
            rows[i, d] -= pull * keys[i, d]
    _put(dk, tile, features.width, rows)
