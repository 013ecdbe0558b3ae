"""Attention within sorted chunks and one chunk back, rounds joined: the compiled loops of Reformer.

A window is a chunk of queries and two chunks of keys, its own and the one before. Up to 64 queries stand in the lanes,
turned to [D, queries]; keys are rows, which all queries in the lanes meet at once. A head is first packed into a table
with a row for every token, near memory to gather from. A row is both query and key: keys come to unit length in the
scores. The forward joins the rounds of a token by a running maximum and sum; the backward computes the weights again
from the log-sum-exp (Dao et al. 2022, arXiv:2205.14135). Scores and log-sum-exp are in units of log 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, exp2, prefetch, product, summing

LANES = 64  # queries at a time, fewer leave lanes idle
_AHEAD = 16  # rows that are asked for before they are read: a head's rows lie too far apart to be foreseen
_HIDDEN = -1e30  # score of a key that an earlier round showed
_ITSELF = -1e20  # score of a token's own key: beaten by any other, beats hidden ones
_NOTHING = -2e30  # the maximum before any key
_SHORTEST = 1e-12  # keys below this length stay below 1

Buckets = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


class Setting(NamedTuple):
    """What all heads share; the scales are scalars of the arrays' type."""

    counts: npt.NDArray[np.int64]  # [B] tokens that are not hidden
    n_heads: int
    size: int  # tokens in a chunk
    depth: int  # D
    width: int  # D in whole vectors
    scale: Any  # of the scores, 1/√D in units of log 2
    slope: Any  # 1/√D


class _Head(NamedTuple):
    """One head by token."""

    rows: Array  # [N, 3·width] q, v, and the output so far or the output's gradient
    inverse: Array  # [N] 1/|q|
    chunk: Ints  # [N, R] chunk in every round


class _Window(NamedTuple):
    """Two chunks of a head: that before in the first `size` rows, the queries' own behind it."""

    rows: Array  # [2·size, 3·width]
    inverse: Array  # [2·size]
    chunk: Ints  # [R, 2·size + lanes]
    turned: Array  # [width, lanes] queries
    scores: Array  # [2·size, lanes], then weights


@compiled
def forward_heads(
    q: Operand, v: Operand, bucket: Buckets, out: Operand, lse: Array, order: Ints,
    setting: Setting, start: int, stop: int,
) -> None:  # fmt: skip
    """Outputs, log-sum-exp [B·H, N] and sorted tokens [B·H, R, N] of heads start … stop − 1; bucket [B·H, R, N].

    Outputs of hidden tokens stay as they are, as do their gradients below.
    """
    head, window = _make_room(order, lse, setting)
    total = np.empty(order.shape[2], lse.dtype)
    for group in range(start, stop):
        b, h = group // setting.n_heads, group % setting.n_heads
        n = setting.counts[b]
        _sort(bucket[group], order[group])
        _pack(head, q, v, b, h, order[group, :, :n], setting)
        head.rows[:, 2 * setting.width :], lse[group], total[:] = 0.0, _NOTHING, 0.0
        for r in range(order.shape[1]):
            _look(head, window, order[group, r, :n], r, lse[group], total, setting)
        for token in range(len(total)):
            if total[token] > 0:  # else it is hidden
                _put_output(
                    head.rows[token, 2 * setting.width :], total[token], setting.depth,
                    out.data[b * out.sample + h * out.head + token * out.token :],
                )  # fmt: skip
                lse[group, token] += np.log2(total[token])


@compiled
def backward_heads(
    q: Operand, v: Operand, out: Operand, grad: Operand, lse: Array, order: Ints, dq: Operand, dv: Operand,
    setting: Setting, start: int, stop: int,
) -> None:  # fmt: skip
    """Gradients of q and v for heads start … stop − 1."""
    width, depth = setting.width, setting.depth
    head, window = _make_room(order, lse, setting)
    sums, delta = np.empty_like(head.rows), np.empty(order.shape[2], lse.dtype)
    for group in range(start, stop):
        b, h = group // setting.n_heads, group % setting.n_heads
        n = setting.counts[b]
        _pack(head, q, v, b, h, order[group, :, :n], setting)
        _copy(grad, b, h, depth, head.rows, 2 * width, width)
        for token in range(len(delta)):
            found = out.data[b * out.sample + h * out.head + token * out.token :]
            delta[token] = _dot(head.rows[token, 2 * width : 2 * width + depth], found)
        sums[:, :] = 0.0
        for r in range(order.shape[1]):
            _look_back(head, window, order[group, r, :n], r, lse[group], delta, sums, setting)
        for token in range(len(delta)):
            if lse[group, token] > _HIDDEN:  # else it is hidden
                _put_gradients(
                    head.rows[token], head.inverse[token], sums[token], depth, width,
                    dq.data[b * dq.sample + h * dq.head + token * dq.token :],
                    dv.data[b * dv.sample + h * dv.head + token * dv.token :],
                )  # fmt: skip


# --- a head ---


@compiled
def _make_room(order: Ints, like: Array, setting: Setting) -> tuple[_Head, _Window]:
    (_, n_rounds, n_tokens), pitch, kind = order.shape, 3 * setting.width, like.dtype
    head = _Head(
        np.empty((n_tokens, pitch), kind), np.empty(n_tokens, kind), np.empty((n_tokens, n_rounds), np.int32)
    )
    window = _Window(
        np.empty((2 * setting.size, pitch), kind),
        np.empty(2 * setting.size, kind),
        np.zeros((n_rounds, 2 * setting.size + LANES), np.int32),
        np.empty((setting.width, LANES), kind),
        np.empty((2 * setting.size, LANES), kind),
    )
    return head, window


@compiled
def _sort(bucket: Buckets, order: Ints) -> None:
    """Tokens [R, N] by rising bucket [R, N], then position: a counting sort."""
    for r in range(len(bucket)):
        mine = bucket[r]
        place = np.zeros(mine.max() + 2, np.int32)  # of the next token of each bucket
        for b in mine:
            place[b + 1] += 1
        for b in range(1, len(place)):
            place[b] += place[b - 1]
        for token, b in enumerate(mine):
            order[r, place[b]] = token
            place[b] += 1


@compiled
def _pack(head: _Head, q: Operand, v: Operand, b: int, h: int, order: Ints, setting: Setting) -> None:
    """The table of a head, whose tokens that are not hidden `order` [R, n] gives sorted."""
    width = setting.width
    _copy(q, b, h, setting.depth, head.rows, 0, width)
    _copy(v, b, h, setting.depth, head.rows, width, width)
    for token in range(len(head.rows)):
        key = head.rows[token, :width]
        head.inverse[token] = 1 / max(np.sqrt(_dot(key, key)), _SHORTEST)
    for r in range(len(order)):
        for place, token in enumerate(order[r]):
            head.chunk[token, r] = place // setting.size


@compiled
def _copy(x: Operand, b: int, h: int, depth: int, rows: Array, column: int, width: int) -> None:
    """A head of x into columns of `rows`, zeros behind D."""
    at, line = b * x.sample + h * x.head, 64 // rows.itemsize
    for token in range(len(rows)):
        for d in range(0, depth, line):
            prefetch(x.data, at + (token + _AHEAD) * x.token + d)
        row, to = x.data[at + token * x.token :], rows[token, column:]
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
def _put_output(found: Array, total: Any, depth: int, out: Array) -> None:
    for d in range(depth):
        out[d] = found[d] / total


@compiled
def _put_gradients(
    row: Array, inverse: Any, sums: Array, depth: int, width: int, dq: Array, dv: Array
) -> None:
    """A token's gradient as query, plus that as key less its part along the key; and that of its value."""
    along = _dot(row[:width], sums[width : 2 * width]) * inverse * inverse
    for d in range(depth):
        dq[d] = sums[d] + sums[width + d] - along * row[d]
    for d in range(depth):
        dv[d] = sums[2 * width + d]


# --- a round ---


@compiled
def _look(
    head: _Head, window: _Window, order: Ints, r: int, top: Array, total: Array, setting: Setting
) -> None:
    """Add what round r shows to outputs, maxima and sums of the tokens, which `order` [n] gives sorted."""
    size, width, pitch = setting.size, setting.width, 3 * setting.width
    o, kind = np.empty((LANES, width), top.dtype), top.dtype
    my_top, my_total = np.empty(LANES, kind), np.empty(LANES, kind)
    for start in range(0, len(order), size):
        tokens = order[start : start + size]
        first, stop = (0 if start else size), size + len(tokens)
        _fetch(head.rows, order[start + size : start + 2 * size])
        _move_on(head, window, tokens, 2 * width, r)
        for lane in range(0, len(tokens), LANES):
            mine, query = tokens[lane : lane + LANES], size + lane
            _score(window, first, stop, query, len(mine), r, setting)
            _soften(window.scores[first:stop], my_top, my_total)
            product(
                window.scores, first * LANES, 1, LANES, window.rows, first * pitch + width, pitch,
                o, 0, width, len(mine), width, stop - first, False,
            )  # fmt: skip
            _join(head.rows[:, 2 * width :], mine, o, my_top, my_total, top, total)


@compiled
def _look_back(
    head: _Head, window: _Window, order: Ints, r: int, lse: Array, delta: Array, sums: Array, setting: Setting
) -> None:
    """Add the gradients of round r to `sums` [N, 3·width]: of q as query, of q/|q| over |q|, of v.

    dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O)/√D, dQ = dS·K, dK = dSᵀ·Q. A chunk's sums are complete after the next window.
    """
    size, width, pitch = setting.size, setting.width, 3 * setting.width
    turned, slopes = np.empty_like(window.turned), np.empty_like(window.scores)
    near, log, pull = np.zeros_like(window.rows), np.zeros(LANES, lse.dtype), np.zeros(LANES, lse.dtype)
    for start in range(0, len(order), size):
        tokens = order[start : start + size]
        first, stop = (0 if start else size), size + len(tokens)
        keys, n = first * pitch, stop - first
        _fetch(head.rows, order[start + size : start + 2 * size])
        _fetch(sums, order[start + size : start + 2 * size])
        _move_on(head, window, tokens, pitch, r)
        _slide(near, pitch)
        near[size:] = 0.0
        for lane in range(0, len(tokens), LANES):
            mine, query = tokens[lane : lane + LANES], (size + lane) * pitch
            for i in range(len(mine)):
                log[i], pull[i] = lse[mine[i]], delta[mine[i]]
            _score(window, first, stop, size + lane, len(mine), r, setting)
            _turn(window.rows[size + lane :, 2 * width :], len(mine), turned)
            product(
                window.rows, keys + width, pitch, 1, turned, 0, LANES,
                slopes, first * LANES, LANES, n, LANES, width, False,
            )  # fmt: skip
            _weigh(
                window.scores[first:stop], slopes[first:stop], window.inverse[first:stop], log, pull, setting
            )
            product(
                slopes, first * LANES, 1, LANES, window.rows, keys, pitch,
                near, query, pitch, len(mine), width, n, False,
            )  # fmt: skip
            product(
                slopes, first * LANES, LANES, 1, window.rows, query, pitch,
                near, keys + width, pitch, n, width, len(mine), True,
            )  # fmt: skip
            product(
                window.scores, first * LANES, LANES, 1, window.rows, query + 2 * width, pitch,
                near, keys + 2 * width, pitch, n, width, len(mine), True,
            )  # fmt: skip
        if start:
            _settle(near[:size], order[start - size : start], sums)
    last = max(len(order) - 1, 0) // size * size
    _settle(near[size:], order[last:], sums)


# --- a window ---


@compiled
def _move_on(head: _Head, window: _Window, tokens: Ints, columns: int, n_earlier: int) -> None:
    """The queries' chunk becomes the chunk before; `tokens` come in its place."""
    size = len(window.inverse) // 2
    _slide(window.rows, columns)
    for j in range(size):
        window.inverse[j] = window.inverse[size + j]
    for r in range(n_earlier):
        chunks = window.chunk[r]
        for j in range(size):
            chunks[j] = chunks[size + j]
    for j in range(len(tokens)):
        row, to = head.rows[tokens[j]], window.rows[size + j]
        for d in range(columns):
            to[d] = row[d]
        window.inverse[size + j] = head.inverse[tokens[j]]
        for r in range(n_earlier):
            window.chunk[r, size + j] = head.chunk[tokens[j], r]


@compiled
def _fetch(rows: Array, tokens: Ints) -> None:
    """Ask for the rows of tokens that come next."""
    line, pitch = 64 // rows.itemsize, rows.shape[1]
    for token in tokens:
        for d in range(0, pitch, line):
            prefetch(rows, token * pitch + d)


@compiled
def _slide(rows: Array, columns: int) -> None:
    """The second half of the rows → the first."""
    size = len(rows) // 2
    for j in range(size):
        row, to = rows[size + j], rows[j]
        for d in range(columns):
            to[d] = row[d]


@compiled
def _turn(rows: Array, count: int, turned: Array) -> None:
    """The first `count` rows → [width, lanes], zeros in idle lanes."""
    if count < turned.shape[1]:
        turned[:, :] = 0.0
    for i in range(count):
        row = rows[i]
        for d in range(len(turned)):
            turned[d, i] = row[d]


@compiled
def _score(
    window: _Window, first: int, stop: int, query: int, count: int, n_earlier: int, setting: Setting
) -> None:
    """Scores of the keys in rows first … stop − 1 for `count` queries from row `query` on."""
    width, pitch, scores = setting.width, 3 * setting.width, window.scores
    _turn(window.rows[query:], count, window.turned)
    product(
        window.rows, first * pitch, pitch, 1, window.turned, 0, LANES,
        scores, first * LANES, LANES, stop - first, LANES, width, False,
    )  # fmt: skip
    for j in range(first, stop):
        s, factor = scores[j], setting.scale * window.inverse[j]
        for i in range(LANES):
            s[i] *= factor
        for r in range(n_earlier):
            key, queries = window.chunk[r, j], window.chunk[r, query:]
            for i in range(LANES):
                if np.uint32(queries[i] - key) <= 1:
                    s[i] = _HIDDEN
        if not n_earlier and query <= j < query + LANES:  # later rounds hide it, as met
            s[j - query] = _ITSELF


@compiled
def _soften(scores: Array, top: Array, total: Array) -> None:
    """Scores [keys, lanes] → weights relative to their maxima `top`, and their sums."""
    top[:], total[:] = _NOTHING, 0.0
    for j in range(len(scores)):
        s = scores[j]
        for i in range(LANES):
            top[i] = max(top[i], s[i])
    for j in range(len(scores)):
        s = scores[j]
        for i in range(LANES):
            weight = exp2(s[i] - top[i])
            s[i] = weight
            total[i] += weight


@compiled
def _join(
    rows: Array, tokens: Ints, o: Array, my_top: Array, my_total: Array, top: Array, total: Array
) -> None:
    """Add a window's outputs `o`, relative to `my_top`, to those of the tokens, relative to `top`."""
    keep, higher = np.zeros_like(my_top), np.empty_like(my_top)
    for i in range(len(tokens)):
        keep[i] = top[tokens[i]]
    for i in range(LANES):
        higher[i] = max(keep[i], my_top[i])
        keep[i], my_top[i] = exp2(keep[i] - higher[i]), exp2(my_top[i] - higher[i])
    for i in range(len(tokens)):
        token, old, new = tokens[i], keep[i], my_top[i]
        row, mine = rows[token], o[i]
        top[token] = higher[i]
        total[token] = total[token] * old + my_total[i] * new
        for d in range(len(mine)):
            row[d] = row[d] * old + mine[d] * new


@compiled
def _weigh(scores: Array, slopes: Array, inverse: Array, log: Array, pull: Array, setting: Setting) -> None:
    """Scores and dP → weights and dS over |key|."""
    for j in range(len(scores)):
        s, ds, factor = scores[j], slopes[j], setting.slope * inverse[j]
        for i in range(LANES):
            weight = exp2(s[i] - log[i])
            s[i] = weight
            ds[i] = weight * (ds[i] - pull[i]) * factor


@compiled
def _settle(near: Array, tokens: Ints, sums: Array) -> None:
    """The sums of a chunk that no later window of the round adds to."""
    for j in range(len(tokens)):
        row, to = near[j], sums[tokens[j]]
        for d in range(len(row)):
            to[d] += row[d]
