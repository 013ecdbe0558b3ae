"""Softmax attention of tiles of queries over listed units of keys: the compiled loops of the block-sparse kernel.

Up to 64 queries stand in the lanes, transposed to [D, queries]; keys are read where they are, 64 at a time, so that
scores [keys, queries] stay in the first cache and softmax is one operation on every lane. The forward keeps a running
maximum and sum (online softmax, Milakov & Gimelshein 2018); the backward computes the probabilities again from the
log-sum-exp (Dao et al. 2022). Scores and log-sum-exp are in units of log 2. `docs/attention_tiles.md` draws it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longtape.attention.cpu.simd import BYTES, Array, Operand, compiled, compiled_sum, exp2, gemm, prefetch

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


class Problem(NamedTuple):
    """What forward and backward work on; the scales are scalars of the array's type."""

    q: Operand
    keys: Keys
    out: Operand
    lse: Operand  # [B, H, N, 1]
    n_heads: int
    width: int  # D in whole vectors
    log2_scale: Any  # of the scores, 1/√D in units of log 2
    softmax_scale: Any  # 1/√D
    dropout: Dropout


class Gradients(NamedTuple):
    """The gradient of the output, and where those of the inputs go."""

    out: Operand
    q: Operand
    keys: Keys


class QueryTile(NamedTuple):
    """Up to 64 queries of a head."""

    b: int
    h: int
    head_index: int  # b·n_heads + h
    t: int  # its tile in the schedule
    first: int  # of its queries in the tile
    rows: Ints  # [≤ 64] of q, −1 = idle
    queries: Ints  # [≤ 64] tokens


class Buffers(NamedTuple):
    """What a thread keeps in cache: a key tile, scores of one tile by the other, and a query tile.

    As many lanes as a tile has queries, in whole vectors, at most QUERY_TILE.
    """

    k: Array  # [KEY_TILE, width]
    v: Array  # [KEY_TILE, width]
    s: Array  # [KEY_TILE, lanes] scores, then weights P
    q: Array  # [lanes, width]
    q_t: Array  # [width, lanes] scaled
    o: Array  # [lanes, width] output; in the backward dQ
    row_max: Array  # [lanes]; in the backward the log-sum-exp
    row_sum: Array  # [lanes]; in the backward Σ dO∘O


class GradientBuffers(NamedTuple):
    """What the backward keeps beside them."""

    ds: Array  # [KEY_TILE, lanes] dP, then dS
    do: Array  # [lanes, width]
    do_t: Array  # [width, lanes]


@compiled
def forward_tiles(x: Problem, schedule: TileSchedule, start: int, stop: int) -> None:
    """Outputs and log-sum-exp of tasks start … stop − 1, task = (sample·n_heads + head)·T + tile."""
    n_tiles, size = schedule.rows.shape
    whole, rest = _allocate(x, size), _allocate(x, size % QUERY_TILE)
    for task in range(start, stop):
        for first in range(0, size, QUERY_TILE):
            buffers = whole if first + QUERY_TILE <= size else rest
            tile = _query_tile(x, schedule, task // n_tiles, task % n_tiles, first)
            _load_rows(x.q, tile, tile.rows, buffers.q)
            _transpose_scale(buffers.q, x.log2_scale, buffers.q_t)
            buffers.o[:, :], buffers.row_max[:], buffers.row_sum[:] = 0.0, _NO_MAX, 0.0
            for p in range(len(schedule.sizes)):
                _attend_key_tile(x, schedule, tile, p, buffers)
            if schedule.gathered.size:
                _attend_gathered(x, _gathered_slots(schedule, tile), tile, buffers)
            _normalize_and_store(x, tile, buffers)


@compiled
def backward_tiles(x: Problem, d: Gradients, schedule: TileSchedule, start: int, stop: int) -> None:
    """Gradients of the heads start … stop − 1 (sample·n_heads + head); those of keys and values are added to.

    dV = PᵀdO, dS = P∘(dO·Vᵀ − Σ dO∘O)/√D, dQ = dS·K, dK = dSᵀ·Q.
    """
    size = schedule.rows.shape[1]
    whole, rest = _allocate(x, size), _allocate(x, size % QUERY_TILE)
    whole_more, rest_more = _allocate_gradients(x, size), _allocate_gradients(x, size % QUERY_TILE)
    one = x.softmax_scale / x.softmax_scale
    for head_index in range(start, stop):
        for t in range(schedule.rows.shape[0]):
            for first in range(0, size, QUERY_TILE):
                buffers = whole if first + QUERY_TILE <= size else rest
                more = whole_more if first + QUERY_TILE <= size else rest_more
                tile = _query_tile(x, schedule, head_index, t, first)
                _load_rows(x.q, tile, tile.rows, buffers.q)
                _transpose_scale(buffers.q, x.log2_scale, buffers.q_t)
                _load_rows(d.out, tile, tile.queries, more.do)
                _transpose_scale(more.do, one, more.do_t)
                _load_rows(x.out, tile, tile.queries, buffers.o)
                _row_dot(more.do, buffers.o, buffers.row_sum)
                _load_lse(x.lse, tile, buffers.row_max)
                buffers.o[:, :] = 0.0  # from here on dQ
                for p in range(len(schedule.sizes)):
                    _key_tile_backward(x, d, schedule, tile, p, buffers, more)
                if schedule.gathered.size:
                    _gathered_backward(x, d, _gathered_slots(schedule, tile), tile, buffers, more)
                _store_rows(d.q, tile, tile.rows, buffers.o)


# --- a tile of keys ---


@compiled
def _attend_key_tile(x: Problem, schedule: TileSchedule, tile: QueryTile, p: int, buffers: Buffers) -> None:
    """O += P·V of one key tile, what was summed before brought to the new maximum."""
    keys, s = x.keys, buffers.s  # once: a field that is an array counts its references each time it is read
    slot, count = _key_tile(keys, schedule, tile.t, p)
    next_slot, next_count = _key_tile(keys, schedule, tile.t, p + 1)
    _prefetch_keys(keys, tile, next_slot, next_count, x.width)
    _load_keys(keys, tile, slot, count, buffers)
    _scores(buffers.k, buffers.q_t, count, s)
    _mask_scores(keys, schedule, tile, p, slot, count, s)
    _online_softmax_update(buffers, count)
    _apply_dropout(x.dropout, tile, slot, count, s)
    _add_over_keys(s, buffers.v, count, buffers.o)


@compiled
def _key_tile_backward(
    x: Problem, d: Gradients, schedule: TileSchedule, tile: QueryTile, p: int,
    buffers: Buffers, more: GradientBuffers,
) -> None:  # fmt: skip
    keys, d_keys, s, ds, k = x.keys, d.keys, buffers.s, more.ds, buffers.k
    slot, count = _key_tile(keys, schedule, tile.t, p)
    next_slot, next_count = _key_tile(keys, schedule, tile.t, p + 1)
    _prefetch_keys(keys, tile, next_slot, next_count, x.width)
    _prefetch_keys(d_keys, tile, next_slot, next_count, x.width)
    _load_keys(keys, tile, slot, count, buffers)
    _scores(k, buffers.q_t, count, s)
    _mask_scores(keys, schedule, tile, p, slot, count, s)
    _scores(buffers.v, more.do_t, count, ds)
    _apply_dropout(x.dropout, tile, slot, count, ds)
    _softmax_backward(x, buffers, ds, count)
    _apply_dropout(x.dropout, tile, slot, count, s)
    dk, dv, dk_at, dv_at = _locate_slot(d_keys, tile, slot)
    _add_over_queries(s, more.do, count, dv, dv_at)
    _add_over_queries(ds, buffers.q, count, dk, dk_at)
    _add_over_keys(ds, k, count, buffers.o)


@compiled
def _scores(k: Array, q_t: Array, count: int, s: Array) -> None:
    """S [count, queries] = K·Qᵀ."""
    width, lanes = q_t.shape
    gemm(k, 0, width, 1, q_t, 0, lanes, s, 0, lanes, count, lanes, width, False)


@compiled
def _add_over_keys(s: Array, v: Array, count: int, o: Array) -> None:
    """O [queries, width] += Sᵀ·V."""
    lanes, width = o.shape
    gemm(s, 0, 1, lanes, v, 0, width, o, 0, width, lanes, width, count, True)


@compiled
def _add_over_queries(s: Array, q: Array, count: int, dk: Operand, at: int) -> None:
    """Rows from dk[at] on += S·Q."""
    lanes, width = q.shape
    gemm(s, 0, lanes, 1, q, 0, width, dk.data, at, dk.token, count, width, lanes, True)


@compiled
def _key_tile(keys: Keys, schedule: TileSchedule, t: int, p: int) -> tuple[int, int]:
    """First slot of a key tile and how many of its slots exist; none after the last."""
    if p >= len(schedule.sizes):
        return 0, 0
    slot = schedule.starts[t, p]
    stop = keys.n_slots if slot < keys.n_padded else keys.n_padded + keys.n_extra
    return slot, max(min(schedule.sizes[p], stop - slot), 0)


@compiled
def _prefetch_keys(keys: Keys, tile: QueryTile, slot: int, count: int, width: int) -> None:
    """Ask for keys and values that are needed soon: rows of a tensor by tokens lie too far apart to be foreseen."""
    k, v, k_at, v_at = _locate_slot(keys, tile, slot)
    line = 64 // k.data.itemsize
    for j in range(count):
        for d in range(0, width, line):
            prefetch(k.data, k_at + j * k.token + d)
            prefetch(v.data, v_at + j * v.token + d)


@compiled
def _locate_slot(keys: Keys, tile: QueryTile, slot: int) -> tuple[Operand, Operand, int, int]:
    """Keys and values that hold this slot, and where."""
    k, v, row = (
        (keys.k, keys.v, slot) if slot < keys.n_padded else (keys.extra_k, keys.extra_v, slot - keys.n_padded)
    )
    return k, v, _row_at(k, tile, row), _row_at(v, tile, row)


@compiled
def _row_at(x: Operand, tile: QueryTile, row: int) -> int:
    return tile.b * x.sample + tile.h * x.head + row * x.token


@compiled
def _load_keys(keys: Keys, tile: QueryTile, slot: int, count: int, buffers: Buffers) -> None:
    """Copies [count, width]: rows of a tensor by tokens lie so far apart that they share cache sets."""
    from_k, from_v, k_at, v_at = _locate_slot(keys, tile, slot)
    k, v = buffers.k, buffers.v
    for j in range(count):
        k_row, v_row = from_k.data[k_at + j * from_k.token :], from_v.data[v_at + j * from_v.token :]
        for d in range(k.shape[1]):
            k[j, d] = k_row[d]
        for d in range(k.shape[1]):
            v[j, d] = v_row[d]


@compiled
def _mask_scores(
    keys: Keys, schedule: TileSchedule, tile: QueryTile, p: int, slot: int, count: int, s: Array
) -> None:
    """What layout, causality and padding hide."""
    n = len(tile.rows)
    if schedule.masked[p]:
        at = tile.t * schedule.tile_step + tile.first * schedule.row_step
        for j in range(count):
            bias = schedule.bias[at + (schedule.columns[p] + j) * schedule.key_step :]
            if schedule.row_step:
                for i in range(n):
                    s[j, i] += bias[i]
            elif bias[0] < 0:
                s[j, :] = MASKED_SCORE
    if schedule.tokens.size:
        for j in range(count):
            token = schedule.tokens[slot + j]
            if token < 0:
                s[j, :] = MASKED_SCORE
            elif schedule.causal:
                for i in range(n):
                    if tile.queries[i] < token:
                        s[j, i] = MASKED_SCORE
    if keys.hidden.size:
        for j in range(count):
            if keys.hidden[tile.b, slot + j]:
                s[j, :] = MASKED_SCORE


# --- softmax ---


@compiled
def _online_softmax_update(buffers: Buffers, count: int) -> None:
    """Scores → weights relative to the new maximum; what was summed so far follows it."""
    s, o, row_max, row_sum = buffers.s, buffers.o, buffers.row_max, buffers.row_sum
    lanes = len(row_max)
    new_max = np.empty(lanes, s.dtype)
    for i in range(lanes):
        new_max[i] = row_max[i]
    for j in range(0, count - 3, 4):  # four at a time: the maximum is loaded and stored once
        for i in range(lanes):
            a = s[j, i] if s[j, i] > s[j + 1, i] else s[j + 1, i]
            b = s[j + 2, i] if s[j + 2, i] > s[j + 3, i] else s[j + 3, i]
            c = a if a > b else b
            new_max[i] = c if c > new_max[i] else new_max[i]
    for j in range(count - count % 4, count):
        for i in range(lanes):
            new_max[i] = s[j, i] if s[j, i] > new_max[i] else new_max[i]
    _rescale(row_max, new_max, row_sum, o)
    for j in range(count):
        for i in range(lanes):
            weight = exp2(s[j, i] - row_max[i])
            s[j, i] = weight
            row_sum[i] += weight


@compiled
def _rescale(row_max: Array, new_max: Array, row_sum: Array, o: Array) -> None:
    """Sums and outputs relative to `row_max` → relative to `new_max`, which becomes `row_max`."""
    any_rose, lanes = False, len(row_max)
    for i in range(lanes):
        any_rose |= new_max[i] > row_max[i]
    if any_rose:
        for i in range(lanes):
            factor = exp2(row_max[i] - new_max[i])
            row_sum[i] *= factor
            row_max[i] = new_max[i]
            for d in range(o.shape[1]):
                o[i, d] *= factor


@compiled
def _softmax_backward(x: Problem, buffers: Buffers, ds: Array, count: int) -> None:
    """Scores in s and dP in ds → weights P and dS."""
    s, lse, delta, scale = buffers.s, buffers.row_max, buffers.row_sum, x.softmax_scale
    lanes = len(lse)
    for j in range(count):
        for i in range(lanes):
            weight = exp2(s[j, i] - lse[i])
            s[j, i] = weight
            ds[j, i] = weight * (ds[j, i] - delta[i]) * scale


@compiled
def _apply_dropout(dropout: Dropout, tile: QueryTile, slot: int, count: int, s: Array) -> None:
    """Zeros where a weight is dropped, scaled elsewhere; the same ones in forward and backward."""
    if dropout.threshold:
        for j in range(count):
            for i in range(len(tile.queries)):
                s[j, i] *= _dropout_factor(dropout, tile, tile.queries[i], slot + j)


@compiled
def _dropout_factor(dropout: Dropout, tile: QueryTile, query: int, slot: int) -> Any:
    return dropout.scale * (_hash(dropout.seed, tile.head_index, query, slot) >= dropout.threshold)


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
def _gathered_slots(schedule: TileSchedule, tile: QueryTile) -> Ints:
    """[queries, r] the slots of each query's own keys."""
    return schedule.gathered[schedule.gathered_from[tile.t] + tile.first :][: len(tile.rows)]


@compiled
def _attend_gathered(x: Problem, slots: Ints, tile: QueryTile, buffers: Buffers) -> None:
    """O += P·V of each query's own keys."""
    s, o, v = buffers.s, buffers.o, x.keys.v
    _gathered_dot(x.keys.k, tile, slots, buffers.q_t, s)
    _mask_gathered(x.keys, tile, slots, s)
    _online_softmax_update(buffers, slots.shape[1])
    _dropout_gathered(x.dropout, tile, slots, s)
    for i in range(len(slots)):
        for c in range(slots.shape[1]):
            if slots[i, c] >= 0:
                v_row = v.data[_row_at(v, tile, slots[i, c]) :]
                for d in range(x.width):
                    o[i, d] += s[c, i] * v_row[d]


@compiled
def _gathered_backward(
    x: Problem, d: Gradients, slots: Ints, tile: QueryTile, buffers: Buffers, more: GradientBuffers
) -> None:
    s, ds, k = buffers.s, more.ds, x.keys.k
    _gathered_dot(k, tile, slots, buffers.q_t, s)
    _mask_gathered(x.keys, tile, slots, s)
    _gathered_dot(x.keys.v, tile, slots, more.do_t, ds)
    _dropout_gathered(x.dropout, tile, slots, ds)
    _softmax_backward(x, buffers, ds, slots.shape[1])
    _dropout_gathered(x.dropout, tile, slots, s)
    dk, dv, q, do, dq, width = d.keys.k, d.keys.v, buffers.q, more.do, buffers.o, x.width
    for i in range(len(slots)):
        for c in range(slots.shape[1]):
            if slots[i, c] >= 0:
                k_row = k.data[_row_at(k, tile, slots[i, c]) :]
                dk_row = dk.data[_row_at(dk, tile, slots[i, c]) :]
                dv_row = dv.data[_row_at(dv, tile, slots[i, c]) :]
                weight, slope = s[c, i], ds[c, i]
                for e in range(width):
                    dq[i, e] += slope * k_row[e]
                for e in range(width):
                    dk_row[e] += slope * q[i, e]
                for e in range(width):
                    dv_row[e] += weight * do[i, e]


@compiled
def _gathered_dot(x: Operand, tile: QueryTile, slots: Ints, q_t: Array, scores: Array) -> None:
    """scores[c, i] = Σ_d q_t[d, i]·x[slots[i, c], d]: a query's product with each of its own keys."""
    width, lanes = q_t.shape
    gathered_t = np.zeros((width, lanes), x.data.dtype)
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            row = x.data[_row_at(x, tile, max(slots[i, c], 0)) :]
            for d in range(width):
                gathered_t[d, i] = row[d]
        scores[c, :] = 0.0
        for d in range(width):
            for i in range(lanes):
                scores[c, i] += q_t[d, i] * gathered_t[d, i]


@compiled
def _mask_gathered(keys: Keys, tile: QueryTile, slots: Ints, s: Array) -> None:
    for c in range(slots.shape[1]):
        for i in range(len(slots)):
            slot = slots[i, c]
            if slot < 0 or (keys.hidden.size and keys.hidden[tile.b, slot]):
                s[c, i] = MASKED_SCORE


@compiled
def _dropout_gathered(dropout: Dropout, tile: QueryTile, slots: Ints, s: Array) -> None:
    if dropout.threshold:
        for c in range(slots.shape[1]):
            for i in range(len(slots)):
                s[c, i] *= _dropout_factor(dropout, tile, tile.rows[i], slots[i, c])


# --- a tile of queries ---


@compiled
def _allocate(x: Problem, tile: int) -> Buffers:
    kind, width, lanes = x.q.data.dtype, x.width, _lanes(x, tile)
    return Buffers(
        np.empty((KEY_TILE, width), kind), np.empty((KEY_TILE, width), kind), np.empty((KEY_TILE, lanes), kind),
        np.empty((lanes, width), kind), np.empty((width, lanes), kind), np.empty((lanes, width), kind),
        np.empty(lanes, kind), np.empty(lanes, kind),
    )  # fmt: skip


@compiled
def _allocate_gradients(x: Problem, tile: int) -> GradientBuffers:
    kind, width, lanes = x.q.data.dtype, x.width, _lanes(x, tile)
    return GradientBuffers(
        np.empty((KEY_TILE, lanes), kind), np.empty((lanes, width), kind), np.empty((width, lanes), kind)
    )


@compiled
def _lanes(x: Problem, tile: int) -> int:
    """Queries in whole vectors."""
    vector = BYTES // x.q.data.itemsize
    return min(-(-tile // vector) * vector, QUERY_TILE)


@compiled
def _query_tile(x: Problem, schedule: TileSchedule, head_index: int, t: int, first: int) -> QueryTile:
    return QueryTile(
        head_index // x.n_heads, head_index % x.n_heads, head_index, t, first,
        schedule.rows[t, first : first + QUERY_TILE], schedule.queries[t, first : first + QUERY_TILE],
    )  # fmt: skip


@compiled
def _load_rows(x: Operand, tile: QueryTile, rows: Ints, loaded: Array) -> None:
    """[lanes, width]: the rows, zeros for idle ones."""
    for i in range(len(loaded)):
        row = rows[i] if i < len(rows) else -1
        if row < 0:
            loaded[i, :] = 0.0
        else:
            source = x.data[_row_at(x, tile, row) :]
            for d in range(loaded.shape[1]):
                loaded[i, d] = source[d]


@compiled
def _transpose_scale(rows: Array, scale: Any, transposed: Array) -> None:
    """[lanes, width] → [width, lanes], scaled."""
    for d in range(len(transposed)):
        for i in range(len(rows)):
            transposed[d, i] = rows[i, d] * scale


@compiled
def _store_rows(x: Operand, tile: QueryTile, rows: Ints, values: Array) -> None:
    for i in range(len(rows)):
        if rows[i] >= 0:
            place = x.data[_row_at(x, tile, rows[i]) :]
            for d in range(values.shape[1]):
                place[d] = values[i, d]


@compiled
def _normalize_and_store(x: Problem, tile: QueryTile, buffers: Buffers) -> None:
    """Divide by the sum of the weights and write."""
    rows, o, row_max, row_sum = tile.queries, buffers.o, buffers.row_max, buffers.row_sum
    for i in range(len(rows)):
        if row_sum[i] > 0:  # else the query has no keys, not even hidden ones: its row stays zero
            for d in range(x.width):
                o[i, d] /= row_sum[i]
        if rows[i] >= 0:
            x.lse.data[_row_at(x.lse, tile, rows[i])] = row_max[i] + np.log2(row_sum[i])
    _store_rows(x.out, tile, rows, o)


@compiled_sum
def _row_dot(do: Array, o: Array, delta: Array) -> None:
    """Σ dO∘O of each row."""
    for i in range(len(delta)):
        total = do[i, 0] * o[i, 0]
        for d in range(1, do.shape[1]):
            total += do[i, d] * o[i, d]
        delta[i] = total


@compiled
def _load_lse(lse: Operand, tile: QueryTile, lse_rows: Array) -> None:
    lse_rows[:] = _IDLE_LSE
    for i in range(len(tile.queries)):
        if tile.queries[i] >= 0:
            lse_rows[i] = lse.data[_row_at(lse, tile, tile.queries[i])]
