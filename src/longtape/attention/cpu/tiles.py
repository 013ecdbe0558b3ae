"""Softmax attention of tiles of queries over listed units of keys: the compiled loops of the block-sparse kernel.

Up to 64 queries stand in the lanes, turned to [D, queries]; keys are read where they are, 64 at a time, so that scores
[keys, queries] stay in the first cache and softmax is one operation on every lane. The forward keeps a running
maximum and sum (online softmax, Milakov & Gimelshein 2018); the backward computes the probabilities again from the
log-sum-exp (Dao et al. 2022). Scores and log-sum-exp are in units of log 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, exp2, prefetch, product, summing

LOW = -1e30  # a hidden score: finite, so that a row that sees nothing stays finite
MOST = 64  # queries in the lanes
PANEL = 64  # keys at a time
_NEVER = 1e30  # log-sum-exp of an idle lane: exp2(score − it) is 0
_NO_SCORE = -1e38  # the maximum before any key

Ints = npt.NDArray[np.int64]


class Keys(NamedTuple):
    """Slots of keys: those of the sequence, then `extra` ones (learned tokens, copies of single global tokens)."""

    k: Operand
    v: Operand
    extra_k: Operand
    extra_v: Operand
    n_slots: int  # of the sequence
    n_padded: int  # where the numbers of the extra ones begin
    n_extra: int
    hidden: npt.NDArray[np.uint8]  # [B, n_padded + n_extra], 1 = padding hides it; or [0, 0]


class Work(NamedTuple):
    """Tiles that see equally many keys, in panels: runs of up to MOST slots.

    To the score of key j (counted over a tile's panels) and query i, bias[t·tile_step + j·key_step + i·row_step] is
    added.
    """

    rows: Ints  # [T, tile] the row of each query in q, −1 = idle
    queries: Ints  # [T, tile] the token it belongs to
    starts: Ints  # [T, P] the first slot of each panel
    sizes: Ints  # [P] its slots, some of which may lie behind the end
    columns: Ints  # [P] the number of its first key
    masked: npt.NDArray[np.bool_]  # [P] whether the bias hides anything
    bias: Array
    tile_step: int
    key_step: int
    row_step: int
    tokens: Ints  # [slots] the token in a slot, −1 = not for these queries; [0]: `bias` says all
    causal: bool  # with `tokens`: later ones are hidden
    scattered: Ints  # [T·tile, r] slots of keys of single queries, −1 = none; or [0, 0]
    scattered_from: Ints  # [T] first row of a tile in `scattered`


class Dropout(NamedTuple):
    """Weights are dropped where hash(seed, slice, query, key) < threshold, and scaled elsewhere."""

    threshold: int  # of 2³²; 0 = none
    seed: int
    scale: Any  # a scalar of the array's type


@compiled
def forward_tiles(
    q: Operand,
    keys: Keys,
    out: Operand,
    lse: Operand,
    work: Work,
    dropout: Dropout,
    n_heads: int,
    width: int,
    scale: Any,
    start: int,
    stop: int,
) -> None:
    """Outputs and log-sum-exp of tasks start … stop − 1, task = (sample·n_heads + head)·T + tile."""
    n_tiles, tile = work.rows.shape
    s = np.empty((PANEL, MOST), q.data.dtype)
    k, v = np.empty((PANEL, width), q.data.dtype), np.empty((PANEL, width), q.data.dtype)
    natural, turned = np.empty((MOST, width), q.data.dtype), np.empty((width, MOST), q.data.dtype)
    o, top, total = (
        np.empty((MOST, width), q.data.dtype),
        np.empty(MOST, q.data.dtype),
        np.empty(MOST, q.data.dtype),
    )
    for task in range(start, stop):
        piece, t = task // n_tiles, task % n_tiles
        b, h = piece // n_heads, piece % n_heads
        for first in range(0, tile, MOST):
            rows, queries = work.rows[t, first : first + MOST], work.queries[t, first : first + MOST]
            _take_rows(q, b, h, rows, width, natural)
            _turn(natural, width, scale, turned)
            o[:, :], top[:], total[:] = 0.0, _NO_SCORE, 0.0
            for p in range(len(work.sizes)):
                slot, count = _panel(keys, work, t, p)
                next_slot, next_count = _panel(keys, work, t, p + 1)
                _fetch(keys, b, h, next_slot, next_count, width)
                _take_keys(keys, b, h, slot, count, width, k, v)
                product(k, 0, width, 1, turned, 0, MOST, s, 0, MOST, count, MOST, width, False)
                _hide(s, count, keys, work, b, t, p, slot, queries, first)
                _soften(s, count, top, total, o, width)
                _drop(s, count, dropout, piece, queries, slot)
                product(s, 0, 1, MOST, v, 0, width, o, 0, width, MOST, width, count, True)
            if work.scattered.size:
                slots = work.scattered[work.scattered_from[t] + first :][: len(rows)]
                _scatter_forward(keys, b, h, piece, slots, turned, s, top, total, o, width, dropout, rows)
            _finish(out, lse, b, h, queries, o, top, total, width)


@compiled
def backward_tiles(
    q: Operand,
    keys: Keys,
    out: Operand,
    lse: Operand,
    grad: Operand,
    dq: Operand,
    d_keys: Keys,
    work: Work,
    dropout: Dropout,
    n_heads: int,
    width: int,
    scale: Any,
    natural_scale: Any,
    start: int,
    stop: int,
) -> None:
    """Gradients of the slices start … stop − 1 (sample·n_heads + head); those of keys and values are added to.

    dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O)/√D, dQ = dS·K, dK = dSᵀ·Q.
    """
    kind = q.data.dtype
    k, v = np.empty((PANEL, width), kind), np.empty((PANEL, width), kind)
    s, ds = np.empty((PANEL, MOST), kind), np.empty((PANEL, MOST), kind)
    natural, turned = np.empty((MOST, width), kind), np.empty((width, MOST), kind)
    g, g_turned, o = (
        np.empty((MOST, width), kind),
        np.empty((width, MOST), kind),
        np.empty((MOST, width), kind),
    )
    log, delta = np.empty(MOST, kind), np.empty(MOST, kind)
    one = natural_scale / natural_scale
    for piece in range(start, stop):
        b, h = piece // n_heads, piece % n_heads
        for t in range(work.rows.shape[0]):
            for first in range(0, work.rows.shape[1], MOST):
                rows, queries = work.rows[t, first : first + MOST], work.queries[t, first : first + MOST]
                _take_rows(q, b, h, rows, width, natural)
                _turn(natural, width, scale, turned)
                _take_rows(grad, b, h, queries, width, g)
                _turn(g, width, one, g_turned)
                _take_rows(out, b, h, queries, width, o)
                _differ(g, o, width, delta)
                _take_log(lse, b, h, queries, log)
                o[:, :] = 0.0  # from here on dQ
                for p in range(len(work.sizes)):
                    slot, count = _panel(keys, work, t, p)
                    next_slot, next_count = _panel(keys, work, t, p + 1)
                    _fetch(keys, b, h, next_slot, next_count, width)
                    _fetch(d_keys, b, h, next_slot, next_count, width)
                    _take_keys(keys, b, h, slot, count, width, k, v)
                    dk, dv, dk_at, dv_at = _locate(d_keys, b, h, slot)
                    product(k, 0, width, 1, turned, 0, MOST, s, 0, MOST, count, MOST, width, False)
                    _hide(s, count, keys, work, b, t, p, slot, queries, first)
                    product(v, 0, width, 1, g_turned, 0, MOST, ds, 0, MOST, count, MOST, width, False)
                    _weigh(s, ds, count, log, delta, natural_scale, dropout, piece, queries, slot)
                    product(s, 0, MOST, 1, g, 0, width, dv.data, dv_at, dv.token, count, width, MOST, True)
                    product(
                        ds, 0, MOST, 1, natural, 0, width, dk.data, dk_at, dk.token, count, width, MOST, True
                    )
                    product(ds, 0, 1, MOST, k, 0, width, o, 0, width, MOST, width, count, True)
                if work.scattered.size:
                    slots = work.scattered[work.scattered_from[t] + first :][: len(rows)]
                    _scatter_backward(
                        keys, d_keys, b, h, piece, slots, natural, turned, g, g_turned, s, ds, log, delta,
                        o, width, natural_scale, dropout, rows,
                    )  # fmt: skip
                _put_rows(dq, b, h, rows, o, width)


# --- a tile's rows ---


@compiled
def _take_rows(x: Operand, b: int, h: int, rows: Ints, width: int, taken: Array) -> None:
    """[MOST, width]: the rows, zeros for idle ones."""
    at = b * x.sample + h * x.head
    for i in range(MOST):
        row = rows[i] if i < len(rows) else -1
        if row < 0:
            taken[i, :] = 0.0
        else:
            source = x.data[at + row * x.token :]
            for d in range(width):
                taken[i, d] = source[d]


@compiled
def _turn(natural: Array, width: int, scale: Any, turned: Array) -> None:
    """[MOST, width] → [width, MOST], scaled."""
    for d in range(width):
        for i in range(MOST):
            turned[d, i] = natural[i, d] * scale


@compiled
def _put_rows(x: Operand, b: int, h: int, rows: Ints, values: Array, width: int) -> None:
    at = b * x.sample + h * x.head
    for i in range(len(rows)):
        if rows[i] >= 0:
            place = x.data[at + rows[i] * x.token :]
            for d in range(width):
                place[d] = values[i, d]


@compiled
def _finish(
    out: Operand, lse: Operand, b: int, h: int, rows: Ints, o: Array, top: Array, total: Array, width: int
) -> None:
    """Divide by the sum of the weights and write."""
    for i in range(len(rows)):
        if total[i] > 0:  # else the query has no keys, not even hidden ones: its row stays zero
            for d in range(width):
                o[i, d] /= total[i]
        if rows[i] >= 0:
            lse.data[b * lse.sample + h * lse.head + rows[i] * lse.token] = top[i] + np.log2(total[i])
    _put_rows(out, b, h, rows, o, width)


@summing
def _differ(g: Array, o: Array, width: int, delta: Array) -> None:
    """Σ dO∘O of each row."""
    for i in range(MOST):
        total = g[i, 0] * o[i, 0]
        for d in range(1, width):
            total += g[i, d] * o[i, d]
        delta[i] = total


@compiled
def _take_log(lse: Operand, b: int, h: int, rows: Ints, log: Array) -> None:
    log[:] = _NEVER
    for i in range(len(rows)):
        if rows[i] >= 0:
            log[i] = lse.data[b * lse.sample + h * lse.head + rows[i] * lse.token]


# --- a panel of keys ---


@compiled
def _panel(keys: Keys, work: Work, t: int, p: int) -> tuple[int, int]:
    """First slot of a tile's panel and how many of its slots exist; none after the last."""
    if p >= len(work.sizes):
        return 0, 0
    slot = work.starts[t, p]
    stop = keys.n_slots if slot < keys.n_padded else keys.n_padded + keys.n_extra
    return slot, max(min(work.sizes[p], stop - slot), 0)


@compiled
def _fetch(keys: Keys, b: int, h: int, slot: int, count: int, width: int) -> None:
    """Ask for keys and values that are needed soon: rows of a tensor by tokens lie too far apart to be foreseen."""
    k, v, k_at, v_at = _locate(keys, b, h, slot)
    line = 64 // k.data.itemsize
    for j in range(count):
        for d in range(0, width, line):
            prefetch(k.data, k_at + j * k.token + d)
            prefetch(v.data, v_at + j * v.token + d)


@compiled
def _locate(keys: Keys, b: int, h: int, slot: int) -> tuple[Operand, Operand, int, int]:
    """Keys and values that hold this slot, and where."""
    k, v, row = (
        (keys.k, keys.v, slot) if slot < keys.n_padded else (keys.extra_k, keys.extra_v, slot - keys.n_padded)
    )
    return k, v, b * k.sample + h * k.head + row * k.token, b * v.sample + h * v.head + row * v.token


@compiled
def _take_keys(keys: Keys, b: int, h: int, slot: int, count: int, width: int, k: Array, v: Array) -> None:
    """Copies [count, width]: rows of a tensor by tokens lie so far apart that they share cache sets."""
    from_k, from_v, k_at, v_at = _locate(keys, b, h, slot)
    for j in range(count):
        k_row, v_row = from_k.data[k_at + j * from_k.token :], from_v.data[v_at + j * from_v.token :]
        for d in range(width):
            k[j, d] = k_row[d]
        for d in range(width):
            v[j, d] = v_row[d]


@compiled
def _hide(
    s: Array,
    count: int,
    keys: Keys,
    work: Work,
    b: int,
    t: int,
    p: int,
    slot: int,
    rows: Ints,
    first: int,
) -> None:
    """What the plan, the order of time and padding hide."""
    if work.masked[p]:
        for j in range(count):
            bias = work.bias[
                t * work.tile_step + (work.columns[p] + j) * work.key_step + first * work.row_step :
            ]
            if work.row_step:
                for i in range(len(rows)):
                    s[j, i] += bias[i]
            elif bias[0] < 0:
                s[j, :] = LOW
    if work.tokens.size:
        for j in range(count):
            token = work.tokens[slot + j]
            if token < 0:
                s[j, :] = LOW
            elif work.causal:
                for i in range(len(rows)):
                    if rows[i] < token:
                        s[j, i] = LOW
    if keys.hidden.size:
        for j in range(count):
            if keys.hidden[b, slot + j]:
                s[j, :] = LOW


@compiled
def _soften(s: Array, count: int, top: Array, total: Array, o: Array, width: int) -> None:
    """Scores → weights relative to the new maximum; what was summed so far follows it."""
    higher = np.empty(MOST, s.dtype)
    for i in range(MOST):
        higher[i] = top[i]
    for j in range(0, count - 3, 4):  # four at a time: the maximum is loaded and stored once
        for i in range(MOST):
            a = s[j, i] if s[j, i] > s[j + 1, i] else s[j + 1, i]
            b = s[j + 2, i] if s[j + 2, i] > s[j + 3, i] else s[j + 3, i]
            c = a if a > b else b
            higher[i] = c if c > higher[i] else higher[i]
    for j in range(count - count % 4, count):
        for i in range(MOST):
            higher[i] = s[j, i] if s[j, i] > higher[i] else higher[i]
    rose = False
    for i in range(MOST):
        rose |= higher[i] > top[i]
    if rose:
        for i in range(MOST):
            shrink = exp2(top[i] - higher[i])
            total[i] *= shrink
            top[i] = higher[i]
            for d in range(width):
                o[i, d] *= shrink
    for j in range(count):
        for i in range(MOST):
            weight = exp2(s[j, i] - top[i])
            s[j, i] = weight
            total[i] += weight


@compiled
def _weigh(
    s: Array, ds: Array, count: int, log: Array, delta: Array, scale: Any,
    dropout: Dropout, piece: int, rows: Ints, slot: int,
) -> None:  # fmt: skip
    """Scores s and dP in ds → weights and dS. Dropout acts on both dP and the weights that meet dO."""
    if dropout.threshold:
        _drop(ds, count, dropout, piece, rows, slot)
    for j in range(count):
        for i in range(MOST):
            weight = exp2(s[j, i] - log[i])
            s[j, i] = weight
            ds[j, i] = weight * (ds[j, i] - delta[i]) * scale
    if dropout.threshold:
        _drop(s, count, dropout, piece, rows, slot)


@compiled
def _drop(s: Array, count: int, dropout: Dropout, piece: int, rows: Ints, slot: int) -> None:
    """Zeros where a weight is dropped, scaled elsewhere; the same ones in forward and backward."""
    if dropout.threshold:
        for j in range(count):
            for i in range(len(rows)):
                kept = _hash(dropout.seed, piece, rows[i], slot + j) >= dropout.threshold
                s[j, i] *= dropout.scale * kept


@compiled
def _hash(a: int, b: int, c: int, d: int) -> Any:
    """`pattern.hash32` of four words."""
    h = np.uint64(0)
    low = np.uint64(0xFFFFFFFF)
    for word in (a, b, c, d):
        h = ((h + np.uint64(0x9E3779B9)) & low) ^ (np.uint64(word) & low)
        h ^= h >> np.uint64(16)
        h = (h * np.uint64(0x7FEB352D)) & low
        h ^= h >> np.uint64(15)
        h = (h * np.uint64(0x846CA68B)) & low
        h ^= h >> np.uint64(16)
    return np.int64(h)


# --- keys of single queries ---


@compiled
def _scatter_forward(
    keys: Keys, b: int, h: int, piece: int, slots: Ints, turned: Array,
    s: Array, top: Array, total: Array, o: Array, width: int, dropout: Dropout, rows: Ints,
) -> None:  # fmt: skip
    """Each query looks at keys of its own: [queries, r] slots."""
    r, v = slots.shape[1], keys.v
    _meet(keys.k, b, h, slots, turned, width, s)
    _hide_scattered(keys, b, slots, s)
    _soften(s, r, top, total, o, width)
    _drop_scattered(s, dropout, piece, rows, slots)
    for i in range(len(slots)):
        for c in range(r):
            if slots[i, c] >= 0:
                mine = v.data[b * v.sample + h * v.head + slots[i, c] * v.token :]
                for d in range(width):
                    o[i, d] += s[c, i] * mine[d]


@compiled
def _scatter_backward(
    keys: Keys, d_keys: Keys, b: int, h: int, piece: int, slots: Ints, natural: Array, turned: Array,
    g: Array, g_turned: Array, s: Array, ds: Array, log: Array, delta: Array,
    dq: Array, width: int, scale: Any, dropout: Dropout, rows: Ints,
) -> None:  # fmt: skip
    r, k = slots.shape[1], keys.k
    _meet(keys.k, b, h, slots, turned, width, s)
    _hide_scattered(keys, b, slots, s)
    _meet(keys.v, b, h, slots, g_turned, width, ds)
    _drop_scattered(ds, dropout, piece, rows, slots)
    for c in range(r):
        for i in range(MOST):
            s[c, i] = exp2(s[c, i] - log[i])
            ds[c, i] = s[c, i] * (ds[c, i] - delta[i]) * scale
    _drop_scattered(s, dropout, piece, rows, slots)
    dk, dv = d_keys.k, d_keys.v
    for i in range(len(slots)):
        for c in range(r):
            if slots[i, c] >= 0:
                k_row = k.data[b * k.sample + h * k.head + slots[i, c] * k.token :]
                dk_row = dk.data[b * dk.sample + h * dk.head + slots[i, c] * dk.token :]
                dv_row = dv.data[b * dv.sample + h * dv.head + slots[i, c] * dv.token :]
                weight, slope = s[c, i], ds[c, i]
                for d in range(width):
                    dq[i, d] += slope * k_row[d]
                for d in range(width):
                    dk_row[d] += slope * natural[i, d]
                for d in range(width):
                    dv_row[d] += weight * g[i, d]


@compiled
def _meet(x: Operand, b: int, h: int, slots: Ints, turned: Array, width: int, met: Array) -> None:
    """met[c, i] = Σ_d turned[d, i]·x[slots[i, c], d]: a query's product with each of its own keys."""
    mine = np.zeros((width, MOST), x.data.dtype)
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            row = x.data[b * x.sample + h * x.head + max(slots[i, c], 0) * x.token :]
            for d in range(width):
                mine[d, i] = row[d]
        met[c, :] = 0.0
        for d in range(width):
            for i in range(MOST):
                met[c, i] += turned[d, i] * mine[d, i]


@compiled
def _hide_scattered(keys: Keys, b: int, slots: Ints, s: Array) -> None:
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            slot = slots[i, c]
            if slot < 0 or (keys.hidden.size and keys.hidden[b, slot]):
                s[c, i] = LOW


@compiled
def _drop_scattered(s: Array, dropout: Dropout, piece: int, rows: Ints, slots: Ints) -> None:
    if dropout.threshold:
        for c in range(slots.shape[1]):
            for i in range(len(slots)):
                kept = _hash(dropout.seed, piece, rows[i], slots[i, c]) >= dropout.threshold
                s[c, i] *= dropout.scale * kept
