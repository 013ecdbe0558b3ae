"""Softmax attention of tiles of queries over listed units of keys: the compiled loops of the block-sparse kernel.

Up to 64 queries stand in the lanes, transposed to [D, queries]; keys are read where they are, 64 at a time, so that
scores [keys, queries] stay in the first cache and softmax is one operation on every lane. The forward keeps a running
maximum and sum (online softmax, Milakov & Gimelshein 2018); the backward computes the probabilities again from the
log-sum-exp (Dao et al. 2022). Scores and log-sum-exp are in units of log 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import Array, Operand, compiled, compiled_sum, exp2, gemm, prefetch

MASKED_SCORE = -1e30  # a hidden score: finite, so that a row that sees nothing stays finite
QUERY_TILE = 64  # queries in the lanes
KEY_TILE = 64  # keys at a time
_IDLE_LSE = 1e30  # log-sum-exp of an idle lane: exp2(score − it) is 0
_NO_MAX = -1e38  # the maximum before any key

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


class TileSchedule(NamedTuple):
    """Tiles of queries that see equally many keys, in key tiles: runs of up to KEY_TILE slots.

    To the score of key j (counted over the key tiles) and query i, bias[t·tile_step + j·key_step + i·row_step] is
    added.
    """

    rows: Ints  # [T, tile] the row of each query in q, −1 = idle
    queries: Ints  # [T, tile] the token it belongs to
    starts: Ints  # [T, P] the first slot of each key tile
    sizes: Ints  # [P] its slots, some of which may lie behind the end
    columns: Ints  # [P] the number of its first key
    masked: npt.NDArray[np.bool_]  # [P] whether the bias hides anything
    bias: Array
    tile_step: int
    key_step: int
    row_step: int
    tokens: Ints  # [slots] the token in a slot, −1 = not for these queries; [0]: `bias` says all
    causal: bool  # with `tokens`: later ones are hidden
    gathered: Ints  # [T·tile, r] slots of keys of single queries, −1 = none; or [0, 0]
    gathered_from: Ints  # [T] first row of a tile in `gathered`


class Dropout(NamedTuple):
    """Weights are dropped where hash(seed, head, query, key) < threshold, and scaled elsewhere."""

    threshold: int  # of 2³²; 0 = none
    seed: int
    scale: Any  # a scalar of the array's type


@compiled
def forward_tiles(
    q: Operand,
    keys: Keys,
    out: Operand,
    lse: Operand,
    schedule: TileSchedule,
    dropout: Dropout,
    n_heads: int,
    width: int,
    scale: Any,
    start: int,
    stop: int,
) -> None:
    """Outputs and log-sum-exp of tasks start … stop − 1, task = (sample·n_heads + head)·T + tile."""
    n_tiles, tile = schedule.rows.shape
    s = np.empty((KEY_TILE, QUERY_TILE), q.data.dtype)
    k, v = np.empty((KEY_TILE, width), q.data.dtype), np.empty((KEY_TILE, width), q.data.dtype)
    q_rows, q_t = np.empty((QUERY_TILE, width), q.data.dtype), np.empty((width, QUERY_TILE), q.data.dtype)
    o, row_max, row_sum = (
        np.empty((QUERY_TILE, width), q.data.dtype),
        np.empty(QUERY_TILE, q.data.dtype),
        np.empty(QUERY_TILE, q.data.dtype),
    )
    for task in range(start, stop):
        head_index, t = task // n_tiles, task % n_tiles
        b, h = head_index // n_heads, head_index % n_heads
        for first in range(0, tile, QUERY_TILE):
            rows, queries = (
                schedule.rows[t, first : first + QUERY_TILE],
                schedule.queries[t, first : first + QUERY_TILE],
            )
            _load_rows(q, b, h, rows, width, q_rows)
            _transpose_scale(q_rows, width, scale, q_t)
            o[:, :], row_max[:], row_sum[:] = 0.0, _NO_MAX, 0.0
            for p in range(len(schedule.sizes)):
                slot, count = _key_tile(keys, schedule, t, p)
                next_slot, next_count = _key_tile(keys, schedule, t, p + 1)
                _prefetch_keys(keys, b, h, next_slot, next_count, width)
                _load_keys(keys, b, h, slot, count, width, k, v)
                gemm(k, 0, width, 1, q_t, 0, QUERY_TILE, s, 0, QUERY_TILE, count, QUERY_TILE, width, False)
                _mask_scores(s, count, keys, schedule, b, t, p, slot, queries, first)
                _online_softmax_update(s, count, row_max, row_sum, o, width)
                _apply_dropout(s, count, dropout, head_index, queries, slot)
                gemm(s, 0, 1, QUERY_TILE, v, 0, width, o, 0, width, QUERY_TILE, width, count, True)
            if schedule.gathered.size:
                slots = schedule.gathered[schedule.gathered_from[t] + first :][: len(rows)]
                _gathered_forward(
                    keys, b, h, head_index, slots, q_t, s, row_max, row_sum, o, width, dropout, rows
                )
            _normalize_and_store(out, lse, b, h, queries, o, row_max, row_sum, width)


@compiled
def backward_tiles(
    q: Operand,
    keys: Keys,
    out: Operand,
    lse: Operand,
    grad: Operand,
    dq: Operand,
    d_keys: Keys,
    schedule: TileSchedule,
    dropout: Dropout,
    n_heads: int,
    width: int,
    scale: Any,
    softmax_scale: Any,
    start: int,
    stop: int,
) -> None:
    """Gradients of the heads start … stop − 1 (sample·n_heads + head); those of keys and values are added to.

    dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O)/√D, dQ = dS·K, dK = dSᵀ·Q.
    """
    kind = q.data.dtype
    k, v = np.empty((KEY_TILE, width), kind), np.empty((KEY_TILE, width), kind)
    s, ds = np.empty((KEY_TILE, QUERY_TILE), kind), np.empty((KEY_TILE, QUERY_TILE), kind)
    q_rows, q_t = np.empty((QUERY_TILE, width), kind), np.empty((width, QUERY_TILE), kind)
    do, do_t, o = (
        np.empty((QUERY_TILE, width), kind),
        np.empty((width, QUERY_TILE), kind),
        np.empty((QUERY_TILE, width), kind),
    )
    lse_rows, delta = np.empty(QUERY_TILE, kind), np.empty(QUERY_TILE, kind)
    one = softmax_scale / softmax_scale
    for head_index in range(start, stop):
        b, h = head_index // n_heads, head_index % n_heads
        for t in range(schedule.rows.shape[0]):
            for first in range(0, schedule.rows.shape[1], QUERY_TILE):
                rows, queries = (
                    schedule.rows[t, first : first + QUERY_TILE],
                    schedule.queries[t, first : first + QUERY_TILE],
                )
                _load_rows(q, b, h, rows, width, q_rows)
                _transpose_scale(q_rows, width, scale, q_t)
                _load_rows(grad, b, h, queries, width, do)
                _transpose_scale(do, width, one, do_t)
                _load_rows(out, b, h, queries, width, o)
                _row_dot(do, o, width, delta)
                _load_lse(lse, b, h, queries, lse_rows)
                o[:, :] = 0.0  # from here on dQ
                for p in range(len(schedule.sizes)):
                    slot, count = _key_tile(keys, schedule, t, p)
                    next_slot, next_count = _key_tile(keys, schedule, t, p + 1)
                    _prefetch_keys(keys, b, h, next_slot, next_count, width)
                    _prefetch_keys(d_keys, b, h, next_slot, next_count, width)
                    _load_keys(keys, b, h, slot, count, width, k, v)
                    dk, dv, dk_at, dv_at = _locate_slot(d_keys, b, h, slot)
                    gemm(
                        k, 0, width, 1, q_t, 0, QUERY_TILE, s, 0, QUERY_TILE, count, QUERY_TILE, width, False
                    )
                    _mask_scores(s, count, keys, schedule, b, t, p, slot, queries, first)
                    gemm(
                        v,
                        0,
                        width,
                        1,
                        do_t,
                        0,
                        QUERY_TILE,
                        ds,
                        0,
                        QUERY_TILE,
                        count,
                        QUERY_TILE,
                        width,
                        False,
                    )
                    _softmax_backward(
                        s, ds, count, lse_rows, delta, softmax_scale, dropout, head_index, queries, slot
                    )
                    gemm(
                        s,
                        0,
                        QUERY_TILE,
                        1,
                        do,
                        0,
                        width,
                        dv.data,
                        dv_at,
                        dv.token,
                        count,
                        width,
                        QUERY_TILE,
                        True,
                    )
                    gemm(
                        ds,
                        0,
                        QUERY_TILE,
                        1,
                        q_rows,
                        0,
                        width,
                        dk.data,
                        dk_at,
                        dk.token,
                        count,
                        width,
                        QUERY_TILE,
                        True,
                    )
                    gemm(ds, 0, 1, QUERY_TILE, k, 0, width, o, 0, width, QUERY_TILE, width, count, True)
                if schedule.gathered.size:
                    slots = schedule.gathered[schedule.gathered_from[t] + first :][: len(rows)]
                    _gathered_backward(
                        keys, d_keys, b, h, head_index, slots, q_rows, q_t, do, do_t, s, ds, lse_rows, delta,
                        o, width, softmax_scale, dropout, rows,
                    )  # fmt: skip
                _store_rows(dq, b, h, rows, o, width)


# --- a tile's rows ---


@compiled
def _load_rows(x: Operand, b: int, h: int, rows: Ints, width: int, taken: Array) -> None:
    """[QUERY_TILE, width]: the rows, zeros for idle ones."""
    at = b * x.sample + h * x.head
    for i in range(QUERY_TILE):
        row = rows[i] if i < len(rows) else -1
        if row < 0:
            taken[i, :] = 0.0
        else:
            source = x.data[at + row * x.token :]
            for d in range(width):
                taken[i, d] = source[d]


@compiled
def _transpose_scale(q_rows: Array, width: int, scale: Any, q_t: Array) -> None:
    """[QUERY_TILE, width] → [width, QUERY_TILE], scaled."""
    for d in range(width):
        for i in range(QUERY_TILE):
            q_t[d, i] = q_rows[i, d] * scale


@compiled
def _store_rows(x: Operand, b: int, h: int, rows: Ints, values: Array, width: int) -> None:
    at = b * x.sample + h * x.head
    for i in range(len(rows)):
        if rows[i] >= 0:
            place = x.data[at + rows[i] * x.token :]
            for d in range(width):
                place[d] = values[i, d]


@compiled
def _normalize_and_store(
    out: Operand,
    lse: Operand,
    b: int,
    h: int,
    rows: Ints,
    o: Array,
    row_max: Array,
    row_sum: Array,
    width: int,
) -> None:
    """Divide by the sum of the weights and write."""
    for i in range(len(rows)):
        if row_sum[i] > 0:  # else the query has no keys, not even hidden ones: its row stays zero
            for d in range(width):
                o[i, d] /= row_sum[i]
        if rows[i] >= 0:
            lse.data[b * lse.sample + h * lse.head + rows[i] * lse.token] = row_max[i] + np.log2(row_sum[i])
    _store_rows(out, b, h, rows, o, width)


@compiled_sum
def _row_dot(do: Array, o: Array, width: int, delta: Array) -> None:
    """Σ dO∘O of each row."""
    for i in range(QUERY_TILE):
        total = do[i, 0] * o[i, 0]
        for d in range(1, width):
            total += do[i, d] * o[i, d]
        delta[i] = total


@compiled
def _load_lse(lse: Operand, b: int, h: int, rows: Ints, lse_rows: Array) -> None:
    lse_rows[:] = _IDLE_LSE
    for i in range(len(rows)):
        if rows[i] >= 0:
            lse_rows[i] = lse.data[b * lse.sample + h * lse.head + rows[i] * lse.token]


# --- a tile of keys ---


@compiled
def _key_tile(keys: Keys, schedule: TileSchedule, t: int, p: int) -> tuple[int, int]:
    """First slot of a key tile and how many of its slots exist; none after the last."""
    if p >= len(schedule.sizes):
        return 0, 0
    slot = schedule.starts[t, p]
    stop = keys.n_slots if slot < keys.n_padded else keys.n_padded + keys.n_extra
    return slot, max(min(schedule.sizes[p], stop - slot), 0)


@compiled
def _prefetch_keys(keys: Keys, b: int, h: int, slot: int, count: int, width: int) -> None:
    """Ask for keys and values that are needed soon: rows of a tensor by tokens lie too far apart to be foreseen."""
    k, v, k_at, v_at = _locate_slot(keys, b, h, slot)
    line = 64 // k.data.itemsize
    for j in range(count):
        for d in range(0, width, line):
            prefetch(k.data, k_at + j * k.token + d)
            prefetch(v.data, v_at + j * v.token + d)


@compiled
def _locate_slot(keys: Keys, b: int, h: int, slot: int) -> tuple[Operand, Operand, int, int]:
    """Keys and values that hold this slot, and where."""
    k, v, row = (
        (keys.k, keys.v, slot) if slot < keys.n_padded else (keys.extra_k, keys.extra_v, slot - keys.n_padded)
    )
    return k, v, b * k.sample + h * k.head + row * k.token, b * v.sample + h * v.head + row * v.token


@compiled
def _load_keys(keys: Keys, b: int, h: int, slot: int, count: int, width: int, k: Array, v: Array) -> None:
    """Copies [count, width]: rows of a tensor by tokens lie so far apart that they share cache sets."""
    from_k, from_v, k_at, v_at = _locate_slot(keys, b, h, slot)
    for j in range(count):
        k_row, v_row = from_k.data[k_at + j * from_k.token :], from_v.data[v_at + j * from_v.token :]
        for d in range(width):
            k[j, d] = k_row[d]
        for d in range(width):
            v[j, d] = v_row[d]


@compiled
def _mask_scores(
    s: Array,
    count: int,
    keys: Keys,
    schedule: TileSchedule,
    b: int,
    t: int,
    p: int,
    slot: int,
    rows: Ints,
    first: int,
) -> None:
    """What layout, causality and padding hide."""
    if schedule.masked[p]:
        for j in range(count):
            bias = schedule.bias[
                t * schedule.tile_step
                + (schedule.columns[p] + j) * schedule.key_step
                + first * schedule.row_step :
            ]
            if schedule.row_step:
                for i in range(len(rows)):
                    s[j, i] += bias[i]
            elif bias[0] < 0:
                s[j, :] = MASKED_SCORE
    if schedule.tokens.size:
        for j in range(count):
            token = schedule.tokens[slot + j]
            if token < 0:
                s[j, :] = MASKED_SCORE
            elif schedule.causal:
                for i in range(len(rows)):
                    if rows[i] < token:
                        s[j, i] = MASKED_SCORE
    if keys.hidden.size:
        for j in range(count):
            if keys.hidden[b, slot + j]:
                s[j, :] = MASKED_SCORE


@compiled
def _online_softmax_update(
    s: Array, count: int, row_max: Array, row_sum: Array, o: Array, width: int
) -> None:
    """Scores → weights relative to the new maximum; what was summed so far follows it."""
    new_max = np.empty(QUERY_TILE, s.dtype)
    for i in range(QUERY_TILE):
        new_max[i] = row_max[i]
    for j in range(0, count - 3, 4):  # four at a time: the maximum is loaded and stored once
        for i in range(QUERY_TILE):
            a = s[j, i] if s[j, i] > s[j + 1, i] else s[j + 1, i]
            b = s[j + 2, i] if s[j + 2, i] > s[j + 3, i] else s[j + 3, i]
            c = a if a > b else b
            new_max[i] = c if c > new_max[i] else new_max[i]
    for j in range(count - count % 4, count):
        for i in range(QUERY_TILE):
            new_max[i] = s[j, i] if s[j, i] > new_max[i] else new_max[i]
    any_rose = False
    for i in range(QUERY_TILE):
        any_rose |= new_max[i] > row_max[i]
    if any_rose:
        for i in range(QUERY_TILE):
            rescale = exp2(row_max[i] - new_max[i])
            row_sum[i] *= rescale
            row_max[i] = new_max[i]
            for d in range(width):
                o[i, d] *= rescale
    for j in range(count):
        for i in range(QUERY_TILE):
            weight = exp2(s[j, i] - row_max[i])
            s[j, i] = weight
            row_sum[i] += weight


@compiled
def _softmax_backward(
    s: Array, ds: Array, count: int, lse_rows: Array, delta: Array, scale: Any,
    dropout: Dropout, head_index: int, rows: Ints, slot: int,
) -> None:  # fmt: skip
    """Scores s and dP in ds → weights and dS. Dropout acts on both dP and the weights that meet dO."""
    if dropout.threshold:
        _apply_dropout(ds, count, dropout, head_index, rows, slot)
    for j in range(count):
        for i in range(QUERY_TILE):
            weight = exp2(s[j, i] - lse_rows[i])
            s[j, i] = weight
            ds[j, i] = weight * (ds[j, i] - delta[i]) * scale
    if dropout.threshold:
        _apply_dropout(s, count, dropout, head_index, rows, slot)


@compiled
def _apply_dropout(s: Array, count: int, dropout: Dropout, head_index: int, rows: Ints, slot: int) -> None:
    """Zeros where a weight is dropped, scaled elsewhere; the same ones in forward and backward."""
    if dropout.threshold:
        for j in range(count):
            for i in range(len(rows)):
                kept = _hash(dropout.seed, head_index, rows[i], slot + j) >= dropout.threshold
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
def _gathered_forward(
    keys: Keys, b: int, h: int, head_index: int, slots: Ints, q_t: Array,
    s: Array, row_max: Array, row_sum: Array, o: Array, width: int, dropout: Dropout, rows: Ints,
) -> None:  # fmt: skip
    """Each query attends to keys of its own: [queries, r] slots."""
    r, v = slots.shape[1], keys.v
    _gathered_dot(keys.k, b, h, slots, q_t, width, s)
    _mask_gathered(keys, b, slots, s)
    _online_softmax_update(s, r, row_max, row_sum, o, width)
    _dropout_gathered(s, dropout, head_index, rows, slots)
    for i in range(len(slots)):
        for c in range(r):
            if slots[i, c] >= 0:
                gathered_rows = v.data[b * v.sample + h * v.head + slots[i, c] * v.token :]
                for d in range(width):
                    o[i, d] += s[c, i] * gathered_rows[d]


@compiled
def _gathered_backward(
    keys: Keys, d_keys: Keys, b: int, h: int, head_index: int, slots: Ints, q_rows: Array, q_t: Array,
    do: Array, do_t: Array, s: Array, ds: Array, lse_rows: Array, delta: Array,
    dq: Array, width: int, scale: Any, dropout: Dropout, rows: Ints,
) -> None:  # fmt: skip
    r, k = slots.shape[1], keys.k
    _gathered_dot(keys.k, b, h, slots, q_t, width, s)
    _mask_gathered(keys, b, slots, s)
    _gathered_dot(keys.v, b, h, slots, do_t, width, ds)
    _dropout_gathered(ds, dropout, head_index, rows, slots)
    for c in range(r):
        for i in range(QUERY_TILE):
            s[c, i] = exp2(s[c, i] - lse_rows[i])
            ds[c, i] = s[c, i] * (ds[c, i] - delta[i]) * scale
    _dropout_gathered(s, dropout, head_index, rows, slots)
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
                    dk_row[d] += slope * q_rows[i, d]
                for d in range(width):
                    dv_row[d] += weight * do[i, d]


@compiled
def _gathered_dot(x: Operand, b: int, h: int, slots: Ints, q_t: Array, width: int, scores: Array) -> None:
    """scores[c, i] = Σ_d q_t[d, i]·x[slots[i, c], d]: a query's product with each of its own keys."""
    gathered_rows = np.zeros((width, QUERY_TILE), x.data.dtype)
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            row = x.data[b * x.sample + h * x.head + max(slots[i, c], 0) * x.token :]
            for d in range(width):
                gathered_rows[d, i] = row[d]
        scores[c, :] = 0.0
        for d in range(width):
            for i in range(QUERY_TILE):
                scores[c, i] += q_t[d, i] * gathered_rows[d, i]


@compiled
def _mask_gathered(keys: Keys, b: int, slots: Ints, s: Array) -> None:
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            slot = slots[i, c]
            if slot < 0 or (keys.hidden.size and keys.hidden[b, slot]):
                s[c, i] = MASKED_SCORE


@compiled
def _dropout_gathered(s: Array, dropout: Dropout, head_index: int, rows: Ints, slots: Ints) -> None:
    if dropout.threshold:
        for c in range(slots.shape[1]):
            for i in range(len(slots)):
                kept = _hash(dropout.seed, head_index, rows[i], slots[i, c]) >= dropout.threshold
                s[c, i] *= dropout.scale * kept
