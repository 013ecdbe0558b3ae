"""Kernels over the past, in float64: each result is made of its own window's values, always in the same order.

A running sum that adds the newest value and subtracts the oldest keeps the rounding of everything it has ever seen, so
its value depends on where the data begins, and one huge value spoils all that follow. Here windows are doubled: the sum
of 2h values is that of the newest h and of the h before, and a window of n is put together from the powers of two in n
(Hillis & Steele 1986, "Data parallel algorithms"). So a row has the same bits wherever the data begin, at log n
additions that the processor does side by side. Moments are taken about the newest value of each part, so that there is
no cancellation at high price levels.

Every function takes a C-contiguous float64 array [T] and returns one of the same length. The first n − 1 rows are NaN,
and so is every window that holds a NaN, and no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile once, keep the machine code on disk, and leave IEEE arithmetic as written (no fast-math)."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


CHUNK = 2_048  # rows whose windows are doubled together, in the cache


@kernel
def rolling_sum(x: Array, n: int) -> Array:
    """Σ of the last n values."""
    out = np.full(len(x), np.nan)
    width = max(CHUNK, 4 * n)
    part, double = np.empty(width + n), np.empty(width + n)
    for start in range(n - 1, len(x), width):
        total = out[start : start + width]
        low, count = start - n + 1, len(total) + n - 1
        part[:count] = x[low : low + count]
        total[:] = 0.0
        size, have, rest = 1, 0, n  # values in a part, values in the total, what is still to be added
        while True:
            if rest & 1:
                _add(total, total, part[n - 1 - have :])
                have += size
            rest >>= 1
            if rest == 0:
                break
            first = 2 * size - 1
            _add(double[first:count], part[first:], part[first - size :])
            part, double, size = double, part, 2 * size
    return out


@kernel
def _add(out: Array, newer: Array, older: Array) -> None:
    for t in range(len(out)):
        out[t] = newer[t] + older[t]


@kernel
def _centred(x: Array, n: int) -> tuple[Array, Array]:
    """x less the mean of the last n ≥ 2 values, and their sample variance."""
    above, variance = np.full(len(x), np.nan), np.full(len(x), np.nan)
    per_n, per_freedom = 1.0 / n, 1.0 / (n - 1)
    width = max(CHUNK, 4 * n)
    ps, pq, ds, dq = np.empty(width + n), np.empty(width + n), np.empty(width + n), np.empty(width + n)
    for start in range(n - 1, len(x), width):
        s, q = above[start : start + width], variance[start : start + width]
        low, count = start - n + 1, len(s) + n - 1
        xs = x[low : low + count]
        ps[:], pq[:], s[:], q[:] = 0.0, 0.0, 0.0, 0.0
        size, have, rest = 1, 0, n
        while True:
            if rest & 1:
                now, at = n - 1, n - 1 - have
                _join_squares(q, q, pq[at:], ps[at:], xs[now:], xs[at:], size)
                _join(s, s, ps[at:], xs[now:], xs[at:], size)
                have += size
            rest >>= 1
            if rest == 0:
                break
            now, at = 2 * size - 1, size - 1
            _join_squares(dq[now:count], pq[now:], pq[at:], ps[at:], xs[now:], xs[at:], size)
            _join(ds[now:count], ps[now:], ps[at:], xs[now:], xs[at:], size)
            ps, ds, pq, dq, size = ds, ps, dq, pq, 2 * size
        for t in range(len(s)):
            q[t] = (q[t] - s[t] * s[t] * per_n) * per_freedom
            s[t] = -s[t] * per_n
    return above, variance


@kernel
def _join_squares(
    out: Array, newer: Array, older: Array, older_s: Array, x: Array, older_x: Array, size: float
) -> None:
    """Sums of squares about x, from `newer` ones about the same and `size` `older` ones about older_x."""
    for t in range(len(out)):
        d = older_x[t] - x[t]
        out[t] = newer[t] + (older[t] + d * (2.0 * older_s[t] + size * d))


@kernel
def _moments(x: Array, y: Array, n: int) -> tuple[Array, Array, Array]:
    """Σ(x − x_t), Σ(y − y_t) and Σ(x − x_t)(y − y_t) over the last n values, t being the newest."""
    out_x, out_y, out_xy = np.full(len(x), np.nan), np.full(len(x), np.nan), np.full(len(x), np.nan)
    width = max(CHUNK, 4 * n)
    px, py, pxy = np.empty(width + n), np.empty(width + n), np.empty(width + n)  # sums of `size` values
    dx, dy, dxy = np.empty(width + n), np.empty(width + n), np.empty(width + n)  # of twice as many
    for start in range(n - 1, len(x), width):
        sx, sy, sxy = (
            out_x[start : start + width],
            out_y[start : start + width],
            out_xy[start : start + width],
        )
        low, count = start - n + 1, len(sx) + n - 1
        xs, ys = x[low : low + count], y[low : low + count]
        px[:], py[:], pxy[:], sx[:], sy[:], sxy[:] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        size, have, rest = 1, 0, n
        while True:
            if rest & 1:
                now, at = n - 1, n - 1 - have
                _join_products(
                    sxy, sxy, pxy[at:], px[at:], py[at:], xs[now:], xs[at:], ys[now:], ys[at:], size
                )
                _join(sx, sx, px[at:], xs[now:], xs[at:], size)
                _join(sy, sy, py[at:], ys[now:], ys[at:], size)
                have += size
            rest >>= 1
            if rest == 0:
                break
            now, at = 2 * size - 1, size - 1
            _join_products(
                dxy[now:count],
                pxy[now:],
                pxy[at:],
                px[at:],
                py[at:],
                xs[now:],
                xs[at:],
                ys[now:],
                ys[at:],
                size,
            )
            _join(dx[now:count], px[now:], px[at:], xs[now:], xs[at:], size)
            _join(dy[now:count], py[now:], py[at:], ys[now:], ys[at:], size)
            px, dx, py, dy, pxy, dxy, size = dx, px, dy, py, dxy, pxy, 2 * size
    return out_x, out_y, out_xy


@kernel
def _join(out: Array, newer: Array, older: Array, x: Array, older_x: Array, size: float) -> None:
    """Sums about x of `newer` values, about the same, and of `size` `older` ones, about older_x."""
    for t in range(len(out)):
        out[t] = newer[t] + (older[t] + size * (older_x[t] - x[t]))


@kernel
def _join_products(
    out: Array,
    newer: Array,
    older: Array,
    older_sx: Array,
    older_sy: Array,
    x: Array,
    older_x: Array,
    y: Array,
    older_y: Array,
    size: float,
) -> None:
    """The same for sums of products."""
    for t in range(len(out)):
        dx, dy = older_x[t] - x[t], older_y[t] - y[t]
        out[t] = newer[t] + (older[t] + dx * (older_sy[t] + size * dy) + dy * older_sx[t])


@kernel
def _root(variance: Array) -> Array:
    for t in range(len(variance)):
        variance[t] = math.sqrt(variance[t]) if not variance[t] < 0.0 else 0.0
    return variance


def rolling_deviation(x: Array, n: int) -> Array:
    """Sample deviation (n − 1 degrees of freedom; 0 for n = 1) of the last n values; exactly 0 where they are equal."""
    return _root(_centred(x, n)[1]) if n > 1 else x - x


def rolling_moments(x: Array, n: int) -> tuple[Array, Array]:
    """Mean of the last n values, and their deviation as `rolling_deviation`."""
    if n == 1:
        return x.copy(), x - x
    above, variance = _centred(x, n)
    return x - above, _root(variance)


def rolling_zscore(x: Array, n: int) -> Array:
    """Distance from the mean of the last n values in their sample deviations; 0 where they are equal."""
    if n == 1:
        return x - x
    above, variance = _centred(x, n)
    return divide(above, _root(variance), 0.0)


@kernel
def rolling_covariance(x: Array, y: Array, n: int) -> tuple[Array, Array, Array]:
    """Sample covariance of x and y, and the variances of both, over the last n ≥ 2 values."""
    sum_x, sum_y, cov = _moments(x, y, n)
    for t in range(len(x)):
        cov[t] = (cov[t] - sum_x[t] * sum_y[t] / n) / (n - 1)
    return cov, _centred(x, n)[1], _centred(y, n)[1]


@kernel
def _larger(a: float, b: float) -> float:
    return a if a > b or math.isnan(a) else b


@kernel
def rolling_max(x: Array, n: int) -> Array:
    """Largest of the last n values."""
    rows, block = len(x), n - 1
    out = np.empty(rows)
    if n == 1:
        out[:] = x
        return out
    out[: min(block, rows)] = np.nan
    tail = np.empty(block)
    for start in range(block, rows, block):
        before, now, to = x[start - block : start], x[start : start + block], out[start : start + block]
        best = -np.inf
        for j in range(block):
            best = _larger(before[block - 1 - j], best)
            tail[block - 1 - j] = best
        best = -np.inf
        for j in range(len(now)):
            best = _larger(now[j], best)
            to[j] = _larger(tail[j], best)
    return out


FORGOTTEN = 1e-12


def memory(alpha: float, forgotten: float = FORGOTTEN) -> int:
    """Rows after which an exponential average has forgotten its start: (1 − α)^rows below `forgotten`."""
    return 1 if alpha >= 1.0 else math.ceil(math.log(forgotten) / math.log1p(-alpha))


def exponential(x: Array, alpha: float, rows: int | None = None) -> Array:
    """Mean of the last `rows` values, by default `memory(alpha)`, with the weights (1 − α)^k: what
    y_t = y_{t−1} + α(x_t − y_{t−1}) comes to when it has forgotten where it began.
    """
    return _exponential(x, 1.0 - alpha, rows or memory(alpha))


@kernel
def _exponential(x: Array, decay: float, n: int) -> Array:
    out = np.full(len(x), np.nan)
    width = max(CHUNK, 4 * n)
    part, double = np.empty(width + n), np.empty(width + n)
    for start in range(n - 1, len(x), width):
        mean = out[start : start + width]
        low, count = start - n + 1, len(mean) + n - 1
        part[:count] = x[low : low + count]
        size, have, rest = 1, 0, n
        while True:
            if rest & 1:
                older = part[n - 1 - have :]
                if have == 0:
                    mean[:] = older[: len(mean)]
                else:
                    _blend(mean, mean, older, _share(decay, have, size))
                have += size
            rest >>= 1
            if rest == 0:
                break
            first = 2 * size - 1
            _blend(double[first:count], part[first:], part[size - 1 :], _share(decay, size, size))
            part, double, size = double, part, 2 * size
    return out


@kernel
def _share(decay: float, newer: int, older: int) -> float:
    """Weight of the `older` values before the `newer` ones, in both together."""
    weight = decay**newer * (1.0 - decay**older)
    return weight / (1.0 - decay**newer + weight)


@kernel
def _blend(out: Array, newer: Array, older: Array, share: float) -> None:
    for t in range(len(out)):
        out[t] = newer[t] + share * (older[t] - newer[t])


@kernel
def grouped_ratio(
    numerator: Array, denominator: Array, group: npt.NDArray[np.int64], otherwise: Array
) -> Array:
    """Σ numerator / Σ denominator from the start of each group to now; `otherwise` while the denominator is 0."""
    out = np.empty(len(numerator))
    above, below = 0.0, 0.0
    for t in range(len(numerator)):
        if t == 0 or group[t] != group[t - 1]:
            above, below = 0.0, 0.0
        above += numerator[t]
        below += denominator[t]
        out[t] = above / below if below > 0.0 else otherwise[t]
    return out


def wilder_rsi(x: Array, n: int) -> Array:
    """RSI of Wilder (1978): average gain and loss with exponential weights of 1/n; 50 where there were neither."""
    change = x - lagged(x, 1)
    up, down = exponential(np.maximum(change, 0.0), 1 / n), exponential(np.maximum(-change, 0.0), 1 / n)
    return divide(100.0 * up, up + down, 50.0)


def rolling_mean(x: Array, n: int) -> Array:
    """Mean of the last n values."""
    out = rolling_sum(x, n)
    out /= n
    return out


def lagged(x: Array, n: int) -> Array:
    """The value n rows ago; the first n rows are NaN."""
    out = np.empty(len(x))
    out[:n] = np.nan
    out[n:] = x[: max(len(x) - n, 0)]
    return out


@kernel
def divide(a: Array, b: Array, otherwise: float) -> Array:
    """a / b; where b is 0, `otherwise` (NaN in a or b stays NaN)."""
    out = np.empty(len(a))
    for t in range(len(a)):
        out[t] = a[t] / b[t] if b[t] != 0.0 else (otherwise if not math.isnan(a[t]) else np.nan)
    return out


def log_ratio(x: Array, n: int) -> Array:
    """ln(x_t / x_{t−n}); the first n rows are NaN."""
    out = np.empty(len(x))
    out[:n] = np.nan
    if len(x) > n:
        np.divide(x[n:], x[:-n], out=out[n:])
        np.log(out[n:], out=out[n:])
    return out
