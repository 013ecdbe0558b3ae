"""Attention within sorted chunks and one chunk back, rounds joined: the compiled loops of Reformer.

A window is a chunk of queries and two chunks of keys, its own and the one before. Up to 64 queries stand in the lanes,
transposed to [D, queries]; keys are rows, multiplied with all queries in the lanes at once. A head is first packed
into a table with a row for every token, near memory to gather from. A row is both query and key: keys come to unit
length in the scores. The forward joins the rounds of a token by a running maximum and sum; the backward computes the
weights again from the log-sum-exp (Dao et al. 2022, arXiv:2205.14135). Scores and log-sum-exp are in units of log 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, compiled_sum, exp2, gemm, prefetch

LANES = 64  # queries at a time, fewer leave lanes idle
_PREFETCH_DISTANCE = (
    16  # rows that are asked for before they are read: a head's rows lie too far apart to be foreseen
)
_MASKED_SCORE = -1e30  # score of a key that an earlier round showed
_SELF_SCORE = -1e20  # score of a token's own key: beaten by any other, beats hidden ones
_NO_MAX = -2e30  # the maximum before any key
_MIN_NORM = 1e-12  # keys below this length stay below 1

Buckets = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


class LshParams(NamedTuple):
    """What all heads share; the scales are scalars of the arrays' type."""

    counts: npt.NDArray[np.int64]  # [B] tokens that are not hidden
    n_heads: int
    size: int  # tokens in a chunk
    depth: int  # D
    width: int  # D in whole vectors
    log2_scale: Any  # of the scores, 1/√D in units of log 2
    softmax_scale: Any  # 1/√D


class _Head(NamedTuple):
    """One head by token."""

    rows: Array  # [N, 3·width] q, v, and the output so far or the output's gradient
    inverse_norm: Array  # [N] 1/|q|
    chunk: Ints  # [N, R] chunk in every round


class _Window(NamedTuple):
    """Two chunks of a head: that before in the first `size` rows, the queries' own behind it."""

    rows: Array  # [2·size, 3·width]
    inverse_norm: Array  # [2·size]
    chunk: Ints  # [R, 2·size + lanes]
    transposed: Array  # [width, lanes] queries
    scores: Array  # [2·size, lanes], then weights


@compiled
def forward_heads(
    q: Operand, v: Operand, bucket: Buckets, out: Operand, lse: Array, order: Ints,
    params: LshParams, start: int, stop: int,
) -> None:  # fmt: skip
    """Outputs, log-sum-exp [B·H, N] and sorted tokens [B·H, R, N] of heads start … stop − 1; bucket [B·H, R, N].

    Outputs of hidden tokens stay as they are, as do their gradients below.
    """
    head, window = _allocate(order, lse, params)
    row_sum = np.empty(order.shape[2], lse.dtype)
    for group in range(start, stop):
        b, h = group // params.n_heads, group % params.n_heads
        n = params.counts[b]
        _counting_sort(bucket[group], order[group])
        _pack(head, q, v, b, h, order[group, :, :n], params)
        head.rows[:, 2 * params.width :], lse[group], row_sum[:] = 0.0, _NO_MAX, 0.0
        for r in range(order.shape[1]):
            _attend_round(head, window, order[group, r, :n], r, lse[group], row_sum, params)
        for token in range(len(row_sum)):
            if row_sum[token] > 0:  # else it is hidden
                _normalize_output(
                    head.rows[token, 2 * params.width :], row_sum[token], params.depth,
                    out.data[b * out.sample + h * out.head + token * out.token :],
                )  # fmt: skip
                lse[group, token] += np.log2(row_sum[token])


@compiled
def backward_heads(
    q: Operand, v: Operand, out: Operand, grad: Operand, lse: Array, order: Ints, dq: Operand, dv: Operand,
    params: LshParams, start: int, stop: int,
) -> None:  # fmt: skip
    """Gradients of q and v for heads start … stop − 1."""
    width, depth = params.width, params.depth
    head, window = _allocate(order, lse, params)
    sums, delta = np.empty_like(head.rows), np.empty(order.shape[2], lse.dtype)
    for group in range(start, stop):
        b, h = group // params.n_heads, group % params.n_heads
        n = params.counts[b]
        _pack(head, q, v, b, h, order[group, :, :n], params)
        _copy_head(grad, b, h, depth, head.rows, 2 * width, width)
        for token in range(len(delta)):
            found = out.data[b * out.sample + h * out.head + token * out.token :]
            delta[token] = _row_dot(head.rows[token, 2 * width : 2 * width + depth], found)
        sums[:, :] = 0.0
        for r in range(order.shape[1]):
            _round_backward(head, window, order[group, r, :n], r, lse[group], delta, sums, params)
        for token in range(len(delta)):
            if lse[group, token] > _MASKED_SCORE:  # else it is hidden
                _write_gradients(
                    head.rows[token], head.inverse_norm[token], sums[token], depth, width,
                    dq.data[b * dq.sample + h * dq.head + token * dq.token :],
                    dv.data[b * dv.sample + h * dv.head + token * dv.token :],
                )  # fmt: skip


# --- a head ---


@compiled
def _allocate(order: Ints, like: Array, params: LshParams) -> tuple[_Head, _Window]:
    (_, n_rounds, n_tokens), pitch, kind = order.shape, 3 * params.width, like.dtype
    head = _Head(
        np.empty((n_tokens, pitch), kind), np.empty(n_tokens, kind), np.empty((n_tokens, n_rounds), np.int32)
    )
    window = _Window(
        np.empty((2 * params.size, pitch), kind),
        np.empty(2 * params.size, kind),
        np.zeros((n_rounds, 2 * params.size + LANES), np.int32),
        np.empty((params.width, LANES), kind),
        np.empty((2 * params.size, LANES), kind),
    )
    return head, window


@compiled
def _counting_sort(bucket: Buckets, order: Ints) -> None:
    """Tokens [R, N] by rising bucket [R, N], then position: a counting sort."""
    for r in range(len(bucket)):
        buckets = bucket[r]
        position = np.zeros(buckets.max() + 2, np.int32)  # of the next token of each bucket
        for b in buckets:
            position[b + 1] += 1
        for b in range(1, len(position)):
            position[b] += position[b - 1]
        for token, b in enumerate(buckets):
            order[r, position[b]] = token
            position[b] += 1


@compiled
def _pack(head: _Head, q: Operand, v: Operand, b: int, h: int, order: Ints, params: LshParams) -> None:
    """The table of a head, whose tokens that are not hidden `order` [R, n] gives sorted."""
    width = params.width
    _copy_head(q, b, h, params.depth, head.rows, 0, width)
    _copy_head(v, b, h, params.depth, head.rows, width, width)
    for token in range(len(head.rows)):
        key = head.rows[token, :width]
        head.inverse_norm[token] = 1 / max(np.sqrt(_row_dot(key, key)), _MIN_NORM)
    for r in range(len(order)):
        for position, token in enumerate(order[r]):
            head.chunk[token, r] = position // params.size


@compiled
def _copy_head(x: Operand, b: int, h: int, depth: int, rows: Array, column: int, width: int) -> None:
    """A head of x into columns of `rows`, zeros behind D."""
    at, line = b * x.sample + h * x.head, 64 // rows.itemsize
    for token in range(len(rows)):
        for d in range(0, depth, line):
            prefetch(x.data, at + (token + _PREFETCH_DISTANCE) * x.token + d)
        row, to = x.data[at + token * x.token :], rows[token, column:]
        for d in range(depth):
            to[d] = row[d]
        for d in range(depth, width):
            to[d] = 0.0


@compiled_sum
def _row_dot(a: Array, b: Array) -> Any:
    row_sum = a[0] * b[0]
    for d in range(1, len(a)):
        row_sum += a[d] * b[d]
    return row_sum


@compiled
def _normalize_output(found: Array, row_sum: Any, depth: int, out: Array) -> None:
    for d in range(depth):
        out[d] = found[d] / row_sum


@compiled
def _write_gradients(
    row: Array, inverse_norm: Any, sums: Array, depth: int, width: int, dq: Array, dv: Array
) -> None:
    """A token's gradient as query, plus that as key less its part along the key; and that of its value."""
    along = _row_dot(row[:width], sums[width : 2 * width]) * inverse_norm * inverse_norm
    for d in range(depth):
        dq[d] = sums[d] + sums[width + d] - along * row[d]
    for d in range(depth):
        dv[d] = sums[2 * width + d]


# --- a round ---


@compiled
def _attend_round(
    head: _Head, window: _Window, order: Ints, r: int, row_max: Array, row_sum: Array, params: LshParams
) -> None:
    """Add what round r shows to outputs, maxima and sums of the tokens, which `order` [n] gives sorted."""
    size, width, pitch = params.size, params.width, 3 * params.width
    o, kind = np.empty((LANES, width), row_max.dtype), row_max.dtype
    window_max, window_sum = np.empty(LANES, kind), np.empty(LANES, kind)
    for start in range(0, len(order), size):
        tokens = order[start : start + size]
        first, stop = (0 if start else size), size + len(tokens)
        _prefetch_rows(head.rows, order[start + size : start + 2 * size])
        _advance_window(head, window, tokens, 2 * width, r)
        for lane in range(0, len(tokens), LANES):
            lane_tokens, query = tokens[lane : lane + LANES], size + lane
            _masked_scores(window, first, stop, query, len(lane_tokens), r, params)
            _softmax(window.scores[first:stop], window_max, window_sum)
            gemm(
                window.scores, first * LANES, 1, LANES, window.rows, first * pitch + width, pitch,
                o, 0, width, len(lane_tokens), width, stop - first, False,
            )  # fmt: skip
            _merge_online_softmax(
                head.rows[:, 2 * width :], lane_tokens, o, window_max, window_sum, row_max, row_sum
            )


@compiled
def _round_backward(
    head: _Head,
    window: _Window,
    order: Ints,
    r: int,
    lse: Array,
    delta: Array,
    sums: Array,
    params: LshParams,
) -> None:
    """Add the gradients of round r to `sums` [N, 3·width]: of q as query, of q/|q| over |q|, of v.

    dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O)/√D, dQ = dS·K, dK = dSᵀ·Q. A chunk's sums are complete after the next window.
    """
    size, width, pitch = params.size, params.width, 3 * params.width
    transposed, ds = np.empty_like(window.transposed), np.empty_like(window.scores)
    window_gradients, lse_rows, delta_rows = (
        np.zeros_like(window.rows),
        np.zeros(LANES, lse.dtype),
        np.zeros(LANES, lse.dtype),
    )
    for start in range(0, len(order), size):
        tokens = order[start : start + size]
        first, stop = (0 if start else size), size + len(tokens)
        keys, n = first * pitch, stop - first
        _prefetch_rows(head.rows, order[start + size : start + 2 * size])
        _prefetch_rows(sums, order[start + size : start + 2 * size])
        _advance_window(head, window, tokens, pitch, r)
        _shift_rows(window_gradients, pitch)
        window_gradients[size:] = 0.0
        for lane in range(0, len(tokens), LANES):
            lane_tokens, query = tokens[lane : lane + LANES], (size + lane) * pitch
            for i in range(len(lane_tokens)):
                lse_rows[i], delta_rows[i] = lse[lane_tokens[i]], delta[lane_tokens[i]]
            _masked_scores(window, first, stop, size + lane, len(lane_tokens), r, params)
            _transpose(window.rows[size + lane :, 2 * width :], len(lane_tokens), transposed)
            gemm(
                window.rows, keys + width, pitch, 1, transposed, 0, LANES,
                ds, first * LANES, LANES, n, LANES, width, False,
            )  # fmt: skip
            _softmax_backward(
                window.scores[first:stop],
                ds[first:stop],
                window.inverse_norm[first:stop],
                lse_rows,
                delta_rows,
                params,
            )
            gemm(
                ds, first * LANES, 1, LANES, window.rows, keys, pitch,
                window_gradients, query, pitch, len(lane_tokens), width, n, False,
            )  # fmt: skip
            gemm(
                ds, first * LANES, LANES, 1, window.rows, query, pitch,
                window_gradients, keys + width, pitch, n, width, len(lane_tokens), True,
            )  # fmt: skip
            gemm(
                window.scores, first * LANES, LANES, 1, window.rows, query + 2 * width, pitch,
                window_gradients, keys + 2 * width, pitch, n, width, len(lane_tokens), True,
            )  # fmt: skip
        if start:
            _scatter_add(window_gradients[:size], order[start - size : start], sums)
    last = max(len(order) - 1, 0) // size * size
    _scatter_add(window_gradients[size:], order[last:], sums)


# --- a window ---


@compiled
def _advance_window(head: _Head, window: _Window, tokens: Ints, columns: int, n_earlier: int) -> None:
    """The queries' chunk becomes the chunk before; `tokens` come in its place."""
    size = len(window.inverse_norm) // 2
    _shift_rows(window.rows, columns)
    for j in range(size):
        window.inverse_norm[j] = window.inverse_norm[size + j]
    for r in range(n_earlier):
        chunks = window.chunk[r]
        for j in range(size):
            chunks[j] = chunks[size + j]
    for j in range(len(tokens)):
        row, to = head.rows[tokens[j]], window.rows[size + j]
        for d in range(columns):
            to[d] = row[d]
        window.inverse_norm[size + j] = head.inverse_norm[tokens[j]]
        for r in range(n_earlier):
            window.chunk[r, size + j] = head.chunk[tokens[j], r]


@compiled
def _prefetch_rows(rows: Array, tokens: Ints) -> None:
    """Ask for the rows of tokens that come next."""
    line, pitch = 64 // rows.itemsize, rows.shape[1]
    for token in tokens:
        for d in range(0, pitch, line):
            prefetch(rows, token * pitch + d)


@compiled
def _shift_rows(rows: Array, columns: int) -> None:
    """The second half of the rows → the first."""
    size = len(rows) // 2
    for j in range(size):
        row, to = rows[size + j], rows[j]
        for d in range(columns):
            to[d] = row[d]


@compiled
def _transpose(rows: Array, count: int, transposed: Array) -> None:
    """The first `count` rows → [width, lanes], zeros in idle lanes."""
    if count < transposed.shape[1]:
        transposed[:, :] = 0.0
    for i in range(count):
        row = rows[i]
        for d in range(len(transposed)):
            transposed[d, i] = row[d]


@compiled
def _masked_scores(
    window: _Window, first: int, stop: int, query: int, count: int, n_earlier: int, params: LshParams
) -> None:
    """Scores of the keys in rows first … stop − 1 for `count` queries from row `query` on."""
    width, pitch, scores = params.width, 3 * params.width, window.scores
    _transpose(window.rows[query:], count, window.transposed)
    gemm(
        window.rows, first * pitch, pitch, 1, window.transposed, 0, LANES,
        scores, first * LANES, LANES, stop - first, LANES, width, False,
    )  # fmt: skip
    for j in range(first, stop):
        s, factor = scores[j], params.log2_scale * window.inverse_norm[j]
        for i in range(LANES):
            s[i] *= factor
        for r in range(n_earlier):
            key, queries = window.chunk[r, j], window.chunk[r, query:]
            for i in range(LANES):
                if np.uint32(queries[i] - key) <= 1:
                    s[i] = _MASKED_SCORE
        if not n_earlier and query <= j < query + LANES:  # later rounds hide it, as met
            s[j - query] = _SELF_SCORE


@compiled
def _softmax(scores: Array, row_max: Array, row_sum: Array) -> None:
    """Scores [keys, lanes] → weights relative to their maxima `row_max`, and their sums."""
    row_max[:], row_sum[:] = _NO_MAX, 0.0
    for j in range(len(scores)):
        s = scores[j]
        for i in range(LANES):
            row_max[i] = max(row_max[i], s[i])
    for j in range(len(scores)):
        s = scores[j]
        for i in range(LANES):
            weight = exp2(s[i] - row_max[i])
            s[i] = weight
            row_sum[i] += weight


@compiled
def _merge_online_softmax(
    rows: Array, tokens: Ints, o: Array, window_max: Array, window_sum: Array, row_max: Array, row_sum: Array
) -> None:
    """Add a window's outputs `o`, relative to `window_max`, to those of the tokens, relative to `row_max`."""
    keep, new_max = np.zeros_like(window_max), np.empty_like(window_max)
    for i in range(len(tokens)):
        keep[i] = row_max[tokens[i]]
    for i in range(LANES):
        new_max[i] = max(keep[i], window_max[i])
        keep[i], window_max[i] = exp2(keep[i] - new_max[i]), exp2(window_max[i] - new_max[i])
    for i in range(len(tokens)):
        token, old, new = tokens[i], keep[i], window_max[i]
        row, window_row = rows[token], o[i]
        row_max[token] = new_max[i]
        row_sum[token] = row_sum[token] * old + window_sum[i] * new
        for d in range(len(window_row)):
            row[d] = row[d] * old + window_row[d] * new


@compiled
def _softmax_backward(
    scores: Array, d_scores: Array, inverse_norm: Array, lse_rows: Array, delta_rows: Array, params: LshParams
) -> None:
    """Scores and dP → weights and dS over |key|."""
    for j in range(len(scores)):
        s, ds, factor = scores[j], d_scores[j], params.softmax_scale * inverse_norm[j]
        for i in range(LANES):
            weight = exp2(s[i] - lse_rows[i])
            s[i] = weight
            ds[i] = weight * (ds[i] - delta_rows[i]) * factor


@compiled
def _scatter_add(window_gradients: Array, tokens: Ints, sums: Array) -> None:
    """The sums of a chunk that no later window of the round adds to."""
    for j in range(len(tokens)):
        row, to = window_gradients[j], sums[tokens[j]]
        for d in range(len(row)):
            to[d] += row[d]
