"""Attention within sorted chunks and one chunk back, rounds joined: the compiled loops of Reformer's kernel.

A window is a chunk of queries and the keys of two chunks. Up to 64 queries stand in the lanes, turned to [D, queries].
A head is first packed into one table with a row for every token, so that windows gather from near memory; a token's row
is gathered once a round and serves as query and as key, for keys are brought to unit length in the scores. The forward
joins the rounds of a token by a running maximum and sum; the backward computes the weights again from the log-sum-exp
(Dao et al. 2022, arXiv:2205.14135). Scores and log-sum-exp are in units of log 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.simd import Array, Operand, compiled, exp2, prefetch, product, summing

AHEAD = 16
LANES = 64  # queries at a time
_HIDDEN = -1e30  # score of a key that was met in an earlier round
_ITSELF = -1e20  # score of a token's own key: beaten by any other, beats hidden ones
_SHORTEST = 1e-12  # shorter keys are not stretched to unit length

Ints = npt.NDArray[np.int32]


class Setting(NamedTuple):
    """What all heads share."""

    n_heads: int
    size: int  # tokens in a chunk
    depth: int  # D
    width: int  # D in whole vectors
    scale: Any  # of the scores, a scalar of the arrays' type
    natural: Any
    counts: npt.NDArray[np.int64]  # [B] tokens that are not hidden


class _Head(NamedTuple):
    """One head, a row for every token."""

    rows: Array  # [N, 3·width] q, v and the output so far; backward: q, v and the output's gradient
    inverse: Array  # [N] 1/|q|
    chunk: Ints  # [N, R] chunk of the token in every round


class _Window(NamedTuple):
    """Two chunks: that before the queries' own in rows 0 … size − 1, their own behind it."""

    rows: Array  # [2·size, 3·width]
    inverse: Array  # [2·size]
    chunk: Ints  # [R, 2·size + LANES]
    turned: Array  # [width, LANES] queries
    scores: Array  # [2·size, LANES]


@compiled
def forward_heads(
    q: Operand, v: Operand, bucket: npt.NDArray[np.int64], out: Operand, lse: Array, order: Ints,
    setting: Setting, start: int, stop: int,
) -> None:  # fmt: skip
    """Outputs, log-sum-exp [B·H, N] and order [B·H, R, N] of heads start … stop − 1, from buckets [B·H, R, N]."""
    n_rounds, n_tokens, width = order.shape[1], order.shape[2], setting.width
    head, window = _empty_head(n_tokens, n_rounds, width, lse), _empty_window(setting, n_rounds, lse)
    total = np.empty(n_tokens, lse.dtype)
    for group in range(start, stop):
        b, h = group // setting.n_heads, group % setting.n_heads
        n = setting.counts[b]
        sort_tokens(bucket[group], order[group])
        _pack(head, q, v, b, h, order[group], n, setting)
        head.rows[:, 2 * width :], lse[group], total[:] = 0.0, 2 * _HIDDEN, 0.0
        for r in range(n_rounds):
            _look(head, window, order[group, r, :n], r, lse[group], total, setting)
        _finish(head, b, h, out, lse[group], total, setting)


@compiled
def _finish(head: _Head, b: int, h: int, out: Operand, lse: Array, total: Array, setting: Setting) -> None:
    """Divide by the sums of the weights; hidden tokens, which nobody asked, have none and become zero."""
    one = total.dtype.type(1)
    for token in range(len(lse)):
        seen = total[token] if total[token] > 0 else one
        lse[token] += np.log2(seen)
        row = out.data[b * out.sample + h * out.head + token * out.token :]
        mine = head.rows[token, 2 * setting.width :]
        for d in range(setting.depth):
            row[d] = mine[d] / seen


@compiled
def _aligned(rows: int, columns: int, like: Array) -> Array:
    """An empty array [rows, columns] that starts with a cache line: vectors that cross lines are slow."""
    room = np.empty(rows * columns + 64 // like.itemsize, like.dtype)
    start = (-room.ctypes.data % 64) // like.itemsize
    return room[start : start + rows * columns].reshape(rows, columns)


@compiled
def _empty_head(n_tokens: int, n_rounds: int, width: int, like: Array) -> _Head:
    return _Head(
        _aligned(n_tokens, 3 * width, like),
        np.empty(n_tokens, like.dtype),
        np.empty((n_tokens, n_rounds), np.int32),
    )


@compiled
def _empty_window(setting: Setting, n_rounds: int, like: Array) -> _Window:
    size, width = setting.size, setting.width
    return _Window(
        _aligned(2 * size, 3 * width, like),
        np.zeros(2 * size, like.dtype),
        np.zeros((n_rounds, 2 * size + LANES), np.int32),
        _aligned(width, LANES, like),
        _aligned(2 * size, LANES, like),
    )


@compiled
def sort_tokens(bucket: npt.NDArray[np.int64], order: Ints) -> None:
    """Order [R, N] by bucket [R, N], then position: a counting sort."""
    for r in range(len(bucket)):
        mine = bucket[r]
        place = np.zeros(mine.max() + 2, np.int32)  # of the next token of each bucket
        for b in mine:
            place[b + 1] += 1
        for i in range(1, len(place)):
            place[i] += place[i - 1]
        for token, b in enumerate(mine):
            order[r, place[b]] = token
            place[b] += 1


@compiled
def _pack(head: _Head, q: Operand, v: Operand, b: int, h: int, order: Ints, n: int, setting: Setting) -> None:
    """Fill the table of a head; n of its tokens are not hidden."""
    depth, width, n_tokens = setting.depth, setting.width, len(head.rows)
    one, shortest = head.inverse.dtype.type(1), head.inverse.dtype.type(_SHORTEST)
    _copy(q, b, h, n_tokens, depth, head.rows, 0, width)
    _copy(v, b, h, n_tokens, depth, head.rows, width, width)
    for i in range(n_tokens):
        head.inverse[i] = one / max(np.sqrt(_dot(head.rows[i, :width], head.rows[i, :width])), shortest)
    for r in range(len(order)):
        for place in range(n):
            head.chunk[order[r, place], r] = place // setting.size


@compiled
def _copy(x: Operand, b: int, h: int, n: int, depth: int, rows: Array, column: int, width: int) -> None:
    at, line = b * x.sample + h * x.head, 64 // rows.itemsize
    for i in range(n):
        row, to = x.data[at + i * x.token :], rows[i, column:]
        for d in range(0, depth, line):
            prefetch(x.data, at + (i + AHEAD) * x.token + d)
        for d in range(depth):
            to[d] = row[d]
        for d in range(depth, width):
            to[d] = 0.0


@summing
def _dot(a: Array, b: Array) -> Any:
    total = a[0] * b[0]
    for d in range(1, len(a)):
        total += a[d] * b[d]
    return total


@compiled
def _look(
    head: _Head, window: _Window, order: Ints, r: int, top: Array, total: Array, setting: Setting
) -> None:
    """One round of a head."""
    size, width, pitch = setting.size, setting.width, 3 * setting.width
    o, my_top, my_total = (
        _aligned(LANES, width, top),
        np.empty(LANES, top.dtype),
        np.empty(LANES, top.dtype),
    )
    for start in range(0, len(order), size):
        tokens, later = order[start : start + size], order[start + size : start + 2 * size]
        _fetch(head.rows, later)
        _move_on(head, window, tokens, 2 * width, r)
        first, stop = (0 if start else size), size + len(tokens)
        for lane in range(0, len(tokens), LANES):
            mine, query = tokens[lane : lane + LANES], size + lane
            _turn(window.rows[query : query + len(mine)], width, 0, window.turned)
            product(
                window.rows,
                first * pitch,
                pitch,
                1,
                window.turned,
                0,
                LANES,
                window.scores,
                first * LANES,
                LANES,
                stop - first,
                LANES,
                width,
                False,
            )
            _score(window, first, stop, query, r, setting.scale)
            _soften(window.scores, first, stop, my_top, my_total)
            product(
                window.scores,
                first * LANES,
                1,
                LANES,
                window.rows,
                first * pitch + width,
                pitch,
                o,
                0,
                width,
                len(mine),
                width,
                stop - first,
                False,
            )
            _join(head.rows, mine, o, my_top, my_total, top, total)


@compiled
def _fetch(rows: Array, tokens: Ints) -> None:
    line, pitch = 64 // rows.itemsize, rows.shape[1]
    for token in tokens:
        for d in range(0, pitch, line):
            prefetch(rows, token * pitch + d)


@compiled
def _move_on(head: _Head, window: _Window, tokens: Ints, columns: int, n_earlier: int) -> None:
    """The queries' own chunk becomes that before; the rows of `tokens` come in its place."""
    size = len(window.inverse) // 2
    for j in range(size):
        row, to = window.rows[size + j], window.rows[j]
        for d in range(columns):
            to[d] = row[d]
        window.inverse[j] = window.inverse[size + j]
    for r in range(n_earlier):
        chunks = window.chunk[r]
        for j in range(size):
            chunks[j] = chunks[size + j]
    for j in range(len(tokens)):
        row, to, token = head.rows[tokens[j]], window.rows[size + j], tokens[j]
        for d in range(columns):
            to[d] = row[d]
        window.inverse[size + j] = head.inverse[token]
        for r in range(n_earlier):
            window.chunk[r, size + j] = head.chunk[token, r]


@compiled
def _turn(rows: Array, width: int, column: int, turned: Array) -> None:
    """Rows → [width, LANES], zeros in idle lanes."""
    if len(rows) < LANES:
        turned[:, :] = 0.0
    for i in range(len(rows)):
        for d in range(width):
            turned[d, i] = rows[i, column + d]


@compiled
def _score(window: _Window, start: int, stop: int, query: int, n_earlier: int, scale: Any) -> None:
    """Products of queries and keys → scores."""
    for j in range(start, stop):
        s, factor = window.scores[j], scale * window.inverse[j]
        for i in range(LANES):
            s[i] *= factor
        for r in range(n_earlier):
            met, chunks = window.chunk[r, j], window.chunk[r, query:]
            for i in range(LANES):
                if np.uint32(chunks[i] - met) <= 1:
                    s[i] = _HIDDEN
        if not n_earlier and query <= j < query + LANES:
            s[j - query] = _ITSELF


@compiled
def _soften(scores: Array, start: int, stop: int, top: Array, total: Array) -> None:
    top[:], total[:] = 2 * _HIDDEN, 0.0
    for j in range(start, stop):
        s = scores[j]
        for i in range(LANES):
            top[i] = max(top[i], s[i])
    for j in range(start, stop):
        s = scores[j]
        for i in range(LANES):
            weight = exp2(s[i] - top[i])
            s[i] = weight
            total[i] += weight


@compiled
def _join(
    rows: Array, tokens: Ints, o: Array, my_top: Array, my_total: Array, top: Array, total: Array
) -> None:
    width = o.shape[1]
    keep, share, both = np.zeros(LANES, o.dtype), my_top, np.empty(LANES, o.dtype)
    for i in range(len(tokens)):
        keep[i] = top[tokens[i]]
    for i in range(LANES):
        both[i] = max(keep[i], share[i])
        keep[i], share[i] = exp2(keep[i] - both[i]), exp2(share[i] - both[i])
    for i in range(len(tokens)):
        token = tokens[i]
        row, mine = rows[token, 2 * width :], o[i]
        top[token] = both[i]
        total[token] = total[token] * keep[i] + my_total[i] * share[i]
        for d in range(width):
            row[d] = row[d] * keep[i] + mine[d] * share[i]


@compiled
def backward_heads(
    q: Operand, v: Operand, out: Operand, grad: Operand, lse: Array, order: Ints, dq: Operand, dv: Operand,
    setting: Setting, start: int, stop: int,
) -> None:  # fmt: skip
    """Gradients of q and v for heads start … stop − 1."""
    n_rounds, n_tokens, width, depth = order.shape[1], order.shape[2], setting.width, setting.depth
    head, window = _empty_head(n_tokens, n_rounds, width, lse), _empty_window(setting, n_rounds, lse)
    sums, delta = _aligned(n_tokens, 3 * width, lse), np.empty(n_tokens, lse.dtype)
    for group in range(start, stop):
        b, h = group // setting.n_heads, group % setting.n_heads
        n = setting.counts[b]
        _pack(head, q, v, b, h, order[group], n, setting)
        _copy(grad, b, h, n_tokens, depth, head.rows, 2 * width, width)
        for i in range(n_tokens):
            delta[i] = _dot(
                head.rows[i, 2 * width : 2 * width + depth],
                out.data[b * out.sample + h * out.head + i * out.token :],
            )
        sums[:, :] = 0.0
        for r in range(n_rounds):
            _look_back(head, window, order[group, r, :n], r, lse[group], delta, sums, setting)
        for i in range(n_tokens):
            inverse = head.inverse[i]
            along = _dot(head.rows[i, :width], sums[i, width : 2 * width]) * inverse * inverse
            dq_row, dv_row = (
                dq.data[b * dq.sample + h * dq.head + i * dq.token :],
                dv.data[b * dv.sample + h * dv.head + i * dv.token :],
            )
            mine, row = sums[i], head.rows[i]
            for d in range(depth):
                dq_row[d] = mine[d] + mine[width + d] - row[d] * along
            for d in range(depth):
                dv_row[d] = mine[2 * width + d]


@compiled
def _look_back(
    head: _Head, window: _Window, order: Ints, r: int, lse: Array, delta: Array, sums: Array, setting: Setting
) -> None:
    """One round of a head."""
    size, width, pitch = setting.size, setting.width, 3 * setting.width
    g_turned, slopes = _aligned(width, LANES, lse), _aligned(2 * size, LANES, lse)
    mine_sums = _aligned(2 * size, pitch, lse)
    mine_sums[:] = 0
    log, my_delta = np.zeros(LANES, lse.dtype), np.zeros(LANES, lse.dtype)
    for start in range(0, len(order), size):
        tokens, later = order[start : start + size], order[start + size : start + 2 * size]
        _fetch(head.rows, later)
        _fetch(sums, later)
        _move_on(head, window, tokens, pitch, r)
        for j in range(size):
            row, to = mine_sums[size + j], mine_sums[j]
            for d in range(pitch):
                to[d] = row[d]
                row[d] = 0.0
        first, stop = (0 if start else size), size + len(tokens)
        n = stop - first
        for lane in range(0, len(tokens), LANES):
            mine, query = tokens[lane : lane + LANES], size + lane
            _turn(window.rows[query : query + len(mine)], width, 0, window.turned)
            _turn(window.rows[query : query + len(mine)], width, 2 * width, g_turned)
            for i in range(len(mine)):
                log[i], my_delta[i] = lse[mine[i]], delta[mine[i]]
            product(
                window.rows,
                first * pitch,
                pitch,
                1,
                window.turned,
                0,
                LANES,
                window.scores,
                first * LANES,
                LANES,
                n,
                LANES,
                width,
                False,
            )
            product(
                window.rows,
                first * pitch + width,
                pitch,
                1,
                g_turned,
                0,
                LANES,
                slopes,
                first * LANES,
                LANES,
                n,
                LANES,
                width,
                False,
            )
            _score(window, first, stop, query, r, setting.scale)
            _weigh(window, slopes, first, stop, log, my_delta, setting.natural)
            product(
                slopes,
                first * LANES,
                1,
                LANES,
                window.rows,
                first * pitch,
                pitch,
                mine_sums,
                query * pitch,
                pitch,
                len(mine),
                width,
                n,
                False,
            )
            product(
                slopes,
                first * LANES,
                LANES,
                1,
                window.rows,
                query * pitch,
                pitch,
                mine_sums,
                first * pitch + width,
                pitch,
                n,
                width,
                len(mine),
                True,
            )
            product(
                window.scores,
                first * LANES,
                LANES,
                1,
                window.rows,
                query * pitch + 2 * width,
                pitch,
                mine_sums,
                first * pitch + 2 * width,
                pitch,
                n,
                width,
                len(mine),
                True,
            )
        if start:
            _settle(sums, order[start - size : start], mine_sums, 0)
    _settle(sums, tokens, mine_sums, size)


@compiled
def _settle(sums: Array, tokens: Ints, mine: Array, at: int) -> None:
    """The sums of a chunk that no later window adds to."""
    for j in range(len(tokens)):
        row, to = mine[at + j], sums[tokens[j]]
        for d in range(len(row)):
            to[d] += row[d]


@compiled
def _weigh(
    window: _Window, slopes: Array, first: int, stop: int, log: Array, delta: Array, scale: Any
) -> None:
    """Scores → weights, and products with the output's gradient → slopes of the scores times 1/|k|."""
    for j in range(first, stop):
        s, ds, factor = window.scores[j], slopes[j], scale * window.inverse[j]
        for i in range(LANES):
            weight = exp2(s[i] - log[i])
            s[i] = weight
            ds[i] = weight * (ds[i] - delta[i]) * factor
